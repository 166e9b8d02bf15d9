//! Level inhibits: where the guest accepts in pieces smaller than a page could be.
//!
//! A guest that accepts 4 KiB at a time makes a pending 2 MiB page exit on every accept. The host notes the entry, and no
//! page of its size is mapped or made by merging there until the note is cleared, which is the host's decision: it may
//! do so once no page below is pending. The mark stands in the free entry or table itself and survives linking, blocking and
//! unlinking; it costs no memory.

use super::{SecurePageTable, TableError, walk::occupied};
use crate::{Entry, External, Format, GpaEntry, TableMemory};

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Sets or clears the mark that no page of `at`'s size may be mapped at `at`. One walk.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::Level`] at 4K; [`TableError::State`] if `at` is a page (split it first);
    /// and those of the walk and of contention as with [`SecurePageTable::link`].
    pub fn inhibit(&self, at: GpaEntry, inhibit: bool) -> Result<(), TableError<X::Error>> {
        if at.level().child().is_none() {
            return Err(TableError::Level { at });
        }
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        match slot.entry {
            Entry::Free | Entry::Table { .. } | Entry::Closed { .. } => {
                self.replace(at, &mut slot, |old| F::with_inhibit(old, inhibit))
            }
            _ => Err(occupied(at, &slot)),
        }
    }

    /// Whether a page of `at`'s size is inhibited at `at`; `false` where no table leads there, and of a page. One walk.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfRange`], [`TableError::Level`] above the root, [`TableError::Contended`].
    pub fn inhibited(&self, at: GpaEntry) -> Result<bool, TableError<X::Error>> {
        let _pin = self.memory.pin();
        match self.slot(at, true) {
            Ok(slot) => match slot.entry {
                Entry::Free | Entry::Table { .. } | Entry::Closed { .. } => Ok(F::inhibited(slot.raw)),
                Entry::Frozen => Err(TableError::Contended { at }),
                Entry::Leaf { .. } => Ok(false),
            },
            Err(TableError::NoTable { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
