//! Permissions and level inhibits of a range.

use super::{Blocked, RangeError, block::Go};
use crate::table::{SecurePageTable, TableError, walk::Slot};
use crate::{Entry, External, Format, Gpa, GpaEntry, GpaRange, Level, Permissions, TableMemory};

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Gives every page in `range` other permissions, as [`SecurePageTable::protect`] does. Holes are passed over.
    ///
    /// # Errors
    ///
    /// [`RangeError::Straddles`] changes nothing. After [`RangeError::Stopped`] the pages before `next` have them.
    pub fn protect_range(
        &self,
        range: GpaRange,
        permissions: Permissions,
    ) -> Result<Blocked, RangeError<X::Error>> {
        self.closed_at_ends(range)?;
        self.each_piece(range, |at, Slot { entry, .. }, done| match entry {
            Entry::Free => Ok(Go::On),
            Entry::Frozen => Err(TableError::Contended { at }),
            Entry::Table { .. } | Entry::Closed { .. } => Ok(Go::Down),
            Entry::Leaf { .. } => {
                self.protect(at, permissions)?;
                done.note(entry);
                Ok(Go::On)
            }
        })
    }

    /// Sets or clears the mark that no page of `level` (`L2M` or `L1G`) may be mapped, for every entry of that level that
    /// `range` touches, as [`SecurePageTable::inhibit`] does. Says how many entries there are.
    ///
    /// Setting it needs the tables that hold those entries ([`SecurePageTable::link_to`]); clearing passes over entries that
    /// no table holds, which have no mark.
    ///
    /// # Errors
    ///
    /// After [`RangeError::Stopped`] the entries before `next` are done.
    pub fn inhibit_range(
        &self,
        range: GpaRange,
        level: Level,
        inhibit: bool,
    ) -> Result<u64, RangeError<X::Error>> {
        let touched = range.align_out(level);
        let mut next = range.start().align_down(level).raw();
        // Each turn passes one entry, or a hole.
        while let Some(gpa) = Gpa::new(next).filter(|gpa| gpa.raw() < range.end()) {
            let at = GpaEntry::containing(gpa, level);
            next = match self.inhibit(at, inhibit) {
                // What is mapped large, or not at all, bears no mark.
                Err(TableError::NoTable { stop, .. }) if !inhibit => stop.end(),
                Err(TableError::State { .. }) if !inhibit => at.end(),
                result => result.map(|()| at.end()).map_err(RangeError::stopped(next))?,
            };
        }
        Ok(touched.len() >> level.shift())
    }
}
