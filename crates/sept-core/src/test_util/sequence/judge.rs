//! Whether an operation answered rightly: a success must have been possible, a refusal must be true.

use super::dump::{key, pages_of};
use super::oracle::Shown;
use super::side::{Rules, Side};
use super::trial::Trial;
use crate::test_util::MockOp;
use crate::{Entry, GpaEntry, GpaRange, RangeError, TableError};

/// What was asked for, and what stands against it as far as the caller can know.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    /// What the operation can be done to.
    pub(super) accepts: fn(Entry) -> bool,
    /// The level is wrong, or the page or memory does not fit it.
    pub(super) misfit: bool,
    /// An inhibit of the size stands against it.
    pub(super) sized: bool,
    /// A fence is needed; this one was shown.
    pub(super) shown: Option<Shown>,
    /// A frame is missing.
    pub(super) short: bool,
    /// The obligation is another table's.
    pub(super) foreign: bool,
    /// The permissions cannot be.
    pub(super) unsayable: bool,
    /// Tables that are missing are hung in.
    pub(super) linking: bool,
    /// What it needs is a closed table, not a blocked entry.
    pub(super) closed: bool,
}

impl Ask {
    pub(super) const fn of(accepts: fn(Entry) -> bool) -> Self {
        Self {
            accepts,
            misfit: false,
            sized: false,
            shown: None,
            short: false,
            foreign: false,
            unsayable: false,
            linking: false,
            closed: false,
        }
    }

    pub(super) const fn misfit(self, misfit: bool) -> Self {
        Self { misfit, ..self }
    }

    pub(super) const fn short(self, short: bool) -> Self {
        Self { short, ..self }
    }

    pub(super) const fn shown(self, shown: Shown) -> Self {
        Self { shown: Some(shown), ..self }
    }

    /// A grace period since the table was closed.
    pub(super) const fn closed(self, shown: Shown) -> Self {
        Self { shown: Some(shown), closed: true, ..self }
    }

    pub(super) const fn foreign(self, foreign: bool) -> Self {
        Self { foreign, ..self }
    }

    pub(super) const fn sized(self) -> Self {
        Self { sized: true, ..self }
    }
}

pub(super) fn is_free(entry: Entry) -> bool {
    entry == Entry::Free
}

pub(super) fn is_leaf(entry: Entry) -> bool {
    matches!(entry, Entry::Leaf { .. })
}

pub(super) fn is_table(entry: Entry) -> bool {
    matches!(entry, Entry::Table { .. } | Entry::Closed { .. })
}

pub(super) fn is_used(entry: Entry) -> bool {
    entry != Entry::Free
}

pub(super) fn is_anything(_: Entry) -> bool {
    true
}

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    fn found(&self, at: GpaEntry) -> Option<Entry> {
        self.dump.entry::<F>(self.config, at)
    }

    /// The outcome of an operation on one entry, checked. After a refusal nothing may have changed.
    pub(super) fn judge<T>(
        &mut self,
        at: GpaEntry,
        ask: Ask,
        result: Result<T, TableError<X::Error>>,
    ) -> Option<T> {
        match result {
            Ok(done) => {
                self.approve(at, ask);
                Some(done)
            }
            Err(error) => {
                let at = if ask.linking { about(&error) } else { at };
                assert!(self.is_true(at, ask, &error), "{at}: refused with {error:?}, which is not so");
                self.refused = true;
                None
            }
        }
    }

    /// Checks that the operation could succeed.
    pub(super) fn approve(&self, at: GpaEntry, ask: Ask) {
        assert!(self.oracle.in_space(at.gpa().raw()) && !ask.misfit && !ask.foreign, "{at}: not refused");
        assert!(!ask.short, "{at}: done with a frame too little");
        assert!(!ask.unsayable, "{at}: impossible permissions were granted");
        assert!(!self.oracle.is_shut(at), "{at}: done below a blocked or closed table");
        let found = self
            .found(at)
            .or(ask.linking.then_some(Entry::Free))
            .unwrap_or_else(|| panic!("{at}: done where no table leads"));
        assert!((ask.accepts)(found), "{at}: done to {found}");
        assert!(!(ask.sized && self.oracle.inhibited.contains(&key(at))), "{at}: inhibited");
        if let Some(shown) = ask.shown {
            let time = self.shut_at(at, ask).unwrap_or_else(|| panic!("{at}: done though not blocked"));
            assert!(shown.covers(time), "{at}: blocked at {time}, done with {shown:?}");
        }
    }

    /// Whether the reason for a refusal is the truth.
    pub(super) fn is_true(&self, at: GpaEntry, ask: Ask, error: &TableError<X::Error>) -> bool {
        let about = |other: GpaEntry| other == at;
        let oracle = &self.oracle;
        match *error {
            TableError::OutOfRange { gpa } => at.range().contains(gpa) && !oracle.in_space(gpa.raw()),
            TableError::Level { at } => about(at) && ask.misfit,
            TableError::State { at, found } => {
                about(at) && self.found(at) == Some(found) && !(ask.accepts)(found)
            }
            TableError::NoTable { at, stop, found } => {
                let ends = match found {
                    Entry::Free => oracle.pages.none_in(pages_of(stop)),
                    Entry::Leaf { .. } => oracle.leaf(stop).is_some(),
                    _ => false,
                };
                about(at)
                    && oracle.above(at).any(|above| above == stop)
                    && ends
                    && self.found(stop) == Some(found)
            }
            TableError::Hidden { at, stop } => {
                let shut = oracle.hidden.contains_key(&key(stop)) || oracle.closed.contains_key(&key(stop));
                about(at) && shut && (stop == at || oracle.above(at).any(|above| above == stop))
            }
            TableError::Inhibited { at } => about(at) && ask.sized && oracle.inhibited.contains(&key(at)),
            TableError::Permissions { at, .. } => about(at) && (ask.unsayable || self.tee().is_some()),
            TableError::NotFenced { at } => about(at) && self.lacks_fence(at, ask),
            TableError::NotUniform { at, child, found } => {
                let odd = oracle.uniform(at).err().and_then(|index| at.child(index));
                about(at) && odd == Some(child) && self.found(child) == Some(found)
            }
            TableError::NotEmpty { at, live } => {
                about(at)
                    && live > 0
                    && self.dump.tables.get(&key(at)).is_some_and(|table| table.live == live)
            }
            TableError::ForeignObligation { at } => about(at) && ask.foreign,
            TableError::NoFrames { at, .. } => about(at) && ask.short,
            TableError::External { at, .. } => {
                let unseen = || self.tee().is_some_and(|tee| tee.would(MockOp::Merge, at).is_err());
                about(at) && (self.fault_was_hit() || unseen())
            }
            // All memory of a trial lies where every format can name it.
            TableError::Address { .. } | TableError::Contended { .. } | TableError::Ledger { .. } => false,
        }
    }

    /// When that happened to `at` which the fence must have come after.
    fn shut_at(&self, at: GpaEntry, ask: Ask) -> Option<u64> {
        if ask.closed { self.oracle.closed.get(&key(at)).copied() } else { self.oracle.blocked_at(at) }
    }

    /// Whether `at` is not covered by the fence, or may be refused because too many fences have passed.
    fn lacks_fence(&self, at: GpaEntry, ask: Ask) -> bool {
        let (Some(shown), Some(time)) = (ask.shown, self.shut_at(at, ask)) else {
            return ask.shown.is_some();
        };
        // A block that is 2^11 fences old may look younger than it is.
        !shown.covers(time) || self.oracle.now - time >= 2048
    }

    /// How far a range operation came, with what it returned. Refusals are checked.
    pub(super) fn judge_range<T>(
        &mut self,
        range: GpaRange,
        ask: Ask,
        result: Result<T, RangeError<X::Error>>,
    ) -> (Option<T>, u64) {
        let error = match result {
            Ok(done) => return (Some(done), range.end()),
            Err(error) => error,
        };
        let next = match error {
            RangeError::Straddles { range: of, at } => {
                let inside = at.range().intersect(range).is_some();
                let leaf = self.oracle.leaf(at).is_some();
                assert!(of == range && leaf && inside && !range.covers(at), "{error:?}");
                range.start().raw()
            }
            RangeError::Stopped { next, error } => {
                let at = about(&error);
                assert!(
                    self.is_true(at, ask, &error),
                    "{range}: stopped at {next:#x} with {error:?}, which is not so"
                );
                next.raw()
            }
            _ => panic!("{range}: refused with {error:?}"),
        };
        self.refused = next == range.start().raw();
        (None, next)
    }
}

/// The entry that an error is about.
pub(super) fn about<E>(error: &TableError<E>) -> GpaEntry {
    match *error {
        TableError::OutOfRange { gpa } => GpaEntry::containing(gpa, crate::Level::L4K),
        TableError::Level { at }
        | TableError::State { at, .. }
        | TableError::Address { at, .. }
        | TableError::NoTable { at, .. }
        | TableError::Contended { at }
        | TableError::Hidden { at, .. }
        | TableError::Inhibited { at }
        | TableError::Permissions { at, .. }
        | TableError::NotFenced { at }
        | TableError::NotUniform { at, .. }
        | TableError::NotEmpty { at, .. }
        | TableError::ForeignObligation { at }
        | TableError::NoFrames { at, .. }
        | TableError::Ledger { at, .. }
        | TableError::External { at, .. } => at,
    }
}
