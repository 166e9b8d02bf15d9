//! TDH.MR.*: the measurement of a TD while it is built.

use crate::operand::{invoke, invoke_at};
use crate::{Leaf, Regs, SeamcallError, Tdr, Transport, mng::on_tdr};
use sept_core::{Gpa, GpaEntry, Level};

/// Bytes that one [`extend`] measures.
pub const EXTEND_CHUNK: u64 = 256;

/// TDH.MR.EXTEND (16): extends the measurement with 256 bytes of an added page.
///
/// Operands: `RCX` GPA, a multiple of 256; `RDX` TDR, locked exclusively. Op state INITIALIZED, entry MAPPED.
///
/// # Errors
///
/// In check order: TDR page errors on `RDX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`; `TDCS_NOT_ALLOCATED`;
/// `OP_STATE_INCORRECT`; `OPERAND_INVALID|RCX`; `EPT_ENTRY_NOT_PRESENT|RCX` with the entry where the walk stopped;
/// `EPT_ENTRY_NOT_PRESENT` without operand or entry when a page is there but not MAPPED.
///
/// Source: TDX module ABI, TDH.MR.EXTEND.
#[inline]
pub fn extend<T: Transport + ?Sized>(t: &T, td: Tdr, gpa: Gpa) -> Result<(), SeamcallError> {
    let regs = Regs { rcx: gpa.raw(), rdx: td.hpa().raw(), ..Regs::new() };
    invoke_at(t, Leaf::MR_EXTEND, GpaEntry::containing(gpa, Level::L4K), regs).map(drop)
}

/// TDH.MR.FINALIZE (17): closes the measurement; the TD can run.
///
/// Operand: `RCX` TDR, locked exclusively. Op state INITIALIZED becomes RUNNABLE.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`; `TDCS_NOT_ALLOCATED`;
/// `OP_STATE_INCORRECT`; `NO_VCPUS`.
///
/// Source: TDX module ABI, TDH.MR.FINALIZE.
#[inline]
pub fn finalize<T: Transport + ?Sized>(t: &T, td: Tdr) -> Result<(), SeamcallError> {
    invoke(t, Leaf::MR_FINALIZE, on_tdr(td)).map(drop)
}
