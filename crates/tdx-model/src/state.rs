//! Everything that changes: the module's state, memory, what was recorded.

use std::collections::HashMap;
use std::sync::Arc;

use crate::abi::{Leaf, PAGE, Status, size_of_level};
use crate::call::HeldLocks;
use crate::config::Config;
use crate::faults::Faults;
use crate::foreign::ForeignHold;
use crate::leaf::sysinit::System;
use crate::lock::Lock;
use crate::memory::Memory;
use crate::stats::Counters;
use crate::td::Td;
use crate::violation::{Log, Stale, Violation, ViolationKind};
use crate::watch::Watch;

/// Outcome of a leaf: an error is any status that is not zero, informational ones included.
pub(crate) type Answer<T = ()> = Result<T, Status>;

/// Everything that changes.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) cfg: Arc<Config>,
    pub(crate) mem: Memory,
    pub(crate) tds: Vec<Option<Td>>,
    pub(crate) keys: Vec<KeyState>,
    pub(crate) system: System,
    /// By package.
    pub(crate) write_backs: Vec<WriteBack>,
    pub(crate) counters: Counters,
    pub(crate) faults: Faults,
    pub(crate) log: Log,
    pub(crate) foreign: Vec<ForeignHold>,
    /// Which call took a page away, where that can go wrong.
    pub(crate) taken: HashMap<u64, (Leaf, u64)>,
    pub(crate) key_table_lock: Lock,
    /// By package.
    pub(crate) write_back_locks: Vec<Lock>,
    /// First bytes of the TDMRs that a TDMR.INIT is at work on.
    pub(crate) tdmr_locks: Vec<u64>,
    /// Locks of calls that pause while others run, by the number of their pause.
    pub(crate) in_flight: Vec<(u64, HeldLocks)>,
    /// In debug builds, what is checked after every call.
    pub(crate) watch: Option<Box<Watch>>,
}

/// A key id in the key ownership table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyState {
    Free,
    /// The module's own key, or not a private one.
    Reserved,
    Assigned,
    /// The TD is blocked; one bit per package whose caches are still to be written back.
    Flushing(u32),
}

/// How far a CACHE.WB came before it was interrupted.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteBack {
    /// Pieces of the cache written back; 0: none is under way.
    pub(crate) done: u64,
    /// Key ids that were waiting when it started.
    pub(crate) keys: Vec<u16>,
}

impl State {
    pub(crate) fn new(cfg: Config) -> Self {
        let hkid = cfg.hkid;
        let keys = (0..1u32 << hkid.bits).map(|key| {
            let private = (u32::from(hkid.private_min)..=u32::from(hkid.private_max)).contains(&key);
            if private && (cfg.cold || key != u32::from(hkid.global)) {
                KeyState::Free
            } else {
                KeyState::Reserved
            }
        });
        Self {
            keys: keys.collect(),
            system: if cfg.cold { System::cold() } else { System::ready() },
            write_backs: vec![WriteBack::default(); cfg.packages as usize],
            write_back_locks: vec![Lock::default(); cfg.packages as usize],
            tdmr_locks: Vec::new(),
            cfg: Arc::new(cfg),
            mem: Memory::new(),
            tds: Vec::new(),
            counters: Counters::default(),
            faults: Faults::default(),
            log: Log::default(),
            foreign: Vec::new(),
            taken: HashMap::new(),
            key_table_lock: Lock::default(),
            in_flight: Vec::new(),
            watch: None,
        }
    }

    /// In debug builds the invariants are checked after every call from now on.
    pub(crate) fn start_watch(&mut self) {
        if cfg!(debug_assertions) {
            self.watch = Some(Box::default());
            self.mem.touched.on = true;
        }
    }

    /// The module's own key is no TD's.
    pub(crate) fn reserve_global_key(&mut self) {
        let global = usize::from(self.cfg.hkid.global);
        self.keys[global] = KeyState::Reserved;
    }

    /// The TD at `index`. Calls only carry indices of TDs that exist.
    pub(crate) fn td(&self, index: usize) -> &Td {
        self.tds[index].as_ref().expect("a TDR page names a TD")
    }

    pub(crate) fn td_mut(&mut self, index: usize) -> &mut Td {
        self.tds[index].as_mut().expect("a TDR page names a TD")
    }

    pub(crate) fn violate(&mut self, kind: ViolationKind, hpa: u64, key: u16) {
        let call = self.counters.total();
        self.log.record(Violation { kind, hpa, key, call, stale: None });
    }

    /// A guest used a cached translation to a page that is not there any more.
    pub(crate) fn violate_stale(&mut self, td: usize, vcpu: usize, gpa: u64, hpa: u64) {
        let taken_by =
            (0..=2u8).find_map(|level| self.taken.get(&(hpa & !(size_of_level(level) - 1))).copied());
        let (call, domain) = (self.counters.total(), self.td(td));
        let stale = Stale { gpa, entered: domain.vcpus[vcpu].epoch, epoch: domain.td_epoch, taken_by };
        let key = domain.hkid;
        self.log.record(Violation {
            kind: ViolationKind::StaleTranslation,
            hpa,
            key,
            call,
            stale: Some(stale),
        });
    }

    /// Bits an S-EPT entry of the TD carries besides the address.
    pub(crate) fn entry_key(&self, td: usize) -> u64 {
        if self.cfg.profile.hkid_in_sept_entry {
            u64::from(self.td(td).hkid) << self.cfg.hkid.start_bit
        } else {
            0
        }
    }

    pub(crate) fn lock_bit(&self) -> u64 {
        1 << self.cfg.profile.entry_lock_bit
    }

    /// Notes that a page changes hands; lines of another key left in a cache would corrupt it later.
    pub(crate) fn donated(&mut self, hpa: u64, pages: u64, key: u16) {
        if let Some((page, dirty)) = self.mem.foreign_dirty(hpa, pages, key)
            && (dirty != 0 || self.cfg.profile.clflush_before_alloc)
        {
            let kind =
                if dirty == 0 { ViolationKind::DonatedUnflushed } else { ViolationKind::ReassignedUnflushed };
            self.violate(kind, page & !(PAGE - 1), dirty);
        }
    }
}
