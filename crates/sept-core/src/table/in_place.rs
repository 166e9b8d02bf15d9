//! Changes of size under a running guest, the fence coming after: tables that an MMU walks and no TEE keeps.
//!
//! *Split.* One compare-exchange turns the leaf into a table that says the same. A CPU may use the old translation until
//! the next fence; it is not wrong, so nothing is owed. Whoever changes one of the pieces fences anyway.
//!
//! *Merge.* [`SecurePageTable::close`] keeps operations out of the table while the MMU walks on; after a grace period those
//! that were inside have left, and [`SecurePageTable::merge_in_place`] verifies the entries and replaces the table by one
//! leaf with one store. The guest never faults. The table stays in the MMU's caches until a fence, which settling it asks
//! for. With [`Exclusive`](super::Exclusive) access there is nobody to wait for.

use super::{Fenced, Obligation, Quiet, SecurePageTable, TableError, walk::occupied};
use crate::{
    Donated, Entry, External, Format, FrameStore, GpaEntry, HardwareWalked, HostOwned, Stamp, TableMemory,
};

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> SecurePageTable<F, M, X> {
    /// Splits the page at `at` under the running guest, with one [`FrameKind::MirrorTable`](crate::FrameKind::MirrorTable)
    /// frame of `from`. The pieces
    /// keep its permissions and accessed and dirty bits. One walk, one pass over the new table, one compare-exchange.
    ///
    /// # Errors
    ///
    /// Nothing changed and `from` holds what it held: [`TableError::Level`] at 4K; [`TableError::State`] if `at` is no
    /// page or a blocked one; [`TableError::NoFrames`]; and those of the walk and of contention as with
    /// [`SecurePageTable::link`].
    pub fn split_in_place(
        &self,
        at: GpaEntry,
        from: &mut dyn FrameStore,
    ) -> Result<(), TableError<X::Error>> {
        let Some(child) = at.level().child() else { return Err(TableError::Level { at }) };
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        let Entry::Leaf { hpa, blocked: None, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        let (table, ()) = self.draw(at, Some(hpa), from)?;
        self.write_pieces(&table, F::narrow(self.config, at.level(), slot.raw), child);
        self.record(table.hpa(), 512, Donated::default(), None);
        let entry = Entry::Table { hpa: table.hpa(), blocked: None };
        // Bits that the MMU sets in the leaf from here on belong into every piece: read again, write again.
        for _ in 0..=F::MMU_SETS.count_ones() {
            let word = F::update(self.config, at.level(), 0, entry);
            match self.memory.compare_exchange(slot.table, slot.word, slot.raw, word) {
                Ok(()) => return Ok(()),
                Err(now) if (now ^ slot.raw) & !F::MMU_SETS == 0 => {
                    slot.raw = now;
                    self.write_pieces(&table, F::narrow(self.config, at.level(), now), child);
                    self.record(table.hpa(), 512, Donated::default(), None);
                }
                Err(_) => break,
            }
        }
        self.restock(table, (), from);
        Err(TableError::Contended { at })
    }

    /// Keeps every operation out of the table at `at`, for a merge. The MMU and lookups go on. A table that is closed
    /// already stays as it is. One walk.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no table or a blocked one; and those of the walk and of
    /// contention as with [`SecurePageTable::link`].
    pub fn close(&self, at: GpaEntry) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        match slot.entry {
            Entry::Table { hpa, blocked: None } => {
                self.freeze(at, &mut slot)?;
                // Numbered after it was closed: a grace period that began meanwhile must not count.
                self.publish(at, &slot, Entry::Closed { hpa, stamp: Stamp::of(self.stamp()) });
                Ok(())
            }
            Entry::Closed { .. } => Ok(()),
            _ => Err(occupied(at, &slot)),
        }
    }

    /// Lets operations into the closed table at `at` again. One walk.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no closed table; and those of the walk and of contention.
    pub fn reopen(&self, at: GpaEntry) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut slot = self.slot(at, false)?;
        let Entry::Closed { hpa, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        self.replace(at, &mut slot, |old| {
            F::update(self.config, at.level(), old, Entry::Table { hpa, blocked: None })
        })
    }

    /// Merges the closed table at `at` into one page under the running guest; the table goes to `into` and needs a fence.
    ///
    /// `quiet` is a grace period that began after the table was closed. The page counts as accessed and dirty, since the
    /// MMU may set those bits in the table until the fence. One walk, one pass over the table, one store.
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::NotFenced`] if the table is not closed or `quiet` does not cover it;
    /// [`TableError::NotUniform`] with the first entry that does not fit; [`TableError::Inhibited`];
    /// [`TableError::Level`] above the largest page; [`TableError::ForeignObligation`]; and those of the walk and of
    /// contention.
    pub fn merge_in_place(
        &self,
        at: GpaEntry,
        quiet: &Quiet,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.accepts(at, into)?;
        let mut slot = self.slot(at, false)?;
        let Entry::Closed { hpa: table, stamp } = slot.entry else {
            return Err(match slot.entry {
                Entry::Table { .. } => TableError::NotFenced { at },
                _ => occupied(at, &slot),
            });
        };
        if !self.covered(Some(stamp), quiet) {
            return Err(TableError::NotFenced { at });
        }
        let (_, merged) = self.uniform(at, slot.raw, table)?;
        self.freeze(at, &mut slot)?;
        // As in `freeze_fenced`: the word alone is no proof.
        if !self.covered(Some(stamp), quiet) {
            self.thaw(&slot);
            return Err(TableError::NotFenced { at });
        }
        self.publish_raw(&slot, merged | F::MMU_SETS);
        self.shed(table, None, true, into);
        Ok(())
    }

    /// Takes the blocked and fenced table at `at` out with everything below it, in constant time, and adds it to `into`.
    ///
    /// Its tables become frames in [`SecurePageTable::settle`], its pages in [`SecurePageTable::settle_pages`].
    ///
    /// # Errors
    ///
    /// Nothing changed: [`TableError::State`] if `at` is no table; [`TableError::ForeignObligation`]; else as
    /// [`SecurePageTable::unblock`].
    pub fn remove_subtree(
        &self,
        at: GpaEntry,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        self.accepts(at, into)?;
        self.take_table(at, fence, into)
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Takes the blocked and fenced table at `at` out with everything below it. For tables without a TEE.
    pub(super) fn take_table(
        &self,
        at: GpaEntry,
        fence: &Fenced,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let mut slot = self.fenced_slot(at, fence)?;
        let Entry::Table { hpa: table, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        self.freeze_fenced(at, &mut slot, fence)?;
        self.publish(at, &slot, Entry::Free);
        self.count_live(slot.table, -1);
        self.shed(table, at.child(0), false, into);
        Ok(())
    }
}
