//! Split a page into 512, merge 512 pages into one. Content and acceptance stay as they are.

use super::{Fenced, Obligation, SecurePageTable, TableError, sync::fence, walk::occupied};
use crate::memory::{FANOUT, LINES};
use crate::{Entry, External, Format, Frame, FrameStore, GpaEntry, Hpa, Level, TableMemory, Word};
use core::sync::atomic::Ordering;

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
        let mut slot = self.fenced_slot(at, fence)?;
        let Entry::Leaf { hpa, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        let (mirror, pages) = self.draw(at, Some(hpa), from)?;
        let donated = self.external.addresses(&pages);
        if let Err(error) = self.freeze_fenced(at, &mut slot, fence) {
            self.restock(mirror, pages, from);
            return Err(error);
        }
        self.write_pieces(&mirror, F::narrow(self.config, at.level(), slot.raw), child);
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
        let mut slot = self.fenced_slot(at, fence)?;
        let Entry::Table { hpa: mirror, .. } = slot.entry else { return Err(occupied(at, &slot)) };
        let (hpa, merged) = self.uniform(at, slot.raw, mirror)?;
        self.freeze_fenced(at, &mut slot, fence)?;
        match self.external.merge(at, hpa) {
            Ok(donated) => {
                self.publish_raw(&slot, merged);
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
        if at.level() > self.max_leaf() {
            return Err(TableError::Level { at });
        }
        let slot = self.slot(at, true)?;
        match slot.entry {
            Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } => {
                self.uniform(at, slot.raw, hpa).map(|_| ())
            }
            _ => Err(occupied(at, &slot)),
        }
    }

    /// Fills a detached table with the pieces of one page.
    #[inline]
    pub(super) fn write_pieces(&self, table: &Frame, first: u64, child: Level) {
        // The page is aligned to its size, so the index falls into clear bits.
        self.memory.write_detached(table, |index| first | u64::from(index) << child.shift());
    }

    /// The page that the 512 entries of `mirror` make together, and the word for it.
    pub(super) fn uniform(
        &self,
        at: GpaEntry,
        raw: u64,
        mirror: Hpa,
    ) -> Result<(Hpa, u64), TableError<X::Error>> {
        let Some(child) = at.level().child().filter(|_| at.level() <= self.max_leaf()) else {
            return Err(TableError::Level { at });
        };
        if F::inhibited(raw) {
            return Err(TableError::Inhibited { at });
        }
        let load = |index| self.memory.load(mirror, Word::Entry(index), Ordering::Acquire);
        let first = load(0);
        let Entry::Leaf { hpa, blocked: None, .. } = F::decode(self.config, child, first) else {
            return Err(self.odd(at, child, mirror, first));
        };
        // The TEE returns the metadata pages of the merged memory; the ledger must hold those and no others.
        let described = !X::TEE || self.backing(mirror).is_none_or(|backing| backing == hpa);
        if !hpa.is_aligned(at.level()) || !described || !F::merges(first) {
            return Err(TableError::NotUniform {
                at,
                child: at.child(0).unwrap_or(at),
                found: F::decode(self.config, child, first),
            });
        }
        // Bits that an MMU sets differ from piece to piece; the page has those that any piece has.
        let differ = self.differences(mirror, first, child);
        if differ & !F::MMU_SETS != 0 {
            return Err(self.odd(at, child, mirror, first));
        }
        Ok((hpa, F::widen(self.config, at.level(), first) | differ & F::MMU_SETS))
    }

    /// The bits in which the 512 words of a table of `level` entries differ from what follows after `first`. Stops early
    /// where an MMU cannot have made the difference.
    #[inline]
    pub(super) fn differences(&self, table: Hpa, first: u64, level: Level) -> u64 {
        let (mut expect, mut differ) = (first, 0);
        for line in 0..LINES {
            let mut words = self.memory.load_line(table, line);
            for word in &mut words {
                *word ^= expect;
                expect = expect.wrapping_add(level.size());
            }
            // Joined in pairs, so that they do not wait for one another.
            let [a, b, c, d, e, f, g, h] = words;
            differ |= ((a | b) | (c | d)) | ((e | f) | (g | h));
            if line % 8 == 7 && differ & !F::MMU_SETS != 0 {
                break;
            }
        }
        fence(Ordering::Acquire);
        differ
    }

    /// Names the first of the 512 entries that does not continue the first one.
    #[cold]
    fn odd(&self, at: GpaEntry, child: Level, mirror: Hpa, first: u64) -> TableError<X::Error> {
        let decoded = |raw| F::decode(self.config, child, raw);
        let leaf = matches!(decoded(first), Entry::Leaf { blocked: None, .. });
        for index in 0..FANOUT {
            let found = self.memory.load(mirror, Word::Entry(index), Ordering::Acquire);
            let expect = first | u64::from(index) << child.shift();
            if !leaf || (found ^ expect) & !F::MMU_SETS != 0 {
                return TableError::NotUniform {
                    at,
                    child: at.child(index).unwrap_or(at),
                    found: decoded(found),
                };
            }
        }
        // It fits now: somebody was at work.
        TableError::Contended { at }
    }
}
