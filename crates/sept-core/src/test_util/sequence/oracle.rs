//! What must be true: a map of 4 KiB pages and the calls that succeeded. It knows nothing of tables.

use super::dump::{Key, Page, key, pages_of};
use super::pages::{Pages, Piece};
use crate::{Gpa, GpaEntry, Hpa, LeafState, Level, Permissions, Translation};
use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};

/// A host page that left the table with the tables above it, and waits in an obligation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OwedPage {
    /// Number of the guest page that it was.
    pub(super) guest: u64,
    pub(super) level: Level,
}

impl Piece for OwedPage {
    fn after(self, pages: u64) -> Self {
        Self { guest: self.guest + pages, ..self }
    }
}

/// The fence that an operation shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    /// Fences and grace periods started before it.
    Number(u64),
    Foreign,
}

impl Shown {
    /// Whether it began after what happened at `time`.
    pub(super) fn covers(self, time: u64) -> bool {
        matches!(self, Self::Number(number) if time <= number)
    }
}

#[derive(Debug)]
pub(super) struct Oracle {
    top: Level,
    /// End of the guest's address space, in bytes.
    end: u64,
    /// Largest page that a table can be merged into.
    max_leaf: Level,
    pub(super) pages: Pages<Page>,
    /// Entries blocked as tables, and fences started before.
    pub(super) hidden: BTreeMap<Key, u64>,
    /// Entries closed, and fences started before.
    pub(super) closed: BTreeMap<Key, u64>,
    pub(super) inhibited: BTreeSet<Key>,
    /// Pages where the guest finds its data destroyed.
    pub(super) destroyed: Pages<()>,
    /// Memory that the TEE's metadata pages of a table describe, by the table's entry.
    pub(super) described: BTreeMap<Key, Hpa>,
    /// Fences and grace periods started.
    pub(super) now: u64,
    /// Host pages that are not the host's: mapped, or on their way back.
    pub(super) lent: Pages<()>,
    /// Host pages in the obligation.
    pub(super) owed: Pages<OwedPage>,
    /// When the last table went into the obligation.
    pub(super) owed_at: u64,
    /// Whether the MMU may still have one of them cached.
    pub(super) owed_fence: bool,
}

impl Oracle {
    pub(super) const fn new(top: Level, end: u64, max_leaf: Level) -> Self {
        Self {
            top,
            end,
            max_leaf,
            pages: Pages::new(),
            hidden: BTreeMap::new(),
            closed: BTreeMap::new(),
            inhibited: BTreeSet::new(),
            destroyed: Pages::new(),
            described: BTreeMap::new(),
            now: 0,
            lent: Pages::new(),
            owed: Pages::new(),
            owed_at: 0,
            owed_fence: false,
        }
    }

    pub(super) const fn in_space(&self, gpa: u64) -> bool {
        gpa < self.end
    }

    /// The entries above `at`.
    pub(super) fn above(&self, at: GpaEntry) -> impl Iterator<Item = GpaEntry> {
        let top = self.top;
        Level::ALL
            .into_iter()
            .filter(move |level| *level > at.level() && *level <= top)
            .map(move |level| GpaEntry::containing(at.gpa(), level))
    }

    /// Whether a table above is blocked.
    pub(super) fn is_hidden(&self, at: GpaEntry) -> bool {
        self.above(at).any(|above| self.hidden.contains_key(&key(above)))
    }

    /// Whether a table above is blocked or closed, so that no operation reaches `at`.
    pub(super) fn is_shut(&self, at: GpaEntry) -> bool {
        self.is_hidden(at) || self.above(at).any(|above| self.closed.contains_key(&key(above)))
    }

    /// What the guest reaches at `gpa`.
    pub(super) fn translate(&self, gpa: Gpa) -> Option<Translation> {
        let page = self.pages.get(gpa.raw() >> 12)?;
        let reachable = page.blocked.is_none() && !self.is_hidden(GpaEntry::containing(gpa, Level::L4K));
        let hpa = Hpa::new(page.host << 12 | gpa.raw() & 0xfff)?;
        reachable.then_some(Translation { hpa, level: page.level, state: page.state })
    }

    /// The page exactly at `at`.
    pub(super) fn leaf(&self, at: GpaEntry) -> Option<Page> {
        self.pages.get(at.gpa().raw() >> 12).filter(|page| page.level == at.level())
    }

    /// When the entry was blocked.
    pub(super) fn blocked_at(&self, at: GpaEntry) -> Option<u64> {
        self.hidden.get(&key(at)).copied().or_else(|| self.leaf(at)?.blocked)
    }

    /// Whether all pages below `at` are known to be accepted and, but for that, could be merged.
    pub(super) fn is_ready(&self, at: GpaEntry) -> bool {
        let child = at.level().child().unwrap_or(at.level());
        let first = self.pages.get(pages_of(at).start);
        let base = first.filter(|page| page.host % at.level().pages() == 0).map(|page| page.host);
        let mut next = pages_of(at).start;
        for (run, page) in self.pages.within(pages_of(at)) {
            let distance = run.start - pages_of(at).start;
            let fits = base.is_some_and(|base| page.host == base + distance) && page.level == child;
            if run.start != next || !fits || page.blocked.is_some() || page.state != LeafState::Mapped {
                return false;
            }
            next = run.end;
        }
        next == pages_of(at).end && !self.inhibited.contains(&key(at))
    }

    /// The page that the 512 entries below `at` make together, or the index of the first that does not fit.
    pub(super) fn uniform(&self, at: GpaEntry) -> Result<Page, u16> {
        let child = at.level().child().ok_or(0_u16)?;
        let pages = pages_of(at);
        let (first, end) = self.pages.run_from(pages.start).ok_or(0_u16)?;
        let described = self.described.get(&key(at)).is_none_or(|hpa| hpa.raw() >> 12 == first.host);
        let aligned = first.host % at.level().pages() == 0;
        if first.level != child || first.blocked.is_some() || !aligned || !described {
            return Err(0);
        }
        if end < pages.end {
            let index = (end - pages.start) / child.pages();
            return Err(u16::try_from(index).unwrap_or(u16::MAX));
        }
        Ok(Page { level: at.level(), ..first })
    }

    /// Whether the table at `at` would be merged.
    pub(super) fn mergeable(&self, at: GpaEntry) -> bool {
        at.level() <= self.max_leaf && !self.inhibited.contains(&key(at)) && self.uniform(at).is_ok()
    }

    pub(super) const fn max_leaf(&self) -> Level {
        self.max_leaf
    }

    pub(super) fn map(&mut self, at: GpaEntry, host: u64, state: LeafState) {
        let page = Page { host, level: at.level(), state, permissions: Permissions::all(), blocked: None };
        assert!(self.pages.none_in(pages_of(at)), "{at}: mapped over a page");
        self.pages.put(pages_of(at), page);
        self.destroyed.take(pages_of(at));
        self.lend(host..host + at.level().pages());
    }

    pub(super) fn lend(&mut self, host: Range<u64>) {
        assert!(self.lent.none_in(host.clone()), "{host:x?} is mapped twice");
        self.lent.put(host, ());
    }

    /// The host has its pages back.
    pub(super) fn give_back(&mut self, host: Range<u64>) {
        let back: u64 = self.lent.take(host.clone()).iter().map(|(run, ())| run.end - run.start).sum();
        assert_eq!(back, host.end - host.start, "{host:x?} came back without having been lent");
    }

    /// A page left the table; `destroys` if it leaves a trace.
    pub(super) fn unmap(&mut self, pages: Range<u64>, destroys: bool) {
        for (run, page) in self.pages.take(pages) {
            if destroys && page.state != LeafState::Pending {
                self.destroyed.put(run, ());
            }
        }
    }

    /// A table is gone from `at`: so is every mark in it and on it.
    pub(super) fn table_left(&mut self, at: Key, destroys: bool) {
        let range = pages_of(super::dump::entry_of(at));
        let inside = |other: &Key| other.1 < at.1 && range.contains(&(other.0 >> 12));
        self.hidden.retain(|other, _| *other != at && !inside(other));
        self.closed.retain(|other, _| *other != at && !inside(other));
        self.inhibited.retain(|other| !inside(other));
        self.described.remove(&at);
        if destroys && self.pages.none_in(range.clone()) {
            self.destroyed.put(range, ());
        }
    }
}
