//! What stands in the memory of a table, read word by word.

use super::pages::{Pages, Piece};
use crate::{
    Census, Entry, Format, Gpa, GpaEntry, GpaRange, Hpa, LeafState, Level, Permissions, SideWord,
    TableMemory, Word, test_util::Arena,
};
use core::{ops::Range, sync::atomic::Ordering};
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
};

/// An entry, in an order: its first address and level.
pub(super) type Key = (u64, Level);

pub(super) const fn key(at: GpaEntry) -> Key {
    (at.gpa().raw(), at.level())
}

pub(super) fn entry_of((gpa, level): Key) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(gpa), level)
}

/// The numbers of the pages that an entry covers.
pub(super) const fn pages_of(at: GpaEntry) -> Range<u64> {
    at.gpa().raw() >> 12..at.end() >> 12
}

/// The numbers of the pages of a range.
pub(super) const fn pages_in(range: GpaRange) -> Range<u64> {
    range.start().raw() >> 12..range.end() >> 12
}

/// What is known of one guest page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    /// Number of the host page.
    pub(super) host: u64,
    /// Size of the page that it is part of.
    pub(super) level: Level,
    pub(super) state: LeafState,
    pub(super) permissions: Permissions,
    /// Fences started before that page was blocked.
    pub(super) blocked: Option<u64>,
}

impl Piece for Page {
    fn after(self, pages: u64) -> Self {
        Self { host: self.host + pages, ..self }
    }
}

/// One table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Words {
    pub(super) hpa: Hpa,
    pub(super) live: u64,
    words: Box<[u64]>,
}

/// All of a table, as its words say.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Dump {
    top: Level,
    root: Words,
    /// By the entry that the table hangs in.
    pub(super) tables: BTreeMap<Key, Words>,
    /// Blocks are numbered modulo 2^11 here.
    pub(super) pages: Pages<Page>,
    /// Tables that are hidden from the guest.
    pub(super) hidden: BTreeMap<Key, u64>,
    /// Tables that no operation enters.
    pub(super) closed: BTreeMap<Key, u64>,
    pub(super) inhibited: BTreeSet<Key>,
    pub(super) census: Census,
}

impl Dump {
    /// Reads everything, and panics at what can never be.
    pub(super) fn of<F: Format>(memory: &Arena, root: Hpa, config: F::Config) -> Self {
        let top = F::top(config);
        let mut dump = Self {
            top,
            root: Words { hpa: root, live: 0, words: Box::default() },
            tables: BTreeMap::new(),
            pages: Pages::new(),
            hidden: BTreeMap::new(),
            closed: BTreeMap::new(),
            inhibited: BTreeSet::new(),
            census: Census::default(),
        };
        dump.root = dump.read::<F>(memory, config, root, (0, top));
        dump
    }

    /// Reads the table whose first entry is `first`, after what lies before it.
    fn read<F: Format>(&mut self, memory: &Arena, config: F::Config, hpa: Hpa, first: Key) -> Words {
        let (base, level) = first;
        let words: Box<[u64]> =
            (0..512).map(|index| memory.load(hpa, Word::Entry(index), Ordering::Relaxed)).collect();
        let mut used = 0;
        self.census.tables += 1;
        for (index, &raw) in (0..).zip(&words) {
            let at = (base | index << level.shift(), level);
            let entry = F::decode(config, level, raw);
            used += u64::from(entry != Entry::Free);
            if level > Level::L4K && !matches!(entry, Entry::Leaf { .. }) && F::inhibited(raw) {
                self.inhibited.insert(at);
            }
            self.note(at, entry, F::permissions(config, raw));
            if let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }, Some(child)) =
                (entry, level.child())
            {
                let below = self.read::<F>(memory, config, hpa, (at.0, child));
                self.tables.insert(at, below);
            }
            if let Entry::Leaf { hpa, .. } = entry {
                assert!(level <= F::max_leaf(config), "{}: a page of this size", entry_of(at));
                assert!(hpa.is_aligned(level), "{}: misaligned {hpa:#x}", entry_of(at));
            }
        }
        let live = memory.load(hpa, Word::Side(SideWord::Live), Ordering::Relaxed);
        assert_eq!(live, used, "count of entries in use of the table at {base:#x} of {level} entries");
        Words { hpa, live, words }
    }

    fn note(&mut self, at: Key, entry: Entry, permissions: Permissions) {
        let blocked = entry.blocked().map(crate::Stamp::raw);
        self.census.blocked += u64::from(blocked.is_some());
        match entry {
            Entry::Free => {}
            Entry::Frozen => panic!("{}: still being changed", entry_of(at)),
            Entry::Closed { stamp, .. } => {
                self.closed.insert(at, stamp.raw());
            }
            Entry::Table { .. } => {
                assert!(at.1 > Level::L4K, "{}: a table", entry_of(at));
                if let Some(stamp) = blocked {
                    self.hidden.insert(at, stamp);
                }
            }
            Entry::Leaf { hpa, state, .. } => {
                self.census.pending += u64::from(state == LeafState::Pending);
                self.census.pages[usize::from(at.1.raw())] += 1;
                let page = Page { host: hpa.raw() >> 12, level: at.1, state, permissions, blocked };
                self.pages.push(pages_of(entry_of(at)), page);
            }
        }
    }

    /// The word at `at`, if tables lead there.
    pub(super) fn word(&self, at: GpaEntry) -> Option<u64> {
        let table = match at.level().parent() {
            Some(parent) if at.level() < self.top => {
                self.tables.get(&key(GpaEntry::containing(at.gpa(), parent)))?
            }
            _ => &self.root,
        };
        table.words.get(usize::from(at.level().index(at.gpa()))).copied()
    }

    /// The address of the table that holds `at`.
    pub(super) fn holder(&self, at: GpaEntry) -> Option<Hpa> {
        let parent = at.level().parent().filter(|_| at.level() < self.top);
        parent.map_or(Some(self.root.hpa), |parent| {
            Some(self.tables.get(&key(GpaEntry::containing(at.gpa(), parent)))?.hpa)
        })
    }

    /// The entry at `at`, if tables lead there.
    pub(super) fn entry<F: Format>(&self, config: F::Config, at: GpaEntry) -> Option<Entry> {
        self.word(at).map(|raw| F::decode(config, at.level(), raw))
    }

    pub(super) fn is_table(&self, at: GpaEntry) -> bool {
        self.tables.contains_key(&key(at))
    }
}
