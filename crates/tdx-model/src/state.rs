//! The module's state, and the checks that leaves have in common.

use std::collections::HashMap;
use std::sync::Arc;

use crate::abi::{Leaf, Lifecycle, Operand, PAGE, PageType, Status, op_state, size_of_level};
use crate::call::{Ctx, Held, HeldLocks};
use crate::config::Config;
use crate::faults::FaultPlan;
use crate::foreign::ForeignHold;
use crate::leaf::sysinit::System;
use crate::lock::{Lock, Mode};
use crate::memory::Memory;
use crate::sept;
use crate::stats::Counters;
use crate::td::{MIN_TDCX, Td};
use crate::violation::{Log, Stale, Violation, ViolationKind};

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
    /// A CACHE.WB was interrupted on the package.
    pub(crate) wb_interrupted: Vec<bool>,
    pub(crate) counters: Counters,
    pub(crate) faults: FaultPlan,
    pub(crate) log: Log,
    pub(crate) foreign: Vec<ForeignHold>,
    /// Which call took a page away, where that can go wrong.
    pub(crate) taken: HashMap<u64, (Leaf, u64)>,
    pub(crate) key_table_lock: Lock,
    /// By package.
    pub(crate) write_back_locks: Vec<Lock>,
    /// Locks of calls that pause while others run, by the number of their pause.
    pub(crate) in_flight: Vec<(u64, HeldLocks)>,
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

/// An S-EPT entry that a walk reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) td: usize,
    pub(crate) gpa: u64,
    pub(crate) level: u8,
    pub(crate) table: u32,
    pub(crate) index: usize,
    /// The entry without its lock bit.
    pub(crate) entry: u64,
}

impl Slot {
    pub(crate) fn state(&self) -> sept::EntryState {
        sept::state_of(self.entry)
    }

    /// The working copy that DEMOTE and REMOVE make: progress of an interrupted ACCEPT is forgotten in it.
    pub(crate) fn without_counter(self) -> Self {
        Self { entry: sept::without_counter(self.entry, self.level), ..self }
    }
}

/// What differs in the common prologue of the S-EPT leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prologue {
    pub(crate) tdr: Mode,
    pub(crate) op_states: u16,
    pub(crate) levels: (u8, u8),
    pub(crate) tree: Option<Mode>,
}

/// Highest level a leaf takes: bounded by the depth of the tree.
pub(crate) const TOP: u8 = 4;

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
            wb_interrupted: vec![false; cfg.packages as usize],
            write_back_locks: vec![Lock::default(); cfg.packages as usize],
            cfg: Arc::new(cfg),
            mem: Memory::new(),
            tds: Vec::new(),
            counters: Counters::default(),
            faults: FaultPlan::default(),
            log: Log::default(),
            foreign: Vec::new(),
            taken: HashMap::new(),
            key_table_lock: Lock::default(),
            in_flight: Vec::new(),
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

    /// Checks the form of an explicit page operand: alignment, key id, width; then that the module may use it.
    pub(crate) fn page_format(&self, hpa: u64, level: u8, op: Operand) -> Answer {
        if !hpa.is_multiple_of(size_of_level(level)) || !self.cfg.plain(hpa) {
            return Err(Status::OPERAND_INVALID.of(op));
        }
        self.page_range(hpa, op)
    }

    pub(crate) fn page_range(&self, hpa: u64, op: Operand) -> Answer {
        if self.cfg.tdmrs.iter().any(|tdmr| tdmr.usable(hpa)) {
            return Ok(());
        }
        Err(Status::OPERAND_ADDR_RANGE_ERROR.of(op))
    }

    /// Walks to an explicit page operand and holds the path; says what was found.
    pub(crate) fn page_walk(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        mode: Mode,
    ) -> Answer<crate::pamt::Found> {
        let walk = self.mem.pamt_walk(&self.cfg, hpa, level, mode);
        let found = walk.map_err(|_| Status::OPERAND_BUSY.of(op))?;
        c.hold(Held::Path(hpa, found.level, mode));
        Ok(found)
    }

    /// The whole check of a page operand that must be of `kind`.
    pub(crate) fn page_operand(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        kind: PageType,
        mode: Mode,
    ) -> Answer {
        self.page_format(hpa, level, op)?;
        let found = self.page_walk(c, hpa, level, op, mode)?;
        let dynamic = self.cfg.profile.dynamic_pamt;
        if dynamic && kind == PageType::Nda && level == 0 {
            if found.level == 1 && found.entry.kind() == PageType::Nda {
                return Err(Status::MISSING_PAMT_PAGE_PAIR.of(op));
            }
            if self.mem.is_pamt_page(&self.cfg, hpa) {
                return Err(Status::PAGE_METADATA_INCORRECT.of(op));
            }
        }
        if found.level != level || found.entry.kind() != kind {
            return Err(Status::PAGE_METADATA_INCORRECT.of(op));
        }
        Ok(())
    }

    /// A free 4 KiB page that the call takes over.
    pub(crate) fn new_page(&mut self, c: &mut Ctx, hpa: u64, op: Operand) -> Answer {
        self.page_operand(c, hpa, 0, op, PageType::Nda, Mode::Exclusive)
    }

    /// Locks the PAMT entry of a page that the call found by itself.
    pub(crate) fn implicit_page(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        mode: Mode,
    ) -> Answer {
        let lock = self.mem.pamt_lock(&self.cfg, hpa, level, mode);
        lock.map_err(|_| Status::OPERAND_BUSY.of(op))?;
        c.hold(Held::Page(hpa, level, mode));
        Ok(())
    }

    /// A TDR page operand.
    pub(crate) fn tdr_operand(&mut self, c: &mut Ctx, hpa: u64, op: Operand, mode: Mode) -> Answer<usize> {
        self.page_operand(c, hpa, 0, op, PageType::Tdr, mode)?;
        Ok(self.mem.cell(hpa).value() as usize)
    }

    /// The TD can be worked on: not fatal, its key configured.
    pub(crate) fn keyed(&self, td: usize) -> Answer {
        let td = self.td(td);
        if td.fatal {
            return Err(Status::TD_FATAL);
        }
        if td.lifecycle != Lifecycle::KeysConfigured {
            return Err(Status::TD_KEYS_NOT_CONFIGURED);
        }
        Ok(())
    }

    /// The TD has its control structure.
    pub(crate) fn ready(&self, td: usize) -> Answer {
        self.keyed(td)?;
        if self.td(td).tdcx.len() < MIN_TDCX {
            return Err(Status::TDCS_NOT_ALLOCATED);
        }
        Ok(())
    }

    pub(crate) fn allow_op_state(&self, td: usize, allowed: u16) -> Answer {
        if op_state::within(self.td(td).op_state, allowed) { Ok(()) } else { Err(Status::OP_STATE_INCORRECT) }
    }

    /// Takes the operation-state lock and checks the state.
    pub(crate) fn lock_op_state(&mut self, c: &mut Ctx, td: usize, allowed: u16) -> Answer {
        if !self.td_mut(td).op_lock.acquire(Mode::Shared) {
            return Err(Status::OPERAND_BUSY.of(Operand::OpState));
        }
        c.hold(Held::OpState(td));
        self.allow_op_state(td, allowed)
    }

    /// The TD operand of an S-EPT leaf, up to the check of its operation state.
    pub(crate) fn open_td(&mut self, c: &mut Ctx, hpa: u64, p: &Prologue) -> Answer<usize> {
        let td = self.tdr_operand(c, hpa, Operand::Rdx, p.tdr)?;
        self.ready(td)?;
        match p.tdr {
            Mode::Shared => self.lock_op_state(c, td, p.op_states)?,
            Mode::Exclusive => self.allow_op_state(td, p.op_states)?,
        }
        Ok(td)
    }

    /// The GPA-and-level operand, the tree lock, the walk.
    pub(crate) fn locate(&mut self, c: &mut Ctx, td: usize, p: &Prologue) -> Answer<Slot> {
        let (gpa, level) = self.gpa_operand(c.regs.rcx, td, p.levels)?;
        if let Some(mode) = p.tree {
            self.lock_tree(c, td, mode)?;
        }
        let slot = self.walk(td, gpa, level);
        if slot.level != level {
            return Err(self.details(c, &slot, Status::EPT_WALK_FAILED));
        }
        Ok(slot)
    }

    /// The whole prologue of a leaf that locks the entry it works on.
    pub(crate) fn open_entry(&mut self, c: &mut Ctx, p: &Prologue) -> Answer<Slot> {
        let td = self.open_td(c, c.regs.rdx, p)?;
        self.open_entry_of(c, td, p)
    }

    /// [`Self::open_entry`] from the GPA operand on.
    pub(crate) fn open_entry_of(&mut self, c: &mut Ctx, td: usize, p: &Prologue) -> Answer<Slot> {
        let slot = self.locate(c, td, p)?;
        self.lock_entry(c, slot)
    }

    fn gpa_operand(&self, rcx: u64, td: usize, levels: (u8, u8)) -> Answer<(u64, u8)> {
        let (gpa, level) = (rcx & !0xFFF, (rcx & 7) as u8);
        let td = self.td(td);
        let well_formed = rcx & 0xFF8 == 0
            && (levels.0..=levels.1.min(td.root_level)).contains(&level)
            && gpa % size_of_level(level) == 0
            && td.is_private(gpa);
        if well_formed { Ok((gpa, level)) } else { Err(Status::OPERAND_INVALID.of(Operand::Rcx)) }
    }

    pub(crate) fn lock_tree(&mut self, c: &mut Ctx, td: usize, mode: Mode) -> Answer {
        if !self.td_mut(td).tree_lock.acquire(mode) {
            return Err(Status::OPERAND_BUSY.of(Operand::SeptTree));
        }
        c.hold(Held::Tree(td, mode));
        Ok(())
    }

    /// Walks towards `level`; the slot says how far it came.
    pub(crate) fn walk(&self, td: usize, gpa: u64, level: u8) -> Slot {
        let domain = self.td(td);
        let (mut at, mut table) = (domain.root_level, domain.root);
        let mask = self.cfg.address_mask();
        loop {
            let index = Td::index(gpa, at);
            let entry = self.mem.table(table)[index];
            if at > level
                && sept::walkable(entry)
                && let Some(next) = self.mem.table_at(entry & mask)
            {
                (at, table) = (at - 1, next);
                continue;
            }
            return Slot { td, gpa, level: at, table, index, entry: entry & !self.lock_bit() };
        }
    }

    /// Takes the lock of the entry for the host and reads the entry again.
    pub(crate) fn lock_entry(&mut self, c: &mut Ctx, slot: Slot) -> Answer<Slot> {
        let bit = self.lock_bit();
        let entry = &mut self.mem.table_mut(slot.table)[slot.index];
        if *entry & bit != 0 {
            *entry |= sept::HOST_PRIORITY;
            return Err(self.details(c, &slot, Status::OPERAND_BUSY));
        }
        *entry = (*entry | bit) & !sept::HOST_PRIORITY;
        let entry = *entry & !bit;
        c.hold(Held::Entry(slot.table, slot.index));
        Ok(Slot { entry, ..slot })
    }

    /// Puts what the entry looks like into RCX and RDX.
    pub(crate) fn details(&self, c: &mut Ctx, slot: &Slot, status: Status) -> Status {
        c.out.rcx = sept::shown(&self.cfg, slot.entry);
        c.out.rdx = sept::shown_info(slot.entry, slot.level);
        status.of(Operand::Rcx)
    }

    /// The entry is in one of the `states`.
    pub(crate) fn allow_state(&self, c: &mut Ctx, slot: &Slot, states: u16) -> Answer {
        if slot.state().is_in(states) {
            return Ok(());
        }
        Err(self.details(c, slot, Status::EPT_ENTRY_STATE_INCORRECT))
    }

    /// In a tracked operation state: the entry is blocked and its epoch retired.
    pub(crate) fn require_tracking(&self, c: &mut Ctx, slot: &Slot, page: u64, page_level: u8) -> Answer {
        if !self.cfg.tracking_enforced || !self.td(slot.td).is_tracked() || !slot.state().needs_tracking() {
            return Ok(());
        }
        if !slot.state().any_blocked() {
            return Err(self.details(c, slot, Status::GPA_RANGE_NOT_BLOCKED));
        }
        let bepoch = self.mem.entry(page, page_level).bepoch;
        if !self.td(slot.td).tracking_done(bepoch) {
            return Err(Status::TLB_TRACKING_NOT_DONE.of(Operand::Rcx));
        }
        Ok(())
    }

    /// Writes the entry; the call's lock on it stays.
    pub(crate) fn set_entry(&mut self, slot: &Slot, entry: u64) {
        let bit = self.lock_bit();
        let word = &mut self.mem.table_mut(slot.table)[slot.index];
        *word = entry | *word & bit;
    }

    /// The page the entry names, and the level of its PAMT entry.
    pub(crate) fn page_of(&self, slot: &Slot) -> (u64, u8) {
        let level = if slot.entry & sept::LEAF != 0 { slot.level } else { 0 };
        (sept::address(&self.cfg, slot.entry, slot.level), level)
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
