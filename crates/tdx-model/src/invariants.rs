//! What must hold of the module's state after every call. (TDX module ABI, "Model skeleton", invariants 1 to 8.)
//!
//! Walks every S-EPT and the whole PAMT: for tests and the audit mode.

use std::collections::HashMap;

use seamcall::Regs;

use crate::abi::{Lifecycle, PAGE, PageType, size_of_level};
use crate::call::Held;
use crate::foreign::Target;
use crate::lock::Mode;
use crate::memory::CHUNK;
use crate::sept;
use crate::state::State;
use crate::td::Td;

/// Pages of an owner by kind, in 4 KiB units; and how often S-EPT entries name each page.
#[derive(Default)]
struct Census {
    units: HashMap<u64, u64>,
    named: HashMap<(u64, u8), u32>,
    broken: Vec<String>,
}

impl State {
    /// Every broken invariant, in words.
    pub(crate) fn check_invariants(&self) -> Vec<String> {
        let mut census = Census::default();
        for td in self.tds.iter().flatten() {
            if td.lifecycle == Lifecycle::KeysConfigured && td.tdcx.len() > crate::td::ROOT_TDCX {
                self.check_table(&mut census, td, td.root, 0, td.root_level);
                Self::check_inside(&mut census, td);
                self.check_translations(&mut census, td);
            }
        }
        self.check_pamt(&mut census);
        for td in self.tds.iter().flatten() {
            let counted = census.units.get(&td.tdr).copied().unwrap_or(0);
            if counted != td.chldcnt {
                census.broken.push(format!("TD {:#x}: CHLDCNT {}, PAMT says {counted}", td.tdr, td.chldcnt));
            }
        }
        census.broken
    }

    /// The invariants where a call was at work, cheap enough for every call: of the entries on the walk to its address
    /// with the pages they name, and of its TD's vCPUs.
    pub(crate) fn check_call(&self, regs: &Regs) -> Vec<String> {
        let td =
            [regs.rdx & !1, regs.rcx].into_iter().find_map(|page| self.td_of(page)).map(|td| self.td(td));
        let built =
            |td: &&Td| td.lifecycle == Lifecycle::KeysConfigured && td.tdcx.len() > crate::td::ROOT_TDCX;
        let mut census = Census::default();
        if let Some(td) = td.filter(built) {
            self.check_walk(&mut census, td, regs.rcx);
            Self::check_inside(&mut census, td);
        }
        census.broken
    }

    fn check_walk(&self, census: &mut Census, td: &Td, gpa: u64) {
        let (mut at, mut table) = (td.root_level, td.root);
        loop {
            let raw = self.mem.table(table)[Td::index(gpa, at)];
            if raw & !sept::HOST_PRIORITY != sept::FREE {
                self.check_entry(census, td, gpa & !(size_of_level(at) - 1), at, raw);
            }
            let names_table = at > 0 && sept::state_of(raw).is_in(sept::TABLES);
            let Some(next) = self.mem.table_at(raw & self.cfg.address_mask()).filter(|_| names_table) else {
                return;
            };
            (at, table) = (at - 1, next);
        }
    }

    fn check_table(&self, census: &mut Census, td: &Td, table: u32, gpa: u64, level: u8) {
        for index in 0..512usize {
            let raw = self.mem.table(table)[index];
            let state = sept::state_of(raw);
            if raw & !sept::HOST_PRIORITY == sept::FREE {
                continue;
            }
            let at = gpa | (index as u64) << (12 + 9 * u32::from(level));
            let entry = raw & !self.lock_bit();
            self.check_entry(census, td, at, level, raw);
            let page = sept::address(&self.cfg, entry, level);
            let names = state.is_in(sept::LEAVES | sept::TABLES);
            if names {
                let pamt_level = if state.is_in(sept::TABLES) { 0 } else { level };
                *census.named.entry((page, pamt_level)).or_insert(0) += 1;
            }
            if state.is_in(sept::TABLES) {
                match self.mem.table_at(page) {
                    Some(child) => self.check_table(census, td, child, at, level - 1),
                    None => census.broken.push(format!("{at:#x}: no table in page {page:#x}")),
                }
            }
        }
    }

    fn check_entry(&self, census: &mut Census, td: &Td, gpa: u64, level: u8, raw: u64) {
        let state = sept::state_of(raw);
        let rwx = raw & sept::RWX;
        let mut complain =
            |what: &str| census.broken.push(format!("{gpa:#x} level {level} {state:?}: {what}"));
        if raw & 2 != 0 && raw & 1 == 0 {
            complain("writable but not readable");
        }
        if rwx != 0 && (state.any_blocked() || state.any_pending()) {
            complain("accessible");
        }
        if state == sept::EntryState::NlMapped && rwx != sept::RWX {
            complain("a table without full access");
        }
        let locked = raw & self.lock_bit() != 0;
        let mut holders = self.foreign.iter().map(|hold| hold.target).chain(self.entries_in_flight());
        let held = holders.any(|target| self.holds_entry(td, gpa, level, target));
        if locked != held {
            complain("lock bit does not match its holders");
        }
        let (kind, pamt_level) =
            if state.is_in(sept::TABLES) { (PageType::Ept, 0) } else { (PageType::Reg, level) };
        if state.is_in(sept::LEAVES | sept::TABLES) {
            let page = sept::address(&self.cfg, raw & !self.lock_bit(), level);
            let found = self.mem.leaf_entry(&self.cfg, page);
            if (found.entry.kind(), found.level, found.entry.owner()) != (kind, pamt_level, td.tdr) {
                complain("the PAMT does not know the page as this");
            }
            if state.any_blocked() && found.entry.bepoch > td.td_epoch {
                complain("blocked in the future");
            }
        }
    }

    fn entries_in_flight(&self) -> impl Iterator<Item = Target> {
        self.in_flight.iter().flat_map(|(_, held)| held).flatten().filter_map(|held| match *held {
            Held::Entry(table, index) => Some(Target::Entry { table, index }),
            _ => None,
        })
    }

    fn holds_entry(&self, td: &Td, gpa: u64, level: u8, target: Target) -> bool {
        let Target::Entry { table, index } = target else { return false };
        let (mut at, mut current) = (td.root_level, td.root);
        while at > level {
            let entry = self.mem.table(current)[Td::index(gpa, at)];
            let Some(next) = self.mem.table_at(entry & self.cfg.address_mask()) else { return false };
            (at, current) = (at - 1, next);
        }
        (table, index) == (current, Td::index(gpa, at))
    }

    fn check_inside(census: &mut Census, td: &Td) {
        let mut inside = [0u16; 2];
        for vcpu in td.vcpus.iter().filter(|vcpu| vcpu.inside) {
            inside[(vcpu.epoch & 1) as usize] += 1;
            if vcpu.epoch + 1 < td.td_epoch {
                census.broken.push(format!("vCPU {:#x} is inside since epoch {}", vcpu.tdvpr, vcpu.epoch));
            }
        }
        // A vCPU that a machine check threw out is never counted out.
        if inside != td.refcount && !td.fatal {
            census.broken.push(format!("TD {:#x}: refcount {:?}, inside {inside:?}", td.tdr, td.refcount));
        }
    }

    fn check_translations(&self, census: &mut Census, td: &Td) {
        for vcpu in td.vcpus.iter().filter(|vcpu| vcpu.inside) {
            for (gpa, hpa) in vcpu.translations.iter() {
                let entry = self.mem.leaf_entry(&self.cfg, hpa).entry;
                if self.cfg.tracking_enforced && (entry.kind(), entry.owner()) != (PageType::Reg, td.tdr) {
                    let what = "can still reach a page that is not the TD's";
                    census.broken.push(format!("vCPU {:#x} {what}: {gpa:#x} at {hpa:#x}", vcpu.tdvpr));
                }
            }
        }
    }

    fn check_pamt(&self, census: &mut Census) {
        let locks = self.expected_locks();
        for (gib, number) in self.mem.gibs.iter().zip(0u64..) {
            let Some(gib) = gib else { continue };
            let base = number << 30;
            let mut below = 0;
            self.check_page(census, &locks, base, 2, gib.own);
            for (chunk, start) in gib.chunks.iter().zip((base..).step_by(CHUNK as usize)) {
                self.check_page(census, &locks, start, 1, chunk.own);
                let used = chunk
                    .fine
                    .as_ref()
                    .map_or(0, |fine| self.check_fine(census, &locks_within(&locks, start), start, fine));
                let kind = chunk.own.kind();
                if kind == PageType::Reg && used > 0 {
                    census.broken.push(format!("2 MiB page {start:#x} has {used} used pages below"));
                }
                if kind == PageType::Pamt
                    && let Some(fine) = &chunk.fine
                    && fine.pair.iter().any(|&page| !self.mem.is_pamt_page(&self.cfg, page))
                {
                    census.broken.push(format!("the pair of {start:#x} is not marked"));
                }
                below += u32::from(kind != PageType::Nda) + u32::from(used);
            }
            if gib.own.kind() == PageType::Reg && below > 0 {
                census.broken.push(format!("1 GiB page {base:#x} has used pages below"));
            }
        }
    }

    fn check_fine(&self, census: &mut Census, locks: &Locks, start: u64, fine: &crate::pamt::Fine) -> u16 {
        let mut used = 0;
        let mut visible = 0;
        for (entry, page) in fine.entries.iter().zip((start..).step_by(PAGE as usize)) {
            self.check_page(census, locks, page, 0, *entry);
            used += u16::from(entry.kind() != PageType::Nda);
            visible += u16::from(!matches!(entry.kind(), PageType::Nda | PageType::Rsvd));
        }
        if used != fine.used {
            census.broken.push(format!("region {start:#x}: {used} pages used, {} counted", fine.used));
        }
        visible
    }

    fn check_page(
        &self,
        census: &mut Census,
        locks: &Locks,
        page: u64,
        level: u8,
        entry: crate::pamt::PamtEntry,
    ) {
        let (kind, found) = (entry.kind(), entry.lock().holders());
        let expected = if locks.is_empty() && found == (0, false) {
            found
        } else {
            locks.get(&(page, level)).copied().unwrap_or_default()
        };
        if found != expected {
            census
                .broken
                .push(format!("PAMT lock of {page:#x} level {level}: {found:?}, expected {expected:?}"));
        }
        if matches!(kind, PageType::Nda | PageType::Rsvd) {
            return;
        }
        if matches!(kind, PageType::Reg | PageType::Ept | PageType::Tdcx | PageType::Tdvpr) {
            *census.units.entry(entry.owner()).or_insert(0) += size_of_level(level) / PAGE;
        }
        let living = self
            .tds
            .iter()
            .flatten()
            .any(|td| td.tdr == entry.owner() && td.lifecycle == Lifecycle::KeysConfigured);
        let named = census.named.get(&(page, level)).copied().unwrap_or(0);
        if matches!(kind, PageType::Reg | PageType::Ept) && living && named != 1 {
            census.broken.push(format!("{kind:?} page {page:#x} level {level}: named by {named} entries"));
        }
    }

    /// Who holds which PAMT entry between calls: vCPUs in guest mode, foreign holders, calls that pause.
    fn expected_locks(&self) -> Locks {
        let (mut locks, mut pages) = (Locks::new(), Vec::new());
        let mut path = |hpa: u64, level: u8, mode: Mode| {
            for at in level..=2 {
                let mode = if at == level { mode } else { Mode::Shared };
                add(&mut locks, hpa & !(size_of_level(at) - 1), at, mode);
            }
        };
        for vcpu in self.tds.iter().flatten().flat_map(|td| &td.vcpus).filter(|vcpu| vcpu.inside) {
            path(vcpu.tdvpr, 0, Mode::Shared);
        }
        for held in self.in_flight.iter().flat_map(|(_, held)| held).flatten() {
            match *held {
                Held::Path(hpa, level, mode) => path(hpa, level, mode),
                Held::Page(hpa, level, mode) => pages.push((hpa, level, mode)),
                _ => {}
            }
        }
        for hold in &self.foreign {
            if let Target::Page { hpa, level } = hold.target {
                path(hpa, level, hold.mode);
            }
        }
        for td in self.tds.iter().flatten() {
            td.vcpus.iter().filter(|vcpu| vcpu.inside).for_each(|_| add(&mut locks, td.tdr, 0, Mode::Shared));
        }
        pages.into_iter().for_each(|(hpa, level, mode)| add(&mut locks, hpa, level, mode));
        locks
    }
}

/// Readers and writer of each PAMT entry.
type Locks = HashMap<(u64, u8), (u16, bool)>;

/// Those of the 4 KiB entries of the 2 MiB at `start`: mostly none.
fn locks_within(locks: &Locks, start: u64) -> Locks {
    let inside = |page: u64, level: u8| level == 0 && page & !(CHUNK - 1) == start;
    locks.iter().filter(|&(&(page, level), _)| inside(page, level)).map(|(&key, &lock)| (key, lock)).collect()
}

fn add(locks: &mut Locks, page: u64, level: u8, mode: Mode) {
    let entry = locks.entry((page, level)).or_default();
    match mode {
        Mode::Shared => entry.0 += 1,
        Mode::Exclusive => entry.1 = true,
    }
}
