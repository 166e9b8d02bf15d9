//! RANGE.BLOCK, RANGE.UNBLOCK, MEM.TRACK: the fence.

use crate::abi::{Operand, Status, op_state};
use crate::call::Ctx;
use crate::l2;
use crate::lock::Mode;
use crate::operand::{Prologue, TOP};
use crate::sept;
use crate::session::{Point, Session};
use crate::state::Answer;

const RANGE: Prologue = Prologue {
    tdr: Mode::Shared,
    op_states: op_state::REWORK,
    levels: (0, TOP),
    tree: Some(Mode::Exclusive),
};

/// TDH.MEM.RANGE.BLOCK: takes access away, from L2 VMs too, and stamps the page with the epoch. No PAMT lock is
/// taken.
pub(super) fn block(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &RANGE)?;
    s.pause(c, Point::Locked);
    if slot.state().any_blocked() {
        return Err(s.details(c, &slot, Status::GPA_RANGE_ALREADY_BLOCKED));
    }
    s.allow_state(c, &slot, sept::BLOCK)?;
    s.pause(c, Point::Commit);
    s.set_entry(&slot, sept::blocked(slot.entry, slot.level));
    let write_blocked = slot.state().any_write_blocked();
    s.for_aliases(&slot, |entry| l2::blocked(entry, write_blocked));
    let (page, level) = s.page_of(&slot);
    let (cfg, epoch) = (s.cfg.clone(), s.td(slot.td).td_epoch);
    s.mem.entry_mut(&cfg, page, level).bepoch = epoch;
    Ok(())
}

/// TDH.MEM.RANGE.UNBLOCK: gives access back once the block is tracked.
pub(super) fn unblock(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &RANGE)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::BLOCKED)?;
    let (page, level) = s.page_of(&slot);
    let td = s.td(slot.td);
    if s.cfg.tracking_enforced && td.is_tracked() && !td.tracking_done(s.mem.entry(page, level).bepoch) {
        let rcx = s.cfg.profile.unblock_error_is_rcx;
        let operand = if rcx { Operand::Rcx } else { Operand::SeptTree };
        return Err(Status::TLB_TRACKING_NOT_DONE.of(operand));
    }
    s.pause(c, Point::Commit);
    // The L2 entries first: what the L1 entry allows, they may allow.
    if !slot.state().any_pending() {
        s.for_aliases(&slot, l2::unblocked);
    }
    s.set_entry(&slot, sept::unblocked(slot.entry));
    Ok(())
}

/// TDH.MEM.TRACK: the next epoch begins, if nobody is left from the one before this.
pub(super) fn track(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Shared)?;
    s.ready(td)?;
    s.lock_op_state(c, td, op_state::TRACK)?;
    s.lock_epoch(c, td, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    let domain = s.td_mut(td);
    let advance = domain.previous_epoch_empty();
    domain.td_epoch += u64::from(advance);
    if advance { Ok(()) } else { Err(Status::PREVIOUS_TLB_EPOCH_BUSY) }
}
