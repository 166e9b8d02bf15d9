//! MEM.RD and MEM.WR: eight bytes of a debug TD's memory.

use crate::abi::{Operand, PAGE, Status, op_state, size_of_level};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::operand::Prologue;
use crate::sept;
use crate::session::{Point, Session};
use crate::slot::Slot;
use crate::state::{Answer, State};

const RD: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::SEPT_ANY, levels: (0, 0), tree: Some(Mode::Shared) };
const WR: Prologue = Prologue { op_states: op_state::MEM_WR, ..RD };

/// Finds and locks the leaf that maps the operand's address; returns the page's eight bytes with it.
fn open(s: &mut Session<'_>, c: &mut Ctx, p: &Prologue, states: u16) -> Answer<(Slot, u64)> {
    let td = s.open_td(c, c.regs.rdx, p)?;
    if !s.td(td).debug() {
        return Err(Status::TD_NON_DEBUG);
    }
    let gpa = c.regs.rcx;
    if !gpa.is_multiple_of(8) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.lock_tree(c, td, Mode::Shared)?;
    if !s.td(td).is_private(gpa) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    let slot = s.walk_to_leaf(c, td, gpa)?;
    let slot = s.lock_entry(c, slot)?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, states)?;
    let at = s.page_of(&slot).0 + (gpa & (size_of_level(slot.level) - 1));
    Ok((slot, at))
}

fn word(s: &State, at: u64) -> u64 {
    let bytes = s.mem.read_bytes(at & !(PAGE - 1));
    let word = &bytes[(at % PAGE) as usize..][..8];
    word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// TDH.MEM.RD: RCX GPA, RDX TDR. Out: R8.
pub(super) fn rd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (_, at) = open(s, c, &RD, sept::MEM_RD)?;
    c.out.r8 = word(s, at);
    Ok(())
}

/// TDH.MEM.WR: RCX GPA, RDX TDR, R8 value. Out: R8 what was there.
pub(super) fn wr(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (slot, at) = open(s, c, &WR, sept::MEM_WR)?;
    c.out.r8 = word(s, at);
    let key = s.td(slot.td).hkid;
    s.mem.write_bytes(at, &c.regs.r8.to_le_bytes(), key);
    Ok(())
}
