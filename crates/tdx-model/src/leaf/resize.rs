//! PAGE.DEMOTE and PAGE.PROMOTE: one page becomes 512, 512 become one.
//!
//! DEMOTE writes the new table before its last checks, so a failed call may leave the donated page overwritten. Both
//! leave the range unblocked. (TDX module ABI, "DEMOTE and PROMOTE in full".)

use super::handle_and_flag;
use crate::abi::{Leaf, Operand, PageType, Status, op_state, size_of_level};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::memory::FANOUT;
use crate::sept;
use crate::session::{Point, Session};
use crate::state::{Answer, Prologue, Slot, State};

const DEMOTE: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::REWORK, levels: (1, 2), tree: Some(Mode::Shared) };

/// TDH.MEM.PAGE.DEMOTE.
pub(super) fn demote(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (tdr, _sparse) = handle_and_flag(c.regs.rdx)?;
    let td = s.open_td(c, tdr, &DEMOTE)?;
    let slot = s.open_entry_of(c, td, &DEMOTE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::DEMOTE)?;
    let slot = slot.without_counter();
    let (page, _) = s.page_of(&slot);
    s.require_tracking(c, &slot, page, slot.level)?;
    let table_page = c.regs.r8;
    s.new_page(c, table_page, Operand::R8)?;
    s.pause(c, Point::Commit);
    write_children(s, &slot, table_page);
    // From here on the donated page is overwritten, whatever the outcome.
    if let Err(status) = split_page(s, c, &slot, page) {
        s.mem.drop_table(table_page);
        return Err(status);
    }
    let cfg = s.cfg.clone();
    let owner = s.td(td).tdr;
    s.mem.pamt_assign(&cfg, table_page, 0, PageType::Ept, owner);
    s.td_mut(td).chldcnt += 1;
    let entry = sept::NL_MAPPED | table_page | s.entry_key(td);
    s.set_entry(&slot, entry);
    Ok(())
}

/// Fills the new table: 512 unblocked copies of the leaf, each with its own address.
fn write_children(s: &mut State, slot: &Slot, table_page: u64) {
    let key = s.td(slot.td).hkid;
    s.donated(table_page, 1, key);
    let table = s.mem.new_table(table_page, sept::FREE, key);
    let mut child = slot.entry;
    if slot.state().any_blocked() {
        child = sept::unblocked(child);
    }
    let step = size_of_level(slot.level - 1);
    for entry in s.mem.table_mut(table) {
        *entry = child;
        child += step;
    }
}

/// The last checks, then the split in the PAMT.
fn split_page(s: &mut State, c: &mut Ctx, slot: &Slot, page: u64) -> Answer {
    if !s.cfg.profile.enhanced_demote_interruptibility && s.faults.host_poll() {
        return Err(c.interrupted());
    }
    s.implicit_page(c, page, slot.level, Operand::Rcx, Mode::Exclusive)?;
    let pair = if slot.level == 1 && s.cfg.profile.dynamic_pamt {
        Some(s.claim_pair(c, [(c.regs.r12, Operand::R12), (c.regs.r13, Operand::R13)], None)?)
    } else {
        None
    };
    let cfg = s.cfg.clone();
    s.mem.pamt_demote(&cfg, page, slot.level, pair);
    Ok(())
}

/// TDH.MEM.PAGE.PROMOTE.
pub(super) fn promote(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let exclusive = s.cfg.profile.promote_tree_exclusive;
    let tree = Some(if exclusive { Mode::Exclusive } else { Mode::Shared });
    let slot = s.open_entry(c, &Prologue { tree, ..DEMOTE })?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::TABLES)?;
    let (table_page, _) = s.page_of(&slot);
    s.implicit_page(c, table_page, 0, Operand::Rcx, Mode::Exclusive)?;
    s.require_tracking(c, &slot, table_page, 0)?;
    s.pause(c, Point::Commit);
    let merged = compare_children(s, c, &slot, table_page)?;
    if s.faults.host_poll() {
        return Err(c.interrupted());
    }
    let page = sept::address(&s.cfg, merged, slot.level);
    s.implicit_page(c, page, slot.level, Operand::Rcx, Mode::Exclusive)?;
    s.set_entry(&slot, merged);
    let cfg = s.cfg.clone();
    if let Some([first, second]) = s.mem.pamt_promote(&cfg, page, slot.level) {
        c.out.r12 = first;
        c.out.r13 = second;
    }
    s.mem.drop_table(table_page);
    s.td_mut(slot.td).chldcnt -= 1;
    c.out.rcx = s.free_page(Leaf::PagePromote, table_page, 0);
    Ok(())
}

/// Locks and compares the children one by one; returns the first, which becomes the merged leaf.
///
/// A child that is locked by another gets its host-priority flag, the ones before it lose theirs.
fn compare_children(s: &mut State, c: &mut Ctx, slot: &Slot, table_page: u64) -> Answer<u64> {
    let Some(table) = s.mem.table_at(table_page) else {
        return Err(s.details(c, slot, Status::EPT_INVALID_PROMOTE_CONDITIONS));
    };
    let (lock, mask, locks_children) =
        (s.lock_bit(), s.cfg.address_mask(), !s.cfg.profile.promote_tree_exclusive);
    let (child_level, step) = (slot.level - 1, size_of_level(slot.level - 1));
    let mut expected = None;
    for index in 0..FANOUT {
        let entry = &mut s.mem.table_mut(table)[index];
        if locks_children {
            if *entry & lock != 0 {
                *entry |= sept::HOST_PRIORITY;
                return Err(s.details(c, slot, Status::OPERAND_BUSY));
            }
            *entry &= !sept::HOST_PRIORITY;
        }
        let compared = sept::without_counter(*entry, child_level);
        let fits = match expected {
            None => {
                let aligned = compared & mask & (size_of_level(slot.level) - 1) == 0;
                aligned && sept::state_of(compared).is_in(sept::MERGEABLE)
            }
            Some(next) => compared == next,
        };
        if !fits {
            return Err(s.details(c, slot, Status::EPT_INVALID_PROMOTE_CONDITIONS));
        }
        expected = Some(compared.wrapping_add(step));
    }
    Ok(s.mem.table(table)[0])
}
