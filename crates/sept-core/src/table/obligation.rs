//! Tables that left the tree but may still be read by a software walk.

use super::{Quiet, SecurePageTable, TableError};
use crate::{
    CacheKey, Donated, External, Format, Frame, FrameKind, FrameNeeds, FrameSource, GpaEntry, Hpa, Level,
    SideWord, TableMemory, Tainted,
};

/// Unlinked tables waiting for a grace period: any number of them in constant size.
///
/// They are chained through their own side words. Dropping an obligation leaks them, nothing worse.
#[derive(Debug)]
#[must_use = "dropping an obligation leaks the tables in it"]
pub struct Obligation {
    root: Hpa,
    first: u64,
    count: u32,
    stamp: u64,
}

impl Obligation {
    /// Whether no table waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Tables waiting.
    #[must_use]
    pub const fn tables(&self) -> u32 {
        self.count
    }
}

/// An obligation that could not be settled completely.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unsettled<E> {
    /// What was settled before.
    pub settled: FrameNeeds,
    /// The rest; settle it again later.
    pub rest: Obligation,
    /// Why the TEE refused to write a page back, or `None` if the grace period is too old or of another table.
    pub error: Option<E>,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// An empty obligation of this table.
    pub const fn obligation(&self) -> Obligation {
        Obligation { root: self.root, first: 0, count: 0, stamp: 0 }
    }

    /// Turns the tables of `owed` into frames again and gives them to `to`. Says how many of each kind.
    ///
    /// For each table: its mirror page, and each page behind it after a write-back and an overwrite. Time is
    /// proportional to the number of pages.
    ///
    /// # Errors
    ///
    /// The grace period began before the last table was unlinked, or the TEE refused a write-back: the rest comes
    /// back and nothing of it was freed.
    pub fn settle(
        &self,
        owed: Obligation,
        quiet: &Quiet,
        to: &dyn FrameSource,
    ) -> Result<FrameNeeds, Unsettled<X::Error>> {
        let mut rest = owed;
        let mut settled = FrameNeeds::NONE;
        let covered = rest.root == self.root && quiet.root == self.root && quiet.stamp >= rest.stamp;
        if !covered && !rest.is_empty() {
            return Err(Unsettled { settled, rest, error: None });
        }
        while rest.count > 0 {
            let mirror = Hpa::truncate(rest.first);
            if let Err(error) = self.release(mirror, to, &mut settled) {
                return Err(Unsettled { settled, rest, error: Some(error) });
            }
            rest.first = self.side(mirror, SideWord::Link);
            rest.count = rest.count.saturating_sub(1);
            settled[FrameKind::MirrorTable] = settled[FrameKind::MirrorTable].saturating_add(1);
            to.give(FrameKind::MirrorTable, Frame::from_ledger(mirror, Level::L4K));
        }
        Ok(settled)
    }

    /// Gives back the pages behind one unlinked table, clearing each ledger word as its page leaves.
    fn release(&self, mirror: Hpa, to: &dyn FrameSource, settled: &mut FrameNeeds) -> Result<(), X::Error> {
        let behind = [
            (SideWord::External, FrameKind::TeeTable, CacheKey::Guest),
            (SideWord::Metadata0, FrameKind::TeeMetadata, CacheKey::Module),
            (SideWord::Metadata1, FrameKind::TeeMetadata, CacheKey::Module),
        ];
        for (word, kind, key) in behind {
            let Some(hpa) = ledger::address(self.side(mirror, word)) else { continue };
            let page: Frame<Tainted> = Frame::from_ledger(hpa, Level::L4K);
            self.external.write_back(&page, key)?;
            self.set_side(mirror, word, 0);
            settled[kind] = settled[kind].saturating_add(1);
            to.give(kind, self.memory.scrub(page));
        }
        Ok(())
    }

    /// Refuses an obligation of another table: its tables would be settled by a memory and a TEE that never had them.
    pub(super) fn accepts(&self, at: GpaEntry, into: &Obligation) -> Result<(), TableError<X::Error>> {
        if into.root == self.root { Ok(()) } else { Err(TableError::ForeignObligation { at }) }
    }

    /// Adds a table that the TEE has let go of, after comparing what it returned with the ledger.
    pub(super) fn chain(
        &self,
        at: GpaEntry,
        mirror: Hpa,
        donated: Donated,
        into: &mut Obligation,
    ) -> Result<(), TableError<X::Error>> {
        let [first, second] = donated.metadata;
        let returned = [
            (SideWord::External, donated.table),
            (SideWord::Metadata0, first),
            (SideWord::Metadata1, second),
        ];
        let mut verdict = Ok(());
        for (word, got) in returned {
            let ledger = ledger::address(self.side(mirror, word));
            if ledger != got {
                verdict = Err(TableError::Ledger { at, ledger, got });
                self.set_side(mirror, word, 0);
            }
        }
        self.set_side(mirror, SideWord::Link, into.first);
        into.first = mirror.raw();
        into.count = into.count.saturating_add(1);
        into.stamp = self.stamp();
        verdict
    }
}

/// How a side word holds an optional page address: bit 0 says whether there is one, so that page 0 can be named.
pub(super) mod ledger {
    use crate::{Hpa, Level};

    pub(in crate::table) fn word(page: Option<Hpa>) -> u64 {
        page.map_or(0, |hpa| hpa.raw() | 1)
    }

    pub(in crate::table) fn address(word: u64) -> Option<Hpa> {
        (word & 1 != 0).then(|| Hpa::truncate(word).align_down(Level::L4K))
    }
}
