//! The reference: what each page should be, kept apart from everything under test, and the check of I1 to I9.

use super::host::Host;
use core::ops::Range;
use folio_split::{FolioLayout, PageSet, PfnBlock};
use gpa_conversion::{Operation, Request};
use sept_core::{Entry, FrameKind, FrameNeeds, LeafState, Level, test_util::MockLeaf};
use std::collections::BTreeMap;

/// What the guest has at a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    /// Private, no leaf.
    Unmapped,
    /// Private, mapped, not accepted.
    Pending,
    /// Private, with content: losing one of these is what must not happen.
    Accepted,
    Shared,
    Poisoned,
}

/// Runs of like pages: first page to the end and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    runs: BTreeMap<u64, Page>,
    pages: u64,
}

impl World {
    pub(crate) fn new(pages: u64) -> Self {
        Self { runs: BTreeMap::from([(0, Page::Unmapped)]), pages }
    }

    pub(crate) fn at(&self, page: u64) -> Page {
        *self.runs.range(..=page).next_back().unwrap().1
    }

    /// The runs, with their ends.
    pub(crate) fn runs(&self, within: Range<u64>) -> Vec<(Range<u64>, Page)> {
        if within.is_empty() {
            return Vec::new();
        }
        let starts: Vec<u64> = core::iter::once(within.start)
            .chain(self.runs.range(within.start + 1..within.end.max(within.start + 1)).map(|(&at, _)| at))
            .chain([within.end])
            .collect();
        starts.windows(2).map(|pair| (pair[0]..pair[1], self.at(pair[0]))).collect()
    }

    pub(crate) fn update(&mut self, range: Range<u64>, change: impl Fn(Page) -> Page) {
        let new: Vec<(Range<u64>, Page)> =
            self.runs(range.clone()).into_iter().map(|(run, page)| (run, change(page))).collect();
        if range.end < self.pages {
            let after = self.at(range.end);
            self.runs.insert(range.end, after);
        }
        let old: std::collections::BTreeSet<u64> = self.runs.range(range).map(|(&at, _)| at).collect();
        self.runs.retain(|at, _| !old.contains(at));
        self.runs.extend(new.into_iter().map(|(run, page)| (run.start, page)));
        let mut last = None;
        self.runs.retain(|_, page| last.replace(*page) != Some(*page));
    }

    /// What `request` makes of the pages, if it is carried out.
    pub(crate) fn apply(&mut self, request: Request) {
        let range = Host::window(request.range);
        match request.operation {
            Operation::Share => self.update(range, |page| match page {
                Page::Poisoned => Page::Poisoned,
                _ => Page::Shared,
            }),
            Operation::Unshare { .. } => self.update(range, |page| match page {
                Page::Shared | Page::Unmapped => Page::Pending,
                other => other,
            }),
            Operation::Punch => self.update(range, |page| match page {
                Page::Pending | Page::Accepted => Page::Unmapped,
                other => other,
            }),
            Operation::Isolate => self.update(range, |_| Page::Poisoned),
            Operation::Populate { .. } => self.update(range, |page| match page {
                Page::Unmapped => Page::Pending,
                other => other,
            }),
            _ => {}
        }
    }

    pub(crate) fn is_all(&self, range: Range<u64>, want: Page) -> bool {
        self.runs(range).iter().all(|(_, page)| *page == want)
    }
}

/// Everything of the host that must be as before when nothing happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    leaves: Vec<MockLeaf>,
    tables: usize,
    small: Vec<Range<u64>>,
    shared: Vec<Range<u64>>,
    pub(crate) outstanding: FrameNeeds,
    pub(crate) counters: vmemmap_prealloc::model::Counters,
    lent: u64,
}

impl Host {
    pub(crate) fn image(&self) -> Image {
        let state = self.state();
        Image {
            leaves: self.mock().leaves(),
            tables: self.mock().tables().len(),
            small: state.small.iter().collect(),
            shared: state.shared.iter().collect(),
            outstanding: self.pool.outstanding(),
            counters: self.mm.counters().in_use(),
            lent: self.ram.lent_pages(),
        }
    }

    /// The layout that the host's record of small pages stands for.
    pub(crate) fn layout(&self, block: u64) -> FolioLayout<impl PageSet + '_> {
        let first = block * self.block_order.pages();
        let pfn = PfnBlock::new(Self::pfn(first), self.block_order).unwrap();
        let runs = self.state().small.clone();
        let pages = self.block_order.pages();
        let small: Vec<Range<u64>> = runs
            .iter()
            .filter(|run| run.start < first + pages && run.end > first)
            .map(|run| run.start.max(first) - first..run.end.min(first + pages) - first)
            .collect();
        FolioLayout::new(pfn, self.orders, Owned(small))
    }

    /// What holds between any two steps: I1, I2, I6, I9 and the mirror. `at_work` is what an operation may change.
    pub(crate) fn check_step(&self, world: &World, at_work: Option<Range<u64>>) {
        assert_eq!(self.mm.violations(), Vec::<String>::new());
        assert_eq!(self.state().faults, Vec::<String>::new());
        assert_eq!(self.mock().refused(), Vec::new(), "the TEE was asked for something illegal");
        assert_eq!(self.pool.faults(), Vec::new());
        {
            let state = self.state();
            let ours = |run: Range<u64>| {
                state
                    .shared
                    .next(run.start)
                    .is_some_and(|shared| shared.start == run.start && run.end <= shared.end)
            };
            assert!(state.mapped.iter().all(ours), "I6: the host maps private pages");
        }
        let near = self.in_sight(at_work.as_ref());
        let mut next = near.start;
        for leaf in self.mock().leaves() {
            let first = Self::page(leaf.at.gpa());
            let pages = first..first + leaf.at.level().pages();
            if pages.end <= near.start || near.end <= pages.start {
                continue;
            }
            self.check_leaf(&leaf, pages.clone(), at_work.is_some());
            self.check_hole(world, next..first, at_work.as_ref());
            for (run, page) in world.runs(pages.clone()) {
                let want = match page {
                    Page::Accepted => Some(LeafState::Mapped),
                    Page::Pending => Some(LeafState::Pending),
                    _ => None,
                };
                let mine = at_work.as_ref().is_some_and(|work| work.start < run.end && run.start < work.end);
                assert!(want == Some(leaf.state) || mine, "{leaf:?} covers {run:?}, which is {page:?}");
            }
            next = pages.end;
        }
        self.check_hole(world, next..near.end, at_work.as_ref());
    }

    /// What is looked at after this step: what it works at and the neighbours, and everything now and then.
    fn in_sight(&self, at_work: Option<&Range<u64>>) -> Range<u64> {
        let mut state = self.state();
        state.looks += 1;
        match at_work {
            Some(work) if !state.looks.is_multiple_of(16) => {
                work.start.saturating_sub(8)..(work.end + 8).min(self.pages())
            }
            _ => 0..self.pages(),
        }
    }

    /// I1, I6, and the mirror says the same.
    fn check_leaf(&self, leaf: &MockLeaf, pages: Range<u64>, working: bool) {
        let found = self.table.lookup(leaf.at.gpa()).unwrap();
        let Entry::Leaf { hpa, state, blocked } = found.entry else { panic!("{leaf:?} is {found:?}") };
        assert_eq!((found.at, hpa, blocked.is_some()), (leaf.at, leaf.hpa, leaf.blocked));
        assert!(state == leaf.state || state == LeafState::Pending, "{found:?} for {leaf:?}");
        assert!(working || !leaf.blocked && !found.hidden, "{leaf:?} was left blocked");
        assert_eq!(leaf.hpa, Self::pfn(pages.start).hpa());
        let folio = self.mm.index_entry(Self::pfn(pages.start)).unwrap();
        // A leaf that is taken whole is blocked and fenced when its folio is split, and out of everybody's reach.
        let reachable = !(leaf.blocked && working);
        assert!(
            leaf.at.level().order() <= folio.order().raw() || !reachable,
            "I1: {leaf:?} in folio {folio}"
        );
        let state = self.state();
        for set in [&state.shared, &state.mapped, &state.poisoned] {
            assert!(!set.meets(pages.clone()), "I6: {leaf:?} maps what the host may reach");
        }
    }

    /// Pages without a leaf: none of them had content.
    fn check_hole(&self, world: &World, hole: Range<u64>, at_work: Option<&Range<u64>>) {
        if hole.is_empty() {
            return;
        }
        for (run, page) in world.runs(hole) {
            let lost = matches!(page, Page::Accepted | Page::Pending);
            let mine = at_work.is_some_and(|work| work.start <= run.start && run.end <= work.end);
            assert!(!lost || mine, "I2: {run:?} is gone, it was {page:?}");
        }
    }

    /// What holds between operations: everything above, and accounts, attributes, folios and `struct page`s.
    pub(crate) fn check(&self, world: &World) {
        self.check_step(world, None);
        self.check_accounts();
        {
            let state = self.state();
            assert!(state.claims.is_empty() && state.converting.is_empty(), "left claimed or converting");
            for (run, page) in world.runs(0..self.pages()) {
                let shared = state.shared.next(run.start).filter(|shared| shared.start < run.end);
                let all =
                    shared.as_ref().is_some_and(|shared| shared.start == run.start && shared.end >= run.end);
                assert!(
                    if page == Page::Shared { all } else { shared.is_none() || page == Page::Poisoned },
                    "{run:?} should be {page:?}, shared is {shared:?}"
                );
                let small =
                    state.small.next(run.start).is_some_and(|it| it.start == run.start && run.end <= it.end);
                assert!(
                    !matches!(page, Page::Shared | Page::Poisoned) || small,
                    "{run:?} is {page:?} and not all small"
                );
            }
        }
        for block in 0..self.blocks {
            let layout = self.layout(block);
            self.mm.check(&layout).unwrap();
        }
        self.mm.check_host().unwrap();
    }

    /// I3: what the page source gave out is what stands behind the tables and folios, no more and no less.
    fn check_accounts(&self) {
        let behind = self.mock().donated();
        let counters = self.mm.counters();
        let number = |count: u64| u32::try_from(count).unwrap();
        let mut want = behind
            .plus(FrameNeeds::of(
                FrameKind::Vmemmap,
                number(counters.vmemmap_pages + counters.replaced_pages),
            ))
            .plus(FrameNeeds::of(FrameKind::VmemmapTable, number(counters.tables)))
            .plus(FrameNeeds::of(FrameKind::TailTemplate, number(counters.templates)));
        want[FrameKind::MirrorTable] = behind[FrameKind::TeeTable] + 1;
        let elsewhere = self.state().elsewhere;
        let (have, want) = (self.pool.outstanding(), want.plus(elsewhere.frames));
        let kept = self.state().leaky && have.covers(&want);
        assert!(have == want || kept, "frames leaked or given back twice: {have:?}, not {want:?}");
        assert_eq!(counters.reserved_nodes, elsewhere.index_nodes);
        let mapped: u64 = self.mock().leaves().iter().map(|leaf| leaf.at.level().pages()).sum();
        let broken = u64::try_from(self.state().broken.len()).unwrap();
        assert_eq!(self.ram.lent_pages(), mapped + broken);
        assert!(self.mock().tables().iter().all(|(_, _, blocked)| !blocked), "a table was left blocked");
    }

    /// Lets readers of every `struct page` try (I9); slow, for small hosts.
    pub(crate) fn check_readers(&self) {
        for block in 0..self.blocks {
            let layout = self.layout(block);
            self.mm.check_readers(layout.block()).unwrap();
        }
    }

    /// Leaves by level: 4K, 2M, 1G.
    pub(crate) fn leaves(&self) -> [usize; 3] {
        let mut count = [0; 3];
        for leaf in self.mock().leaves() {
            count[match leaf.at.level() {
                Level::L4K => 0,
                Level::L2M => 1,
                _ => 2,
            }] += 1;
        }
        count
    }

    /// Whether small pages are exactly those that must be (canonical layout).
    pub(crate) fn is_canonical(&self) -> bool {
        let state = self.state();
        (0..self.pages())
            .all(|page| state.small.has(page) == (state.shared.has(page) || state.poisoned.has(page)))
    }
}

/// Ranges that a layout can own.
struct Owned(Vec<Range<u64>>);

impl PageSet for Owned {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.0.as_slice().next_run(from)
    }
}
