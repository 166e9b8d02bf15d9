//! A TEE for tests: its own model of the external table, which refuses what a TDX module would refuse.

mod external;
mod hooks;
mod model;

use crate::{
    CacheKey, Class, Classify, Donated, Frame, FrameKind, FrameNeeds, Gpa, GpaEntry, Hpa, LeafState, Level,
};
use model::Model;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    vec::Vec,
};

/// The calls of [`External`](crate::External) that [`MockTee`] counts and can make fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[expect(clippy::exhaustive_enums, reason = "one for each fallible method of External")]
pub enum MockOp {
    /// [`External::link`](crate::External::link).
    Link,
    /// [`External::unlink`](crate::External::unlink).
    Unlink,
    /// [`External::map`](crate::External::map).
    Map,
    /// [`External::unmap`](crate::External::unmap).
    Unmap,
    /// [`External::block`](crate::External::block).
    Block,
    /// [`External::unblock`](crate::External::unblock).
    Unblock,
    /// [`External::fence`](crate::External::fence).
    Fence,
    /// [`External::split`](crate::External::split).
    Split,
    /// [`External::merge`](crate::External::merge).
    Merge,
    /// [`External::probe`](crate::External::probe).
    Probe,
    /// [`External::write_back`](crate::External::write_back).
    WriteBack,
}

/// How a planned failure looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MockFault {
    /// Contention, found before anything was written.
    Busy,
    /// Contention found after the donated table page was written (TDX: PAMT locks are DEMOTE's last check). The page
    /// needs a write-back and a scrub. Like [`MockFault::Busy`] for calls that take no pages.
    BusyAfterWrite,
    /// The TD is lost.
    Fatal,
}

/// Why [`MockTee`] refused a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MockRefusal {
    /// Planned with [`MockTee::fail`].
    #[error("busy")]
    Busy,
    /// Planned with [`MockTee::fail`].
    #[error("the TD is lost")]
    Fatal,
    /// No table leads to the entry.
    #[error("no table leads there")]
    Walk,
    /// A table above is blocked.
    #[error("a table above is blocked")]
    Hidden,
    /// No entry of this level exists.
    #[error("no such level")]
    Level,
    /// The entry holds something that the call does not accept.
    #[error("wrong entry state")]
    State,
    /// The entry is not blocked.
    #[error("not blocked")]
    NotBlocked,
    /// No fence that was started after the block has ended.
    #[error("TLB tracking not done")]
    NotTracked,
    /// The table still holds something.
    #[error("the table is not empty")]
    NotEmpty,
    /// The children do not make one page.
    #[error("the children do not make one page")]
    NotUniform,
    /// A page handed in is in the TEE's hands already, or is not the one that is mapped.
    #[error("wrong page")]
    Page,
}

impl Classify for MockRefusal {
    fn class(&self) -> Class {
        match self {
            Self::Busy | Self::Hidden => Class::Retry,
            Self::NotTracked => Class::Quiesce,
            Self::Fatal => Class::Fatal,
            _ => Class::Caller,
        }
    }
}

/// One page that [`MockTee`] maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MockLeaf {
    /// Where.
    pub at: GpaEntry,
    /// What.
    pub hpa: Hpa,
    /// Whether the guest has accepted it; the truth, not what the host knows.
    pub state: LeafState,
    /// Whether it is blocked.
    pub blocked: bool,
}

/// Frames on their way into [`MockTee`].
#[derive(Debug)]
pub struct MockPages {
    table: Frame,
    metadata: Vec<Frame>,
    written: bool,
}

/// Names a fence or grace period of [`MockTee`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MockTicket {
    tee: bool,
    number: u64,
}

#[derive(Debug)]
struct State {
    model: Model,
    graces_started: u64,
    graces_ended: u64,
    held: bool,
    calls: BTreeMap<MockOp, u64>,
    plan: BTreeMap<(MockOp, u64), MockFault>,
    hooks: hooks::Hooks,
    misreport: Option<Donated>,
    refused: Vec<(MockOp, MockRefusal)>,
    written_back: Vec<(Hpa, Level, CacheKey)>,
}

/// A modelled TEE: an independent record of what is mapped, linked, blocked and donated.
///
/// It enforces the rules of a running TD: an entry can be removed, split, merged or unlinked only when it is blocked
/// and a fence that was started after the block has ended. Pages are mapped at up to 2 MiB; up to 1 GiB by merging.
///
/// ```
/// use sept_core::{External, Gpa, GpaEntry, Level, test_util::{MockOp, MockRefusal, MockTee}};
/// let tee = MockTee::new(Level::L512G);
/// let at = GpaEntry::new(Gpa::default(), Level::L1G).unwrap();
/// assert_eq!(tee.block(at), Err(MockRefusal::Walk)); // no table leads there
/// assert_eq!(tee.calls(MockOp::Block), 1);
/// ```
#[derive(Debug)]
pub struct MockTee {
    metadata: bool,
    state: Mutex<State>,
}

impl MockTee {
    /// An empty table whose root holds entries of `top`. Fences end at once, tables cost one page.
    #[must_use]
    pub const fn new(top: Level) -> Self {
        let state = State {
            model: Model::new(top),
            graces_started: 0,
            graces_ended: 0,
            held: false,
            calls: BTreeMap::new(),
            plan: BTreeMap::new(),
            hooks: hooks::Hooks::new(),
            misreport: None,
            refused: Vec::new(),
            written_back: Vec::new(),
        };
        Self { metadata: false, state: Mutex::new(state) }
    }

    /// The same, but a table of 4 KiB entries over known backing costs two metadata pages more (Dynamic PAMT).
    #[must_use]
    pub const fn with_metadata(mut self) -> Self {
        self.metadata = true;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While `hold` is set, fences and grace periods end only by [`MockTee::end_fences`]; clearing it ends them all.
    pub fn hold_fences(&self, hold: bool) {
        self.state().held = hold;
        if !hold {
            self.end_fences();
        }
    }

    /// Ends every fence and grace period started so far.
    pub fn end_fences(&self) {
        let mut state = self.state();
        state.model.fences_ended = state.model.fences_started;
        state.graces_ended = state.graces_started;
    }

    /// Makes the `nth` call of `op` from now on fail (1 is the next one), once.
    pub fn fail(&self, op: MockOp, nth: u64, fault: MockFault) {
        let mut state = self.state();
        let number = state.calls.get(&op).copied().unwrap_or(0).saturating_add(nth);
        state.plan.insert((op, number), fault);
    }

    /// Forgets every planned failure.
    pub fn cancel_faults(&self) {
        self.state().plan.clear();
    }

    /// Makes the next successful `unlink` or `merge` return `donated` instead of the truth.
    pub fn misreport(&self, donated: Donated) {
        self.state().misreport = Some(donated);
    }

    /// The guest accepts the page that covers `gpa`; `false` if it cannot reach a page that waits for it.
    pub fn accept(&self, gpa: Gpa) -> bool {
        self.state().model.accept(gpa)
    }

    /// How often `op` was called, failures included.
    #[must_use]
    pub fn calls(&self, op: MockOp) -> u64 {
        self.state().calls.get(&op).copied().unwrap_or(0)
    }

    /// Calls that broke a rule of the TEE, in order; planned failures are not among them.
    #[must_use]
    pub fn refused(&self) -> Vec<(MockOp, MockRefusal)> {
        self.state().refused.clone()
    }

    /// Pages whose write-back succeeded, in order.
    #[must_use]
    pub fn written_back(&self) -> Vec<(Hpa, Level, CacheKey)> {
        self.state().written_back.clone()
    }

    /// What the TEE would say to `op` at `at` now, planned failures and pages handed in aside.
    ///
    /// # Errors
    ///
    /// Why it would refuse.
    pub fn would(&self, op: MockOp, at: GpaEntry) -> Result<(), MockRefusal> {
        self.state().model.check(op, at)
    }

    /// All mapped pages in address order.
    #[must_use]
    pub fn leaves(&self) -> Vec<MockLeaf> {
        self.state().model.leaves()
    }

    /// All linked tables in address order: the entry that holds the table, the donated pages, whether it is blocked.
    #[must_use]
    pub fn tables(&self) -> Vec<(GpaEntry, Donated, bool)> {
        self.state().model.tables()
    }

    /// Pages that stand behind the linked tables, by kind.
    #[must_use]
    pub fn donated(&self) -> FrameNeeds {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let tables = self.tables();
        let metadata = tables.iter().flat_map(|(_, donated, _)| donated.metadata).flatten().count();
        FrameNeeds::of(FrameKind::TeeTable, count(tables.len()))
            .plus(FrameNeeds::of(FrameKind::TeeMetadata, count(metadata)))
    }
}

impl State {
    /// Counts the call and applies the fault plan.
    fn enter(&mut self, op: MockOp) -> Result<(), MockFault> {
        let number = self.calls.entry(op).or_insert(0);
        *number = number.saturating_add(1);
        self.plan.remove(&(op, *number)).map_or(Ok(()), Err)
    }

    fn refuse(&mut self, op: MockOp, why: MockRefusal) -> MockRefusal {
        self.refused.push((op, why));
        why
    }

    /// Counts, fails as planned, or checks the rules.
    fn begin(&mut self, op: MockOp, at: GpaEntry) -> Result<(), MockRefusal> {
        self.enter(op).map_err(MockRefusal::from)?;
        self.model.check(op, at).map_err(|why| self.refuse(op, why))
    }

    /// What `unlink` and `merge` return.
    fn report(&mut self, truth: Donated) -> Donated {
        self.misreport.take().unwrap_or(truth)
    }
}

impl From<MockFault> for MockRefusal {
    fn from(fault: MockFault) -> Self {
        match fault {
            MockFault::Busy | MockFault::BusyAfterWrite => Self::Busy,
            MockFault::Fatal => Self::Fatal,
        }
    }
}

impl MockPages {
    fn donated(&self) -> Donated {
        let mut metadata = self.metadata.iter().map(Frame::hpa);
        Donated { table: Some(self.table.hpa()), metadata: [metadata.next(), metadata.next()] }
    }

    fn list(&self) -> Vec<Hpa> {
        core::iter::once(&self.table).chain(&self.metadata).map(Frame::hpa).collect()
    }
}
