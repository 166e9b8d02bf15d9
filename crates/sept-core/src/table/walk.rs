//! Walking the mirror: from the root to one entry.

use super::{SecurePageTable, TableError};
use crate::{Entry, External, Format, Gpa, GpaEntry, Hpa, Level, SideWord, TableMemory, Word};
use core::sync::atomic::Ordering;

/// Where a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Found {
    /// The entry at which the walk ended: a leaf, a free entry or one being changed.
    pub at: GpaEntry,
    /// What it holds.
    pub entry: Entry,
    /// Whether a table above it is blocked, so that the guest cannot reach it.
    pub hidden: bool,
}

/// A word of a table that a walk reached.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) table: Hpa,
    pub(super) word: Word,
    pub(super) raw: u64,
    pub(super) entry: Entry,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Where the walk for `gpa` ends. Reads at most one word per level and never waits.
    ///
    /// [`Entry::Frozen`] means that somebody is changing the entry at this moment and the walk could not see past it:
    /// look again. What was found may have changed by the time it is looked at.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfRange`] if `gpa` is not private memory of this guest.
    pub fn lookup(&self, gpa: Gpa) -> Result<Found, TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.lookup_pinned(gpa)
    }

    pub(super) fn lookup_pinned(&self, gpa: Gpa) -> Result<Found, TableError<X::Error>> {
        if !F::covers(self.config, gpa) {
            return Err(TableError::OutOfRange { gpa });
        }
        let mut table = self.root;
        let mut level = F::top(self.config);
        let mut hidden = false;
        loop {
            let entry = self.read(table, level, gpa).entry;
            match (entry, level.child()) {
                (Entry::Table { hpa, blocked }, Some(child)) => {
                    hidden |= blocked.is_some();
                    table = hpa;
                    level = child;
                }
                _ => return Ok(Found { at: GpaEntry::containing(gpa, level), entry, hidden }),
            }
        }
    }

    /// The entry exactly at `at`, if tables lead there. Blocked tables above do not matter. One word per level.
    ///
    /// # Errors
    ///
    /// [`TableError::OutOfRange`]; [`TableError::Level`] above the root; [`TableError::NoTable`] with the entry where
    /// the walk ended; [`TableError::Contended`] if that one is being changed.
    pub fn entry(&self, at: GpaEntry) -> Result<Entry, TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.slot(at, true).map(|slot| slot.entry)
    }

    /// Number of entries in use in the table at `at`, 0 to 512, or `None` if there is no table. Exact while nobody
    /// changes entries of the table; a change under way may not be counted yet.
    ///
    /// # Errors
    ///
    /// As [`SecurePageTable::entry`].
    pub fn live(&self, at: GpaEntry) -> Result<Option<u64>, TableError<X::Error>> {
        let _pin = self.memory.pin();
        Ok(match self.slot(at, true)?.entry {
            Entry::Table { hpa, .. } => Some(self.side(hpa, SideWord::Live)),
            _ => None,
        })
    }

    /// Walks to `at`. `through` says whether to go on below a blocked table.
    pub(super) fn slot(&self, at: GpaEntry, through: bool) -> Result<Slot, TableError<X::Error>> {
        let gpa = at.gpa();
        if !F::covers(self.config, gpa) {
            return Err(TableError::OutOfRange { gpa });
        }
        let mut table = self.root;
        let mut level = F::top(self.config);
        if at.level() > level {
            return Err(TableError::Level { at });
        }
        loop {
            let slot = self.read(table, level, gpa);
            if level == at.level() {
                return Ok(slot);
            }
            let stop = GpaEntry::containing(gpa, level);
            match (slot.entry, level.child()) {
                (Entry::Table { blocked: Some(_), .. }, _) if !through => {
                    return Err(TableError::Hidden { at, stop });
                }
                (Entry::Table { hpa, .. }, Some(child)) => {
                    table = hpa;
                    level = child;
                }
                (Entry::Frozen, _) => return Err(TableError::Contended { at: stop }),
                (found, _) => return Err(TableError::NoTable { at, stop, found }),
            }
        }
    }

    pub(super) fn read(&self, table: Hpa, level: Level, gpa: Gpa) -> Slot {
        let word = Word::Entry(level.index(gpa));
        let raw = self.memory.load(table, word, Ordering::Acquire);
        Slot { table, word, raw, entry: F::decode(self.config, level, raw) }
    }

    /// Takes the entry for this thread alone.
    pub(super) fn freeze(&self, at: GpaEntry, slot: &Slot) -> Result<(), TableError<X::Error>> {
        let frozen = F::encode(self.config, at.level(), Entry::Frozen);
        if slot.entry == Entry::Frozen {
            return Err(TableError::Contended { at });
        }
        self.memory
            .compare_exchange(slot.table, slot.word, slot.raw, frozen)
            .map_err(|_| TableError::Contended { at })
    }

    /// Publishes an entry that this thread froze.
    pub(super) fn publish(&self, at: GpaEntry, slot: &Slot, entry: Entry) {
        let raw = F::encode(self.config, at.level(), entry);
        self.memory.store(slot.table, slot.word, raw, Ordering::Release);
    }

    /// Undoes [`Self::freeze`].
    pub(super) fn thaw(&self, slot: &Slot) {
        self.memory.store(slot.table, slot.word, slot.raw, Ordering::Release);
    }

    pub(super) fn count_live(&self, table: Hpa, change: i64) {
        self.memory.add(table, Word::Side(SideWord::Live), change.cast_unsigned());
    }
}
