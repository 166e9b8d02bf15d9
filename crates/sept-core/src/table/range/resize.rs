//! Splitting and merging a range with block, fence, change: step by step, borrowing nothing in between.
//!
//! One round for each level, since a piece can be blocked only once it exists: block every page or table that the round
//! concerns, fence once, change them all. Which entries those are stands in the table itself, by the number of their
//! block: each round begins with a number of its own. So a [`Resize`] is constant-size for any number of them. Keep other
//! changes of size out of the range meanwhile; faults go on.

use super::split::ROUNDS;
use super::{Plan, RangeError, Reserved, Scope, SplitPlan, SplitRefused, after};
use crate::memory::FANOUT;
use crate::table::{FenceTicket, Fenced, Obligation, SecurePageTable, TableError};
use crate::{
    Class, Classify, Entry, External, Format, FrameNeeds, FrameStore, Gpa, GpaEntry, GpaRange, Level,
    Returned, SideWord, TableMemory,
};

/// How far one call of [`Resize::step`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[must_use = "a resize is not done until it says so"]
pub enum Turn {
    /// One entry was dealt with; call again.
    Again,
    /// A fence is under way; call again later.
    AwaitFence,
    /// All is done.
    Done,
}

/// What a [`Resize`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Resized {
    /// Entries split or merged.
    pub changed: u64,
    /// Tables that were candidates for merging and that the TEE refused. They stand as they were.
    pub declined: u64,
    /// Fences that were started.
    pub fences: u64,
    /// Whether it was turned round before its end. What was split or merged until then stays so.
    pub cancelled: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Split(Scope),
    Merge,
}

/// Which entries of a round are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Whatever the round is about.
    Any,
    Blocked,
    /// What this round has blocked.
    Ours,
}

#[derive(Debug)]
enum Phase<T> {
    Block,
    Fence(FenceTicket<T>),
    Change(Fenced),
    /// Shows again what was blocked and not changed.
    Undo(Fenced),
    Done,
}

/// A range that is being split or merged. Dropping it does nothing: what is blocked stays blocked.
///
/// ```
/// use sept_core::test_util::{Arena, FramePool, MockTee, RamLedger, VecStore};
/// use sept_core::{
///     FrameKind, FrameSource, Gpa, GpaRange, Hpa, Level, Plan, Scope, SecurePageTable, TdxConfig, TdxMirror, Turn,
/// };
/// # let base = Hpa::new(0x10_0000).unwrap();
/// # let pool = FramePool::new(base, 64);
/// # let root = pool.take(FrameKind::MirrorTable, base).unwrap();
/// # let arena = Arena::new(base, 64, Box::new(|_, _| {}));
/// # let ram = Hpa::new(0x4000_0000).unwrap();
/// # let ledger = RamLedger::new(ram, 512);
/// # let tee = MockTee::new(Level::L512G);
/// let table = SecurePageTable::<TdxMirror, _, _>::new(TdxConfig::LEVELS_4, arena, tee, root);
/// let range = GpaRange::new(Gpa::new(0x8000_0000).unwrap(), 2 << 20).unwrap();
/// let plan = table.plan_map(range, ram, Level::L2M).unwrap();
/// let reserved = plan.reserve(&pool, VecStore::default()).unwrap();
/// let page = ledger.lend(ram, Level::L2M).unwrap();
/// let done = table.map_range(reserved, page.into()).unwrap();
///
/// // The guest gives up 12 KiB of it. The page is blocked, fenced, split.
/// let part = GpaRange::new(Gpa::new(0x8000_5000).unwrap(), 0x3000).unwrap();
/// let plan = table.plan_split(part, Scope::Ends).unwrap();
/// assert_eq!((plan.splits(Level::L2M), plan.needs()[FrameKind::TeeTable]), (1, 1));
/// let mut resize = table.start_split(plan.reserve(&pool, done.rest).unwrap()).unwrap();
/// let mut owed = table.obligation();
/// while resize.step(&table, &mut owed).unwrap() != Turn::Done {
///     // A real host does other work while a fence is under way.
/// }
/// let (resized, _storage) = resize.finish().unwrap();
/// assert_eq!((resized.changed, resized.fences), (1, 1));
/// assert_eq!(table.external().leaves().len(), 512);
/// ```
#[derive(Debug)]
#[must_use = "entries may be blocked until it is done"]
pub struct Resize<T, S = ()> {
    range: GpaRange,
    kind: Kind,
    /// Index into the rounds of `kind`.
    round: usize,
    phase: Phase<T>,
    next: u64,
    /// Blocks of this round have this number or a later one.
    since: u64,
    /// Entries blocked in this round.
    blocked: u64,
    done: Resized,
    store: S,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Begins a split as planned. Nothing has changed yet. Pages that are blocked already are split too, and shown.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stale`], or what [`SecurePageTable::plan_split`] says now. The reservation comes back.
    pub fn start_split<S: FrameStore>(
        &self,
        reserved: Reserved<SplitPlan, S>,
    ) -> Result<Resize<X::Ticket, S>, SplitRefused<X::Error, S>> {
        let plan = reserved.plan;
        match self.plan_split(plan.range(), plan.scope()) {
            Ok(now) if reserved.store.kept().covers(&now.needs()) => {}
            Ok(now) => {
                let error = RangeError::Stale { planned: plan.needs(), now: now.needs() };
                return Err(Returned { error, held: reserved });
            }
            Err(error) => return Err(Returned { error, held: reserved }),
        }
        Ok(Resize::new(self.draw_number(), plan.range(), Kind::Split(plan.scope()), reserved.store))
    }

    /// Begins to merge every table that lies wholly in `range` and whose entries make one page. Nothing has changed yet.
    pub fn start_merge(&self, range: GpaRange) -> Resize<X::Ticket> {
        Resize::new(self.draw_number(), range, Kind::Merge, ())
    }
}

impl<T: Copy, S: FrameStore> Resize<T, S> {
    const fn new(since: u64, range: GpaRange, kind: Kind, store: S) -> Self {
        Self {
            range,
            kind,
            round: 0,
            phase: Phase::Block,
            next: 0,
            since,
            blocked: 0,
            done: Resized { changed: 0, declined: 0, fences: 0, cancelled: false },
            store,
        }
    }

    /// Level of the entries that this round is about; merging goes the other way.
    fn level(&self) -> Option<Level> {
        match self.kind {
            Kind::Split(_) => ROUNDS.get(self.round).copied(),
            Kind::Merge => ROUNDS.iter().rev().nth(self.round).copied(),
        }
    }

    fn next_round<F: Format, M: TableMemory, X: External<Ticket = T>>(
        &mut self,
        table: &SecurePageTable<F, M, X>,
    ) -> Result<Turn, RangeError<X::Error>> {
        self.round = self.round.saturating_add(1);
        self.since = table.draw_number();
        self.next = 0;
        self.blocked = 0;
        self.phase = if self.level().is_some() { Phase::Block } else { Phase::Done };
        Ok(if matches!(self.phase, Phase::Done) { Turn::Done } else { Turn::Again })
    }

    /// Does the next piece of work: one entry, or one look at a fence. Tables that merging frees go to `into`.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stopped`] with the entry: it stays where it was, and the step can be tried again, or the whole be
    /// cancelled. A table that cannot be merged is no error ([`Resized::declined`]), unless the TEE is lost.
    pub fn step<F: Format, M: TableMemory, X: External<Ticket = T>>(
        &mut self,
        table: &SecurePageTable<F, M, X>,
        into: &mut Obligation,
    ) -> Result<Turn, RangeError<X::Error>> {
        let at = self.next.max(self.range.start().raw());
        let stopped = RangeError::stopped(at);
        let Some(level) = self.level() else { return Ok(Turn::Done) };
        match self.phase {
            // What was blocked until it was turned round needs a fence before it can be shown.
            Phase::Block if self.done.cancelled => self.start_fence(table).map_err(stopped),
            Phase::Block => match self.candidate(table, level, Look::Any).map_err(&stopped)? {
                Some(at) => {
                    if let Err(error) = table.block(at) {
                        if !self.may_skip(error.class()) {
                            return Err(RangeError::stopped(at.gpa().raw())(error));
                        }
                        self.done.declined = self.done.declined.saturating_add(1);
                    } else {
                        self.blocked = self.blocked.saturating_add(1);
                    }
                    self.next = at.end();
                    Ok(Turn::Again)
                }
                None if self.blocked == 0 => self.next_round(table),
                None => self.start_fence(table).map_err(stopped),
            },
            Phase::Fence(ticket) => match table.fenced(&ticket) {
                None => Ok(Turn::AwaitFence),
                Some(fence) => {
                    self.next = 0;
                    self.phase = if self.done.cancelled { Phase::Undo(fence) } else { Phase::Change(fence) };
                    Ok(Turn::Again)
                }
            },
            Phase::Change(fence) => match self.candidate(table, level, Look::Blocked).map_err(&stopped)? {
                Some(at) => {
                    self.change(table, at, &fence, into).map_err(RangeError::stopped(at.gpa().raw()))?;
                    self.next = at.end();
                    Ok(Turn::Again)
                }
                None => self.next_round(table),
            },
            Phase::Undo(fence) => match self.candidate(table, level, Look::Ours).map_err(&stopped)? {
                Some(at) => {
                    table.unblock(at, &fence).map_err(RangeError::stopped(at.gpa().raw()))?;
                    self.next = at.end();
                    Ok(Turn::Again)
                }
                None => {
                    self.phase = Phase::Done;
                    Ok(Turn::Done)
                }
            },
            Phase::Done => Ok(Turn::Done),
        }
    }

    /// Turns it round: what is blocked will be shown again, after the fence that this needs. Keep stepping.
    pub fn cancel(&mut self) {
        self.done.cancelled = !matches!(self.phase, Phase::Done);
        match self.phase {
            Phase::Block if self.blocked == 0 => self.phase = Phase::Done,
            Phase::Change(fence) => {
                self.next = 0;
                self.phase = Phase::Undo(fence);
            }
            _ => {}
        }
    }

    /// What it came to, and the storage with the frames that were not used.
    ///
    /// # Errors
    ///
    /// It is not done yet.
    pub fn finish(self) -> Result<(Resized, S), Self> {
        if matches!(self.phase, Phase::Done) { Ok((self.done, self.store)) } else { Err(self) }
    }

    /// Frames that are still kept for what is left to do.
    pub fn kept(&self) -> FrameNeeds {
        self.store.kept()
    }

    /// A merge that does not come off is a saving not made; only a lost TEE stops it.
    const fn may_skip(&self, class: Class) -> bool {
        matches!(self.kind, Kind::Merge) && !matches!(class, Class::Fatal)
    }

    fn start_fence<F: Format, M: TableMemory, X: External<Ticket = T>>(
        &mut self,
        table: &SecurePageTable<F, M, X>,
    ) -> Result<Turn, TableError<X::Error>> {
        self.phase = Phase::Fence(table.fence()?);
        self.done.fences = self.done.fences.saturating_add(1);
        Ok(Turn::Again)
    }

    fn change<F: Format, M: TableMemory, X: External<Ticket = T>>(
        &mut self,
        table: &SecurePageTable<F, M, X>,
        at: GpaEntry,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let changed = match self.kind {
            Kind::Split(_) => table.split(at, fence, &mut self.store),
            Kind::Merge => table.merge(at, fence, into),
        };
        match changed {
            // The change is made even if the ledger disagrees about a page behind it; that page is leaked.
            Ok(()) | Err(TableError::Ledger { .. }) => {
                self.done.changed = self.done.changed.saturating_add(1);
                changed
            }
            Err(error) if self.may_skip(error.class()) => {
                table.unblock(at, fence)?;
                self.done.declined = self.done.declined.saturating_add(1);
                Ok(())
            }
            refused => refused,
        }
    }

    /// The next entry of this round at or after `next`.
    fn candidate<F: Format, M: TableMemory, X: External<Ticket = T>>(
        &self,
        table: &SecurePageTable<F, M, X>,
        level: Level,
        look: Look,
    ) -> Result<Option<GpaEntry>, TableError<X::Error>> {
        match self.kind {
            Kind::Split(scope) => {
                let mut next = self.next;
                while let Some(found) = table.pinned(|| table.next_split(self.range, scope, level, next))? {
                    let blocked = found.entry.blocked();
                    let fits = match look {
                        // What somebody had blocked before is split too.
                        Look::Any => true,
                        Look::Blocked => blocked.is_some(),
                        Look::Ours => blocked.is_some_and(|stamp| table.is_since(stamp, self.since)),
                    };
                    if fits {
                        return Ok(Some(found.at));
                    }
                    next = found.at.end();
                }
                Ok(None)
            }
            Kind::Merge => {
                let mut next = self.next.max(self.range.start().raw());
                // Each turn passes one entry of the level, or a hole.
                while let Some(gpa) = Gpa::new(next).filter(|gpa| self.range.contains(*gpa)) {
                    let at = GpaEntry::containing(gpa, level);
                    let found = table.entry(at);
                    next = after(at, &found);
                    let fits = match (look, found) {
                        (Look::Any, Ok(entry)) => table.is_candidate(at, entry),
                        (_, Ok(Entry::Table { blocked: Some(stamp), .. })) => {
                            table.is_since(stamp, self.since)
                        }
                        _ => false,
                    };
                    if self.range.covers(at) && fits {
                        return Ok(Some(at));
                    }
                }
                Ok(None)
            }
        }
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    fn pinned<R>(&self, look: impl FnOnce() -> R) -> R {
        let _pin = self.memory.pin();
        look()
    }

    /// Whether what was found at `at` is a table that is not blocked and could be merged as far as the mirror knows.
    pub(super) fn is_candidate(&self, at: GpaEntry, found: Entry) -> bool {
        let full = match found {
            Entry::Table { hpa, blocked: None } => self.side(hpa, SideWord::Live) == u64::from(FANOUT),
            _ => false,
        };
        full && self.mergeable(at).is_ok()
    }
}
