//! Reading and writing the memory of a debug TD.

use crate::operand::invoke_at;
use crate::{Leaf, Regs, SeamcallError, Tdr, Transport};
use sept_core::{Gpa, GpaEntry, Level};

/// TDH.MEM.RD (12): reads 8 bytes of a debug TD's memory.
///
/// Operands: `RCX` GPA, a multiple of 8; `RDX` TDR. Output: `R8`. Op states: all from INITIALIZED. Entry MAPPED,
/// BLOCKEDW or exported.
///
/// # Errors
///
/// The common errors up to the op state, then `TD_NON_DEBUG`, `OPERAND_INVALID|RCX` (alignment),
/// `OPERAND_BUSY|SEPT_TREE`, `OPERAND_INVALID|RCX` (not private), `EPT_ENTRY_NOT_PRESENT|RCX` with the entry (no
/// `EPT_WALK_FAILED` here), `OPERAND_BUSY|RCX` with the entry, `EPT_ENTRY_STATE_INCORRECT|RCX` with the entry.
///
/// Source: TDX module ABI, TDH.MEM.RD.
#[inline]
pub fn rd<T: Transport + ?Sized>(t: &T, td: Tdr, gpa: Gpa) -> Result<u64, SeamcallError> {
    access(t, Leaf::MEM_RD, td, gpa, 0)
}

/// TDH.MEM.WR (14): writes 8 bytes of a debug TD's memory; returns what was there.
///
/// Operands: `RCX` GPA, a multiple of 8; `RDX` TDR; `R8` value. Output: `R8`. Op states as [`rd`] but PAUSED_EXPORT
/// and POST_EXPORT. Entry MAPPED or EXPORTED_DIRTY.
///
/// # Errors
///
/// As [`rd`].
///
/// Source: TDX module ABI, TDH.MEM.WR.
#[inline]
pub fn wr<T: Transport + ?Sized>(t: &T, td: Tdr, gpa: Gpa, value: u64) -> Result<u64, SeamcallError> {
    access(t, Leaf::MEM_WR, td, gpa, value)
}

#[inline]
fn access<T: Transport + ?Sized>(
    t: &T,
    leaf: Leaf,
    td: Tdr,
    gpa: Gpa,
    value: u64,
) -> Result<u64, SeamcallError> {
    let regs = Regs { rcx: gpa.raw(), rdx: td.hpa().raw(), r8: value, ..Regs::new() };
    invoke_at(t, leaf, GpaEntry::containing(gpa, Level::L4K), regs).map(|out| out.r8)
}
