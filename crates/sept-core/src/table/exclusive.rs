//! Changes by the only thread that can reach the table.
//!
//! [`SecurePageTable::exclusive`] takes the table by `&mut`: nobody else walks it in software, so an entry is changed with
//! one store and the tables that a change empties leave at once. A host that keeps its table in a reader/writer lock has
//! exclusive access in the writer section. An MMU may be walking all the while: words change by single stores, and
//! what it may have cached is owed a fence ([`Unmapped`], [`Obligation`]).

use super::{Fenced, Obligation, SecurePageTable, TableError, change::occupied, walk::Slot};
use crate::{
    Entry, External, Fill, Format, Frame, FrameStore, GpaEntry, HardwareWalked, HostOwned, Hpa, Level,
    Returned, SideWord, TableMemory, Word,
};
use core::{fmt, ops::Deref, sync::atomic::Ordering};

/// A table that only this thread can reach. Everything that takes a [`SecurePageTable`] by reference works on it too.
pub struct Exclusive<'t, F: Format, M: TableMemory, X: External> {
    table: &'t mut SecurePageTable<F, M, X>,
}

/// A page that was unmapped and that a CPU may still reach until a fence has ended: [`SecurePageTable::take`].
#[derive(Debug)]
#[must_use = "dropping it leaks the page"]
pub struct Unmapped {
    root: Hpa,
    hpa: Hpa,
    level: Level,
    /// Fences with this number or a later one began after the page was unmapped.
    stamp: u64,
}

impl Unmapped {
    /// Where the page is.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Size of the page.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Access for the only thread that can reach the table.
    pub const fn exclusive(&mut self) -> Exclusive<'_, F, M, X> {
        Exclusive { table: self }
    }
}

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> SecurePageTable<F, M, X> {
    /// The page, once `fence` has ended that was started after it was unmapped.
    ///
    /// # Errors
    ///
    /// The fence is another table's or was started too early; the page comes back.
    pub fn take(&self, page: Unmapped, fence: &Fenced) -> Result<Frame, Unmapped> {
        let quiet = fence.quiet();
        if quiet.root == self.root && page.root == self.root && quiet.stamp >= page.stamp {
            Ok(Frame::from_ledger(page.hpa, page.level))
        } else {
            Err(page)
        }
    }
}

impl<F: Format, M: TableMemory, X: External> Exclusive<'_, F, M, X> {
    /// [`SecurePageTable::map`] without atomic updates.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn map(
        &mut self,
        at: GpaEntry,
        page: Frame,
        fill: Fill,
    ) -> Result<(), Returned<TableError<X::Error>, Frame>> {
        let table = &*self.table;
        let Some(slot) = table.vacancy(at, &page, fill) else {
            return Err(Returned { error: table.no_vacancy(at, &page, fill), held: page });
        };
        let (hpa, word, raw) = slot;
        let mapped = table.mapping(at, raw, &page, fill);
        if let Err(refused) = table.external.map(at, page, fill) {
            return Err(refused.map_error(|error| TableError::External { at, error }));
        }
        table.memory.store(hpa, word, mapped, Ordering::Release);
        table.adjust_live(hpa, 1);
        Ok(())
    }
}

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> Exclusive<'_, F, M, X> {
    /// Unmaps the page at `at`, blocked or not. Tables that hold nothing any more go to `into` and need a fence.
    ///
    /// One walk and one store; a table that becomes empty costs another walk.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no page; [`TableError::ForeignObligation`]; and those of the
    /// walk as with [`SecurePageTable::link`].
    #[inline]
    pub fn unmap(&mut self, at: GpaEntry, into: &mut Obligation) -> Result<Unmapped, TableError<X::Error>> {
        let table = &*self.table;
        if let (true, Some(holder)) = (into.is_of(table.root), table.reach(at)) {
            let raw = table.word(holder, at.level(), at.gpa());
            if let Entry::Leaf { hpa, .. } = F::decode(table.config, at.level(), raw) {
                return Ok(table.clear(at, holder, raw, hpa, into));
            }
        }
        Err(table.not_a_page(at, into))
    }

    /// Splits the page at `at`, blocked or not, with one [`FrameKind::MirrorTable`](crate::FrameKind::MirrorTable) frame of
    /// `from`. The pieces are not blocked. One walk, one pass over the new table, one store.
    ///
    /// # Errors
    ///
    /// As [`SecurePageTable::split_in_place`].
    #[inline]
    pub fn split(&mut self, at: GpaEntry, from: &mut dyn FrameStore) -> Result<(), TableError<X::Error>> {
        self.table.split_in_place(at, from)
    }

    /// Merges the table at `at`, blocked, closed or open, into one page; the table goes to `into` and needs a fence.
    ///
    /// The page counts as accessed and dirty, since the MMU may set those bits in the table until the fence. One walk, one
    /// pass over the table, one store.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::NotUniform`] with the first entry that does not fit; [`TableError::Inhibited`];
    /// [`TableError::Level`] above the largest page; [`TableError::State`] if `at` is no table;
    /// [`TableError::ForeignObligation`]; and those of the walk.
    #[inline]
    pub fn merge(&mut self, at: GpaEntry, into: &mut Obligation) -> Result<(), TableError<X::Error>> {
        let table = &*self.table;
        table.accepts(at, into)?;
        let slot = table.slot(at, false)?;
        let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = slot.entry else {
            return Err(occupied(at, &slot));
        };
        let (_, merged) = table.uniform(at, slot.raw, hpa)?;
        table.publish_raw(&slot, merged | F::MMU_SETS);
        table.shed(hpa, None, true, into);
        Ok(())
    }

    /// Takes the table at `at` out with everything below it, in constant time. It goes to `into` and needs a fence.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no table; [`TableError::ForeignObligation`]; and those of the
    /// walk.
    pub fn remove_subtree(
        &mut self,
        at: GpaEntry,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let table = &*self.table;
        table.accepts(at, into)?;
        let slot = table.slot(at, false)?;
        let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = slot.entry else {
            return Err(occupied(at, &slot));
        };
        table.detach(at, &slot, hpa, into);
        Ok(())
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Changes the live count without an atomic update and says what it is now.
    #[inline]
    pub(super) fn adjust_live(&self, table: Hpa, change: i64) -> u64 {
        let live = self.side(table, SideWord::Live).wrapping_add(change.cast_unsigned());
        self.set_side(table, SideWord::Live, live);
        live
    }

    /// Why [`Exclusive::unmap`] found no page.
    #[cold]
    fn not_a_page(&self, at: GpaEntry, into: &Obligation) -> TableError<X::Error> {
        match self.accepts(at, into).and_then(|()| self.slot(at, false)) {
            Err(error) => error,
            Ok(slot) => occupied(at, &slot),
        }
    }

    /// Takes the page `hpa`, which `raw` names, out of the table `holder`, and the tables above that this leaves empty. Nobody else may be at work.
    #[inline]
    pub(super) fn clear(
        &self,
        at: GpaEntry,
        holder: Hpa,
        raw: u64,
        hpa: Hpa,
        into: &mut Obligation,
    ) -> Unmapped {
        let free = F::update(self.config, at.level(), raw, Entry::Free);
        let word = Word::Entry(at.level().index(at.gpa()));
        self.memory.store(holder, word, free, Ordering::Release);
        if self.adjust_live(holder, -1) == 0 {
            self.shed_empty(at, into);
        }
        // Nobody can start a fence meanwhile.
        Unmapped { root: self.root, hpa, level: at.level(), stamp: self.epoch.load(Ordering::Relaxed) }
    }

    /// Takes the table `child` out of `slot` with everything below it, and the tables above that this leaves empty.
    pub(super) fn detach(&self, at: GpaEntry, slot: &Slot, child: Hpa, into: &mut Obligation) {
        self.publish(at, slot, Entry::Free);
        self.shed(child, at.child(0), true, into);
        if self.adjust_live(slot.table, -1) == 0 {
            self.shed_empty(at, into);
        }
    }

    /// Takes out the tables above `at` that hold nothing, the lowest first. The root stays.
    #[cold]
    pub(super) fn shed_empty(&self, at: GpaEntry, into: &mut Obligation) {
        for level in Level::ALL.into_iter().filter(|level| *level > at.level()) {
            let above = GpaEntry::containing(at.gpa(), level);
            let Ok(slot) = self.slot(above, true) else { return };
            let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = slot.entry else { return };
            if self.side(hpa, SideWord::Live) != 0 {
                return;
            }
            self.publish(above, &slot, Entry::Free);
            self.shed(hpa, None, true, into);
            self.adjust_live(slot.table, -1);
        }
    }
}

impl<F: Format, M: TableMemory, X: External> Deref for Exclusive<'_, F, M, X> {
    type Target = SecurePageTable<F, M, X>;

    fn deref(&self) -> &Self::Target {
        self.table
    }
}

impl<F: Format, M: TableMemory, X: External> fmt::Debug for Exclusive<'_, F, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.table, f)
    }
}
