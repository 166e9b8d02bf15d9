//! Iterating over the entries of a range: leaves and holes, without allocation.

use super::{Found, SecurePageTable};
use crate::{Entry, External, Format, Gpa, GpaEntry, GpaRange, Hpa, Level, TableMemory};
use core::fmt;

/// Iterator over where walks end in a range, in address order.
///
/// Each item covers at least the next address; the first and last may reach beyond the range. It holds a
/// [`TableMemory::Pin`]; drop it before a fence is awaited, and go on with a new one from the last address. Each item
/// is what an entry held at some moment since the iterator began: one read for neighbours in a table, a walk for the
/// first one. An entry that is being changed comes as [`Entry::Frozen`] and hides what is below it.
pub struct Entries<'a, F: Format, M: TableMemory + 'a, X: External> {
    table: &'a SecurePageTable<F, M, X>,
    /// Held for as long as `near` may be read.
    _pin: M::Pin<'a>,
    next: u64,
    end: u64,
    /// The 4 KiB or 2 MiB table that the last item came from, so that its neighbours need no walk.
    near: Option<(GpaEntry, Hpa, Level, bool)>,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// The entries that cover `range`. Addresses outside the private address space end the iteration.
    pub fn entries(&self, range: GpaRange) -> Entries<'_, F, M, X> {
        Entries {
            table: self,
            _pin: self.memory.pin(),
            next: range.start().raw(),
            end: range.end(),
            near: None,
        }
    }
}

impl<F: Format, M: TableMemory, X: External> Iterator for Entries<'_, F, M, X> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let table = self.table;
        let gpa = Gpa::new(self.next).filter(|_| self.next < self.end)?;
        // A table may hold entries of the shared half.
        if !F::covers(table.config, gpa) {
            return None;
        }
        let found = match self.near {
            Some((above, hpa, level, hidden)) if above.range().contains(gpa) => {
                let entry = F::decode(table.config, level, table.word(hpa, level, gpa));
                Found { at: GpaEntry::containing(gpa, level), entry, hidden }
            }
            _ => table.lookup_pinned(gpa).ok()?,
        };
        let found = match found.entry {
            // A neighbour turned out to be a table, or may lead to one: walk down.
            Entry::Table { .. } | Entry::Closed { .. } | Entry::Frozen => table.lookup_pinned(gpa).ok()?,
            _ => found,
        };
        self.near = self.table_of(found);
        self.next = found.at.end();
        Some(found)
    }
}

impl<F: Format, M: TableMemory, X: External> Entries<'_, F, M, X> {
    fn table_of(&self, found: Found) -> Option<(GpaEntry, Hpa, Level, bool)> {
        if let Some(near @ (above, _, level, _)) = self.near
            && level == found.at.level()
            && above.range().covers(found.at)
        {
            return Some(near);
        }
        let above = GpaEntry::containing(found.at.gpa(), found.at.level().parent()?);
        match self.table.slot(above, true).ok()?.entry {
            Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } => {
                Some((above, hpa, found.at.level(), found.hidden))
            }
            _ => None,
        }
    }
}

impl<F: Format, M: TableMemory, X: External> fmt::Debug for Entries<'_, F, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entries({:#x}..{:#x})", self.next, self.end)
    }
}
