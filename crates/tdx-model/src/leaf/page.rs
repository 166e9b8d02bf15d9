//! PAGE.ADD, PAGE.AUG, PAGE.REMOVE, PAGE.RELOCATE: private pages come, go and move.

use crate::abi::{Leaf, Operand, PAGE, PageType, Status, op_state, size_of_level};
use crate::call::Ctx;
use crate::l2;
use crate::lock::Mode;
use crate::memory::fold;
use crate::operand::Prologue;
use crate::sept;
use crate::session::{Point, Session};
use crate::slot::Slot;
use crate::state::{Answer, State};
use crate::violation::ViolationKind;

const ADD: Prologue =
    Prologue { tdr: Mode::Exclusive, op_states: op_state::BUILD, levels: (0, 0), tree: None };
const AUG: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::AUG, levels: (0, 1), tree: Some(Mode::Shared) };
const REMOVE: Prologue = Prologue {
    tdr: Mode::Shared,
    op_states: op_state::PAGE_REMOVE,
    levels: (0, 2),
    tree: Some(Mode::Shared),
};
const RELOCATE: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::REWORK, levels: (0, 0), tree: Some(Mode::Shared) };

/// Bits of a physical address, key id included.
const ADDRESS: u64 = (1 << 52) - 1;

/// The page becomes private memory of the slot's TD.
fn take(s: &mut State, slot: &Slot, page: u64, level: u8) {
    let cfg = s.cfg.clone();
    let owner = s.td(slot.td).tdr;
    s.mem.pamt_assign(&cfg, page, level, PageType::Reg, owner);
    s.mem.entry_mut(&cfg, page, level).bepoch = 0;
}

/// TDH.MEM.PAGE.ADD: a measured page of the initial image.
pub(super) fn add(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.open_td(c, c.regs.rdx, &ADD)?;
    let slot = s.locate(c, td, &ADD)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::FREE_ONLY)?;
    let (page, source) = (c.regs.r8, c.regs.r9);
    if !s.cfg.shared_operand(source, PAGE) {
        return Err(Status::OPERAND_INVALID.of(Operand::R9));
    }
    s.new_page(c, page, Operand::R8)?;
    s.pause(c, Point::Commit);
    let key = s.td(td).hkid;
    s.donated(page, 1, key);
    s.copy_shared(source, page, key);
    // The TD is held exclusively, so nobody can be at work on the entry.
    if s.mem.table(slot.table)[slot.index] & s.lock_bit() != 0 {
        return Err(s.halt());
    }
    take(s, &slot, page, 0);
    let entry = sept::MAPPED | page | s.entry_key(td);
    s.set_entry(&slot, entry);
    let domain = s.td_mut(td);
    domain.chldcnt += 1;
    domain.measurement = fold(fold(domain.measurement, u64::from_le_bytes(*b"PAGE.ADD")), slot.gpa);
    Ok(())
}

/// TDH.MEM.PAGE.AUG: a page the guest has still to accept.
pub(super) fn aug(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &AUG)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::AUG)?;
    let page = c.regs.r8;
    s.page_operand(c, page, slot.level, Operand::R8, PageType::Nda, Mode::Exclusive)?;
    if slot.level == 1 && !s.mem.region_empty(&s.cfg, page) {
        return Err(Status::PAGE_METADATA_INCORRECT.of(Operand::R8));
    }
    s.pause(c, Point::Commit);
    let (key, pages) = (s.td(slot.td).hkid, size_of_level(slot.level) / PAGE);
    s.donated(page, pages, key);
    s.mem.adopt(page, pages, key);
    take(s, &slot, page, slot.level);
    let entry = sept::PENDING | page | s.entry_key(slot.td);
    s.set_entry(&slot, entry);
    s.td_mut(slot.td).chldcnt += pages;
    Ok(())
}

/// TDH.MEM.PAGE.REMOVE: the page goes back to the host, its content lost.
pub(super) fn remove(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &REMOVE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::REMOVE)?;
    let slot = slot.without_counter();
    let (page, level) = s.page_of(&slot);
    s.implicit_page(c, page, level, Operand::Rcx, Mode::Exclusive)?;
    s.require_tracking(c, &slot, page, level)?;
    s.pause(c, Point::Commit);
    s.for_aliases(&slot, |_| l2::FREE);
    let td = s.td(slot.td);
    let importing = op_state::within(td.op_state, op_state::IMPORTING);
    let removed = if importing { sept::removed(td.migration.epoch) } else { sept::FREE };
    s.set_entry(&slot, removed);
    s.td_mut(slot.td).chldcnt -= size_of_level(level) / PAGE;
    c.out.rcx = s.free_page(Leaf::PageRemove, page, level);
    Ok(())
}

/// TDH.MEM.PAGE.RELOCATE: the same content in another frame.
pub(super) fn relocate(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &RELOCATE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::LEAVES)?;
    let (old, new) = (s.page_of(&slot).0, c.regs.r8);
    // Bits above an address do not count here.
    if new & ADDRESS == old {
        return Err(Status::OPERAND_INVALID.of(Operand::R8));
    }
    s.implicit_page(c, old, 0, Operand::Rcx, Mode::Exclusive)?;
    s.require_tracking(c, &slot, old, 0)?;
    s.new_page(c, new, Operand::R8)?;
    s.pause(c, Point::Commit);
    let key = s.td(slot.td).hkid;
    s.donated(new, 1, key);
    if slot.state().any_pending() {
        s.mem.adopt(new, 1, key);
    } else {
        if s.faults.poison.contains(&old) {
            s.violate(ViolationKind::ModuleReadPoison, old, key);
        }
        s.mem.copy(old, new, key);
    }
    take(s, &slot, new, 0);
    let mask = s.cfg.address_mask();
    let moved = |entry: u64| entry & !mask | new;
    let pending = slot.state().any_pending();
    s.for_aliases(&slot, |entry| if pending { moved(entry) } else { l2::unblocked(moved(entry)) });
    let kept = moved(slot.entry);
    s.set_entry(&slot, if slot.state().any_blocked() { sept::unblocked(kept) } else { kept });
    c.out.rcx = s.free_page(Leaf::PageRelocate, old, 0);
    Ok(())
}
