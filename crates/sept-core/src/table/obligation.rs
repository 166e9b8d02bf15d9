//! Tables that left the tree but may still be read by a software walk.

use super::{Quiet, SecurePageTable, TableError};
use crate::memory::{FANOUT, LINES};
use crate::{
    CacheKey, Donated, Entry, External, Format, Frame, FrameKind, FrameNeeds, FrameSource, Frames, Gpa,
    GpaEntry, HostOwned, Hpa, Level, SideWord, TableMemory, Tainted, Word,
};
use core::sync::atomic::Ordering;

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
    /// Whether an MMU may still have the tables in its caches, so that a fence is needed and not only a grace period.
    tlb: bool,
}

impl Obligation {
    /// Whether no table waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it belongs to the table with this root.
    #[inline]
    pub(super) fn is_of(&self, root: Hpa) -> bool {
        self.root == root
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
        Obligation { root: self.root, first: 0, count: 0, stamp: 0, tlb: false }
    }

    /// Turns the tables of `owed` into frames again and gives them to `to`. Says how many of each kind.
    ///
    /// For each table: its mirror page, and each page behind it after a write-back and an overwrite. Time is
    /// proportional to the number of pages. Of a subtree that was removed whole only the tables are looked at: the guest
    /// pages stay with whoever lent them and knows them. Use [`SecurePageTable::settle_pages`] to get them as frames.
    ///
    /// # Errors
    ///
    /// The grace period began before the last table was unlinked (or is not a fence where one is needed), or the TEE
    /// refused a write-back: the rest comes back and nothing of it was freed.
    pub fn settle(
        &self,
        owed: Obligation,
        quiet: &Quiet,
        to: &dyn FrameSource,
    ) -> Result<FrameNeeds, Unsettled<X::Error>> {
        self.settle_with(owed, quiet, to, None)
    }

    /// [`SecurePageTable::settle`], handing the guest pages of subtrees that were removed whole to `pages`: contiguous runs
    /// of pages of one size, with the entry that the first of them was mapped at, in no particular order. Time is
    /// proportional to the entries of those tables.
    ///
    /// # Errors
    ///
    /// As [`SecurePageTable::settle`].
    pub fn settle_pages(
        &self,
        owed: Obligation,
        quiet: &Quiet,
        to: &dyn FrameSource,
        pages: &mut dyn FnMut(GpaEntry, Frames),
    ) -> Result<FrameNeeds, Unsettled<X::Error>>
    where
        X: HostOwned,
    {
        self.settle_with(owed, quiet, to, Some(pages))
    }

    fn settle_with(
        &self,
        owed: Obligation,
        quiet: &Quiet,
        to: &dyn FrameSource,
        mut pages: Option<&mut dyn FnMut(GpaEntry, Frames)>,
    ) -> Result<FrameNeeds, Unsettled<X::Error>> {
        let mut rest = owed;
        let mut settled = FrameNeeds::NONE;
        let ours = rest.root == self.root && quiet.root == self.root;
        let covered = ours && quiet.stamp >= rest.stamp && (quiet.tlb || !rest.tlb);
        if !covered && !rest.is_empty() {
            return Err(Unsettled { settled, rest, error: None });
        }
        // Each turn frees one table. A subtree adds its tables to the chain as it is met, and is finite.
        while rest.count > 0 {
            let mirror = Hpa::truncate(rest.first);
            if X::TEE
                && let Err(error) = self.release(mirror, to, &mut settled)
            {
                return Err(Unsettled { settled, rest, error: Some(error) });
            }
            rest.first = self.side(mirror, SideWord::Link);
            rest.count = rest.count.saturating_sub(1);
            if !X::TEE
                && let Some(base) = place::at(self.side(mirror, SideWord::Place))
            {
                self.unfold(base, mirror, &mut rest, to, &mut settled, &mut pages);
            }
            free_table(mirror, to, &mut settled);
        }
        Ok(settled)
    }

    /// Takes what a removed table names out of it: its tables into the chain, its pages to `pages`.
    fn unfold(
        &self,
        base: GpaEntry,
        mirror: Hpa,
        rest: &mut Obligation,
        to: &dyn FrameSource,
        settled: &mut FrameNeeds,
        pages: &mut Option<&mut dyn FnMut(GpaEntry, Frames)>,
    ) {
        let level = base.level();
        let Some(pages) = pages else {
            return match level {
                // Nobody asks for pages, so nobody looks into tables of 4 KiB entries: no need to chain them.
                Level::L4K => {}
                Level::L2M => self.each_table(mirror, level, |_, table| free_table(table, to, settled)),
                _ => {
                    self.each_table(mirror, level, |index, table| {
                        self.unfold_later(base, index, table, rest);
                    });
                }
            };
        };
        let first = self.memory.load(mirror, Word::Entry(0), Ordering::Relaxed) & !F::MMU_SETS;
        if let Entry::Leaf { hpa, .. } = F::decode(self.config, level, first)
            && self.differences(mirror, first, level) & !F::MMU_SETS == 0
        {
            return pages(base, Frames::from_ledger(hpa, u64::from(FANOUT) << level.order()));
        }
        self.each_run(mirror, level, |index, hpa, length| {
            pages(sibling(base, index), Frames::from_ledger(hpa, u64::from(length) << level.order()));
        });
        self.each_table(mirror, level, |index, table| self.unfold_later(base, index, table, rest));
    }

    /// Visits the tables that a removed table names.
    fn each_table(&self, mirror: Hpa, level: Level, mut visit: impl FnMut(u16, Hpa)) {
        if level == Level::L4K {
            return;
        }
        for line in 0..LINES {
            for (index, raw) in (line.wrapping_mul(8)..).zip(self.memory.load_line(mirror, line)) {
                if let Some(table) = F::next(self.config, level, raw) {
                    visit(index, table);
                } else if let Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } =
                    F::decode(self.config, level, raw)
                {
                    visit(index, hpa);
                }
            }
        }
    }

    /// Visits the runs of contiguous pages of one kind that a removed table names.
    fn each_run(&self, mirror: Hpa, level: Level, mut visit: impl FnMut(u16, Hpa, u16)) {
        let (mut start, mut length, mut expect) = (Hpa::default(), 0_u16, 0);
        for index in 0..=FANOUT {
            let raw = if index < FANOUT {
                self.memory.load(mirror, Word::Entry(index), Ordering::Relaxed) & !F::MMU_SETS
            } else {
                F::encode(self.config, level, Entry::Free)
            };
            if length > 0 && raw == expect {
                length = length.wrapping_add(1);
            } else {
                if length > 0 {
                    visit(index.wrapping_sub(length), start, length);
                }
                length = 0;
                if let Entry::Leaf { hpa, .. } = F::decode(self.config, level, raw) {
                    (start, length, expect) = (hpa, 1, raw);
                }
            }
            expect = expect.wrapping_add(level.size());
        }
    }

    /// Chains a table below a removed one, to be unfolded in its turn.
    fn unfold_later(&self, base: GpaEntry, index: u16, table: Hpa, rest: &mut Obligation) {
        if let Some(below) = sibling(base, index).child(0) {
            self.set_side(table, SideWord::Place, place::word(below));
            self.push(table, rest);
        }
    }

    /// Adds a table to the chain.
    fn push(&self, table: Hpa, into: &mut Obligation) {
        self.set_side(table, SideWord::Link, into.first);
        into.first = table.raw();
        into.count = into.count.saturating_add(1);
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
        if into.is_of(self.root) { Ok(()) } else { Err(TableError::ForeignObligation { at }) }
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
        self.push(mirror, into);
        into.stamp = self.stamp();
        verdict
    }

    /// Adds a table without a TEE behind it: one that is empty or whose entries live on elsewhere, or, with `below`,
    /// a whole subtree whose first entry is `below`. `tlb` if an MMU may still have it cached.
    pub(super) fn shed(&self, table: Hpa, below: Option<GpaEntry>, tlb: bool, into: &mut Obligation) {
        self.shed_since(self.stamp(), table, below, tlb, into);
    }

    /// [`Self::shed`] at the number `stamp`, for whoever knows that no fence can be started meanwhile.
    #[inline]
    pub(super) fn shed_since(
        &self,
        stamp: u64,
        table: Hpa,
        below: Option<GpaEntry>,
        tlb: bool,
        into: &mut Obligation,
    ) {
        // A table is 0 there from when it was made.
        if let Some(below) = below {
            self.set_side(table, SideWord::Place, place::word(below));
        }
        self.push(table, into);
        into.tlb |= tlb;
        into.stamp = stamp;
    }
}

/// The entry `index` places after `base` in a table that begins there.
fn sibling(base: GpaEntry, index: u16) -> GpaEntry {
    let offset = u64::from(index) << base.level().shift();
    GpaEntry::containing(Gpa::truncate(base.gpa().raw() | offset), base.level())
}

fn free_table(mirror: Hpa, to: &dyn FrameSource, settled: &mut FrameNeeds) {
    settled[FrameKind::MirrorTable] = settled[FrameKind::MirrorTable].saturating_add(1);
    to.give(FrameKind::MirrorTable, Frame::from_ledger(mirror, Level::L4K));
}

/// How a side word names the first entry of a table that was removed with all below it.
mod place {
    use crate::{Gpa, GpaEntry, Level};

    const SOME: u64 = 1 << 11;

    pub(super) fn word(first: GpaEntry) -> u64 {
        first.gpa().raw() | SOME | u64::from(first.level().raw())
    }

    pub(super) fn at(word: u64) -> Option<GpaEntry> {
        let [low, ..] = word.to_le_bytes();
        let level = Level::new(low & 7).filter(|_| word & SOME != 0)?;
        Some(GpaEntry::containing(Gpa::truncate(word), level))
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
