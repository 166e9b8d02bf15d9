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
    near: Near,
}

/// The table that the last item came from, so that its neighbours need no walk.
#[derive(Clone, Copy)]
struct Near {
    table: Hpa,
    level: Level,
    hidden: bool,
    /// First address behind the table, the range or the address space; 0 for no table.
    end: u64,
}

impl Near {
    const NONE: Self = Self { table: Hpa::truncate(0), level: Level::L4K, hidden: false, end: 0 };
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// The entries that cover `range`. Addresses outside the private address space end the iteration.
    pub fn entries(&self, range: GpaRange) -> Entries<'_, F, M, X> {
        let _pin = self.memory.pin();
        // A table may hold entries of the shared half.
        let end = range.end().min(F::limit(self.config));
        Entries { table: self, _pin, next: range.start().raw(), end, near: Near::NONE }
    }
}

impl<F: Format, M: TableMemory, X: External> Iterator for Entries<'_, F, M, X> {
    type Item = Found;

    #[inline]
    fn next(&mut self) -> Option<Found> {
        let Near { table, level, hidden, end } = self.near;
        if self.next < end {
            let gpa = Gpa::truncate(self.next);
            let entry = F::decode(self.table.config, level, self.table.word(table, level, gpa));
            // A neighbour that is a table, or may lead to one, wants a walk.
            if matches!(entry, Entry::Free | Entry::Leaf { .. }) {
                let at = GpaEntry::containing(gpa, level);
                self.next = at.end();
                return Some(Found { at, entry, hidden });
            }
        }
        self.walk()
    }
}

impl<F: Format, M: TableMemory, X: External> Entries<'_, F, M, X> {
    #[cold]
    fn walk(&mut self) -> Option<Found> {
        let gpa = Gpa::new(self.next).filter(|_| self.next < self.end)?;
        let found = self.table.lookup_pinned(gpa).ok()?;
        self.near = self.near(&found).unwrap_or(Near::NONE);
        self.next = found.at.end();
        Some(found)
    }

    /// The table that `found` is in.
    fn near(&self, found: &Found) -> Option<Near> {
        let level = found.at.level();
        let above = GpaEntry::containing(found.at.gpa(), level.parent()?);
        match self.table.slot(above, true).ok()?.entry {
            Entry::Table { hpa: table, .. } | Entry::Closed { hpa: table, .. } => {
                Some(Near { table, level, hidden: found.hidden, end: above.end().min(self.end) })
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
