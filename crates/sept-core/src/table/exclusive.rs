//! Changes by the only thread that can reach the table.
//!
//! [`SecurePageTable::exclusive`] takes the table by `&mut`: nobody else walks it in software, so an entry is changed with
//! one store and the tables that a change empties leave at once. A host that keeps its table in a reader/writer lock has
//! exclusive access in the writer section. An MMU may be walking all the while: words change by single stores, and
//! what it may have cached is owed a fence ([`Unmapped`], [`Obligation`]).

use super::{
    Obligation, SecurePageTable, TableError, Unmapped,
    walk::{Slot, occupied},
};
use crate::{
    Entry, External, Fill, Format, Frame, FrameStore, GpaEntry, HardwareWalked, HostOwned, Hpa, Returned,
    TableMemory, Word,
};
use core::{cell::Cell, fmt, ops::Deref, sync::atomic::Ordering};

/// A table that only this thread can reach. Everything that takes a [`SecurePageTable`] by reference works on it too.
///
/// ```
/// use sept_core::test_util::{Arena, FramePool, Kick, RamLedger, VecStore};
/// use sept_core::{
///     Direct, Fill, FrameKind, FrameSource, FrameStore, FrameNeeds, Gpa, GpaEntry, Hpa, Level, SecurePageTable, X86,
///     X86Config,
/// };
/// # let base = Hpa::new(0x10_0000).unwrap();
/// # let pool = FramePool::new(base, 8);
/// # let root = pool.take(FrameKind::MirrorTable, base).unwrap();
/// # let arena = Arena::new(base, 8, Box::new(|_, _| {}));
/// # let ram = RamLedger::new(Hpa::new(0x4000_0000).unwrap(), 512);
/// let flush = Direct::new(Kick::new(|| (), || true));
/// let mut table = SecurePageTable::<X86, _, _>::new(X86Config::NESTED_4, arena, flush, root);
/// let at = GpaEntry::containing(Gpa::new(0x20_0000).unwrap(), Level::L2M);
/// let page = ram.lend(Hpa::new(0x4000_0000).unwrap(), Level::L2M).unwrap();
/// let mut store = VecStore::default();
/// store.fill(&FrameNeeds::of(FrameKind::MirrorTable, 3), base, &pool).unwrap();
///
/// let mut owed = table.obligation();
/// let mut alone = table.exclusive();
/// alone.map_linking(at, page, Fill::OnAccept, &mut store).unwrap(); // two tables lead there
/// alone.split(at, &mut store).unwrap();
/// alone.merge(at, &mut owed).unwrap();
/// let unmapped = alone.unmap(at, &mut owed).unwrap();
///
/// // What CPUs may still have cached becomes memory again after a fence.
/// let ticket = table.fence().unwrap();
/// let fence = table.fenced(&ticket).unwrap();
/// ram.take_back(table.take(unmapped, &fence).unwrap()).unwrap();
/// let freed = table.settle(owed, &fence.quiet(), &pool).unwrap();
/// assert_eq!(freed[FrameKind::MirrorTable], 3); // the merged table, and the two left empty
/// ```
///
/// ```compile_fail,E0502
/// use sept_core::{Ept, External, Gpa, SecurePageTable, TableMemory};
/// fn shared<M: TableMemory, X: External>(table: &mut SecurePageTable<Ept, M, X>, gpa: Gpa) {
///     let walker = table.walker();
///     let alone = table.exclusive(); // somebody is walking
///     let _ = walker.translate(gpa);
///     drop(alone);
/// }
/// ```
pub struct Exclusive<'t, F: Format, M: TableMemory, X: External> {
    table: &'t mut SecurePageTable<F, M, X>,
    /// Where the last walk came to. Forgotten when a table leaves, and when anything is done through the shared table.
    near: Cell<Near>,
}

/// A table that open tables lead to, and the entries that it holds.
#[derive(Clone, Copy)]
struct Near {
    /// What the entries have in common, see [`Near::key`]; 0 for none.
    key: u64,
    table: Hpa,
}

impl Near {
    const NONE: Self = Self { key: 0, table: Hpa::truncate(0) };

    /// The same for two entries iff they are in one table, never 0.
    #[inline]
    const fn key(at: GpaEntry) -> u64 {
        let span = at.level().shift().wrapping_add(9);
        (at.gpa().raw() >> span) << 3 | at.level().raw() as u64 | 1 << 63
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Access for the only thread that can reach the table.
    pub const fn exclusive(&mut self) -> Exclusive<'_, F, M, X> {
        Exclusive { table: self, near: Cell::new(Near::NONE) }
    }
}

impl<F: Format, M: TableMemory, X: External> Exclusive<'_, F, M, X> {
    /// [`SecurePageTable::map`] without atomic updates. Entries in one table after another need one walk.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline(always)]
    pub fn map(
        &mut self,
        at: GpaEntry,
        page: Frame,
        fill: Fill,
    ) -> Result<(), Returned<TableError<X::Error>, Frame>> {
        let table = &*self.table;
        if page.level() == at.level()
            && at.level() <= table.largest(fill)
            && table.can_name(page.hpa())
            && let Some(holder) = self.holder(at)
        {
            let raw = table.word(holder, at.level(), at.gpa());
            if F::vacant(table.config, at.level(), raw) {
                let mapped = table.mapping(at, raw, &page, fill);
                if let Err(refused) = table.external.map(at, page, fill) {
                    return Err(refused.map_error(|error| TableError::External { at, error }));
                }
                table.memory.store(
                    holder,
                    Word::Entry(at.level().index(at.gpa())),
                    mapped,
                    Ordering::Release,
                );
                table.adjust_live(holder, 1);
                return Ok(());
            }
        }
        Err(Returned { error: table.no_vacancy(at, &page, fill), held: page })
    }

    /// [`Exclusive::map`], hanging in the tables that are missing, with frames of `from`.
    ///
    /// # Errors
    ///
    /// As there, and those of [`SecurePageTable::link_to`]; tables that were linked stay.
    #[inline(always)]
    pub fn map_linking(
        &mut self,
        at: GpaEntry,
        page: Frame,
        fill: Fill,
        from: &mut dyn FrameStore,
    ) -> Result<(), Returned<TableError<X::Error>, Frame>> {
        match self.map(at, page, fill) {
            Err(Returned { error: TableError::NoTable { .. }, held }) => {
                self.link_and_map(at, held, fill, from)
            }
            result => result,
        }
    }

    #[cold]
    fn link_and_map(
        &mut self,
        at: GpaEntry,
        page: Frame,
        fill: Fill,
        from: &mut dyn FrameStore,
    ) -> Result<(), Returned<TableError<X::Error>, Frame>> {
        match self.table.link_to(at, Some(page.hpa()), from) {
            Ok(_) => self.map(at, page, fill),
            Err(error) => Err(Returned { error, held: page }),
        }
    }

    /// The table that holds `at`, if open tables lead there.
    #[inline(always)]
    fn holder(&self, at: GpaEntry) -> Option<Hpa> {
        let near = self.near.get();
        let key = Near::key(at);
        if near.key == key {
            return Some(near.table);
        }
        let table = self.table.reach(at)?;
        self.near.set(Near { key, table });
        Some(table)
    }

    /// To be called before a table may leave.
    pub(super) fn forget(&mut self) -> &SecurePageTable<F, M, X> {
        self.near.set(Near::NONE);
        self.table
    }
}

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> Exclusive<'_, F, M, X> {
    /// Unmaps the page at `at`, blocked or not. Tables that hold nothing any more go to `into` and need a fence. The page
    /// counts as written: the MMU may be marking it so at this moment.
    ///
    /// One store, and one walk for entries in one table after another; a table that becomes empty costs another.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no page; [`TableError::ForeignObligation`]; and those of the
    /// walk as with [`SecurePageTable::link`].
    #[inline(always)]
    pub fn unmap(&mut self, at: GpaEntry, into: &mut Obligation) -> Result<Unmapped, TableError<X::Error>> {
        if into.is_of(self.table.root)
            && let Some(holder) = self.holder(at)
            && let table = &*self.table
            && let Some(hpa) =
                F::open_leaf(table.config, at.level(), table.word(holder, at.level(), at.gpa()))
        {
            if table.clear(at, holder) == 0 {
                self.forget().shed_empty(at, into);
            }
            return Ok(self.table.unmapped(at, hpa));
        }
        self.unmap_blocked(at, into)
    }

    /// [`Exclusive::unmap`] of a page that is blocked, or why there is none.
    #[cold]
    fn unmap_blocked(
        &mut self,
        at: GpaEntry,
        into: &mut Obligation,
    ) -> Result<Unmapped, TableError<X::Error>> {
        let table = self.forget();
        table.accepts(at, into)?;
        let slot = table.slot(at, false)?;
        let Entry::Leaf { hpa, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        if table.clear(at, slot.table) == 0 {
            table.shed_empty(at, into);
        }
        Ok(table.unmapped(at, hpa))
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
        if into.is_of(self.table.root)
            && let Some(holder) = self.holder(at)
            && let table = &*self.table
            && let raw = table.word(holder, at.level(), at.gpa())
            && let Some(below) = F::next(table.config, at.level(), raw)
        {
            // What is remembered is the table that holds `at`, and that stays.
            let slot = table.slot_of(holder, at.level(), at.gpa(), raw);
            return table.merge_alone(at, &slot, below, into);
        }
        let table = self.forget();
        table.accepts(at, into)?;
        let slot = table.slot(at, false)?;
        let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = slot.entry else {
            return Err(occupied(at, &slot));
        };
        table.merge_alone(at, &slot, hpa, into)
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
        let table = self.forget();
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
    /// Puts one page in the place of the table `below`, if its entries make one.
    #[inline]
    fn merge_alone(
        &self,
        at: GpaEntry,
        slot: &Slot,
        below: Hpa,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let (_, merged) = self.uniform(at, slot.raw, below)?;
        self.publish_raw(slot, merged | F::MMU_SETS);
        self.shed_since(self.epoch.load(Ordering::Relaxed), below, None, true, into);
        Ok(())
    }
}

impl<F: Format, M: TableMemory, X: External> Deref for Exclusive<'_, F, M, X> {
    type Target = SecurePageTable<F, M, X>;

    fn deref(&self) -> &Self::Target {
        // Whatever is done through the reference is over before the next call that takes `self` by `&mut`.
        self.near.set(Near::NONE);
        self.table
    }
}

impl<F: Format, M: TableMemory, X: External> fmt::Debug for Exclusive<'_, F, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.table, f)
    }
}
