//! Unmapping and merging a range at once, with exclusive access and no TEE.

use super::{Blocked, RangeError, after, block::Go};
use crate::table::{Exclusive, Obligation, TableError, Unmapped};
use crate::{Entry, GpaEntry, GpaRange, HardwareWalked, HostOwned, Level, TableMemory};

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> Exclusive<'_, F, M, X> {
    /// Unmaps everything in `range`. Tables that lie wholly in it leave in constant time each, with their pages, and go to
    /// `into` as do tables left empty; all need a fence. Pages at the ends, in tables that reach beyond the range, go
    /// to `pages` one by one.
    ///
    /// # Errors
    ///
    /// [`RangeError::Straddles`] changes nothing. After [`RangeError::Stopped`] what lies before `next` is unmapped.
    pub fn unmap_range(
        &mut self,
        range: GpaRange,
        into: &mut Obligation,
        mut pages: impl FnMut(GpaEntry, Unmapped),
    ) -> Result<Blocked, RangeError<X::Error>> {
        let first = GpaEntry::containing(range.start(), Level::L4K);
        self.accepts(first, into).map_err(RangeError::stopped(range.start().raw()))?;
        self.closed_at_ends(range)?;
        let table = self.forget();
        table.each_piece(range, |at, slot, done| {
            match slot.entry {
                Entry::Free => {}
                Entry::Frozen => return Err(TableError::Contended { at }),
                Entry::Leaf { hpa, .. } => {
                    if table.clear(at, slot.table) == 0 {
                        table.shed_empty(at, into);
                    }
                    pages(at, table.unmapped(at, hpa));
                    done.note(slot.entry);
                }
                Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } => {
                    table.detach(at, &slot, hpa, into);
                    done.note(slot.entry);
                }
            }
            Ok(Go::On)
        })
    }

    /// Merges every table that lies wholly in `range` and whose entries make one page, small ones first. The tables go to
    /// `into` and need a fence.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stopped`] at an entry that is being changed.
    pub fn merge_range(
        &mut self,
        range: GpaRange,
        into: &mut Obligation,
    ) -> Result<Blocked, RangeError<X::Error>> {
        let mut merged = Blocked::default();
        for level in [Level::L2M, Level::L1G] {
            let mut next = range.start().raw();
            while let Some(gpa) = crate::Gpa::new(next).filter(|gpa| range.contains(*gpa)) {
                let at = GpaEntry::containing(gpa, level);
                let found = self.entry(at);
                if range.covers(at) && found.is_ok_and(|entry| self.is_candidate(at, entry)) {
                    self.merge(at, into).map_err(RangeError::stopped(next))?;
                    merged.tables = merged.tables.saturating_add(1);
                }
                next = after(at, &found);
            }
        }
        Ok(merged)
    }
}
