//! What must hold after every operation, and at the end.

use super::dump::{Dump, Key, Page, entry_of, key};
use super::pages::{Pages, Piece};
use super::side::{Rules, Side};
use super::trial::{G1, Left, Trial};
use super::{Proof, Spot};
use crate::test_util::{MockOp, MockRefusal};
use crate::{Entry, Found, FrameKind, FrameNeeds, FrameSource, Gpa, GpaEntry, GpaRange, LeafState, Level};
use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    /// Checks everything after what was done since the last time.
    pub(super) fn check(&mut self) {
        self.check_words();
        self.check_tee();
        self.check_audit();
        self.sample();
        if self.fault_was_hit() {
            self.fault = None;
        }
    }

    /// Checks what stands in memory and which frames are out.
    pub(super) fn check_words(&mut self) {
        let after = self.words();
        if self.refused {
            assert!(after == self.dump, "an operation was refused and changed the table");
        }
        let new: Vec<Key> =
            after.tables.keys().filter(|at| !self.dump.tables.contains_key(*at)).copied().collect();
        let gone: Vec<Key> =
            self.dump.tables.keys().filter(|at| !after.tables.contains_key(*at)).copied().collect();
        match &self.left {
            Left::None => assert!(gone.is_empty(), "tables left unasked: {gone:x?}"),
            Left::Exactly(these) => assert_eq!(&gone, these, "tables that left"),
            Left::Any => {}
        }
        // A table that was replaced by another one at the same place would show in the frames.
        for at in &gone {
            self.owed_frames.insert(self.dump.tables[at].hpa.raw(), FrameKind::MirrorTable);
            self.oracle.table_left(*at, F::DESTROYS);
        }
        self.check_frames(&after, &new);
        self.dump = after;
        self.check_pages();
        (self.refused, self.left, self.used) = (false, Left::None, FrameNeeds::NONE);
    }

    /// Every frame that is out of the pool is a table, stands behind one, or is owed.
    pub(super) fn check_frames(&mut self, after: &Dump, new: &[Key]) {
        let mut donated = BTreeMap::new();
        for (_, pages, _) in self.tee().map(|tee| tee.tables()).unwrap_or_default() {
            let [first, second] = pages.metadata;
            donated.extend(pages.table.map(|hpa| (hpa.raw(), FrameKind::TeeTable)));
            donated
                .extend([first, second].into_iter().flatten().map(|hpa| (hpa.raw(), FrameKind::TeeMetadata)));
        }
        let came = |kind| {
            let new = donated.iter().filter(|(hpa, of)| **of == kind && !self.donated.contains_key(hpa));
            u32::try_from(new.count()).unwrap_or(u32::MAX)
        };
        let tables = u32::try_from(new.len()).unwrap_or(u32::MAX);
        assert_eq!(self.used[FrameKind::MirrorTable], tables, "frames used and tables made: {new:x?}");
        for kind in [FrameKind::TeeTable, FrameKind::TeeMetadata] {
            assert_eq!(self.used[kind], came(kind), "{kind}: frames used and donated");
        }
        for (hpa, kind) in &self.donated {
            if !donated.contains_key(hpa) {
                self.owed_frames.insert(*hpa, *kind);
            }
        }
        self.donated = donated;
        let mut expect = self.owed_frames.clone();
        expect.insert(self.root.raw(), FrameKind::MirrorTable);
        expect.extend(after.tables.values().map(|table| (table.hpa.raw(), FrameKind::MirrorTable)));
        expect.extend(&self.donated);
        let out: BTreeMap<u64, FrameKind> =
            self.pool.outstanding_frames().into_iter().map(|(hpa, kind)| (hpa.raw(), kind)).collect();
        assert!(
            out == expect,
            "frames out of the pool {out:x?}, tables, what is behind them and owed {expect:x?}"
        );
        assert!(self.pool.faults().is_empty(), "{:?}", self.pool.faults());
    }

    /// The table says what the oracle says.
    pub(super) fn check_pages(&self) {
        let numbered = |(&at, &time): (&Key, &u64)| (at, time % 2048);
        let mut expect = Pages::new();
        for (run, page) in self.oracle.pages.iter() {
            expect.push(run, Page { blocked: page.blocked.map(|time| time % 2048), ..page });
        }
        let both = expect.iter().zip(self.dump.pages.iter());
        if let Some((want, have)) = both.into_iter().find(|(want, have)| want != have) {
            panic!("expected the pages {want:x?}, found {have:x?}");
        }
        assert_eq!(self.dump.pages.count(), expect.count(), "pages mapped");
        assert_eq!(self.dump.hidden, self.oracle.hidden.iter().map(numbered).collect(), "blocked tables");
        assert_eq!(self.dump.closed, self.oracle.closed.iter().map(numbered).collect(), "closed tables");
        assert_eq!(self.dump.inhibited, self.oracle.inhibited, "inhibits");
        // Nothing is lost: every page that the host does not hold is mapped or owed.
        let (lent, owed) = (self.oracle.lent.count(), self.oracle.owed.count());
        let unmapped: u64 = self.unmapped.iter().map(|(at, _)| at.level().pages()).sum();
        assert_eq!(lent, self.oracle.pages.count() + owed + unmapped, "pages that the host does not hold");
    }

    /// The TEE has the same pages and tables.
    pub(super) fn check_tee(&self) {
        let Some(tee) = self.tee() else { return };
        let mut leaves = 0;
        for leaf in tee.leaves() {
            leaves += leaf.at.level().pages();
            let page = self.oracle.leaf(leaf.at).unwrap_or_else(|| panic!("the TEE maps {}", leaf.at));
            assert_eq!(
                (leaf.hpa.raw() >> 12, leaf.blocked),
                (page.host, page.blocked.is_some()),
                "{}",
                leaf.at
            );
            assert!(page.state != LeafState::Mapped || leaf.state == LeafState::Mapped, "{}", leaf.at);
        }
        assert_eq!(leaves, self.oracle.pages.count(), "pages that the TEE maps");
        let tables: BTreeSet<(Key, bool)> =
            tee.tables().iter().map(|table| (key(table.0), table.2)).collect();
        let ours = self.dump.tables.keys().map(|at| (*at, self.oracle.hidden.contains_key(at)));
        assert_eq!(tables, ours.collect(), "tables of the TEE");
        // What the host knows, the table knows: it asks for nothing that the TEE must refuse, but for what only the
        // TEE sees.
        let unseen = (MockOp::Merge, MockRefusal::NotUniform);
        assert!(tee.refused().iter().all(|call| *call == unseen), "{:?}", tee.refused());
    }

    pub(super) fn check_audit(&self) {
        let census = self.table().audit();
        assert_eq!(census, Ok(self.dump.census), "audit");
    }

    /// Walks for addresses at edges and in between.
    pub(super) fn sample(&mut self) {
        let runs = self.oracle.pages.iter().flat_map(|(run, _)| [run.start, run.end - 1, run.end]);
        let mut pages: Vec<u64> = runs.take(24).collect();
        for _ in 0..12 {
            let [a, b, c, d, ..] = self.coin().to_le_bytes().map(u16::from);
            let [a, b] = [a, b].map(|byte| [0, 1, 511, byte][usize::from(byte % 4)]);
            let spot = Spot { window: (c % 3) as u8, g: (d & 3) as u8, m: a, k: b };
            pages.push(self.gpa(spot).raw() >> 12);
        }
        for page in &pages {
            self.look(*page);
        }
        let addresses = pages.into_iter().filter_map(|page| Gpa::new(page << 12));
        let walker = self.table().walker();
        for gpa in addresses.clone() {
            assert_eq!(walker.translate(gpa), self.oracle.translate(gpa), "{gpa:#x}: translation");
        }
        drop(walker);
        // One after the other, and each again after another block.
        let Self { table: Some(table), oracle, .. } = self else { return };
        let mut alone = table.exclusive();
        let walker = alone.walker();
        for gpa in addresses.clone().chain(addresses.rev()) {
            assert_eq!(walker.translate(gpa), oracle.translate(gpa), "{gpa:#x}: translation");
        }
    }

    /// Every way to look at one page says what the oracle says.
    pub(super) fn look(&self, page: u64) {
        let Some(gpa) = Gpa::new((page << 12) + page % 4096) else { return };
        let translation = self.table().translate(gpa);
        assert_eq!(translation, self.oracle.translate(gpa), "{gpa:#x}: translation");
        let found = self.table().lookup(gpa);
        if !self.oracle.in_space(gpa.raw()) {
            return assert!(
                found.is_err() && self.table().entry(GpaEntry::containing(gpa, Level::L4K)).is_err()
            );
        }
        let Found { at, entry, hidden } = found.expect("an address of the guest");
        assert!(at.range().contains(gpa), "{gpa:#x}: the walk ended at {at}");
        assert_eq!(Some(entry), self.dump.entry::<F>(self.config, at), "{gpa:#x}: walk");
        assert_eq!(hidden, self.oracle.is_hidden(at), "{gpa:#x}: hidden");
        assert!(matches!(entry, Entry::Free | Entry::Leaf { .. }), "{gpa:#x}: the walk ended at {entry}");
        if let Some(page) = self.oracle.pages.get(page) {
            assert_eq!(at.level(), page.level, "{gpa:#x}");
            assert_eq!(self.table().permissions(at).ok(), Some(page.permissions), "{gpa:#x}");
        }
        for at in self.oracle.above(at) {
            let live = self.table().live(at).ok().flatten();
            assert_eq!(live, self.dump.tables.get(&key(at)).map(|table| table.live), "{at}: live");
            assert_eq!(
                self.table().inhibited(at).ok(),
                Some(self.oracle.inhibited.contains(&key(at))),
                "{at}"
            );
            if live.is_some() {
                assert_eq!(self.table().mergeable(at).is_ok(), self.oracle.mergeable(at), "{at}: mergeable");
            }
        }
    }

    /// Looks at all of the table.
    pub(super) fn look_everywhere(&self) {
        for start in self.windows {
            let end = (start + 4 * G1).min(1 << 52);
            let range = GpaRange::new(Gpa::truncate(start), end - start).expect("whole pages");
            let mut next = start;
            for found in self.table().entries(range) {
                assert_eq!(found.at.gpa().raw().max(start), next, "the iterator left something out");
                assert_eq!(Some(found), self.table().lookup(Gpa::truncate(next)).ok(), "iterator and walk");
                next = found.at.end();
            }
            let space = if self.oracle.in_space(end - 1) { end } else { end.min(self.windows[2] + 2 * G1) };
            assert!(next >= space, "the iterator ended at {next:#x}");
        }
        self.check_runs();
        for (run, _) in self.oracle.pages.iter() {
            for page in run.clone().take(600).chain(run.end.saturating_sub(600).max(run.start)..run.end) {
                self.look(page);
            }
        }
    }

    /// What is printed is what there is.
    pub(super) fn check_runs(&self) {
        let mut runs = Pages::new();
        for start in self.windows {
            let end = (start + 4 * G1).min(1 << 52);
            let range = GpaRange::new(Gpa::truncate(start), end - start).expect("whole pages");
            for run in self.table().runs(range) {
                let (first, pages) = (run.at.gpa().raw() >> 12, run.count << run.at.level().order());
                let shown = self.oracle.pages.get(first).expect("a page");
                assert_eq!((run.state, run.at.level()), (shown.state, shown.level), "{run}");
                assert_eq!(run.hidden, shown.blocked.is_some() || self.oracle.is_hidden(run.at), "{run}");
                runs.put(first..first + pages, HostPage { host: run.hpa.raw() >> 12, level: run.at.level() });
            }
        }
        let mut expect = Pages::new();
        for (run, page) in self.oracle.pages.iter() {
            expect.put(run, HostPage { host: page.host, level: page.level });
        }
        assert_eq!(runs, expect, "runs");
        let printed = std::format!("{:?}", self.table());
        assert_eq!(printed.contains("->"), expect.count() > 0, "{printed}");
    }

    /// Everything out of the table, and every frame and page home.
    pub(super) fn finish(mut self) {
        self.look_everywhere();
        if let Some(tee) = self.tee() {
            tee.cancel_faults();
        }
        self.fault = None;
        self.empty();
        assert_eq!(self.dump.census.tables, 1, "tables left");
        assert_eq!((self.oracle.pages.count(), self.oracle.lent.count()), (0, 0), "pages not home");
        let root = FrameNeeds::of(FrameKind::MirrorTable, 1);
        assert_eq!(self.pool.outstanding(), root, "frames not home");
        let table = self.table.take().expect("nobody has it alone");
        let Ok(root) = table.into_root() else { panic!("something hangs in the root") };
        self.pool.give(FrameKind::MirrorTable, root);
        assert!(self.pool.outstanding().is_none() && self.pool.faults().is_empty());
    }

    /// Unmaps everything, in one of two ways.
    pub(super) fn empty(&mut self) {
        // The outermost first: nothing below a blocked or closed table can be shown.
        let mut shut: Vec<Key> =
            self.oracle.hidden.keys().chain(self.oracle.closed.keys()).copied().collect();
        shut.sort_by_key(|at| core::cmp::Reverse(at.1));
        for at in shut {
            self.block(entry_of(at));
            self.check();
            // What was blocked long ago may look too young for the first fences.
            for _ in 0..3 {
                self.fence();
                let (fence, shown, _) = self.show(Proof::Last);
                if self.oracle.hidden.contains_key(&at) {
                    self.unblock(entry_of(at), &fence, shown);
                    self.check();
                }
            }
            assert!(!self.oracle.hidden.contains_key(&at), "{} stays hidden", entry_of(at));
        }
        for start in self.windows {
            let end = (start + 4 * G1).min(1 << 52);
            let end = if self.oracle.in_space(end - 1) { end } else { self.windows[2] + 2 * G1 };
            let range = GpaRange::new(Gpa::truncate(start), end - start).expect("whole pages");
            self.block_range(range);
            self.check();
            for _ in 0..3 {
                self.fence();
                let (fence, shown, foreign) = self.show(Proof::Last);
                self.take_range(range, &fence, shown, foreign);
                self.check();
            }
        }
        for level in [Level::L2M, Level::L1G, Level::L512G, Level::L256T] {
            let tables: Vec<Key> = self.dump.tables.keys().filter(|at| at.1 == level).copied().collect();
            for at in tables.into_iter().map(entry_of) {
                let (fence, shown, foreign) = self.prove(at, Proof::Fresh);
                self.unlink(at, &fence, shown, foreign);
                self.check();
            }
        }
        self.settle(true);
        self.check();
    }
}

/// What a page is mapped to.
#[derive(Clone, Copy, PartialEq, Debug)]
struct HostPage {
    host: u64,
    level: Level,
}

impl Piece for HostPage {
    fn after(self, pages: u64) -> Self {
        Self { host: self.host + pages, ..self }
    }
}
