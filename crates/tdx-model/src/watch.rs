//! The invariants after every call, at the cost of what the call has changed.
//!
//! A watch knows which entry names which page, what each S-EPT table and each used PAMT entry looked like when it was last
//! asked, and how many pages each TD has. Memory notes which tables and PAMT entries were handed out for writing; the watch
//! compares those with what it knows and asks the rules of [`crate::invariants`] about the differences. A page is looked at
//! when its own entry changed or when an entry began or ceased to name it, so both directions of "named exactly
//! once" are covered.
//!
//! A fresh watch knows nothing, so that everything differs: that is the full check.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::abi::PageType;
use crate::invariants::{Place, Roots, is_child, region, units};
use crate::l2;
use crate::machine::Machine;
use crate::memory::{CHUNK, FANOUT, Table, Touched, fold};
use crate::pamt::PamtEntry;
use crate::sept;
use crate::state::State;
use crate::td::Td;

/// A page and the level of its PAMT entry.
type Page = (u64, u8);

/// A hash of a few words that need not resist anybody.
#[derive(Clone, Copy, Debug, Default)]
struct FoldHasher(u64);

impl Hasher for FoldHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0, word);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<FoldHasher>>;

/// What is known of a table.
#[derive(Clone, Debug)]
struct Seen {
    td: usize,
    vm: usize,
    /// First address it translates.
    gpa: u64,
    level: u8,
    entries: Table,
    /// Tables that its entries lead to.
    children: Vec<(usize, u32)>,
}

/// What is known of the state that a call left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Root tables by TD; those of a TD without Secure EPTs are none.
    roots: Vec<Roots>,
    /// By number.
    tables: Vec<Option<Box<Seen>>>,
    /// How many entries name the page.
    named: Map<Page, u32>,
    pages: Map<Page, PamtEntry>,
    /// 4 KiB units of pages by owner.
    units: Map<u64, u64>,
}

/// What differs from what was known.
#[derive(Default)]
struct Changes {
    entries: Vec<(Place, u64, u64)>,
    pages: Vec<(Page, PamtEntry, PamtEntry)>,
    /// Pages that changed or are named otherwise than before.
    suspects: Vec<Page>,
}

impl Watch {
    /// What is broken since the last time. `refused`: of a call that was refused, which must not have changed anything.
    pub(crate) fn check(&mut self, state: &State, touched: &Touched, refused: bool) -> Vec<String> {
        let mut changes = Changes::default();
        let mut pages = touched.pages.clone();
        pages.sort_unstable();
        pages.dedup();
        self.follow_tables(state, touched, &mut changes);
        self.follow_pages(state, &pages, &mut changes);
        let mut broken = Vec::new();
        for (place, _, new) in &changes.entries {
            state.check_entry(place, *new, &mut broken);
        }
        let locks = state.expected_locks();
        for &(page, level) in &pages {
            state.check_page(page, level, &locks, &mut broken);
        }
        self.check_suspects(state, &mut changes, &mut broken);
        for (index, td) in state.tds.iter().enumerate() {
            if let Some(td) = td {
                let units = self.units.get(&td.tdr).copied().unwrap_or(0);
                state.check_td(index, units, &mut broken);
            }
        }
        state.check_module_locks(&mut broken);
        if refused {
            broken.extend(changes.of_substance(state));
        }
        broken
    }

    fn follow_tables(&mut self, state: &State, touched: &Touched, changes: &mut Changes) {
        self.roots.resize(state.tds.len(), Roots::default());
        let mut work: Vec<u32> = touched.tables.clone();
        for (index, td) in state.tds.iter().enumerate() {
            let built = td.as_ref().filter(|td| td.is_built());
            let roots = built.map_or_else(Roots::default, Td::roots);
            if roots == self.roots[index] {
                continue;
            }
            for &root in core::mem::replace(&mut self.roots[index], roots).tables() {
                self.unlink(state, root, changes);
            }
            for (vm, &root) in roots.tables().iter().enumerate() {
                self.link(root, index, vm, 0, roots.level);
                work.push(root);
            }
        }
        while let Some(table) = work.pop() {
            self.compare(state, table, &mut work, changes);
        }
    }

    fn link(&mut self, table: u32, td: usize, vm: usize, gpa: u64, level: u8) {
        let entries = [if vm == 0 { sept::FREE } else { l2::FREE }; FANOUT];
        let number = table as usize;
        self.tables.resize_with(self.tables.len().max(number + 1), || None);
        self.tables[number] = Some(Box::new(Seen { td, vm, gpa, level, entries, children: Vec::new() }));
    }

    /// The table is no part of a tree any more, nor are those below it.
    fn unlink(&mut self, state: &State, table: u32, changes: &mut Changes) {
        let mut work = vec![table];
        while let Some(table) = work.pop() {
            let Some(seen) = self.take(table) else { continue };
            work.extend(seen.children.iter().map(|&(_, child)| child));
            for index in 0..FANOUT {
                let place = seen.place(table, index);
                if let Some(page) = named(state, &place, seen.entries[index]) {
                    self.forget(page, changes);
                }
            }
        }
    }

    fn take(&mut self, table: u32) -> Option<Box<Seen>> {
        self.tables.get_mut(table as usize)?.take()
    }

    fn forget(&mut self, page: Page, changes: &mut Changes) {
        changes.suspects.push(page);
        if let Some(count) = self.named.get_mut(&page) {
            *count -= 1;
            if *count == 0 {
                self.named.remove(&page);
            }
        }
    }

    /// Learns what is new in a table that is part of a tree.
    fn compare(&mut self, state: &State, table: u32, work: &mut Vec<u32>, changes: &mut Changes) {
        let Some(mut seen) = self.take(table) else { return };
        let now = state.mem.table(table);
        for index in (0..FANOUT).filter(|&index| seen.entries[index] != now[index]) {
            let (old, new) = (seen.entries[index], now[index]);
            let place = seen.place(table, index);
            let pages = [old, new].map(|raw| named(state, &place, raw));
            if let Some(page) = pages[0] {
                self.forget(page, changes);
            }
            if let Some(page) = pages[1] {
                *self.named.entry(page).or_insert(0) += 1;
                changes.suspects.push(page);
            }
            let table_at = |page: Option<Page>| page.filter(|_| is_table(place.vm, new)).map(|page| page.0);
            let child = table_at(pages[1]).and_then(|page| state.mem.table_at(page));
            let known = seen.children.iter().position(|&(at, _)| at == index);
            if known.map(|position| seen.children[position].1) != child {
                if let Some(position) = known {
                    let (_, old) = seen.children.swap_remove(position);
                    self.unlink(state, old, changes);
                }
                if let Some(child) = child {
                    self.link(child, seen.td, seen.vm, place.gpa, seen.level - 1);
                    seen.children.push((index, child));
                    work.push(child);
                }
            }
            changes.entries.push((place, old, new));
        }
        seen.entries.copy_from_slice(now);
        self.tables[table as usize] = Some(seen);
    }

    fn follow_pages(&mut self, state: &State, pages: &[Page], changes: &mut Changes) {
        for &page in pages {
            let new = state.mem.entry(page.0, page.1);
            // Reserved pages are that from the start.
            let unknown = if new.kind() == PageType::Rsvd { new } else { PamtEntry::default() };
            let old = self.pages.get(&page).copied().unwrap_or(unknown);
            if old == new {
                continue;
            }
            self.pages.insert(page, new);
            if old.without_lock() == new.without_lock() {
                continue;
            }
            if is_child(old.kind()) {
                *self.units.entry(old.owner()).or_insert(0) -= units(old, page.1);
            }
            if is_child(new.kind()) {
                *self.units.entry(new.owner()).or_insert(0) += units(new, page.1);
            }
            changes.pages.push((page, old, new));
            changes.suspects.push(page);
        }
    }

    /// Of the pages that changed or are named otherwise: how often they are named, how many of a region are used, who can
    /// still reach them.
    fn check_suspects(&self, state: &State, changes: &mut Changes, broken: &mut Vec<String>) {
        changes.suspects.sort_unstable();
        changes.suspects.dedup();
        for &(page, level) in &changes.suspects {
            let entry = state.mem.entry(page, level);
            let names = self.named.get(&(page, level)).copied().unwrap_or(0);
            if names != u32::from(state.must_be_named(entry)) {
                let kind = entry.kind();
                broken.push(format!("{kind:?} page {page:#x} level {level}: named by {names} entries"));
            }
        }
        let kinds = changes.pages.iter().filter(|(_, old, new)| old.kind() != new.kind());
        let mut regions: Vec<u64> = kinds.clone().map(|&((page, _), ..)| region(page)).collect();
        regions.dedup();
        regions.iter().for_each(|&region| state.check_count(region, broken));
        let gone: Vec<Page> =
            kinds.filter(|(_, old, _)| is_child(old.kind())).map(|&(page, ..)| page).collect();
        if !gone.is_empty() {
            let within = |hpa: u64| gone.iter().any(|&(page, level)| covers(page, level, hpa));
            state.check_translations(within, broken);
        }
    }
}

impl Seen {
    fn place(&self, table: u32, index: usize) -> Place {
        let gpa = self.gpa | (index as u64) << (12 + 9 * u32::from(self.level));
        Place { td: self.td, vm: self.vm, gpa, level: self.level, table, index }
    }
}

impl Changes {
    /// What must not have changed in a refused call: everything but locks and host priority.
    fn of_substance(&self, state: &State) -> Vec<String> {
        let notes = sept::HOST_PRIORITY | state.lock_bit();
        let entries = self.entries.iter().filter(|(place, old, new)| match place.vm {
            0 => (old ^ new) & !notes != 0,
            _ => old != new,
        });
        let entries = entries.map(|(place, old, new)| {
            format!(
                "refused, but the entry {:#x} level {} was {old:#x} and is {new:#x}",
                place.gpa, place.level
            )
        });
        let contents = |entry: &PamtEntry| (entry.kind(), entry.owner(), entry.bepoch);
        let pages = self.pages.iter().filter(|(_, old, new)| contents(old) != contents(new));
        entries
            .chain(pages.map(|(page, old, new)| format!("refused, but {page:x?}: {old:x?}, {new:x?}")))
            .collect()
    }
}

fn named(state: &State, place: &Place, raw: u64) -> Option<Page> {
    // A TD that is gone left no tables.
    state.tds.get(place.td).and_then(Option::as_ref)?;
    state.named_page(place, raw)
}

fn is_table(vm: usize, raw: u64) -> bool {
    if vm > 0 {
        return l2::is_table(raw);
    }
    sept::state_of(raw).is_in(sept::TABLES)
}

const fn covers(page: u64, level: u8, hpa: u64) -> bool {
    hpa & !(crate::abi::size_of_level(level) - 1) == page
}

impl State {
    /// Every broken invariant, in words: walks every Secure EPT and the whole PAMT.
    pub(crate) fn check_invariants(&self) -> Vec<String> {
        let mut touched = Touched::default();
        for (gib, number) in self.mem.gibs.iter().zip(0u64..) {
            let Some(gib) = gib else { continue };
            let base = number << 30;
            touched.pages.push((base, 2));
            for (chunk, start) in gib.chunks.iter().zip((base..).step_by(CHUNK as usize)) {
                touched.pages.push((start, 1));
                let fine = chunk.fine.iter().flat_map(|fine| &fine.entries);
                let pages = fine.zip((start..).step_by(crate::abi::PAGE as usize));
                touched.pages.extend(pages.map(|(_, page)| (page, 0)));
            }
        }
        let mut broken = Watch::default().check(self, &touched, false);
        self.check_translations(|_| true, &mut broken);
        broken
    }

    /// Every invariant that a call can have broken since the last time. Only debug builds watch.
    pub(crate) fn check_changes(&mut self, refused: bool) -> Vec<String> {
        // Whatever a call does, it takes the lock of a page.
        if self.mem.touched.tables.is_empty() && self.mem.touched.pages.is_empty() {
            return Vec::new();
        }
        let Some(mut watch) = self.watch.take() else { return Vec::new() };
        let on = true;
        let touched = core::mem::replace(&mut self.mem.touched, Touched { on, ..Touched::default() });
        let broken = watch.check(self, &touched, refused);
        self.watch = Some(watch);
        broken
    }
}

impl Machine {
    /// Every broken invariant of the module's state, in words. Walks everything.
    #[must_use]
    pub fn check_invariants(&self) -> Vec<String> {
        self.with(|state| state.check_invariants())
    }
}

#[cfg(test)]
mod tests;
