//! SEPT.ADD, SEPT.RD, SEPT.REMOVE: the tables of the tree.

use super::handle_and_flag;
use crate::abi::{Leaf, NULL_PA, Operand, PageType, Status, op_state};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::state::{Answer, Prologue, Slot, State, TOP};

/// Bit 63 of a page operand: ignored on input, "not used" on output.
const UNUSED: u64 = 1 << 63;

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

const fn without_flag(page: u64) -> u64 {
    if page == NULL_PA { page } else { page & !UNUSED }
}

/// TDH.MEM.SEPT.ADD: a new table under the entry of the given level.
pub(super) fn add(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (tdr, allow_existing) = handle_and_flag(c.regs.rdx)?;
    let page = without_flag(c.regs.r8);
    if c.version == 1 {
        c.out.r8 = page;
        c.out.r9 = without_flag(c.regs.r9);
        c.out.r10 = without_flag(c.regs.r10);
        c.out.r11 = without_flag(c.regs.r11);
    }
    let td = s.open_td(c, tdr, &ADD)?;
    let slot = s.open_entry_of(c, td, &ADD)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::SEPT_ADD)?;
    let wanted = table_wanted(s, c, &slot, page, allow_existing)?;
    // Without L2 VMs any L2 page is one too many.
    for (vm, page) in [(1, c.regs.r9), (2, c.regs.r10), (3, c.regs.r11)] {
        if c.version == 1 && page != NULL_PA {
            return Err(Status::OPERAND_INVALID.of(Operand::l2_page(vm)));
        }
    }
    s.pause(c, Point::Commit);
    if wanted {
        link_table(s, &slot, page);
        if c.version == 1 {
            c.out.r8 = NULL_PA;
        }
    } else if c.version == 1 && page != NULL_PA {
        c.out.r8 = page | UNUSED;
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

fn link_table(s: &mut State, slot: &Slot, page: u64) {
    let (cfg, key) = (s.cfg.clone(), s.td(slot.td).hkid);
    s.donated(page, 1, key);
    s.mem.new_table(page, sept::FREE, key);
    let owner = s.td(slot.td).tdr;
    s.mem.pamt_assign(&cfg, page, 0, PageType::Ept, owner);
    s.mem.entry_mut(&cfg, page, 0).bepoch = 0;
    s.td_mut(slot.td).chldcnt += 1;
    s.set_entry(slot, sept::NL_MAPPED | page | s.entry_key(slot.td));
}

/// TDH.MEM.SEPT.RD: what an entry looks like, in any state.
pub(super) fn rd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (tdr, with_l2) = handle_and_flag(c.regs.rdx)?;
    let td = s.open_td(c, tdr, &RD)?;
    if with_l2 && !s.td(td).debug {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    let slot = s.open_entry_of(c, td, &RD)?;
    s.pause(c, Point::Locked);
    c.out.rcx = sept::shown(&s.cfg, slot.entry);
    c.out.rdx = sept::shown_info(slot.entry, slot.level);
    if with_l2 {
        c.out.r8 = 0;
    }
    Ok(())
}

/// TDH.MEM.SEPT.REMOVE: gives back an empty table.
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
    s.pause(c, Point::Commit);
    s.set_entry(&slot, sept::FREE);
    s.mem.drop_table(page);
    s.td_mut(slot.td).chldcnt -= 1;
    c.out.rcx = s.free_page(Leaf::SeptRemove, page, 0);
    Ok(())
}
