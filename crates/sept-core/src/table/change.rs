//! Changes of one entry: map, block, unblock, protect, probe, remove.

use super::{
    Fenced, SecurePageTable, TableError,
    walk::{Slot, occupied},
};
use crate::{
    CacheKey, Entry, External, Fill, Format, Frame, GpaEntry, Hpa, LeafState, Level, Observed, Permissions,
    Returned, Stamp, TableMemory, Tainted, Word,
};
use core::sync::atomic::Ordering;

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Maps `page` at the free entry `at`. Safe to call from several threads; one wins. One walk, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed; the page comes back: [`TableError::Level`] if the page has not `at`'s size, is larger than
    /// [`External::max_map`], or larger than 4 KiB with [`Fill::Copy`]; [`TableError::Address`]; [`TableError::State`] if `at` is not free; and
    /// those of the walk, of contention and of the TEE as with [`SecurePageTable::link`].
    #[inline]
    pub fn map(
        &self,
        at: GpaEntry,
        page: Frame,
        fill: Fill,
    ) -> Result<(), Returned<TableError<X::Error>, Frame>> {
        let _pin = self.memory.pin();
        let Some(slot) = self.vacancy(at, &page, fill) else {
            return Err(Returned { error: self.no_vacancy(at, &page, fill), held: page });
        };
        let (table, word, raw) = slot;
        let mapped = self.mapping(at, raw, &page, fill);
        let first = if X::TEE { F::update(self.config, at.level(), raw, Entry::Frozen) } else { mapped };
        if self.memory.compare_exchange(table, word, raw, first).is_err() {
            return Err(Returned { error: TableError::Contended { at }, held: page });
        }
        if X::TEE {
            if let Err(refused) = self.external.map(at, page, fill) {
                self.memory.store(table, word, raw, Ordering::Release);
                return Err(refused.map_error(|error| TableError::External { at, error }));
            }
            self.memory.store(table, word, mapped, Ordering::Release);
        }
        self.count_live(table, 1);
        Ok(())
    }

    /// The table, word and content of the free entry at `at`, if `page` may be mapped there.
    #[inline(always)]
    pub(super) fn vacancy(&self, at: GpaEntry, page: &Frame, fill: Fill) -> Option<(Hpa, Word, u64)> {
        if page.level() != at.level() || at.level() > self.largest(fill) || !self.can_name(page.hpa()) {
            return None;
        }
        let table = self.reach(at)?;
        let word = Word::Entry(at.level().index(at.gpa()));
        let raw = self.memory.load(table, word, Ordering::Acquire);
        F::vacant(self.config, at.level(), raw).then_some((table, word, raw))
    }

    /// Whether a word can name `hpa`.
    #[inline(always)]
    pub(super) fn can_name(&self, hpa: Hpa) -> bool {
        hpa.raw() & F::unnamed(self.config) == 0
    }

    #[inline]
    pub(super) fn largest(&self, fill: Fill) -> Level {
        match fill {
            Fill::OnAccept => self.external.max_map().min(F::max_leaf(self.config)),
            // A page is copied 4 KiB at a time: a larger one would get the content of what follows its source.
            Fill::Copy(_) => Level::L4K,
        }
    }

    /// Why [`Self::vacancy`] found none.
    #[cold]
    pub(super) fn no_vacancy(&self, at: GpaEntry, page: &Frame, fill: Fill) -> TableError<X::Error> {
        if page.level() != at.level() || at.level() > self.largest(fill) {
            return TableError::Level { at };
        }
        if !self.can_name(page.hpa()) {
            return TableError::Address { at, hpa: page.hpa() };
        }
        match self.slot(at, false) {
            Err(error) => error,
            Ok(slot) if F::vacant(self.config, at.level(), slot.raw) => TableError::Contended { at },
            Ok(slot) if slot.entry == Entry::Free => TableError::Inhibited { at },
            Ok(slot) => occupied(at, &slot),
        }
    }

    /// What the free word `raw` says once `page` is mapped there.
    #[inline]
    pub(super) fn mapping(&self, at: GpaEntry, raw: u64, page: &Frame, fill: Fill) -> u64 {
        let state = F::fresh(raw, matches!(fill, Fill::Copy(_)));
        let entry = Entry::Leaf { hpa: page.hpa(), state, blocked: None };
        F::update(self.config, at.level(), raw, entry)
    }

    /// Hides a page or table from the guest. An entry that is blocked already stays as it is and keeps its place
    /// before the fences that followed. One walk, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is free; and those of the walk, of contention and of the TEE as
    /// with [`SecurePageTable::link`].
    pub fn block(&self, at: GpaEntry) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        match slot.entry {
            Entry::Table { blocked: None, .. } | Entry::Leaf { blocked: None, .. } | Entry::Closed { .. } => {
            }
            Entry::Table { .. } | Entry::Leaf { .. } => return Ok(()),
            _ => return Err(occupied(at, &slot)),
        }
        self.hide(at, &mut slot)?;
        if let Err(error) = self.external.block(at) {
            self.thaw(&slot);
            return Err(TableError::External { at, error });
        }
        // Stamped after it was hidden, by the TEE or here: a fence that began meanwhile must not count.
        self.publish(at, &slot, slot.entry.with_blocked(Some(Stamp::of(self.stamp()))));
        Ok(())
    }

    /// Shows a blocked and fenced entry to the guest again. One walk, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::NotFenced`] if `at` is not blocked, or was blocked after `fence` began, or the
    /// proof is another table's or expired; [`TableError::State`] if `at` is free; and those of the walk, of contention
    /// and of the TEE as with [`SecurePageTable::link`].
    pub fn unblock(&self, at: GpaEntry, fence: &Fenced) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.fenced_slot(at, fence)?;
        self.freeze_fenced(at, &mut slot, fence)?;
        if let Err(error) = self.external.unblock(at) {
            self.thaw(&slot);
            return Err(TableError::External { at, error });
        }
        self.publish(at, &slot, slot.entry.with_blocked(None));
        Ok(())
    }

    /// Gives the page at `at` other permissions; a blocked page will have them when it is unblocked, where
    /// the format keeps permissions over a block (the S-EPT does not). Fewer permissions
    /// hold for a running guest once a later fence has ended (TDX: write-blocking, BW_EPOCH). One walk, one call into
    /// the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::Permissions`] if the format or the TEE cannot; [`TableError::State`] if `at` is no
    /// page; and those of the walk, of contention and of the TEE as with [`SecurePageTable::link`].
    pub fn protect(&self, at: GpaEntry, permissions: Permissions) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        if !slot.entry.is_leaf() {
            return Err(occupied(at, &slot));
        }
        let impossible = TableError::Permissions { at, asked: permissions };
        if F::with_permissions(self.config, slot.raw, permissions).is_none() {
            return Err(impossible);
        }
        let to = |old| F::with_permissions(self.config, old, permissions).unwrap_or(old);
        if !X::TEE {
            return self.replace(at, &mut slot, to);
        }
        self.freeze(at, &mut slot)?;
        match self.external.protect(at, permissions) {
            Ok(true) => {
                self.publish_raw(&slot, to(slot.raw));
                Ok(())
            }
            Ok(false) => {
                self.thaw(&slot);
                Err(impossible)
            }
            Err(error) => {
                self.thaw(&slot);
                Err(TableError::External { at, error })
            }
        }
    }

    /// What the guest may do with the page at `at`, once it is not blocked. One walk.
    ///
    /// # Errors
    ///
    /// [`TableError::State`] if `at` is no page; and those of the walk as with [`SecurePageTable::link`].
    pub fn permissions(&self, at: GpaEntry) -> Result<Permissions, TableError<X::Error>> {
        let _pin = self.memory.pin();
        let slot = self.slot(at, true)?;
        if !slot.entry.is_leaf() {
            return Err(occupied(at, &slot));
        }
        Ok(F::permissions(self.config, slot.raw))
    }

    /// Asks the TEE what `at` holds and notes an acceptance that the host could not see. A blocked page keeps the state
    /// it is known by. One walk, one call into the TEE, which may meet another thread's call on the same entry. Without
    /// a TEE it says what the table says.
    ///
    /// # Errors
    ///
    /// Nothing was noted; as [`SecurePageTable::block`], but a free entry can be probed.
    pub fn probe(&self, at: GpaEntry) -> Result<Observed, TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        if !X::TEE {
            return match slot.entry {
                Entry::Free => Ok(Observed::Free),
                Entry::Table { .. } | Entry::Closed { .. } => Ok(Observed::Table),
                Entry::Leaf { state, .. } => Ok(Observed::Leaf(state)),
                Entry::Frozen => Err(TableError::Contended { at }),
            };
        }
        let observed = self.external.probe(at).map_err(|error| TableError::External { at, error })?;
        if let (
            Entry::Leaf { hpa, state: LeafState::Pending, blocked: None },
            Observed::Leaf(LeafState::Mapped),
        ) = (slot.entry, observed)
        {
            self.freeze(at, &mut slot)?;
            self.publish(at, &slot, Entry::Leaf { hpa, state: LeafState::Mapped, blocked: None });
        }
        Ok(observed)
    }

    /// Takes the blocked and fenced page at `at` out of the guest; its content is lost. Of `at`'s size; pass it to
    /// [`SecurePageTable::reclaim`]. One walk, one call into the TEE.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no page; else as [`SecurePageTable::unblock`].
    pub fn remove(&self, at: GpaEntry, fence: &Fenced) -> Result<Frame<Tainted>, TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.fenced_slot(at, fence)?;
        let Entry::Leaf { hpa, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        self.freeze_fenced(at, &mut slot, fence)?;
        if let Err(error) = self.external.unmap(at, hpa) {
            self.thaw(&slot);
            return Err(TableError::External { at, error });
        }
        self.publish(at, &slot, Entry::Free);
        self.count_live(slot.table, -1);
        Ok(Frame::from_ledger(hpa, at.level()))
    }

    /// Makes a page that left the guest usable by the host: writes its cache lines back and overwrites it.
    ///
    /// # Errors
    ///
    /// The page comes back, still tainted.
    pub fn reclaim(&self, page: Frame<Tainted>) -> Result<Frame, Returned<X::Error, Frame<Tainted>>> {
        match self.external.write_back(&page, CacheKey::Guest) {
            Ok(()) => Ok(self.memory.scrub(page)),
            Err(error) => Err(Returned { error, held: page }),
        }
    }

    /// The slot at `at`, blocked before `fence` began.
    #[inline]
    pub(super) fn fenced_slot(&self, at: GpaEntry, fence: &Fenced) -> Result<Slot, TableError<X::Error>> {
        let slot = self.slot(at, false)?;
        match slot.entry {
            Entry::Frozen => Err(TableError::Contended { at }),
            Entry::Free => Err(TableError::State { at, found: Entry::Free }),
            Entry::Closed { .. } => Err(TableError::NotFenced { at }),
            entry if self.covered(entry.blocked(), &fence.quiet()) => Ok(slot),
            _ => Err(TableError::NotFenced { at }),
        }
    }

    /// Takes a slot that [`Self::fenced_slot`] found, and whatever was read below it since, as it was then.
    ///
    /// The word alone is no proof of that: after 2^11 fences an entry that was unblocked, changed below and blocked
    /// again reads the same. The proof is too old by then, so it is looked at once more.
    #[inline]
    pub(super) fn freeze_fenced(
        &self,
        at: GpaEntry,
        slot: &mut Slot,
        fence: &Fenced,
    ) -> Result<(), TableError<X::Error>> {
        self.freeze(at, slot)?;
        if self.covered(slot.entry.blocked(), &fence.quiet()) {
            return Ok(());
        }
        self.thaw(slot);
        Err(TableError::NotFenced { at })
    }
}
