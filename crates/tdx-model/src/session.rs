//! Access to the module's state, which a call gives up at chosen points while it keeps its modelled locks.
//!
//! The state is behind one mutex, but contention is not for that mutex: a call that pauses holds the locks of the
//! module, and whoever runs meanwhile finds them taken and gets OPERAND_BUSY as from the module.

use core::fmt;
use core::ops::{Deref, DerefMut};
use std::sync::{Arc, MutexGuard};

use crate::abi::Leaf;
use crate::call::Ctx;
use crate::machine::Machine;
use crate::state::State;

/// Where a call pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The locks that its operands name are taken: TD, operation state, tree, entry, pages.
    Locked,
    /// Everything is checked and every lock taken; next comes the effect. (DEMOTE still has its last checks before it,
    /// PROMOTE those of the children.)
    Commit,
}

/// A call that pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    /// Its logical processor; for a guest the one that its vCPU runs on.
    pub lp: u32,
    /// Its leaf. `None`: a guest's PAGE.ACCEPT.
    pub leaf: Option<Leaf>,
    /// Where.
    pub point: Point,
}

/// What a call does where it pauses.
pub type PauseHook = Arc<dyn Fn(&Machine, Pause) + Send + Sync>;

/// Whether calls of several threads overlap.
#[derive(Clone, Default)]
pub enum Contention {
    /// A call is over before the next begins; contention comes only from [`Machine::hold_entry`] and its like.
    None,
    /// Where a call pauses, it gives way to another thread that waits to make one. A single thread notices nothing.
    #[default]
    Yield,
    /// A call runs this where it pauses: it may wait for another thread, or make calls of another processor itself.
    Hook(PauseHook),
}

impl fmt::Debug for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Yield => "Yield",
            Self::Hook(_) => "Hook(..)",
        })
    }
}

/// The state, exclusively, until a pause.
pub(crate) struct Session<'m> {
    machine: &'m Machine,
    /// Absent only inside of a pause.
    guard: Option<MutexGuard<'m, State>>,
}

const HELD: &str = "a session has the state, except while it pauses";

impl Deref for Session<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_deref().expect(HELD)
    }
}

impl DerefMut for Session<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_deref_mut().expect(HELD)
    }
}

impl<'m> Session<'m> {
    pub(crate) fn new(machine: &'m Machine) -> Self {
        Self { machine, guard: Some(machine.lock()) }
    }

    /// Lets others run, with the locks of `c` held. What the call read under its locks stays as it is.
    pub(crate) fn pause(&mut self, c: &Ctx, point: Point) {
        let gives_way = match self.machine.contention() {
            Contention::None => false,
            Contention::Yield => self.machine.others_wait(),
            Contention::Hook(_) => true,
        };
        if gives_way {
            self.give_way(c, point);
        }
    }

    #[cold]
    fn give_way(&mut self, c: &Ctx, point: Point) {
        let number = self.in_flight.last().map_or(0, |(number, _)| number + 1);
        self.in_flight.push((number, c.held()));
        self.verify();
        self.guard = None;
        match self.machine.contention() {
            Contention::None => {}
            Contention::Yield => self.machine.let_others_in(),
            Contention::Hook(hook) => hook(self.machine, Pause { lp: c.lp, leaf: c.known_leaf(), point }),
        }
        self.guard = Some(self.machine.lock());
        self.in_flight.retain(|&(paused, _)| paused != number);
    }

    /// Panics when an invariant is broken: in debug builds by what changed, on an audited machine anywhere.
    pub(crate) fn verify(&mut self) {
        let broken = self.check_changes(false);
        assert!(broken.is_empty(), "invariants broken: {broken:#?}");
        if self.cfg.audit {
            let broken = self.check_invariants();
            assert!(broken.is_empty(), "invariants broken: {broken:#?}");
        }
    }
}
