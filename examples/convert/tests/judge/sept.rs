//! The Secure EPT as an explicit tree, and the tables that it takes.

use std::collections::{BTreeMap, BTreeSet};

use convert::report::{LeafLevel, LeafRun, LeafState, Resources};
use convert::scenario::{PAGE, Region};

pub(crate) const M2: u64 = 2 << 20;
pub(crate) const G1: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    Mapped,
    Pending,
}

#[derive(Clone)]
enum Slot2M {
    Free,
    Leaf(Leaf),
    Table(Vec<Option<Leaf>>),
}

#[derive(Clone)]
enum Slot1G {
    Free,
    Leaf(Leaf),
    Table(Vec<Slot2M>),
}

/// What an operation did to the tree.
#[derive(Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) used: Resources,
    pub(crate) released: Resources,
    pub(crate) demotes: u64,
    pub(crate) promotes: u64,
}

impl Account {
    fn table(&mut self, pamt: i64) {
        self.used += Resources { sept_pages: 1, mirror_pages: 1, dpamt_pages: pamt, ..Resources::default() };
    }

    fn no_table(&mut self, pamt: i64) {
        self.released +=
            Resources { sept_pages: 1, mirror_pages: 1, dpamt_pages: pamt, ..Resources::default() };
    }
}

/// The tree. Which folio a page is in comes from outside, as the order at an address.
#[derive(Clone)]
pub(crate) struct Sept {
    gibs: BTreeMap<u64, Slot1G>,
    /// Tables of 512 GiB and 256 TiB entries that exist, by shift and number.
    above: BTreeSet<(u32, u64)>,
    five_levels: bool,
    /// Dynamic PAMT pages that a table of 4 KiB entries takes.
    pamt: i64,
}

/// What a mapping may be.
#[derive(Clone, Copy)]
pub(crate) struct Populate {
    pub(crate) range: Region,
    pub(crate) large: bool,
    pub(crate) around: bool,
    /// Whether pending pages that are too large are split.
    pub(crate) split: bool,
    /// Whether pages are mapped, or added at build time.
    pub(crate) leaf: Leaf,
}

pub(crate) fn covers(a: Region, start: u64, len: u64) -> bool {
    a.start <= start && start + len <= a.end()
}

pub(crate) fn meets(a: Region, start: u64, len: u64) -> bool {
    a.start < start + len && start < a.end()
}

fn index(gpa: u64, size: u64) -> usize {
    usize::try_from(gpa / size % 512).unwrap()
}

fn steps(range: Region, size: u64) -> impl Iterator<Item = u64> {
    (range.start / size..range.end().div_ceil(size)).map(move |n| n * size)
}

impl Sept {
    pub(crate) fn new(five_levels: bool, pamt: i64) -> Self {
        Self { gibs: BTreeMap::new(), above: BTreeSet::new(), five_levels, pamt }
    }

    /// Takes the leaves of `range` out, after splitting every leaf in `area` that would outgrow its folio.
    pub(crate) fn remove(&mut self, range: Region, area: Region, order_at: &dyn Fn(u64) -> u8) -> Account {
        let mut done = Account::default();
        for gib in steps(area, G1) {
            let Some(slot) = self.gibs.get_mut(&gib) else { continue };
            if let Slot1G::Leaf(leaf) = *slot {
                if covers(range, gib, G1) {
                    *slot = Slot1G::Free;
                    continue;
                }
                if !meets(range, gib, G1) && order_at(gib) >= 18 {
                    continue;
                }
                *slot = Slot1G::Table(vec![Slot2M::Leaf(leaf); 512]);
                done.demotes += 1;
                done.table(0);
            }
            let Slot1G::Table(table) = slot else { continue };
            let inside = Region { start: area.start.max(gib), len: 0 };
            let inside = Region { len: area.end().min(gib + G1) - inside.start, ..inside };
            for huge in steps(inside, M2) {
                let slot = &mut table[index(huge, M2)];
                if let Slot2M::Leaf(leaf) = *slot {
                    if covers(range, huge, M2) {
                        *slot = Slot2M::Free;
                        continue;
                    }
                    if !meets(range, huge, M2) && order_at(huge) >= 9 {
                        continue;
                    }
                    *slot = Slot2M::Table(vec![Some(leaf); 512]);
                    done.demotes += 1;
                    done.table(self.pamt);
                }
                if let Slot2M::Table(pages) = slot {
                    for gpa in (huge..huge + M2).step_by(4096) {
                        if meets(range, gpa, PAGE) {
                            pages[index(gpa, PAGE)] = None;
                        }
                    }
                }
            }
        }
        done
    }

    /// Maps what is free and wanted.
    pub(crate) fn populate(
        &mut self,
        how: Populate,
        order_at: &dyn Fn(u64) -> u8,
        wanted: &dyn Fn(u64) -> bool,
    ) -> Account {
        let mut done = Account::default();
        for huge in steps(how.range, M2) {
            let gib = huge - huge % G1;
            let above = [(39, true), (48, self.five_levels)];
            let free = !matches!(self.gibs.get(&gib), Some(Slot1G::Leaf(_)));
            for (shift, exists) in above {
                if exists && free && self.above.insert((shift, huge >> shift)) {
                    done.table(0);
                }
            }
            let slot = self.gibs.entry(gib).or_insert(Slot1G::Free);
            if let Slot1G::Free = slot {
                *slot = Slot1G::Table(vec![Slot2M::Free; 512]);
                done.table(0);
            }
            let Slot1G::Table(table) = slot else { continue };
            let slot = &mut table[index(huge, M2)];
            let fits = how.large && (how.around || covers(how.range, huge, M2));
            let large = fits && order_at(huge.max(how.range.start)) >= 9;
            match slot {
                Slot2M::Leaf(Leaf::Pending) if how.split && !fits => {
                    *slot = Slot2M::Table(vec![Some(Leaf::Pending); 512]);
                    done.demotes += 1;
                    done.table(self.pamt);
                    continue;
                }
                Slot2M::Leaf(_) => continue,
                Slot2M::Free if large => {
                    *slot = Slot2M::Leaf(Leaf::Pending);
                    continue;
                }
                Slot2M::Free => {
                    *slot = Slot2M::Table(vec![None; 512]);
                    done.table(self.pamt);
                }
                Slot2M::Table(pages) if large && pages.iter().all(Option::is_none) => {
                    *slot = Slot2M::Leaf(Leaf::Pending);
                    done.no_table(self.pamt);
                    continue;
                }
                Slot2M::Table(_) => {}
            }
            if let Slot2M::Table(pages) = slot {
                for gpa in (huge..huge + M2).step_by(4096) {
                    let page = &mut pages[index(gpa, PAGE)];
                    if meets(how.range, gpa, PAGE) && page.is_none() && wanted(gpa) {
                        *page = Some(how.leaf);
                    }
                }
            }
        }
        done
    }

    /// The guest accepts the pages of `range` that are `waiting`. Pending leaves that reach further are split.
    pub(crate) fn accept(&mut self, range: Region, waiting: &dyn Fn(u64) -> bool) -> Account {
        let mut done = Account::default();
        for huge in steps(range, M2) {
            let Some(Slot1G::Table(table)) = self.gibs.get_mut(&(huge - huge % G1)) else { continue };
            let slot = &mut table[index(huge, M2)];
            if let Slot2M::Leaf(Leaf::Pending) = slot {
                if covers(range, huge, M2) {
                    *slot = Slot2M::Leaf(Leaf::Mapped);
                    continue;
                }
                *slot = Slot2M::Table(vec![Some(Leaf::Pending); 512]);
                done.demotes += 1;
                done.table(self.pamt);
            }
            for gpa in (huge..huge + M2).step_by(4096) {
                if !meets(range, gpa, PAGE) || !waiting(gpa) {
                    continue;
                }
                let Slot2M::Table(pages) = slot else { panic!("{gpa:#x} waits and is accepted") };
                let page = &mut pages[index(gpa, PAGE)];
                assert!(page.is_some(), "{gpa:#x} is accepted and not mapped");
                *page = Some(Leaf::Mapped);
            }
        }
        done
    }

    /// Merges what is accepted and belongs to one folio, in every 1 GiB that `range` touches.
    pub(crate) fn promote(&mut self, range: Region, order_at: &dyn Fn(u64) -> u8) -> Account {
        let mut done = Account::default();
        for gib in steps(range, G1) {
            let Some(slot) = self.gibs.get_mut(&gib) else { continue };
            let Slot1G::Table(table) = slot else { continue };
            for (huge, slot) in (gib..).step_by(2 << 20).zip(table.iter_mut()) {
                let Slot2M::Table(pages) = slot else { continue };
                if pages.iter().all(|page| *page == Some(Leaf::Mapped)) && order_at(huge) >= 9 {
                    *slot = Slot2M::Leaf(Leaf::Mapped);
                    done.promotes += 1;
                    done.no_table(self.pamt);
                }
            }
            if table.iter().all(|slot| matches!(slot, Slot2M::Leaf(Leaf::Mapped))) && order_at(gib) >= 18 {
                *slot = Slot1G::Leaf(Leaf::Mapped);
                done.promotes += 1;
                done.no_table(0);
            }
        }
        done
    }

    /// Tables that exist, the root left out.
    pub(crate) fn usage(&self) -> Resources {
        let mut all = Account::default();
        self.above.iter().for_each(|_| all.table(0));
        for slot in self.gibs.values() {
            let Slot1G::Table(table) = slot else { continue };
            all.table(0);
            for slot in table {
                if let Slot2M::Table(_) = slot {
                    all.table(self.pamt);
                }
            }
        }
        all.used
    }

    /// Where the walk for `gpa` ends.
    fn leaf(&self, gpa: u64) -> (LeafLevel, Option<Leaf>) {
        match self.gibs.get(&(gpa - gpa % G1)) {
            None | Some(Slot1G::Free) => (LeafLevel::Block1G, None),
            Some(Slot1G::Leaf(leaf)) => (LeafLevel::Block1G, Some(*leaf)),
            Some(Slot1G::Table(table)) => match &table[index(gpa, M2)] {
                Slot2M::Free => (LeafLevel::Block2M, None),
                Slot2M::Leaf(leaf) => (LeafLevel::Block2M, Some(*leaf)),
                Slot2M::Table(pages) => (LeafLevel::Page4K, pages[index(gpa, PAGE)]),
            },
        }
    }

    /// Entries where walks end, alike ones together.
    pub(crate) fn leaves(&self, ram: &[Region]) -> Vec<LeafRun> {
        let mut runs: Vec<LeafRun> = Vec::new();
        for region in ram {
            let mut gpa = region.start;
            while gpa < region.end() {
                let (level, leaf) = self.leaf(gpa);
                let state = match leaf {
                    None => LeafState::Free,
                    Some(Leaf::Mapped) => LeafState::Mapped,
                    Some(Leaf::Pending) => LeafState::Pending,
                };
                let start = gpa - gpa % level.bytes();
                match runs.last_mut() {
                    Some(run)
                        if (run.level, run.state, run.start + run.count * level.bytes())
                            == (level, state, start) =>
                    {
                        run.count += 1;
                    }
                    _ => runs.push(LeafRun { start, level, count: 1, state }),
                }
                gpa = start + level.bytes();
            }
        }
        runs
    }
}
