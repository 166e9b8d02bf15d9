//! Tables: hanging them in, taking them out, and the frames behind them.

use super::{Fenced, Obligation, SecurePageTable, TableError, obligation::ledger, walk::occupied};
use crate::{
    Donated, Entry, External, Format, Frame, FrameKind, FrameStore, GpaEntry, Hpa, Level, SideWord,
    TableMemory,
};

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Hangs an empty table into the free entry `at`, with exactly [`SecurePageTable::table_cost`] frames of `from`.
    ///
    /// `backing` is the host memory of `at`'s size, aligned to it, that the table's leaves will map, if it is one
    /// piece; a table linked with metadata pages can be merged into that memory only. One walk, one pass over the new
    /// table, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed and `from` holds what it held: [`TableError::Level`] at 4K, above the root or with a misaligned
    /// `backing`; [`TableError::State`] if `at` is not free; [`TableError::NoFrames`]; [`TableError::Address`] of a frame; [`TableError::OutOfRange`],
    /// [`TableError::NoTable`] and [`TableError::Hidden`] from the walk; [`TableError::Contended`];
    /// [`TableError::External`].
    pub fn link(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        from: &mut dyn FrameStore,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let Some(child) = at.level().child() else { return Err(TableError::Level { at }) };
        if backing.is_some_and(|hpa| !hpa.is_aligned(at.level())) {
            return Err(TableError::Level { at });
        }
        let mut slot = self.slot(at, false)?;
        if slot.entry != Entry::Free {
            return Err(occupied(at, &slot));
        }
        let (mirror, pages) = self.draw(at, backing, from)?;
        let donated = self.external.addresses(&pages);
        if let Err(error) = self.freeze(at, &mut slot) {
            self.restock(mirror, pages, from);
            return Err(error);
        }
        let free = self.free_below(slot.raw, child);
        self.memory.write_detached(&mirror, |_| free);
        if let Err(refused) = self.external.link(at, backing, pages) {
            self.thaw(&slot);
            self.restock(mirror, refused.held, from);
            return Err(TableError::External { at, error: refused.error });
        }
        self.record(mirror.hpa(), 0, donated, backing);
        self.publish(at, &slot, Entry::Table { hpa: mirror.hpa(), blocked: None });
        self.count_live(slot.table, 1);
        Ok(())
    }

    /// Hangs in every table that is missing on the way to `at`, and says how many. `hpa` is the memory that will be mapped
    /// at `at`, if it is known: tables whose size of it is one aligned piece are linked with that as backing.
    ///
    /// # Errors
    ///
    /// As [`SecurePageTable::link`]. Tables that were linked before stay.
    pub fn link_to(
        &self,
        at: GpaEntry,
        hpa: Option<Hpa>,
        from: &mut dyn FrameStore,
    ) -> Result<u32, TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut table = self.root;
        let mut linked = 0_u32;
        let top = F::top(self.config);
        if !F::covers(self.config, at.gpa()) {
            return Err(TableError::OutOfRange { gpa: at.gpa() });
        }
        if at.level() > top {
            return Err(TableError::Level { at });
        }
        for level in Level::ALL.into_iter().rev().filter(|level| *level <= top && *level > at.level()) {
            let above = GpaEntry::containing(at.gpa(), level);
            if F::next(self.config, level, self.word(table, level, at.gpa())).is_none() {
                let delta = at.gpa().raw().wrapping_sub(above.gpa().raw());
                let backing = hpa.map(|hpa| Hpa::truncate(hpa.raw().wrapping_sub(delta)));
                match self.link(above, backing.filter(|hpa| hpa.is_aligned(level)), from) {
                    Ok(()) => linked = linked.saturating_add(1),
                    // Somebody else was faster, which is as good; or it is something else, which the walk will say.
                    Err(TableError::State { found: Entry::Table { blocked: None, .. }, .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            match F::next(self.config, level, self.word(table, level, at.gpa())) {
                Some(next) => table = next,
                None => return self.slot(at, false).map(|_| linked),
            }
        }
        Ok(linked)
    }

    /// The word of each entry of a new table of `child` entries in the free entry `raw`.
    #[inline]
    pub(super) fn free_below(&self, raw: u64, child: Level) -> u64 {
        F::update(self.config, child, F::with_inhibit(raw, false), Entry::Free)
    }

    /// Takes the blocked, fenced and empty table out of `at` and adds it to `into`. One walk, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::NotEmpty`]; [`TableError::State`] if `at` is no table;
    /// [`TableError::ForeignObligation`]; else as [`SecurePageTable::unblock`]. But with [`TableError::Ledger`] the table
    /// is out and in `into`, and only the pages in dispute are lost.
    pub fn unlink(
        &self,
        at: GpaEntry,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.accepts(at, into)?;
        let mut slot = self.fenced_slot(at, fence)?;
        let Entry::Table { hpa, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        let live = self.side(hpa, SideWord::Live);
        if live != 0 {
            return Err(TableError::NotEmpty { at, live });
        }
        self.freeze_fenced(at, &mut slot, fence)?;
        let backing = self.backing(hpa);
        match self.external.unlink(at, backing) {
            Ok(donated) => {
                self.publish(at, &slot, Entry::Free);
                self.count_live(slot.table, -1);
                self.chain(at, hpa, donated, into)
            }
            Err(error) => {
                self.thaw(&slot);
                Err(TableError::External { at, error })
            }
        }
    }

    /// Draws one table's frames out of the store: all of them or none.
    pub(super) fn draw(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        from: &mut dyn FrameStore,
    ) -> Result<(Frame, X::Pages), TableError<X::Error>> {
        let short = TableError::NoFrames { at, need: self.table_cost(at, backing) };
        let Some(mirror) = from.get(FrameKind::MirrorTable) else { return Err(short) };
        if !self.can_name(mirror.hpa()) {
            let error = TableError::Address { at, hpa: mirror.hpa() };
            put_back(mirror, FrameKind::MirrorTable, from);
            return Err(error);
        }
        match self.external.gather(at, backing, from) {
            Some(pages) => Ok((mirror, pages)),
            None => {
                put_back(mirror, FrameKind::MirrorTable, from);
                Err(short)
            }
        }
    }

    /// Puts undrawn frames back, overwriting those that a failed call may have written.
    pub(super) fn restock(&self, mirror: Frame, pages: X::Pages, from: &mut dyn FrameStore) {
        put_back(mirror, FrameKind::MirrorTable, from);
        self.external.scatter(pages, &mut |page| self.memory.scrub(page), from);
    }

    /// Writes the ledger of a table that is not published yet.
    pub(super) fn record(&self, mirror: Hpa, live: u64, donated: Donated, backing: Option<Hpa>) {
        let [first, second] = donated.metadata;
        let backing = if first.is_some() { backing } else { None };
        self.set_side(mirror, SideWord::Live, live);
        if X::TEE {
            self.set_side(mirror, SideWord::External, ledger::word(donated.table));
            self.set_side(mirror, SideWord::Metadata0, ledger::word(first));
            self.set_side(mirror, SideWord::Metadata1, ledger::word(second));
            self.set_side(mirror, SideWord::Backing, ledger::word(backing));
        }
    }

    /// The host memory that the metadata pages behind a table describe, if it has any.
    pub(super) fn backing(&self, mirror: Hpa) -> Option<Hpa> {
        ledger::address(self.side(mirror, SideWord::Backing))
    }
}

/// Returns a frame to the store it was just taken from. A store that lost the room for it leaks the frame, which
/// the caller's own count of outstanding frames then shows.
fn put_back(frame: Frame, kind: FrameKind, to: &mut dyn FrameStore) {
    drop(to.put(kind, frame));
}
