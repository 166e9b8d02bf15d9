//! Random operations against a map of pages that knows nothing of tables, and a TEE that keeps its own.
//!
//! The map says what every page must translate to; the TEE's record says whether the operation must succeed.

use crate::operations::{Op, PAGES, Target, op};
use crate::rig::{CONFIGS, Error, K4, M2, Rig};
use proptest::prelude::*;
use sept_core::test_util::{MockOp, MockRefusal};
use sept_core::{Entry, Fenced, GpaEntry, GpaRange, Hpa, LeafState, Level, Observed};
use std::collections::BTreeMap;

struct World {
    rig: Rig,
    page: Level,
    region: Level,
    fence: Fenced,
    /// Page number to what it translates to, and whether the host knows that it was accepted.
    pages: BTreeMap<u64, (Hpa, bool)>,
    /// Region to the memory that the metadata pages of its table describe.
    described: BTreeMap<u64, Hpa>,
    planned: Option<MockOp>,
}

impl World {
    fn new(config: usize, page: Level, metadata: bool) -> Self {
        let mut rig = Rig::new(CONFIGS[config], metadata);
        let region = page.parent().unwrap();
        rig.link_to(0, region);
        let fence = rig.fence();
        Self { rig, page, region, fence, pages: BTreeMap::new(), described: BTreeMap::new(), planned: None }
    }

    /// The entry and the pages it covers.
    fn entry(&self, target: Target) -> (GpaEntry, std::ops::Range<u64>) {
        match target {
            Target::Page(page) => (self.rig.at(page * self.page.size(), self.page), page..page + 1),
            Target::Region(region) => {
                (self.rig.at(region * self.region.size(), self.region), region * 512..(region + 1) * 512)
            }
        }
    }

    /// RAM that belongs to a page, or another piece of it.
    fn ram(&self, page: u64, other: bool) -> u64 {
        (if other { page + PAGES } else { page }) * self.page.size()
    }

    /// Runs one call that must succeed iff the TEE would take it, no failure is planned for it, and `also`.
    fn call<T>(
        &mut self,
        op: MockOp,
        at: GpaEntry,
        also: bool,
        call: impl FnOnce(&mut Rig) -> Result<T, Error>,
    ) -> Option<T> {
        let verdict = self.rig.tee().would(op, at);
        let fails = self.planned == Some(op);
        let calls = self.rig.tee().calls(op);
        let before = self.rig.snapshot();
        let result = call(&mut self.rig);
        let expect = verdict.is_ok() && also && !fails;
        assert_eq!(result.is_ok(), expect, "{op:?} {at}: {verdict:?}, also {also}, {:?}", result.err());
        if result.is_err() {
            assert_eq!(self.rig.snapshot(), before, "{op:?} {at} was refused");
        }
        if fails && self.rig.tee().calls(op) > calls {
            self.planned = None;
        }
        result.ok()
    }

    fn map(&mut self, at: Target, other: bool, added: bool) {
        let (entry, pages) = self.entry(at);
        let ram = self.ram(pages.start, other);
        let added = added && entry.level() == K4;
        // The memory may be in use elsewhere; then there is nothing to map.
        let Some(frame) = self.rig.ram.lend(Rig::hpa(ram), entry.level()) else { return };
        self.rig.ram.take_back(frame).unwrap();
        let offset = pages.start * self.page.size();
        if self.call(MockOp::Map, entry, true, |rig| rig.map(offset, ram, entry.level(), added)).is_some() {
            for page in pages {
                self.pages.insert(page, (Rig::hpa(self.ram(page, other)), added));
            }
        }
    }

    fn probe(&mut self, at: Target) {
        let (entry, pages) = self.entry(at);
        let leaf = self.rig.tee().leaves().into_iter().find(|leaf| leaf.at == entry);
        if self.call(MockOp::Probe, entry, true, |rig| rig.table.probe(entry)).is_some()
            && leaf.is_some_and(|leaf| leaf.state == LeafState::Mapped && !leaf.blocked)
        {
            for page in pages {
                self.pages.entry(page).and_modify(|known| known.1 = true);
            }
        }
    }

    /// Probes one page without the checks around it.
    fn learn(&mut self, page: u64) {
        let at = self.entry(Target::Page(page)).0;
        let reached = self.rig.tee().would(MockOp::Probe, at).is_ok();
        let blocked = self.rig.tee().would(MockOp::Unblock, at) != Err(MockRefusal::NotBlocked);
        let observed = self.rig.table.probe(at);
        assert_eq!(observed.is_ok(), reached);
        if observed == Ok(Observed::Leaf(LeafState::Mapped)) && !blocked {
            self.pages.entry(page).and_modify(|known| known.1 = true);
        }
    }

    fn run(&mut self, op: &Op) {
        let fence = self.fence;
        match *op {
            Op::Link(region) => {
                let (at, pages) = self.entry(Target::Region(region));
                let backing = Rig::hpa(self.ram(pages.start, false));
                if self.call(MockOp::Link, at, true, |rig| rig.link(at, Some(backing))).is_some() {
                    self.described.insert(region, backing);
                }
            }
            Op::Map { at, other, added } => self.map(at, other, added),
            Op::MapAll { region, other, added } => {
                let first = self.entry(Target::Page(region * 512)).0;
                if self.rig.tee().would(MockOp::Map, first).is_ok() && self.planned != Some(MockOp::Map) {
                    for page in region * 512..(region + 1) * 512 {
                        let offset = page * self.page.size();
                        let (at, ram) = (self.entry(Target::Page(page)).0, self.ram(page, other));
                        let added = added && self.page == K4;
                        let lent = self.rig.ram.lend(Rig::hpa(ram), self.page);
                        if lent.is_some_and(|frame| self.rig.ram.take_back(frame).is_ok()) {
                            let free = self.rig.tee().would(MockOp::Map, at).is_ok();
                            assert_eq!(self.rig.map(offset, ram, self.page, added).is_ok(), free);
                            if free {
                                self.pages.insert(page, (Rig::hpa(ram), added));
                            }
                        }
                    }
                }
            }
            Op::Block(target) => {
                let at = self.entry(target).0;
                let again = self.rig.tee().would(MockOp::Unblock, at);
                if matches!(again, Ok(()) | Err(MockRefusal::NotTracked)) {
                    assert_eq!(self.rig.table.block(at), Ok(())); // blocked already
                } else {
                    self.call(MockOp::Block, at, true, |rig| rig.table.block(at));
                }
            }
            Op::Fence => self.fence = self.rig.fence(),
            Op::Removal(at, ref op) => {
                self.run(&Op::Block(at));
                self.run(&Op::Fence);
                self.run(op);
                // Nothing stays blocked for long, as on a host that goes on.
                self.run(&Op::Unblock(at));
            }
            Op::Unblock(target) => {
                let at = self.entry(target).0;
                self.call(MockOp::Unblock, at, true, |rig| rig.table.unblock(at, &fence));
            }
            Op::Split(target) => {
                let (at, pages) = self.entry(target);
                // Pages of the larger kind are only split into those that the map knows.
                if at.level() == self.region
                    && self.call(MockOp::Split, at, true, |rig| rig.split(at, &fence)).is_some()
                {
                    self.described.insert(pages.start / 512, self.pages[&pages.start].0);
                }
            }
            Op::Merge(region) => {
                let (at, pages) = self.entry(Target::Region(region));
                let known = |page: u64| self.pages.get(&page).map(|page| page.1);
                let alike = pages.clone().all(|page| known(page) == known(pages.start));
                let pair = self.rig.tee().tables().iter().any(|t| t.0 == at && t.1.metadata[0].is_some());
                let first = self.pages.get(&pages.start).map(|page| page.0);
                let described = !pair || self.described.get(&region).copied() == first;
                self.call(MockOp::Merge, at, alike && described, |rig| rig.merge(at, &fence));
            }
            Op::Remove(target) => {
                let (at, pages) = self.entry(target);
                if self.call(MockOp::Unmap, at, true, |rig| rig.remove(at, &fence)).is_some() {
                    self.pages.retain(|page, _| !pages.contains(page));
                }
            }
            Op::Unlink(region) => {
                let at = self.entry(Target::Region(region)).0;
                self.call(MockOp::Unlink, at, true, |rig| rig.unlink(at, &fence));
            }
            Op::Accept { page, count } => {
                for page in page..PAGES.min(page + count) {
                    self.rig.tee().accept(self.entry(Target::Page(page)).0.gpa());
                }
            }
            Op::Probe(target) => self.probe(target),
            Op::ProbeAll(region) => {
                if self.planned != Some(MockOp::Probe) {
                    for page in region * 512..(region + 1) * 512 {
                        self.learn(page);
                    }
                }
            }
            Op::Settle => {
                self.rig.settle();
            }
            Op::Fail(op, fault) => {
                if self.planned.is_none() {
                    self.rig.tee().fail(op, 1, fault);
                    self.planned = Some(op);
                }
            }
        }
    }

    /// Every page translates as the map says, walk by walk, and the iterator says the same.
    fn verify(&self) {
        self.rig.check();
        let start = self.rig.gpa(0);
        let range = GpaRange::new(start, PAGES * self.page.size()).unwrap();
        let mut items = self.rig.table.entries(range);
        let mut item = items.next().unwrap();
        for page in 0..PAGES {
            let gpa = self.rig.gpa(page * self.page.size());
            let found = self.rig.table.lookup(gpa).unwrap();
            if gpa.raw() == item.at.end() {
                item = items.next().unwrap();
            }
            assert_eq!(item, found, "{gpa:#x}: iterator and walk differ");
            let translated = match found.entry {
                Entry::Leaf { hpa, state, .. } => {
                    let hpa = hpa.checked_add(gpa.raw() - found.at.gpa().raw()).unwrap();
                    Some((hpa, state == LeafState::Mapped))
                }
                other => {
                    assert_eq!(other, Entry::Free);
                    None
                }
            };
            assert_eq!(translated, self.pages.get(&page).copied(), "{gpa:#x}: another page");
        }
        assert_eq!(items.next(), None);
    }

    /// Takes everything out; every frame must come home.
    fn drain(mut self, empty: sept_core::FrameNeeds) {
        self.rig.tee().cancel_faults();
        let fence = self.rig.fence();
        for (at, _, blocked) in self.rig.tee().tables() {
            if blocked {
                self.rig.table.unblock(at, &fence).unwrap();
            }
        }
        let leaves = self.rig.tee().leaves();
        for leaf in &leaves {
            self.rig.table.block(leaf.at).unwrap();
        }
        let fence = self.rig.fence();
        for leaf in &leaves {
            self.rig.remove(leaf.at, &fence).unwrap();
        }
        for (at, ..) in self.rig.tee().tables().into_iter().filter(|table| table.0.level() == self.region) {
            let fence = self.rig.block_and_fence(at);
            self.rig.unlink(at, &fence).unwrap();
        }
        self.rig.settle();
        self.rig.check();
        assert_eq!(self.rig.pool.outstanding(), empty);
        assert_eq!(self.rig.ram.lent_pages(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_its_map_of_pages(
        config in 0..CONFIGS.len(),
        page in prop::sample::select(vec![K4, M2]),
        metadata: bool,
        ops in prop::collection::vec(op(), 1..100),
    ) {
        let mut world = World::new(config, page, metadata);
        let empty = world.rig.pool.outstanding();
        for op in &ops {
            world.run(op);
            world.verify();
        }
        // What the table asked for, the TEE never had reason to refuse, but for what only the TEE knows.
        let refused = world.rig.tee().refused();
        prop_assert!(refused.iter().all(|call| *call == (MockOp::Merge, MockRefusal::NotUniform)), "{:?}", refused);
        world.drain(empty);
    }
}
