//! Hiding, showing and taking a range: block, fence, take.
//!
//! Without a TEE a table that lies wholly in the range is blocked instead of its pages, so that the cost grows with the two
//! ends of the range only, and is later taken as one subtree. A TEE wants every page blocked and removed by itself.
//! What is blocked stays named in its entries: nothing here is remembered anywhere else.

use super::RangeError;
use crate::table::{
    Fenced, Obligation, SecurePageTable, TableError,
    walk::{Slot, occupied},
};
use crate::{Entry, External, Format, Frame, Gpa, GpaEntry, GpaRange, Level, SideWord, TableMemory, Tainted};

/// What an operation on a range came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Blocked {
    /// Pages, of any size, that were changed one by one.
    pub pages: u64,
    /// Tables that were changed with everything below them.
    pub tables: u64,
}

impl Blocked {
    pub(super) const fn note(&mut self, entry: Entry) {
        match entry {
            Entry::Leaf { .. } => self.pages = self.pages.saturating_add(1),
            _ => self.tables = self.tables.saturating_add(1),
        }
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Hides everything in `range` from the guest; what is hidden already stays so.
    ///
    /// # Errors
    ///
    /// [`RangeError::Straddles`] changes nothing. After [`RangeError::Stopped`] what lies before `next` is blocked; go on
    /// from there, or fence and unblock.
    pub fn block_range(&self, range: GpaRange) -> Result<Blocked, RangeError<X::Error>> {
        self.closed_at_ends(range)?;
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Table { .. } if X::TEE => Ok(Go::Down),
            Entry::Free => Ok(Go::On),
            Entry::Frozen => Err(TableError::Contended { at }),
            _ if matches!(
                entry,
                Entry::Table { blocked: Some(_), .. } | Entry::Leaf { blocked: Some(_), .. }
            ) =>
            {
                Ok(Go::On)
            }
            _ => {
                self.block(at)?;
                done.note(entry);
                Ok(Go::On)
            }
        })
    }

    /// Shows everything in `range` that was blocked before `fence` began.
    ///
    /// # Errors
    ///
    /// After [`RangeError::Stopped`] what lies before `next` is shown, and so may be tables that begin there. Below a
    /// table that is closed nothing can be shown.
    pub fn unblock_range(&self, range: GpaRange, fence: &Fenced) -> Result<Blocked, RangeError<X::Error>> {
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Frozen => Err(TableError::Contended { at }),
            Entry::Leaf { blocked: Some(_), .. } | Entry::Table { blocked: Some(_), .. } => {
                self.unblock(at, fence)?;
                done.note(entry);
                Ok(if entry.is_leaf() { Go::On } else { Go::Down })
            }
            Entry::Table { .. } | Entry::Closed { .. } => Ok(Go::Down),
            _ => Ok(Go::On),
        })
    }

    /// Takes everything out of `range`, all of which was blocked before `fence` began. Holes are passed over.
    ///
    /// Pages that were blocked one by one go to `pages`, tainted as from [`SecurePageTable::remove`]. Tables that were
    /// blocked whole (without a TEE) go to `into`, and their pages come out of [`SecurePageTable::settle_pages`].
    ///
    /// # Errors
    ///
    /// [`RangeError::Straddles`] changes nothing. After [`RangeError::Stopped`] what lies before `next` is taken; with
    /// [`TableError::NotFenced`] it met something that was not blocked in time.
    pub fn take_range(
        &self,
        range: GpaRange,
        fence: &Fenced,
        into: &mut Obligation,
        mut pages: impl FnMut(GpaEntry, Frame<Tainted>),
    ) -> Result<Blocked, RangeError<X::Error>> {
        let first = GpaEntry::containing(range.start(), Level::L4K);
        self.accepts(first, into).map_err(RangeError::stopped(range.start().raw()))?;
        self.closed_at_ends(range)?;
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Free => Ok(Go::On),
            Entry::Frozen => Err(TableError::Contended { at }),
            Entry::Leaf { .. } => {
                pages(at, self.remove(at, fence)?);
                done.note(entry);
                Ok(Go::On)
            }
            Entry::Table { blocked: None, .. } => Ok(Go::Down),
            Entry::Table { .. } if X::TEE => Err(TableError::Hidden { at, stop: at }),
            _ => {
                self.take_table(at, fence, into)?;
                done.note(entry);
                Ok(Go::On)
            }
        })
    }

    /// Blocks the tables in `range` that hold nothing; unlink them after a fence.
    ///
    /// # Errors
    ///
    /// After [`RangeError::Stopped`] those before `next` are blocked.
    pub fn block_empty_tables(&self, range: GpaRange) -> Result<Blocked, RangeError<X::Error>> {
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Table { hpa, blocked: None } if self.side(hpa, SideWord::Live) == 0 => {
                self.block(at)?;
                done.note(entry);
                Ok(Go::On)
            }
            Entry::Table { .. } if at.level() > Level::L2M => Ok(Go::Down),
            Entry::Frozen => Err(TableError::Contended { at }),
            _ => Ok(Go::On),
        })
    }

    /// Unlinks the empty tables in `range` that were blocked before `fence` began. The tables above that this leaves empty
    /// are the next round's.
    ///
    /// # Errors
    ///
    /// After [`RangeError::Stopped`] those before `next` are in `into`.
    pub fn unlink_empty_tables(
        &self,
        range: GpaRange,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<Blocked, RangeError<X::Error>> {
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Table { hpa, blocked: Some(_) } if self.side(hpa, SideWord::Live) == 0 => {
                self.unlink(at, fence, into)?;
                done.note(entry);
                Ok(Go::On)
            }
            Entry::Table { .. } if at.level() > Level::L2M => Ok(Go::Down),
            Entry::Frozen => Err(TableError::Contended { at }),
            _ => Ok(Go::On),
        })
    }

    /// Refuses a range that begins or ends inside a page.
    pub(super) fn closed_at_ends(&self, range: GpaRange) -> Result<(), RangeError<X::Error>> {
        let _pin = self.memory.pin();
        let last = Gpa::truncate(range.end().wrapping_sub(1));
        for gpa in [range.start(), last] {
            let found = self.lookup_pinned(gpa).map_err(RangeError::stopped(range.start().raw()))?;
            if found.entry.is_leaf() && !range.covers(found.at) {
                return Err(RangeError::Straddles { range, at: found.at });
            }
        }
        Ok(())
    }

    /// Visits the entries that lie wholly in `range` from the root down: `visit` says whether to go below a table.
    ///
    /// A walk for each entry visited. Entries across an end are gone below, or passed over if nothing hangs in them.
    pub(super) fn each_piece(
        &self,
        range: GpaRange,
        mut visit: impl FnMut(GpaEntry, Slot, &mut Blocked) -> Result<Go, TableError<X::Error>>,
    ) -> Result<Blocked, RangeError<X::Error>> {
        let mut done = Blocked::default();
        let mut next = range.start().raw();
        // Each turn passes one entry.
        while let Some(gpa) = Gpa::new(next).filter(|gpa| range.contains(*gpa)) {
            let _pin = self.memory.pin();
            let at = self.piece(gpa, range, &mut done, &mut visit).map_err(RangeError::stopped(next))?;
            next = at.end();
        }
        Ok(done)
    }

    /// Walks for `gpa` down to where `visit` says to go on, and returns that entry.
    fn piece(
        &self,
        gpa: Gpa,
        range: GpaRange,
        done: &mut Blocked,
        visit: &mut impl FnMut(GpaEntry, Slot, &mut Blocked) -> Result<Go, TableError<X::Error>>,
    ) -> Result<GpaEntry, TableError<X::Error>> {
        if !F::covers(self.config, gpa) {
            return Err(TableError::OutOfRange { gpa });
        }
        let mut table = self.root;
        let top = F::top(self.config);
        for level in Level::ALL.into_iter().rev().filter(|level| *level <= top) {
            let at = GpaEntry::containing(gpa, level);
            let slot = self.slot_of(table, level, gpa, self.word(table, level, gpa));
            // Only at its first address: an entry that was gone below is not visited again from inside.
            let whole = range.covers(at) && at.gpa() == gpa;
            let go = if whole { visit(at, slot, done)? } else { Go::Down };
            match slot.entry {
                Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } if matches!(go, Go::Down) => table = hpa,
                Entry::Frozen => return Err(TableError::Contended { at }),
                Entry::Leaf { .. } if !whole => return Err(occupied(at, &slot)),
                _ => return Ok(at),
            }
        }
        Ok(GpaEntry::containing(gpa, Level::L4K))
    }
}

/// What to do after an entry was visited.
#[derive(Clone, Copy)]
pub(super) enum Go {
    /// To the next one.
    On,
    /// Into the table.
    Down,
}
