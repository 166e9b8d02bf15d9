//! Walking the table: from the root to one entry.
//!
//! The levels stand in the source one after the other, so that every shift is a constant; the depth of the table is
//! looked at once. A walk reads one word per level, in words that others may be writing, and never goes back up.

use super::{SecurePageTable, TableError, Translation};
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

impl Found {
    /// What the guest reaches at `gpa`, which lies in the entry.
    #[inline]
    #[must_use]
    pub const fn translation(self, gpa: Gpa) -> Option<Translation> {
        match self.entry {
            Entry::Leaf { hpa, state, blocked: None } if !self.hidden => {
                let level = self.at.level();
                let hpa = Hpa::truncate(hpa.raw() | gpa.raw() & level.mask());
                Some(Translation { hpa, level, state })
            }
            _ => None,
        }
    }
}

/// A word of a table that a walk reached.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) table: Hpa,
    pub(super) word: Word,
    pub(super) raw: u64,
    pub(super) entry: Entry,
}

/// Why a walk to an entry stopped above it.
#[derive(Clone, Copy)]
pub(super) struct Stop {
    pub(super) at: GpaEntry,
    pub(super) entry: Entry,
    /// Whether it stopped at a blocked table that it was not to enter.
    pub(super) shut: bool,
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

    #[inline]
    pub(super) fn lookup_pinned(&self, gpa: Gpa) -> Result<Found, TableError<X::Error>> {
        if !F::covers(self.config, gpa) {
            return Err(TableError::OutOfRange { gpa });
        }
        let mut table = self.root;
        macro_rules! step {
            ($level:expr) => {
                let raw = self.word(table, $level, gpa);
                match F::next(self.config, $level, raw) {
                    Some(next) => table = next,
                    None => return Ok(self.end_of_walk($level, raw, gpa)),
                }
            };
        }
        if F::top(self.config) == Level::L256T {
            step!(Level::L256T);
        }
        step!(Level::L512G);
        step!(Level::L1G);
        step!(Level::L2M);
        let raw = self.word(table, Level::L4K, gpa);
        let entry = F::decode(self.config, Level::L4K, raw);
        Ok(Found { at: GpaEntry::containing(gpa, Level::L4K), entry, hidden: false })
    }

    /// Where a walk ends that met no open table in the word `raw` of `level`; blocked and closed ones it goes through, and
    /// those that an MMU walks while they are being changed.
    pub(super) fn end_of_walk(&self, level: Level, raw: u64, gpa: Gpa) -> Found {
        let (mut level, mut raw, mut hidden) = (level, raw, false);
        loop {
            let entry = F::decode(self.config, level, raw);
            let through = match entry {
                Entry::Table { hpa, blocked } => Some((hpa, blocked.is_some())),
                Entry::Closed { hpa, .. } => Some((hpa, false)),
                Entry::Frozen => F::walks_on(self.config, level, raw).map(|hpa| (hpa, false)),
                _ => None,
            };
            let (Some((hpa, blocked)), Some(child)) = (through, level.child()) else {
                return Found { at: GpaEntry::containing(gpa, level), entry, hidden };
            };
            hidden |= blocked;
            level = child;
            raw = self.word(hpa, level, gpa);
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
            Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } => Some(self.side(hpa, SideWord::Live)),
            _ => None,
        })
    }

    /// The table that holds the entry `at`, if only open tables lead there. [`Self::slot`] says why not.
    #[inline(always)]
    pub(super) fn reach(&self, at: GpaEntry) -> Option<Hpa> {
        let (gpa, level) = (at.gpa(), at.level());
        let top = F::top(self.config);
        if !F::covers(self.config, gpa) || level > top {
            return None;
        }
        let (mut table, config, read) = (self.root, self.config, self.memory.reader());
        macro_rules! step {
            ($level:expr) => {
                if level == $level {
                    return Some(table);
                }
                table = F::next(config, $level, read(table, $level.index(gpa)))?;
            };
        }
        if top == Level::L256T {
            step!(Level::L256T);
        }
        step!(Level::L512G);
        step!(Level::L1G);
        step!(Level::L2M);
        Some(table)
    }

    /// Walks to `at`. `through` says whether to go on below a blocked or closed table.
    #[inline]
    pub(super) fn slot(&self, at: GpaEntry, through: bool) -> Result<Slot, TableError<X::Error>> {
        let gpa = at.gpa();
        if !F::covers(self.config, gpa) {
            return Err(TableError::OutOfRange { gpa });
        }
        let mut table = self.root;
        let top = F::top(self.config);
        if at.level() > top {
            return Err(TableError::Level { at });
        }
        macro_rules! step {
            ($level:expr) => {
                let raw = self.word(table, $level, gpa);
                if at.level() == $level {
                    return Ok(self.slot_of(table, $level, gpa, raw));
                }
                match F::next(self.config, $level, raw) {
                    Some(next) => table = next,
                    None => match self.beyond($level, gpa, raw, through) {
                        Ok(next) => table = next,
                        Err(stop) => return Err(stop.into_error(at)),
                    },
                }
            };
        }
        if top == Level::L256T {
            step!(Level::L256T);
        }
        step!(Level::L512G);
        step!(Level::L1G);
        step!(Level::L2M);
        Ok(self.slot_of(table, Level::L4K, gpa, self.word(table, Level::L4K, gpa)))
    }

    #[inline]
    pub(super) fn slot_of(&self, table: Hpa, level: Level, gpa: Gpa, raw: u64) -> Slot {
        Slot { table, word: Word::Entry(level.index(gpa)), raw, entry: F::decode(self.config, level, raw) }
    }

    /// The table below a word that leads nowhere at once: one that is blocked or closed, if the walk may enter it.
    #[cold]
    fn beyond(&self, level: Level, gpa: Gpa, raw: u64, through: bool) -> Result<Hpa, Stop> {
        let entry = F::decode(self.config, level, raw);
        let at = GpaEntry::containing(gpa, level);
        match entry {
            Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } if through => Ok(hpa),
            Entry::Table { .. } | Entry::Closed { .. } => Err(Stop { at, entry, shut: true }),
            _ => Err(Stop { at, entry, shut: false }),
        }
    }

    #[inline]
    pub(super) fn word(&self, table: Hpa, level: Level, gpa: Gpa) -> u64 {
        self.memory.load(table, Word::Entry(level.index(gpa)), Ordering::Acquire)
    }

    /// Takes the entry for this thread alone, as it was in `slot`. An MMU may have set bits in it since; they are noted.
    pub(super) fn freeze(&self, at: GpaEntry, slot: &mut Slot) -> Result<(), TableError<X::Error>> {
        if slot.entry == Entry::Frozen {
            return Err(TableError::Contended { at });
        }
        self.replace(at, slot, |old| F::update(self.config, at.level(), old, Entry::Frozen))
    }

    /// Takes the entry as [`Self::freeze`] does, and out of the reach of an MMU at once: what it walks on through a table that
    /// is being changed would escape a fence that begins before the entry is published as blocked.
    pub(super) fn hide(&self, at: GpaEntry, slot: &mut Slot) -> Result<(), TableError<X::Error>> {
        self.replace(at, slot, |_| F::encode(self.config, at.level(), Entry::Frozen))
    }

    /// Replaces the word of `slot`, as it was but for bits that an MMU has set since, which `to` is given too.
    pub(super) fn replace(
        &self,
        at: GpaEntry,
        slot: &mut Slot,
        to: impl Fn(u64) -> u64,
    ) -> Result<(), TableError<X::Error>> {
        let may_set = slot.entry.mmu_sets::<F>();
        // An MMU sets each of its bits once: no more than one turn for each, and one.
        for _ in 0..=may_set.count_ones() {
            match self.memory.compare_exchange(slot.table, slot.word, slot.raw, to(slot.raw)) {
                Ok(()) => return Ok(()),
                Err(now) if (now ^ slot.raw) & !may_set == 0 => slot.raw = now,
                Err(_) => break,
            }
        }
        Err(TableError::Contended { at })
    }

    /// Publishes an entry that this thread froze.
    pub(super) fn publish(&self, at: GpaEntry, slot: &Slot, entry: Entry) {
        self.publish_raw(slot, F::update(self.config, at.level(), slot.raw, entry));
    }

    pub(super) fn publish_raw(&self, slot: &Slot, raw: u64) {
        self.memory.store(slot.table, slot.word, raw, Ordering::Release);
    }

    /// Undoes [`Self::freeze`].
    pub(super) fn thaw(&self, slot: &Slot) {
        self.publish_raw(slot, slot.raw);
    }

    pub(super) fn count_live(&self, table: Hpa, change: i64) {
        self.memory.add(table, Word::Side(SideWord::Live), change.cast_unsigned());
    }
}

impl Stop {
    #[cold]
    pub(super) fn into_error<E>(self, at: GpaEntry) -> TableError<E> {
        let Self { at: stop, entry: found, shut } = self;
        match found {
            _ if shut => TableError::Hidden { at, stop },
            Entry::Frozen => TableError::Contended { at: stop },
            _ => TableError::NoTable { at, stop, found },
        }
    }
}

/// The error for an entry that holds something else than was asked for.
#[cold]
pub(super) fn occupied<E>(at: GpaEntry, slot: &Slot) -> TableError<E> {
    match slot.entry {
        Entry::Frozen => TableError::Contended { at },
        found => TableError::State { at, found },
    }
}
