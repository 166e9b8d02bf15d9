//! The machine: one mutex around the module's state and memory, logical processors as transports.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use seamcall::{Call, Regs, Transport};
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{Leaf, Lifecycle, PageType, Status};
use crate::faults::{Fault, FaultPlan, Interrupts};
use crate::sept::{self, EntryState};
use crate::session::{Contention, Session};
use crate::state::State;
use crate::stats::{Counters, Stats};
use crate::violation::{Log, Violation};

/// A platform with a TDX module in it. Shared by reference between threads.
#[derive(Debug)]
pub struct Machine {
    state: Mutex<State>,
    contention: Contention,
    /// Threads that wait for the state, and how often one that waited got it.
    waiting: AtomicU32,
    turns: AtomicU32,
}

/// One logical processor of a [`Machine`]: the transport that a host uses.
#[derive(Clone, Copy, Debug)]
pub struct Lp<'m> {
    machine: &'m Machine,
    number: u32,
}

impl<'m> Lp<'m> {
    /// Makes a SEAMCALL with any registers. On the model every register file is harmless.
    #[must_use]
    pub fn raw(&self, regs: Regs) -> Regs {
        self.machine.with(|state| {
            let out = state.seamcall(self.number, regs);
            let code = Status(out.rax).code();
            // A list is worked off entry by entry up to a bad one.
            let in_parts =
                code == Status::INTERRUPTED_RESUMABLE.0 || regs.rax as u16 == Leaf::ExportBlockw as u16;
            let refused = code != 0 && !in_parts;
            let broken = state.check_changes(refused);
            assert!(broken.is_empty(), "{regs:x?} answered {out:x?} and broke invariants: {broken:#?}");
            out
        })
    }

    pub(crate) const fn machine(&self) -> &'m Machine {
        self.machine
    }

    /// Number of this logical processor.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl Transport for Lp<'_> {
    fn call(&self, call: Call) -> Regs {
        self.raw(call.regs())
    }
}

/// What a TD's control structures say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdInfo {
    /// Life cycle state.
    pub lifecycle: Lifecycle,
    /// Operation state, as numbered by the ABI.
    pub op_state: u8,
    /// A machine check was consumed, or worse.
    pub fatal: bool,
    /// 4 KiB pages that belong to the TD besides its TDR.
    pub chldcnt: u64,
    /// Current epoch.
    pub td_epoch: u64,
    /// vCPUs inside that entered in an even and in an odd epoch.
    pub refcount: [u16; 2],
    /// The TD's key id.
    pub hkid: u16,
    /// Fold of everything measured so far.
    pub measurement: u64,
}

/// An S-EPT entry as the model stores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawEntry {
    /// Level where the walk ended.
    pub level: u8,
    /// State.
    pub state: EntryState,
    /// All 64 bits.
    pub raw: u64,
    /// The page it names.
    pub hpa: u64,
}

/// The PAMT leaf entry of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageInfo {
    /// Type.
    pub kind: PageType,
    /// Size level of the entry.
    pub level: u8,
    /// Owner field as stored.
    pub owner: u64,
    /// BEPOCH as stored.
    pub bepoch: u64,
}

impl Machine {
    pub(crate) const fn new(state: State, contention: Contention) -> Self {
        let (waiting, turns) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { state: Mutex::new(state), contention, waiting, turns }
    }

    pub(crate) fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    pub(crate) const fn contention(&self) -> &Contention {
        &self.contention
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
        guard
    }

    /// Whether other threads wait for the state.
    pub(crate) fn others_wait(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Lets a thread that waits have its turn. It may be gone by now, so not for ever.
    pub(crate) fn let_others_in(&self) {
        /// More than a thread needs to wake up.
        const PATIENCE: u32 = 1000;
        let before = self.turns.load(Ordering::Relaxed);
        for _ in 0..PATIENCE {
            std::thread::yield_now();
            if self.turns.load(Ordering::Relaxed) != before || !self.others_wait() {
                break;
            }
        }
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Session<'_>) -> T) -> T {
        let mut session = self.session();
        let result = work(&mut session);
        session.verify();
        result
    }

    /// Logical processor `number`. All numbers exist; packages take them in turn.
    #[must_use]
    pub const fn lp(&self, number: u32) -> Lp<'_> {
        Lp { machine: self, number }
    }

    /// The TD whose TDR page is at `tdr`.
    #[must_use]
    pub fn td(&self, tdr: Hpa) -> Option<TdInfo> {
        self.with(|state| {
            let td = state.td(state.td_of(tdr.raw())?);
            Some(TdInfo {
                lifecycle: td.lifecycle,
                op_state: td.op_state,
                fatal: td.fatal,
                chldcnt: td.chldcnt,
                td_epoch: td.td_epoch,
                refcount: td.refcount,
                hkid: td.hkid,
                measurement: td.measurement,
            })
        })
    }

    /// Puts the TD into an operation state (0 to 10) that only leaves of migration lead to, which the model lacks.
    /// Says whether there is such a TD and such a state.
    #[must_use]
    pub fn set_op_state(&self, tdr: Hpa, op_state: u8) -> bool {
        self.with(|state| {
            let td = state.td_of(tdr.raw()).filter(|_| op_state <= 10);
            td.is_some_and(|td| {
                state.td_mut(td).op_state = op_state;
                true
            })
        })
    }

    /// The S-EPT entry where a walk to `level` ends, without any check or lock.
    #[must_use]
    pub fn entry(&self, tdr: Hpa, gpa: Gpa, level: Level) -> Option<RawEntry> {
        self.with(|state| {
            let slot = state.walk(state.td_of(tdr.raw())?, gpa.raw(), level.raw());
            let raw = state.mem.table(slot.table)[slot.index];
            let hpa = sept::address(&state.cfg, raw, slot.level);
            Some(RawEntry { level: slot.level, state: slot.state(), raw, hpa })
        })
    }

    /// The PAMT entry that describes the page.
    #[must_use]
    pub fn page(&self, page: Hpa) -> PageInfo {
        self.with(|state| {
            let found = state.mem.leaf_entry(&state.cfg, page.raw());
            PageInfo {
                kind: found.entry.kind(),
                level: found.level,
                owner: found.entry.owner(),
                bepoch: found.entry.bepoch,
            }
        })
    }

    /// How many violations were recorded.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.with(|state| state.log.count())
    }

    /// The first recorded violations in full.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.with(|state| state.log.first().to_vec())
    }

    /// Forgets all violations.
    pub fn clear_violations(&self) {
        self.with(|state| state.log = Log::default());
    }

    /// Calls and answers since the last reset.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.with(|state| state.counters.snapshot())
    }

    /// Starts counting anew.
    pub fn reset_stats(&self) {
        self.with(|state| state.counters = Counters::default());
    }

    /// Orders faults, beside those that were ordered before.
    pub fn order(&self, plan: FaultPlan) {
        self.with(|state| state.faults.order(plan));
    }

    /// Orders an answer.
    pub fn inject(&self, fault: Fault) {
        self.order(FaultPlan::new().answer(fault));
    }

    /// Withdraws everything that was ordered and has not struck, interrupts included.
    pub fn clear_faults(&self) {
        self.with(|state| state.faults.clear());
    }

    /// Sets what the interrupt-pending register will show, or that it shows nothing.
    pub fn set_interrupts(&self, interrupts: Option<Interrupts>) {
        self.with(|state| state.faults.set_interrupts(interrupts));
    }
}
