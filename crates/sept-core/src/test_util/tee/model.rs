//! What the modelled TEE holds, and what it refuses.
//!
//! Written from the rules of the TDX module, not from the table's code: states and their order of checks as in
//! `EPT_WALK_FAILED`, `EPT_ENTRY_STATE_INCORRECT`, `GPA_RANGE_NOT_BLOCKED`, `TLB_TRACKING_NOT_DONE`,
//! `EPT_PAGE_NOT_FREE`, `EPT_INVALID_PROMOTE_CONDITIONS`.

use super::{MockLeaf, MockOp, MockRefusal};
use crate::{Donated, Gpa, GpaEntry, Hpa, LeafState, Level};
use std::{collections::BTreeMap, vec::Vec};

type Key = (u64, Level);

const fn key(at: GpaEntry) -> Key {
    (at.gpa().raw(), at.level())
}

/// One page that the TEE maps. Its address is the key it is stored under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) hpa: u64,
    pub(super) level: Level,
    pub(super) state: LeafState,
}

/// The external table.
#[derive(Debug)]
pub(super) struct Model {
    top: Level,
    pages: BTreeMap<u64, Page>,
    tables: BTreeMap<Key, Donated>,
    /// Blocked entries, with the number of fences started before.
    blocked: BTreeMap<Key, u64>,
    /// Host memory in the TEE's hands: start to end.
    held: BTreeMap<u64, u64>,
    pub(super) fences_started: u64,
    pub(super) fences_ended: u64,
}

impl Model {
    pub(super) const fn new(top: Level) -> Self {
        Self {
            top,
            pages: BTreeMap::new(),
            tables: BTreeMap::new(),
            blocked: BTreeMap::new(),
            held: BTreeMap::new(),
            fences_started: 0,
            fences_ended: 0,
        }
    }

    /// Whether the walk reaches `at`.
    pub(super) fn walk(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        if at.level() > self.top {
            return Err(MockRefusal::Level);
        }
        for level in Level::ALL.into_iter().rev().filter(|&level| level > at.level() && level <= self.top) {
            let above = key(GpaEntry::containing(at.gpa(), level));
            if !self.tables.contains_key(&above) {
                return Err(MockRefusal::Walk);
            }
            if self.blocked.contains_key(&above) {
                return Err(MockRefusal::Hidden);
            }
        }
        Ok(())
    }

    pub(super) fn is_table(&self, at: GpaEntry) -> bool {
        self.tables.contains_key(&key(at))
    }

    pub(super) fn page_at(&self, at: GpaEntry) -> Option<Page> {
        self.pages.get(&at.gpa().raw()).copied().filter(|page| page.level == at.level())
    }

    /// Why the TEE would refuse `op` at `at`, pages handed in aside.
    pub(super) fn check(&self, op: MockOp, at: GpaEntry) -> Result<(), MockRefusal> {
        self.walk(at)?;
        let (table, page) = (self.is_table(at), self.page_at(at).is_some());
        let fits = match op {
            MockOp::Link => !table && !page && at.level() > Level::L4K,
            MockOp::Map => !table && !page && at.level() <= Level::L2M,
            MockOp::Block | MockOp::Unblock => table || page,
            MockOp::Unmap => page,
            MockOp::Split => page && at.level() > Level::L4K,
            MockOp::Unlink => table,
            MockOp::Merge => table && at.level() <= Level::L1G,
            MockOp::Fence | MockOp::Probe | MockOp::WriteBack => true,
        };
        if !fits {
            return Err(MockRefusal::State);
        }
        match (op, self.blocked.get(&key(at))) {
            (MockOp::Block, Some(_)) => return Err(MockRefusal::State),
            (MockOp::Unmap | MockOp::Unblock | MockOp::Split | MockOp::Unlink | MockOp::Merge, epoch) => {
                let epoch = *epoch.ok_or(MockRefusal::NotBlocked)?;
                if self.fences_ended <= epoch {
                    return Err(MockRefusal::NotTracked);
                }
            }
            _ => {}
        }
        match op {
            MockOp::Unlink if !self.is_empty(at) => Err(MockRefusal::NotEmpty),
            MockOp::Merge => self.uniform(at).map(|_| ()),
            _ => Ok(()),
        }
    }

    fn is_empty(&self, at: GpaEntry) -> bool {
        let (start, end) = (at.gpa().raw(), at.end());
        let below = |table: &Key| table.1 < at.level();
        self.pages.range(start..end).next().is_none()
            && !self.tables.range((start, Level::L4K)..(end, Level::L4K)).any(|(table, _)| below(table))
    }

    /// The page that the table's 512 children make together.
    fn uniform(&self, at: GpaEntry) -> Result<Page, MockRefusal> {
        let odd = MockRefusal::NotUniform;
        let child = at.level().child().ok_or(odd)?;
        let first = *self.pages.get(&at.gpa().raw()).ok_or(odd)?;
        let mut children: u64 = 0;
        for (offset, page) in self.pages.range(at.gpa().raw()..at.end()) {
            let distance = offset.wrapping_sub(at.gpa().raw());
            let continues = page.level == child
                && page.state == first.state
                && page.hpa == first.hpa.wrapping_add(distance)
                && !self.blocked.contains_key(&(*offset, child));
            if !continues {
                return Err(odd);
            }
            children = children.wrapping_add(1);
        }
        if children != 512 || first.hpa & at.level().mask() != 0 {
            return Err(odd);
        }
        Ok(Page { level: at.level(), ..first })
    }

    pub(super) fn block(&mut self, at: GpaEntry) {
        self.blocked.insert(key(at), self.fences_started);
    }

    pub(super) fn unblock(&mut self, at: GpaEntry) {
        self.blocked.remove(&key(at));
    }

    /// Takes host memory into the TEE's hands; `false` if any of it is there already.
    pub(super) fn hold(&mut self, hpa: Hpa, level: Level) -> bool {
        let (start, end) = (hpa.raw(), hpa.raw().wrapping_add(level.size()));
        let free = self.held.range(..end).next_back().is_none_or(|(_, &before)| before <= start);
        if free {
            self.held.insert(start, end);
        }
        free
    }

    fn release(&mut self, hpa: u64) {
        self.held.remove(&hpa);
    }

    /// Holds all of `pages` or none.
    pub(super) fn hold_all(&mut self, pages: &[Hpa]) -> bool {
        for (index, &page) in pages.iter().enumerate() {
            if !self.hold(page, Level::L4K) {
                for &taken in pages.iter().take(index) {
                    self.release(taken.raw());
                }
                return false;
            }
        }
        true
    }

    pub(super) fn map(&mut self, at: GpaEntry, hpa: Hpa, state: LeafState) {
        self.pages.insert(at.gpa().raw(), Page { hpa: hpa.raw(), level: at.level(), state });
    }

    pub(super) fn unmap(&mut self, at: GpaEntry) {
        self.blocked.remove(&key(at));
        if let Some(page) = self.pages.remove(&at.gpa().raw()) {
            self.release(page.hpa);
        }
    }

    pub(super) fn link(&mut self, at: GpaEntry, donated: Donated) {
        self.tables.insert(key(at), donated);
    }

    pub(super) fn unlink(&mut self, at: GpaEntry) -> Donated {
        self.blocked.remove(&key(at));
        let donated = self.tables.remove(&key(at)).unwrap_or_default();
        let [first, second] = donated.metadata;
        for page in [donated.table, first, second].into_iter().flatten() {
            self.release(page.raw());
        }
        donated
    }

    pub(super) fn split(&mut self, at: GpaEntry, donated: Donated) {
        self.blocked.remove(&key(at));
        let (Some(page), Some(child)) = (self.pages.remove(&at.gpa().raw()), at.level().child()) else {
            return;
        };
        self.release(page.hpa);
        for index in 0..512_u64 {
            let offset = index.wrapping_mul(child.size());
            let hpa = page.hpa.wrapping_add(offset);
            self.held.insert(hpa, hpa.wrapping_add(child.size()));
            self.pages.insert(at.gpa().raw().wrapping_add(offset), Page { hpa, level: child, ..page });
        }
        self.link(at, donated);
    }

    pub(super) fn merge(&mut self, at: GpaEntry) -> Result<Donated, MockRefusal> {
        let merged = self.uniform(at)?;
        let children: Vec<_> = self.pages.range(at.gpa().raw()..at.end()).map(|(&g, p)| (g, p.hpa)).collect();
        for (gpa, hpa) in children {
            self.pages.remove(&gpa);
            self.release(hpa);
        }
        self.held.insert(merged.hpa, merged.hpa.wrapping_add(at.level().size()));
        self.pages.insert(at.gpa().raw(), merged);
        Ok(self.unlink(at))
    }

    /// The guest accepts the page that covers `gpa`.
    pub(super) fn accept(&mut self, gpa: Gpa) -> bool {
        let Some((&start, page)) = self.pages.range(..=gpa.raw()).next_back() else { return false };
        let at = GpaEntry::containing(gpa, page.level);
        let reachable = at.gpa().raw() == start
            && page.state == LeafState::Pending
            && !self.blocked.contains_key(&key(at))
            && self.walk(at).is_ok();
        if let Some(page) = self.pages.get_mut(&start).filter(|_| reachable) {
            page.state = LeafState::Mapped;
        }
        reachable
    }

    pub(super) fn leaves(&self) -> Vec<MockLeaf> {
        let leaf = |(&gpa, page): (&u64, &Page)| {
            let at = GpaEntry::containing(Gpa::truncate(gpa), page.level);
            let blocked = self.blocked.contains_key(&key(at));
            MockLeaf { at, hpa: Hpa::truncate(page.hpa), state: page.state, blocked }
        };
        self.pages.iter().map(leaf).collect()
    }

    pub(super) fn tables(&self) -> Vec<(GpaEntry, Donated, bool)> {
        let table = |(&(gpa, level), &donated): (&Key, &Donated)| {
            let blocked = self.blocked.contains_key(&(gpa, level));
            (GpaEntry::containing(Gpa::truncate(gpa), level), donated, blocked)
        };
        self.tables.iter().map(table).collect()
    }
}
