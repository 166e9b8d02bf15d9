//! The invariants after every call, at the cost of what the call has changed.
//!
//! A watch knows which entry names which page, what each S-EPT table and each used PAMT entry looked like when it was last
//! asked, and how many pages each TD has. Memory notes which tables and PAMT entries were handed out for writing; the watch
//! compares those with what it knows and asks the rules of [`crate::invariants`] about the differences. A page is looked at
//! when its own entry changed or when an entry began or ceased to name it, so both directions of "named exactly
//! once" are covered.
//!
//! A fresh watch knows nothing, so that everything differs: that is the full check.

use std::collections::{BTreeSet, HashMap};

use crate::abi::PageType;
use crate::invariants::{Place, is_child, region, units};
use crate::l2;
use crate::machine::Machine;
use crate::memory::{CHUNK, FANOUT, Table, Touched};
use crate::pamt::PamtEntry;
use crate::sept;
use crate::state::State;

/// A page and the level of its PAMT entry.
type Page = (u64, u8);

/// What is known of a table.
#[derive(Clone, Debug)]
struct Seen {
    td: usize,
    vm: usize,
    /// First address it translates.
    gpa: u64,
    level: u8,
    entries: Box<Table>,
    children: HashMap<usize, u32>,
}

/// What is known of the state that a call left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Root tables by TD, and their level; those of a TD without Secure EPTs are none.
    roots: Vec<(u8, Vec<u32>)>,
    tables: HashMap<u32, Seen>,
    /// How many entries name the page.
    named: HashMap<Page, u32>,
    pages: HashMap<Page, PamtEntry>,
    /// 4 KiB units of pages by owner.
    units: HashMap<u64, u64>,
}

/// What differs from what was known.
#[derive(Default)]
struct Changes {
    entries: Vec<(Place, u64, u64)>,
    pages: Vec<(Page, PamtEntry, PamtEntry)>,
    /// Pages that changed or are named otherwise than before.
    suspects: BTreeSet<Page>,
}

impl Watch {
    /// What is broken since the last time. `refused`: of a call that was refused, which must not have changed anything.
    pub(crate) fn check(&mut self, state: &State, touched: &Touched, refused: bool) -> Vec<String> {
        let mut changes = Changes::default();
        self.follow_tables(state, touched, &mut changes);
        self.follow_pages(state, touched, &mut changes);
        let mut broken = Vec::new();
        for (place, _, new) in &changes.entries {
            state.check_entry(place, *new, &mut broken);
        }
        self.check_pages(state, touched, &changes, &mut broken);
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
        self.roots.resize(state.tds.len(), (0, Vec::new()));
        let mut work: Vec<u32> = touched.tables.clone();
        for (index, td) in state.tds.iter().enumerate() {
            let built = td.as_ref().filter(|td| td.is_built());
            let roots = built.map_or_else(Default::default, |td| (td.root_level, td.roots()));
            if roots == self.roots[index] {
                continue;
            }
            for root in core::mem::take(&mut self.roots[index]).1 {
                self.unlink(state, root, changes);
            }
            for (vm, &root) in roots.1.iter().enumerate() {
                self.link(root, index, vm, 0, roots.0);
                work.push(root);
            }
            self.roots[index] = roots;
        }
        while let Some(table) = work.pop() {
            self.compare(state, table, &mut work, changes);
        }
    }

    fn link(&mut self, table: u32, td: usize, vm: usize, gpa: u64, level: u8) {
        let free = if vm == 0 { sept::FREE } else { l2::FREE };
        let entries = Box::new([free; FANOUT]);
        self.tables.insert(table, Seen { td, vm, gpa, level, entries, children: HashMap::new() });
    }

    /// The table is no part of a tree any more, nor are those below it.
    fn unlink(&mut self, state: &State, table: u32, changes: &mut Changes) {
        let mut work = vec![table];
        while let Some(table) = work.pop() {
            let Some(seen) = self.tables.remove(&table) else { continue };
            work.extend(seen.children.values());
            for index in 0..FANOUT {
                let place = seen.place(table, index);
                if let Some(page) = named(state, &place, seen.entries[index]) {
                    self.forget(page, changes);
                }
            }
        }
    }

    fn forget(&mut self, page: Page, changes: &mut Changes) {
        changes.suspects.insert(page);
        if let Some(count) = self.named.get_mut(&page) {
            *count -= 1;
            if *count == 0 {
                self.named.remove(&page);
            }
        }
    }

    /// Learns what is new in a table that is part of a tree.
    fn compare(&mut self, state: &State, table: u32, work: &mut Vec<u32>, changes: &mut Changes) {
        let Some(mut seen) = self.tables.remove(&table) else { return };
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
                changes.suspects.insert(page);
            }
            let table_at = |page: Option<Page>| page.filter(|_| is_table(place.vm, new)).map(|page| page.0);
            let child = table_at(pages[1]).and_then(|page| state.mem.table_at(page));
            if seen.children.get(&index).copied() != child {
                if let Some(old) = seen.children.remove(&index) {
                    self.unlink(state, old, changes);
                }
                if let Some(child) = child {
                    self.link(child, seen.td, seen.vm, place.gpa, seen.level - 1);
                    seen.children.insert(index, child);
                    work.push(child);
                }
            }
            changes.entries.push((place, old, new));
        }
        seen.entries.copy_from_slice(now);
        self.tables.insert(table, seen);
    }

    fn follow_pages(&mut self, state: &State, touched: &Touched, changes: &mut Changes) {
        let pages: BTreeSet<Page> = touched.pages.iter().copied().collect();
        for page in pages {
            let new = state.mem.entry(page.0, page.1);
            // Reserved pages are that from the start.
            let unknown = if new.kind() == PageType::Rsvd { new } else { PamtEntry::default() };
            let old = self.pages.get(&page).copied().unwrap_or(unknown);
            if old == new {
                continue;
            }
            if is_child(old.kind()) {
                *self.units.entry(old.owner()).or_insert(0) -= units(old, page.1);
            }
            if is_child(new.kind()) {
                *self.units.entry(new.owner()).or_insert(0) += units(new, page.1);
            }
            self.pages.insert(page, new);
            changes.pages.push((page, old, new));
            changes.suspects.insert(page);
        }
    }

    fn check_pages(&self, state: &State, touched: &Touched, changes: &Changes, broken: &mut Vec<String>) {
        let locks = state.expected_locks();
        let pages: BTreeSet<Page> = touched.pages.iter().copied().collect();
        pages.iter().for_each(|&(page, level)| state.check_page(page, level, &locks, broken));
        for &(page, level) in &changes.suspects {
            let entry = state.mem.entry(page, level);
            let (names, needed) =
                (self.named.get(&(page, level)).copied().unwrap_or(0), u32::from(state.must_be_named(entry)));
            if names != needed {
                let kind = entry.kind();
                broken.push(format!("{kind:?} page {page:#x} level {level}: named by {names} entries"));
            }
        }
        let kinds = changes.pages.iter().filter(|(_, old, new)| old.kind() != new.kind());
        let regions: BTreeSet<u64> = kinds.clone().map(|&((page, _), ..)| region(page)).collect();
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
