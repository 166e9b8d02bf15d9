//! What must hold of the module's state after every call: rules about one entry, one page, one TD.
//!
//! 1. Every private page that the PAMT gives to a TD is named by one S-EPT leaf of that TD, of the same size, and
//!    every leaf names such a page. 2. Likewise every S-EPT page and the one entry, of the TD's tree or of an L2 VM's, that
//!    leads to it. 3. CHLDCNT counts the TD's pages. 4. Nothing below a larger page is in use; a Dynamic PAMT page pair is
//!    marked and counts its pages. 5. No lock outlives its holder. 6. Access bits fit the state. 7. A page was blocked in an
//!    epoch that has been. 8. No vCPU inside can still reach a page that is not its TD's. 9. A call that is refused has
//!    changed nothing (see [`crate::watch`], which also says of what the rules are asked). An L2 entry is in use exactly
//!    where the L1 entry beside it says so, and names the same page. (TDX module ABI, "Model skeleton".)

use crate::abi::{Lifecycle, PAGE, PageType, size_of_level};
use crate::call::Held;
use crate::foreign::{Target, TdLock};
use crate::l2;
use crate::lock::Mode;
use crate::memory::CHUNK;
use crate::pamt::PamtEntry;
use crate::sept::{self, EntryState};
use crate::state::State;
use crate::td::{MIN_TDCX, ROOT_TDCX, Td};

/// Bit 63 of BEPOCH: it is no epoch of the TD.
const NO_TD_EPOCH: u64 = 1 << 63;

/// Where an entry is: `vm` 0 is the TD's own tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) td: usize,
    pub(crate) vm: usize,
    pub(crate) gpa: u64,
    pub(crate) level: u8,
    pub(crate) table: u32,
    pub(crate) index: usize,
}

/// Readers and writer of each PAMT entry that is locked: few.
pub(crate) type Locks = Vec<((u64, u8), (u16, bool))>;

/// Root tables of a TD and their level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Roots {
    pub(crate) level: u8,
    count: usize,
    tables: [u32; 1 + l2::MAX_VMS],
}

impl Roots {
    /// The TD's own root, then those of L2 VMs.
    pub(crate) fn tables(&self) -> &[u32] {
        &self.tables[..self.count]
    }
}

impl Td {
    /// The TD has Secure EPTs that mean something.
    pub(crate) fn is_built(&self) -> bool {
        self.lifecycle == Lifecycle::KeysConfigured && self.tdcx.len() > ROOT_TDCX
    }

    pub(crate) fn roots(&self) -> Roots {
        let l2 = self.tdcx.len().saturating_sub(MIN_TDCX).min(l2::MAX_VMS);
        let [first, second, third] = self.l2_roots;
        Roots { level: self.root_level, count: 1 + l2, tables: [self.root, first, second, third] }
    }
}

impl State {
    /// The page that the entry names and the level of its PAMT entry. L2 leaves name what the L1 leaf does.
    pub(crate) fn named_page(&self, place: &Place, raw: u64) -> Option<(u64, u8)> {
        let address = raw & self.cfg.address_mask();
        if place.vm > 0 {
            return l2::is_table(raw).then_some((address, 0));
        }
        let state = sept::state_of(raw);
        if state.is_in(sept::TABLES) {
            return Some((address, 0));
        }
        let page = || sept::address(&self.cfg, raw & !self.lock_bit(), place.level);
        state.is_in(sept::LEAVES).then(|| (page(), place.level))
    }

    /// The rules about an entry.
    pub(crate) fn check_entry(&self, place: &Place, raw: u64, broken: &mut Vec<String>) {
        if place.vm > 0 { self.check_l2(place, raw, broken) } else { self.check_l1(place, raw, broken) }
    }

    fn check_l1(&self, place: &Place, raw: u64, broken: &mut Vec<String>) {
        let Place { gpa, level, table, index, .. } = *place;
        let (td, state, rwx) = (self.td(place.td), sept::state_of(raw), raw & sept::RWX);
        let mut complain = |what: &str| broken.push(format!("{gpa:#x} level {level} {state:?}: {what}"));
        if raw & 2 != 0 && raw & 1 == 0 {
            complain("writable but not readable");
        }
        if rwx != 0 && (state.any_blocked() || state.any_pending()) {
            complain("accessible");
        }
        if state == EntryState::NlMapped && rwx != sept::RWX {
            complain("a table without full access");
        }
        if (raw & self.lock_bit() != 0) != self.is_entry_held(table, index) {
            complain("lock bit does not match its holders");
        }
        if let Some((page, pamt_level)) = self.named_page(place, raw) {
            let kind = if state.is_in(sept::TABLES) { PageType::Ept } else { PageType::Reg };
            let found = self.mem.leaf_entry(&self.cfg, page);
            if (found.entry.kind(), found.level, found.entry.owner()) != (kind, pamt_level, td.tdr) {
                complain("the PAMT does not know the page as this");
            }
            let epoch = found.entry.bepoch;
            if state.any_blocked() && epoch & NO_TD_EPOCH == 0 && epoch > td.td_epoch {
                complain("blocked in the future");
            }
        }
        for vm in 1..=usize::from(td.num_l2_vms) {
            let alias = raw & self.alias_bit(vm) != 0;
            let used =
                self.l2_entry_at(place, vm).is_some_and(|entry| l2::state_of(entry) != l2::State::Free);
            if alias != used {
                complain(&format!("alias of VM {vm}: {alias}, in use: {used}"));
            }
        }
    }

    fn check_l2(&self, place: &Place, raw: u64, broken: &mut Vec<String>) {
        let Place { td, vm, gpa, level, .. } = *place;
        let state = l2::state_of(raw);
        let mut complain =
            |what: &str| broken.push(format!("VM {vm} {gpa:#x} level {level} {state:?}: {what}"));
        let l1 = self.walk_tables(self.td(td), gpa, level);
        let l1 = l1.map(|(table, index)| self.mem.table(table)[index]);
        let used = state != l2::State::Free;
        if used != l1.is_some_and(|entry| entry & self.alias_bit(vm) != 0) {
            complain("the L1 entry says otherwise");
        }
        if !used {
            return;
        }
        let l1 = l1.unwrap_or(sept::FREE);
        if l2::is_leaf(raw) != (l1 & sept::LEAF != 0) {
            complain("one of L1 and L2 is a page, the other a table");
        }
        let pages = [l1 & !self.lock_bit(), raw].map(|entry| sept::address(&self.cfg, entry, level));
        if l2::is_leaf(raw) && pages[0] != pages[1] {
            complain("another page than the L1 entry's");
        }
        if matches!(state, l2::State::Blocked | l2::State::NlBlocked) && raw & 0x407 != 0 {
            complain("accessible");
        }
        if raw & 2 != 0 && raw & 1 == 0 {
            complain("writable but not readable");
        }
        if let Some((page, _)) = self.named_page(place, raw) {
            let found = self.mem.leaf_entry(&self.cfg, page).entry;
            if (found.kind(), found.owner()) != (PageType::Ept, self.td(td).tdr) {
                complain("the PAMT does not know the table");
            }
        }
    }

    /// The entry of `vm` at the same place, if its tables reach that far.
    fn l2_entry_at(&self, place: &Place, vm: usize) -> Option<u64> {
        if self.td(place.td).roots().tables().len() <= vm {
            return None;
        }
        let slot = self.l2_walk(place.td, vm, place.gpa, place.level, true);
        (slot.level == place.level).then_some(slot.entry)
    }

    fn is_entry_held(&self, table: u32, index: usize) -> bool {
        let held = |held: &Held| matches!(*held, Held::Entry(t, i) if (t, i) == (table, index));
        self.foreign.iter().any(|hold| hold.target == Target::Entry { table, index })
            || self.locks_in_flight().any(|lock| held(&lock))
    }

    fn locks_in_flight(&self) -> impl Iterator<Item = Held> {
        self.in_flight.iter().flat_map(|(_, held)| held).flatten().copied()
    }

    /// The rules about a page of the PAMT that do not need to know who names it.
    pub(crate) fn check_page(&self, page: u64, level: u8, locks: &Locks, broken: &mut Vec<String>) {
        let entry = self.mem.entry(page, level);
        let kind = entry.kind();
        let mut complain =
            |what: String| broken.push(format!("{kind:?} page {page:#x} level {level}: {what}"));
        let expected = locks.iter().find(|&&(locked, _)| locked == (page, level));
        let (found, expected) = (entry.lock().holders(), expected.map(|&(_, lock)| lock).unwrap_or_default());
        if found != expected {
            complain(format!("lock {found:?}, expected {expected:?}"));
        }
        if kind == PageType::Pamt {
            return self.check_pair(page, broken);
        }
        if matches!(kind, PageType::Nda | PageType::Rsvd) {
            return;
        }
        if is_child(kind) && self.td_of(entry.owner()).is_none() {
            complain(format!("owner {:#x} is no TD", entry.owner()));
        }
        let parents = (level + 1..=2).map(|up| self.mem.entry(page & !(size_of_level(up) - 1), up).kind());
        if parents.into_iter().any(|parent| !matches!(parent, PageType::Nda | PageType::Pamt)) {
            complain("in use below a larger page".to_owned());
        }
        if level == 0 && self.mem.is_pamt_page(&self.cfg, page) {
            complain("holds PAMT entries as well".to_owned());
        }
    }

    /// A region with a page pair: both are marked.
    fn check_pair(&self, region: u64, broken: &mut Vec<String>) {
        let fine = self.mem.chunk(region).and_then(|chunk| chunk.fine.as_ref());
        if fine.is_none_or(|fine| fine.pair.iter().any(|&page| !self.mem.is_pamt_page(&self.cfg, page))) {
            broken.push(format!("the page pair of {region:#x} is not marked"));
        }
    }

    /// The number of used pages of a region is counted right.
    pub(crate) fn check_count(&self, region: u64, broken: &mut Vec<String>) {
        let Some(fine) = self.mem.chunk(region).and_then(|chunk| chunk.fine.as_ref()) else { return };
        let used = fine.entries.iter().filter(|entry| entry.kind() != PageType::Nda).count();
        if used != usize::from(fine.used) {
            broken.push(format!("region {region:#x}: {used} pages used, {} counted", fine.used));
        }
    }

    /// Whether exactly one entry has to name the page.
    pub(crate) fn must_be_named(&self, entry: PamtEntry) -> bool {
        matches!(entry.kind(), PageType::Reg | PageType::Ept)
            && self.td_of(entry.owner()).is_some_and(|td| self.td(td).is_built())
    }

    /// The rules about a TD, with the 4 KiB units that the PAMT gives it.
    pub(crate) fn check_td(&self, index: usize, units: u64, broken: &mut Vec<String>) {
        let td = self.td(index);
        if units != td.chldcnt {
            broken.push(format!("TD {:#x}: CHLDCNT {}, PAMT says {units}", td.tdr, td.chldcnt));
        }
        let mut inside = [0u16; 2];
        for vcpu in td.vcpus.iter().filter(|vcpu| vcpu.inside) {
            inside[(vcpu.epoch & 1) as usize] += 1;
            if vcpu.epoch + 1 < td.td_epoch {
                broken.push(format!("vCPU {:#x} is inside since epoch {}", vcpu.tdvpr, vcpu.epoch));
            }
        }
        // A vCPU that a machine check threw out is never counted out.
        if inside != td.refcount && !td.fatal {
            broken.push(format!("TD {:#x}: refcount {:?}, inside {inside:?}", td.tdr, td.refcount));
        }
        for (lock, name) in
            [(td.tree_lock, TdLock::SeptTree), (td.op_lock, TdLock::OpState), (td.epoch_lock, TdLock::Epoch)]
        {
            let expected = self.expected_td_lock(index, name);
            if lock.holders() != expected {
                let found = lock.holders();
                broken.push(format!("TD {:#x}: {name:?} lock {found:?}, expected {expected:?}", td.tdr));
            }
        }
    }

    fn expected_td_lock(&self, index: usize, name: TdLock) -> (u16, bool) {
        let mut lock = (0, false);
        let mut add = |mode: Mode| match mode {
            Mode::Shared => lock.0 += 1,
            Mode::Exclusive => lock.1 = true,
        };
        let foreign = self.foreign.iter().filter(|hold| hold.target == Target::Td { td: index, lock: name });
        foreign.for_each(|hold| add(hold.mode));
        for held in self.locks_in_flight() {
            match (held, name) {
                (Held::Tree(td, mode), TdLock::SeptTree) if td == index => add(mode),
                (Held::OpState(td), TdLock::OpState) if td == index => add(Mode::Shared),
                (Held::Epoch(td, mode), TdLock::Epoch) if td == index => add(mode),
                _ => {}
            }
        }
        lock
    }

    /// The locks that are nobody's in particular are free when nobody is at work.
    pub(crate) fn check_module_locks(&self, broken: &mut Vec<String>) {
        let mut locks = self.write_back_locks.iter().chain([&self.key_table_lock]);
        let free = locks.all(|lock| lock.holders() == (0, false)) && self.tdmr_locks.is_empty();
        if self.in_flight.is_empty() && !free {
            broken.push("a lock of the key table, a package or a TDMR is left".to_owned());
        }
    }

    /// Rule 8, for guests' translations to pages for which `gone` holds.
    pub(crate) fn check_translations(&self, gone: impl Fn(u64) -> bool, broken: &mut Vec<String>) {
        if !self.cfg.tracking_enforced {
            return;
        }
        for td in self.tds.iter().flatten().filter(|td| td.is_built() && !td.fatal) {
            for vcpu in td.vcpus.iter().filter(|vcpu| vcpu.inside) {
                for (gpa, hpa) in vcpu.translations.iter().filter(|&(_, hpa)| gone(hpa)) {
                    let entry = self.mem.leaf_entry(&self.cfg, hpa).entry;
                    if (entry.kind(), entry.owner()) != (PageType::Reg, td.tdr) {
                        let what = "can still reach a page that is not the TD's";
                        broken.push(format!("vCPU {:#x} {what}: {gpa:#x} at {hpa:#x}", vcpu.tdvpr));
                    }
                }
            }
        }
    }

    /// Who holds which PAMT entry between calls: vCPUs in guest mode, foreign holders, calls that pause.
    pub(crate) fn expected_locks(&self) -> Locks {
        let mut locks = Locks::new();
        for td in self.tds.iter().flatten() {
            for vcpu in td.vcpus.iter().filter(|vcpu| vcpu.inside) {
                add_path(&mut locks, vcpu.tdvpr, 0, Mode::Shared);
                add(&mut locks, td.tdr, 0, Mode::Shared);
            }
        }
        for held in self.locks_in_flight() {
            match held {
                Held::Path(hpa, level, mode) => add_path(&mut locks, hpa, level, mode),
                Held::Page(hpa, level, mode) => add(&mut locks, hpa, level, mode),
                _ => {}
            }
        }
        for hold in &self.foreign {
            if let Target::Page { hpa, level } = hold.target {
                add_path(&mut locks, hpa, level, hold.mode);
            }
        }
        locks
    }
}

/// Pages that CHLDCNT counts.
pub(crate) const fn is_child(kind: PageType) -> bool {
    matches!(kind, PageType::Reg | PageType::Ept | PageType::Tdcx | PageType::Tdvpr)
}

/// 4 KiB units of the page in CHLDCNT.
pub(crate) const fn units(entry: PamtEntry, level: u8) -> u64 {
    if is_child(entry.kind()) { size_of_level(level) / PAGE } else { 0 }
}

/// First byte of the 2 MiB region.
pub(crate) const fn region(page: u64) -> u64 {
    page & !(CHUNK - 1)
}

fn add_path(locks: &mut Locks, hpa: u64, level: u8, mode: Mode) {
    for at in level..=2 {
        add(locks, hpa, at, if at == level { mode } else { Mode::Shared });
    }
}

fn add(locks: &mut Locks, page: u64, level: u8, mode: Mode) {
    let key = (page & !(size_of_level(level) - 1), level);
    let position = locks.iter().position(|&(locked, _)| locked == key).unwrap_or_else(|| {
        locks.push((key, (0, false)));
        locks.len() - 1
    });
    let (_, lock) = &mut locks[position];
    match mode {
        Mode::Shared => lock.0 += 1,
        Mode::Exclusive => lock.1 = true,
    }
}
