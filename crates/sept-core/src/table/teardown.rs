//! Taking a whole table apart after its guest is gone.
//!
//! Once the TEE has given up the guest (TDX: lifecycle TEARDOWN, after every vCPU was flushed, all caches were
//! written back and the key id was freed) there is nobody to block or fence. Each page and each table page is
//! reclaimed from the TEE one by one, children before the table that names them, and only then becomes a frame.
//! The walk needs no memory: entries are cleared as it goes, so after an error it begins where it stopped.

use super::{SecurePageTable, obligation::ledger};
use crate::{
    Entry, External, Format, Frame, FrameKind, FrameNeeds, FrameSource, Gpa, GpaEntry, Hpa, Level, SideWord,
    TableMemory, Tainted,
};

/// Something that the TEE must give up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Torn {
    /// A page of the guest.
    Page {
        /// Where the guest had it.
        at: GpaEntry,
        /// The page.
        hpa: Hpa,
    },
    /// A table page of the TEE.
    Table {
        /// The entry that it hung in.
        at: GpaEntry,
        /// The page.
        hpa: Hpa,
    },
    /// Metadata pages of the TEE for the host memory at `backing`, in which the guest has no page left.
    Metadata {
        /// The memory that they describe.
        backing: Hpa,
        /// The pages.
        pages: [Option<Hpa>; 2],
    },
}

/// The host's part of a teardown.
pub trait Teardown<M: TableMemory> {
    /// Why something could not be reclaimed.
    type Error;

    /// Makes the TEE give `what` up (TDX: PHYMEM.PAGE.RECLAIM, PHYMEM.PAMT.REMOVE).
    ///
    /// # Errors
    ///
    /// It still belongs to the TEE; the teardown stops there.
    fn reclaim(&mut self, what: Torn) -> Result<(), Self::Error>;

    /// Takes a guest page back. It was written under the guest's key: overwrite it before use, in pieces
    /// ([`Frame::into_parts`]) if part of it must not be touched.
    fn page(&mut self, at: GpaEntry, page: Frame<Tainted>, memory: &M);
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Reclaims every page and every table. Table frames go to `to`, the root stays. Says how many of each kind.
    ///
    /// Takes the table exclusively. Cost: one look at each entry of each table.
    ///
    /// # Errors
    ///
    /// What could not be reclaimed stays in the table; call again to go on.
    pub fn tear_down<T: Teardown<M>>(
        &mut self,
        teardown: &mut T,
        to: &dyn FrameSource,
    ) -> Result<FrameNeeds, T::Error> {
        let mut released = FrameNeeds::NONE;
        let mut next = Some(Gpa::default());
        // Each turn goes past one entry.
        while let Some(gpa) = next {
            let Ok(found) = self.lookup_pinned(gpa) else { break };
            let at = found.at;
            if let (Entry::Leaf { hpa, .. }, Ok(slot)) = (found.entry, self.slot(at, true)) {
                teardown.reclaim(Torn::Page { at, hpa })?;
                self.publish(at, &slot, Entry::Free);
                self.count_live(slot.table, -1);
                teardown.page(at, Frame::from_ledger(hpa, at.level()), &self.memory);
            }
            // Tables whose last entry this was are empty now, the lowest first; at the end of the address space, all.
            next = Gpa::new(at.end()).filter(|gpa| F::covers(self.config, *gpa));
            for level in Level::ALL.into_iter().filter(|level| *level > at.level()) {
                let above = GpaEntry::containing(gpa, level);
                if above.end() != at.end() && next.is_some() || level > F::top(self.config) {
                    break;
                }
                self.tear_table(above, teardown, to, &mut released)?;
            }
        }
        Ok(released)
    }

    /// Reclaims the empty table in `at` and what stands behind it, clearing each ledger word as its page leaves.
    fn tear_table<T: Teardown<M>>(
        &self,
        at: GpaEntry,
        teardown: &mut T,
        to: &dyn FrameSource,
        released: &mut FrameNeeds,
    ) -> Result<(), T::Error> {
        let Ok(slot) = self.slot(at, true) else { return Ok(()) };
        let (Entry::Table { hpa: mirror, .. } | Entry::Closed { hpa: mirror, .. }) = slot.entry else {
            return Ok(());
        };
        let page = |word| ledger::address(self.side(mirror, word));
        if let Some(hpa) = page(SideWord::External) {
            teardown.reclaim(Torn::Table { at, hpa })?;
            self.give_torn(mirror, SideWord::External, FrameKind::TeeTable, to, released);
        }
        if let Some(backing) = page(SideWord::Backing) {
            let pages = [page(SideWord::Metadata0), page(SideWord::Metadata1)];
            teardown.reclaim(Torn::Metadata { backing, pages })?;
            self.set_side(mirror, SideWord::Backing, 0);
        }
        for word in [SideWord::Metadata0, SideWord::Metadata1] {
            self.give_torn(mirror, word, FrameKind::TeeMetadata, to, released);
        }
        self.publish(at, &slot, Entry::Free);
        self.count_live(slot.table, -1);
        released[FrameKind::MirrorTable] = released[FrameKind::MirrorTable].saturating_add(1);
        to.give(FrameKind::MirrorTable, Frame::from_ledger(mirror, Level::L4K));
        Ok(())
    }

    fn give_torn(
        &self,
        mirror: Hpa,
        word: SideWord,
        kind: FrameKind,
        to: &dyn FrameSource,
        released: &mut FrameNeeds,
    ) {
        if let Some(hpa) = ledger::address(self.side(mirror, word)) {
            self.set_side(mirror, word, 0);
            released[kind] = released[kind].saturating_add(1);
            to.give(kind, self.memory.scrub(Frame::from_ledger(hpa, Level::L4K)));
        }
    }

    /// The root's frame, if nothing hangs in it any more.
    ///
    /// Proofs and obligations of this table must not be used with another one that is given the same frame.
    ///
    /// # Errors
    ///
    /// The table, which still maps something.
    pub fn into_root(self) -> Result<Frame, Self> {
        if self.side(self.root, SideWord::Live) == 0 {
            Ok(Frame::from_ledger(self.root, Level::L4K))
        } else {
            Err(self)
        }
    }
}
