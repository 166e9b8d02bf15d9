//! SEPT.ADD, SEPT.RD, SEPT.REMOVE: the tables of the trees.

use super::handle_and_flag;
use crate::abi::{Leaf, NULL_PA, Operand, PageType, Status, op_state};
use crate::call::Ctx;
use crate::l2::{self, attributes};
use crate::l2_slot::L2Slot;
use crate::lock::Mode;
use crate::operand::{Prologue, TOP};
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::slot::Slot;
use crate::state::{Answer, State};

/// Bit 63 of a page operand: ignored on input, "not used" on output.
pub(super) const UNUSED: u64 = 1 << 63;

const ADD: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::SEPT_ADD, levels: (1, TOP), tree: Some(Mode::Shared) };

const RD: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::SEPT_ANY, levels: (0, TOP), tree: Some(Mode::Shared) };

const REMOVE: Prologue = Prologue {
    tdr: Mode::Shared,
    op_states: op_state::SEPT_ANY,
    levels: (1, TOP),
    tree: Some(Mode::Exclusive),
};

/// TDH.MEM.SEPT.ADD: a new table under the entry of the given level, and with version 1 under those of the L2 VMs.
///
/// Version 1 returns every page operand: all ones where the page was used, bit 63 set where it was not needed.
pub(super) fn add(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let mut pages = page_operands(c);
    let answer = add_tables(s, c, &mut pages);
    if c.version == 1 {
        [c.out.r8, c.out.r9, c.out.r10, c.out.r11] = pages;
    }
    answer
}

/// R8 to R11 without bit 63; version 0 looks at R8 only.
fn page_operands(c: &Ctx) -> [u64; 4] {
    let clear = |page: u64| if page == NULL_PA { page } else { page & !UNUSED };
    let l2 = |page: u64| if c.version == 1 { clear(page) } else { NULL_PA };
    [clear(c.regs.r8), l2(c.regs.r9), l2(c.regs.r10), l2(c.regs.r11)]
}

fn add_tables(s: &mut Session<'_>, c: &mut Ctx, pages: &mut [u64; 4]) -> Answer {
    let (tdr, allow_existing) = handle_and_flag(c.regs.rdx)?;
    let td = s.open_td(c, tdr, &ADD)?;
    let slot = s.open_entry_of(c, td, &ADD)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::SEPT_ADD)?;
    if !table_wanted(s, c, &slot, pages[0], allow_existing)? && pages[0] != NULL_PA {
        pages[0] |= UNUSED;
    }
    let mut beside: [Option<L2Slot>; l2::MAX_VMS] = [None; l2::MAX_VMS];
    for vm in 1..=l2::MAX_VMS {
        if pages[vm] != NULL_PA {
            beside[vm - 1] = l2_table_wanted(s, c, &slot, vm, &mut pages[vm], allow_existing)?;
        }
    }
    s.pause(c, Point::Commit);
    let key = s.entry_key(td);
    let mut added = pages[0] & UNUSED == 0;
    if added {
        let page = core::mem::replace(&mut pages[0], NULL_PA);
        new_table(s, td, page, sept::FREE);
        s.set_entry(&slot, sept::NL_MAPPED | page | key);
    }
    for slot_beside in beside.into_iter().flatten() {
        // What is done stays done: the host goes on with the registers it gets back.
        if added && s.faults.host_poll() {
            (c.out.rcx, c.out.rdx) = (c.regs.rcx, c.regs.rdx);
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
        let page = core::mem::replace(&mut pages[slot_beside.vm], NULL_PA);
        new_table(s, td, page, l2::FREE);
        s.set_alias(&slot, slot_beside.vm);
        s.set_l2_entry(&slot_beside, l2::table_entry(page | key));
        added = true;
    }
    Ok(())
}

/// Whether the page in R8 becomes the table; `false` when one exists and may.
fn table_wanted(s: &mut State, c: &mut Ctx, slot: &Slot, page: u64, allow_existing: bool) -> Answer<bool> {
    let exists = slot.state() == EntryState::NlMapped;
    if page == NULL_PA {
        return match (c.version, exists) {
            (0, _) => Err(Status::OPERAND_INVALID.of(Operand::R8)),
            (_, true) => Ok(false),
            (_, false) => Err(s.details(c, slot, Status::EPT_ENTRY_STATE_INCORRECT)),
        };
    }
    match (exists, allow_existing) {
        (true, true) => Ok(false),
        (true, false) => Err(s.details(c, slot, Status::EPT_ENTRY_STATE_INCORRECT)),
        (false, _) => s.new_page(c, page, Operand::R8).map(|()| true),
    }
}

/// The entry of `vm` that gets the page; `None`, and the page marked, when a table exists there and may.
fn l2_table_wanted(
    s: &mut State,
    c: &mut Ctx,
    slot: &Slot,
    vm: usize,
    page: &mut u64,
    allow_existing: bool,
) -> Answer<Option<L2Slot>> {
    if vm > usize::from(s.td(slot.td).num_l2_vms) {
        return Err(Status::OPERAND_INVALID.of(Operand::l2_page(vm)));
    }
    let beside = s.l2_beside(slot, vm);
    if beside.level != slot.level {
        return Err(s.l2_details(c, slot.td, &beside, Status::L2_SEPT_WALK_FAILED));
    }
    if l2::state_of(beside.entry) == l2::State::Free {
        s.new_page(c, *page, Operand::l2_page(vm))?;
        return Ok(Some(beside));
    }
    if !allow_existing {
        return Err(s.l2_details(c, slot.td, &beside, Status::L2_SEPT_ENTRY_NOT_FREE));
    }
    *page |= UNUSED;
    Ok(None)
}

fn new_table(s: &mut State, td: usize, page: u64, fill: u64) {
    let (cfg, key) = (s.cfg.clone(), s.td(td).hkid);
    s.donated(page, 1, key);
    s.mem.new_table(page, fill, key);
    let owner = s.td(td).tdr;
    s.mem.pamt_assign(&cfg, page, 0, PageType::Ept, owner);
    s.mem.entry_mut(&cfg, page, 0).bepoch = 0;
    s.td_mut(td).chldcnt += 1;
}

/// TDH.MEM.SEPT.RD: what an entry looks like, in any state; of a debug TD also the attributes that L2 VMs have.
pub(super) fn rd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (tdr, with_l2) = handle_and_flag(c.regs.rdx)?;
    let td = s.open_td(c, tdr, &RD)?;
    if with_l2 && !s.td(td).debug() {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    let slot = s.open_entry_of(c, td, &RD)?;
    s.pause(c, Point::Locked);
    c.out.rcx = sept::shown(&s.cfg, slot.entry);
    c.out.rdx = sept::shown_info(slot.entry, slot.level);
    if with_l2 {
        c.out.r8 = 0;
        if slot.state() != EntryState::Free {
            for vm in s.aliases(&slot) {
                let entry = s.l2_beside(&slot, vm).entry;
                let of_vm = attributes::of(entry, slot.state().any_write_blocked());
                c.out.r8 |= u64::from(of_vm) << (16 * vm);
            }
        }
    }
    Ok(())
}

/// TDH.MEM.SEPT.REMOVE: gives back an empty table, and the tables of L2 VMs beside it without a look into them.
pub(super) fn remove(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &REMOVE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::TABLES)?;
    let (page, _) = s.page_of(&slot);
    s.implicit_page(c, page, 0, Operand::Rcx, Mode::Exclusive)?;
    s.require_tracking(c, &slot, page, 0)?;
    let table = s.mem.table_at(page).map(|table| s.mem.table(table));
    if table.is_some_and(|table| table.iter().any(|&entry| sept::state_of(entry) != EntryState::Free)) {
        return Err(s.details(c, &slot, Status::EPT_PAGE_NOT_FREE));
    }
    let mut beside = Vec::new();
    for vm in s.aliases(&slot) {
        let slot_beside = s.l2_beside(&slot, vm);
        let page = slot_beside.entry & s.cfg.address_mask();
        s.implicit_page(c, page, 0, Operand::Rcx, Mode::Exclusive)?;
        beside.push((slot_beside, page));
    }
    s.pause(c, Point::Commit);
    let td = slot.td;
    for (slot_beside, l2_page) in beside.into_iter().rev() {
        s.set_l2_entry(&slot_beside, l2::FREE);
        let returned = s.free_table(Leaf::SeptRemove, td, l2_page);
        if c.version == 1 {
            *super::l2_output(c, slot_beside.vm) = returned;
        }
    }
    s.set_entry(&slot, sept::FREE);
    c.out.rcx = s.free_table(Leaf::SeptRemove, td, page);
    Ok(())
}
