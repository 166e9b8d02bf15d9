//! PAGE.DEMOTE and PAGE.PROMOTE: one page becomes 512, 512 become one.
//!
//! DEMOTE writes the new tables before its last checks, so a failed call may leave the donated pages overwritten. Both
//! leave the range unblocked. (TDX module ABI, "DEMOTE and PROMOTE in full".)

use super::sept::UNUSED;
use super::{handle_and_flag, l2_output};
use crate::abi::{Leaf, NULL_PA, Operand, PageType, Status, op_state, size_of_level};
use crate::call::Ctx;
use crate::l2::{self, MAX_VMS};
use crate::l2_slot::L2Slot;
use crate::lock::Mode;
use crate::memory::FANOUT;
use crate::operand::Prologue;
use crate::sept;
use crate::session::{Point, Session};
use crate::slot::Slot;
use crate::state::{Answer, State};

const DEMOTE: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::REWORK, levels: (1, 2), tree: Some(Mode::Shared) };

/// The tables that DEMOTE writes.
struct NewTables {
    page: u64,
    /// Of each L2 VM: the page, and the entry that will lead to it once it is found.
    l2: [Option<(u64, Option<L2Slot>)>; MAX_VMS],
}

/// TDH.MEM.PAGE.DEMOTE.
pub(super) fn demote(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (tdr, sparse) = handle_and_flag(c.regs.rdx)?;
    let td = s.open_td(c, tdr, &DEMOTE)?;
    let slot = s.open_entry_of(c, td, &DEMOTE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::DEMOTE)?;
    let slot = slot.without_counter();
    let (page, _) = s.page_of(&slot);
    s.require_tracking(c, &slot, page, slot.level)?;
    let mut returned = [c.regs.r9, c.regs.r10, c.regs.r11];
    let mut tables = take_pages(s, c, &slot, sparse, &mut returned)?;
    s.pause(c, Point::Commit);
    // From here on the donated pages are overwritten, whatever the outcome.
    write_children(s, &slot, tables.page, slot.unblocked());
    let outcome = write_l2_children(s, c, &slot, &mut tables).and_then(|()| split_page(s, c, &slot, page));
    if let Err(status) = outcome {
        let l2_pages = tables.l2.iter().flatten().map(|&(page, _)| page);
        l2_pages.chain([tables.page]).for_each(|page| s.mem.drop_table(page));
        return Err(status);
    }
    link_tables(s, &slot, &tables);
    [c.out.r9, c.out.r10, c.out.r11] = returned;
    Ok(())
}

/// Checks and locks the new pages: one for the TD, one for each L2 VM that gets one.
fn take_pages(
    s: &mut State,
    c: &mut Ctx,
    slot: &Slot,
    sparse: bool,
    returned: &mut [u64; MAX_VMS],
) -> Answer<NewTables> {
    let mut tables = NewTables { page: c.regs.r8, l2: [None; MAX_VMS] };
    s.new_page(c, tables.page, Operand::R8)?;
    for vm in 1..=usize::from(s.td(slot.td).num_l2_vms) {
        let (aliased, operand) = (slot.entry & s.alias_bit(vm) != 0, Operand::l2_page(vm));
        let page = &mut returned[vm - 1];
        match (*page == NULL_PA, aliased) {
            (true, true) => return Err(Status::L2_SEPT_PAGE_NOT_PROVIDED.of(operand)),
            (true, false) => {}
            (false, false) if sparse => *page |= UNUSED,
            (false, _) => {
                let page = *page & !UNUSED;
                s.new_page(c, page, operand)?;
                tables.l2[vm - 1] = Some((page, None));
            }
        }
    }
    Ok(tables)
}

/// Fills a new table: 512 copies of the leaf, each with its own address.
fn write_children(s: &mut State, slot: &Slot, table_page: u64, leaf: u64) {
    let key = s.td(slot.td).hkid;
    s.donated(table_page, 1, key);
    let table = s.mem.new_table(table_page, leaf, key);
    let mut child = leaf;
    let step = size_of_level(slot.level - 1);
    for entry in s.mem.table_mut(table) {
        *entry = child;
        child += step;
    }
}

/// The tables of the L2 VMs: copies of their leaf where they have one, empty ones otherwise.
fn write_l2_children(s: &mut State, c: &mut Ctx, slot: &Slot, tables: &mut NewTables) -> Answer {
    let key = s.td(slot.td).hkid;
    for vm in 1..=MAX_VMS {
        let Some((page, beside)) = &mut tables.l2[vm - 1] else { continue };
        if s.faults.host_poll() {
            return Err(c.interrupted());
        }
        let found = s.l2_beside(slot, vm);
        if found.level != slot.level {
            return Err(s.l2_details(c, slot.td, &found, Status::L2_SEPT_WALK_FAILED));
        }
        *beside = Some(found);
        if slot.entry & s.alias_bit(vm) != 0 {
            let pending = slot.state().any_pending();
            write_children(s, slot, *page, if pending { found.entry } else { l2::unblocked(found.entry) });
        } else {
            s.donated(*page, 1, key);
            s.mem.new_table(*page, l2::FREE, key);
        }
    }
    Ok(())
}

/// The last checks, then the split in the PAMT.
fn split_page(s: &mut State, c: &mut Ctx, slot: &Slot, page: u64) -> Answer {
    let uninterruptible = s.cfg.profile.enhanced_demote_interruptibility && s.td(slot.td).num_l2_vms == 0;
    if !uninterruptible && s.faults.host_poll() {
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

/// The entries lead to the new tables. BEPOCH of the pages they are in stays what it was.
fn link_tables(s: &mut State, slot: &Slot, tables: &NewTables) {
    let (cfg, td) = (s.cfg.clone(), slot.td);
    let (owner, key) = (s.td(td).tdr, s.entry_key(td));
    let adopt = |s: &mut State, page: u64| {
        s.mem.pamt_assign(&cfg, page, 0, PageType::Ept, owner);
        s.td_mut(td).chldcnt += 1;
    };
    adopt(s, tables.page);
    s.set_entry(slot, sept::NL_MAPPED | tables.page | key);
    for &(page, beside) in tables.l2.iter().flatten() {
        let Some(beside) = beside else { continue };
        adopt(s, page);
        s.set_l2_entry(&beside, l2::table_entry(page | key));
        s.set_alias(slot, beside.vm);
    }
}

/// A table that PROMOTE takes away: its page, and the entry that takes its place.
struct Merged {
    beside: L2Slot,
    page: u64,
    entry: u64,
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
    let l2_merged = compare_l2_children(s, c, &slot)?;
    if s.faults.host_poll() {
        return Err(c.interrupted());
    }
    let page = sept::address(&s.cfg, merged, slot.level);
    s.implicit_page(c, page, slot.level, Operand::Rcx, Mode::Exclusive)?;
    let cfg = s.cfg.clone();
    if let Some([first, second]) = s.mem.pamt_promote(&cfg, page, slot.level) {
        c.out.r12 = first;
        c.out.r13 = second;
    }
    s.set_entry(&slot, merged);
    c.out.rcx = s.free_table(Leaf::PagePromote, slot.td, table_page);
    for Merged { beside, page, entry } in l2_merged {
        s.set_l2_entry(&beside, entry);
        let returned = s.free_table(Leaf::PagePromote, slot.td, page);
        if c.version == 1 {
            *l2_output(c, beside.vm) = returned;
        }
    }
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

/// The tables of L2 VMs: all free, or leaves that are alike but for their address. The first must be aligned; that the
/// others follow it is not looked at: the L1 entries do.
fn compare_l2_children(s: &mut State, c: &mut Ctx, slot: &Slot) -> Answer<Vec<Merged>> {
    let mask = s.cfg.address_mask();
    let mut merged = Vec::new();
    for vm in s.aliases(slot) {
        if s.faults.host_poll() {
            return Err(c.interrupted());
        }
        let beside = s.l2_beside(slot, vm);
        let page = beside.entry & mask;
        s.implicit_page(c, page, 0, Operand::Rcx, Mode::Exclusive)?;
        let first = s.mem.table_at(page).map(|table| s.mem.table(table)).and_then(|table| {
            let first = table[0];
            let aligned = first & mask & (size_of_level(slot.level) - 1) == 0;
            let fits = l2::state_of(first) == l2::State::Free || aligned && l2::is_leaf(first);
            let alike = table.iter().all(|&entry| entry & !mask == first & !mask);
            (fits && alike).then_some(first)
        });
        match first {
            Some(entry) => merged.push(Merged { beside, page, entry }),
            None => return Err(s.details(c, slot, Status::EPT_INVALID_PROMOTE_CONDITIONS)),
        }
    }
    Ok(merged)
}
