//! Split a page into 512, merge 512 pages into one. Content and acceptance stay as they are.

use super::{Fenced, Obligation, SecurePageTable, TableError};
use crate::{Entry, External, Format, FrameStore, GpaEntry, Hpa, Level, TableMemory, Word};
use core::sync::atomic::Ordering;

/// Entries of a table.
const FANOUT: u16 = 512;

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Splits the blocked and fenced page at `at`, with exactly [`SecurePageTable::table_cost`] frames of `from`.
    ///
    /// The guest sees the 512 pages at once, unblocked. One walk, one pass over the new table, one call into the TEE,
    /// one release store.
    ///
    /// # Errors
    ///
    /// Nothing changed and `from` holds what it held (a page that the TEE may have written was overwritten):
    /// [`TableError::Level`] at 4K; [`TableError::State`] if `at` is no page; [`TableError::NoFrames`]; else as
    /// [`SecurePageTable::unblock`].
    pub fn split(
        &self,
        at: GpaEntry,
        fence: &Fenced,
        from: &mut dyn FrameStore,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let Some(child) = at.level().child() else { return Err(TableError::Level { at }) };
        let slot = self.fenced_slot(at, fence)?;
        let Entry::Leaf { hpa, state, .. } = slot.entry else {
            return Err(TableError::State { at, found: slot.entry });
        };
        let (mirror, pages) = self.draw(at, Some(hpa), from)?;
        let donated = self.external.addresses(&pages);
        if let Err(error) = self.freeze_fenced(at, &slot, fence) {
            self.restock(mirror, pages, from);
            return Err(error);
        }
        let config = self.config;
        self.memory.write_detached(&mirror, |index| {
            let entry = Entry::Leaf { hpa: part(hpa, child, index), state, blocked: None };
            F::encode(config, child, entry)
        });
        if let Err(refused) = self.external.split(at, pages) {
            self.thaw(&slot);
            self.restock(mirror, refused.held, from);
            return Err(TableError::External { at, error: refused.error });
        }
        self.record(mirror.hpa(), u64::from(FANOUT), donated, Some(hpa));
        self.publish(at, &slot, Entry::Table { hpa: mirror.hpa(), blocked: None });
        Ok(())
    }

    /// Merges the blocked and fenced table at `at` into one page and adds the table to `into`.
    ///
    /// All 512 entries must be unblocked pages of one state whose memory is contiguous and aligned. The guest sees
    /// the one page at once, unblocked. One walk, one pass over the table, one call into the TEE, one release store.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::Level`] above [`External::max_leaf`]; [`TableError::NotUniform`] with the
    /// first page that does not fit; [`TableError::State`] if `at` is no table; [`TableError::ForeignObligation`]; else as
    /// [`SecurePageTable::unblock`]. But with [`TableError::Ledger`] the merge is done and the table is in `into`, and
    /// only the pages in dispute are lost.
    pub fn merge(
        &self,
        at: GpaEntry,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.accepts(at, into)?;
        if at.level() > self.external.max_leaf() {
            return Err(TableError::Level { at });
        }
        let slot = self.fenced_slot(at, fence)?;
        let Entry::Table { hpa: mirror, .. } = slot.entry else {
            return Err(TableError::State { at, found: slot.entry });
        };
        let merged = self.uniform(at, mirror)?;
        let Entry::Leaf { hpa, .. } = merged else { return Err(TableError::Level { at }) };
        self.freeze_fenced(at, &slot, fence)?;
        match self.external.merge(at, hpa) {
            Ok(donated) => {
                self.publish(at, &slot, merged);
                self.chain(at, mirror, donated, into)
            }
            Err(error) => {
                self.thaw(&slot);
                Err(TableError::External { at, error })
            }
        }
    }

    /// Whether the table at `at` could be merged as far as the mirror knows, blocked or not. At most one pass over it.
    ///
    /// # Errors
    ///
    /// The first obstacle, as [`SecurePageTable::merge`] would name it.
    pub fn mergeable(&self, at: GpaEntry) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        if at.level() > self.external.max_leaf() {
            return Err(TableError::Level { at });
        }
        let slot = self.slot(at, true)?;
        match slot.entry {
            Entry::Table { hpa, .. } => self.uniform(at, hpa).map(|_| ()),
            found => Err(TableError::State { at, found }),
        }
    }

    /// The page that the 512 entries of `mirror` make together.
    fn uniform(&self, at: GpaEntry, mirror: Hpa) -> Result<Entry, TableError<X::Error>> {
        let Some(child) = at.level().child() else { return Err(TableError::Level { at }) };
        let raw = |index| self.memory.load(mirror, Word::Entry(index), Ordering::Acquire);
        let odd =
            |index: u16, found| TableError::NotUniform { at, child: at.child(index).unwrap_or(at), found };
        let first = F::decode(self.config, child, raw(0));
        let Entry::Leaf { hpa, state, blocked: None } = first else { return Err(odd(0, first)) };
        // The TEE returns the metadata pages of the merged memory; the ledger must hold those and no others.
        let described = self.backing(mirror).is_none_or(|backing| backing == hpa);
        if !hpa.is_aligned(at.level()) || !described {
            return Err(odd(0, first));
        }
        for index in 1..FANOUT {
            let expect = Entry::Leaf { hpa: part(hpa, child, index), state, blocked: None };
            let found = raw(index);
            if found != F::encode(self.config, child, expect) {
                return Err(odd(index, F::decode(self.config, child, found)));
            }
        }
        Ok(Entry::Leaf { hpa, state, blocked: None })
    }
}

/// The `index`-th page of `level` in a block at `base`, which is aligned to 512 of them.
const fn part(base: Hpa, level: Level, index: u16) -> Hpa {
    Hpa::truncate(base.raw() | (index as u64) << level.shift())
}
