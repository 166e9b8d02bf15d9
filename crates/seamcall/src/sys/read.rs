//! What the module says about itself and the platform.

use crate::operand::invoke;
use crate::{
    FieldId, FieldValue, Leaf, Operand, PlatformField, Regs, SeamcallError, Status, Transport,
    error::require_level, transport::Call,
};
use sept_core::{Frame, Level};

/// What [`info`] wrote into the buffer.
///
/// Source: TDX module ABI, TDH.SYS.INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct InfoSizes {
    /// Bytes of TDSYSINFO_STRUCT, at the start of the buffer.
    pub info_bytes: u64,
    /// Number of [`CmrInfo`](crate::CmrInfo)s, at [`CMR_OFFSET`]; 1.5.01 always says 32, the last ones empty.
    pub cmrs: u64,
}

/// Where in the buffer of [`info`] the convertible memory ranges begin.
pub const CMR_OFFSET: u64 = 2048;

/// TDH.SYS.INFO (32): writes TDSYSINFO_STRUCT and the list of convertible memory ranges into `buffer`, a 4 KiB page of
/// shared memory. New code reads single fields with [`rd`].
///
/// Operands: `RCX` address and `RDX` size for the structure, `R8` address and `R9` number of entries for the list.
/// Outputs: `RDX` bytes written, `R9` entries written. Any module state but shut down, on a CPU that is initialised.
///
/// # Errors
///
/// In check order: `SYS_LP_INIT_NOT_DONE`, `OPERAND_INVALID` (`|RCX`, `|RDX`, `|R8`, `|R9`).
///
/// Source: TDX module ABI, TDH.SYS.INFO; `tdh_sys_info.c` of module 1.5.01.
#[inline]
pub fn info<T: Transport + ?Sized>(t: &T, buffer: &mut Frame) -> Result<InfoSizes, SeamcallError> {
    let leaf = Leaf::SYS_INFO;
    require_level(buffer, Level::L4K, leaf, Operand::RCX)?;
    let start = buffer.hpa().raw();
    let regs = Regs { rcx: start, rdx: 1024, r8: start | CMR_OFFSET, r9: 32, ..Regs::new() };
    let out = invoke(t, leaf, regs)?;
    Ok(InfoSizes { info_bytes: out.rdx, cmrs: out.r9 })
}

/// TDH.SYS.RDALL (37): writes all metadata fields from `first` on into `buffer`, a 4 KiB page of shared memory.
///
/// Operands: `RDX` buffer, `R8` first field id ([`FieldId::NONE`] for all). Output: `R8` the field to go on with,
/// `None` after the last. Any module state but shut down, on a CPU that is initialised.
///
/// A buffer that is full before the last field is no error here (the module says `METADATA_LIST_OVERFLOW`): read it,
/// then call again from the field that comes back.
///
/// # Errors
///
/// In check order: `SYS_LP_INIT_NOT_DONE`, `OPERAND_INVALID|RDX`, `METADATA_FIELD_ID_INCORRECT`;
/// `METADATA_LIST_OVERFLOW` only if nothing was written.
///
/// Source: TDX module ABI, TDH.SYS.RDALL; `tdh_sys_rdall.c` of module 1.5.01.
#[inline]
pub fn rd_all<T: Transport + ?Sized>(
    t: &T,
    buffer: &mut Frame,
    first: FieldId,
) -> Result<Option<FieldId>, SeamcallError> {
    let leaf = Leaf::SYS_RDALL;
    require_level(buffer, Level::L4K, leaf, Operand::RDX)?;
    let regs = Regs { rax: leaf.rax(), rdx: buffer.hpa().raw(), r8: first.raw(), ..Regs::new() };
    let out = t.call(Call::new(regs));
    let status = Status::from_raw(out.rax);
    let next = FieldId::next(out.r8);
    let full = status.is(Status::METADATA_LIST_OVERFLOW) && next.is_some_and(|next| next != first);
    if full || status.is_success() { Ok(next) } else { Err(SeamcallError::from_output(leaf, None, &out)) }
}

/// TDH.SYS.RD (34): reads a metadata field of the platform, and says which comes next (`None` after the last).
///
/// Operand: `RDX` field id. Outputs: `R8` value, `RDX` next field id. Any module state but shut down, on a CPU that is
/// initialised.
/// [`FieldId::NONE`] asks for the first field (`METADATA_FIRST_FIELD_ID_IN_CONTEXT`, informational): the value is 0.
///
/// # Errors
///
/// In check order: `SYS_LP_INIT_NOT_DONE`, `METADATA_FIELD_ID_INCORRECT`, `METADATA_FIELD_NOT_READABLE`.
///
/// Source: TDX module ABI, TDH.SYS.RD; `tdh_sys_rd.c` of module 1.5.01.
#[inline]
pub fn rd<T: Transport + ?Sized>(t: &T, field: FieldId) -> Result<(u64, Option<FieldId>), SeamcallError> {
    let out = invoke(t, Leaf::SYS_RD, Regs { rdx: field.raw(), ..Regs::new() })?;
    Ok((out.r8, FieldId::next(out.rdx)))
}

/// TDH.SYS.RD (34) of a field that this crate knows, as the type of its value.
///
/// Operand: `RDX` field id. Output: `R8`. State as [`rd`].
///
/// # Errors
///
/// As [`rd`].
///
/// ```
/// use seamcall::{CmrInfo, PlatformField, SeamcallError, Transport, sys};
///
/// /// The first convertible memory range.
/// fn first_cmr<T: Transport>(t: &T) -> Result<Option<CmrInfo>, SeamcallError> {
///     if sys::read(t, PlatformField::NUM_CMRS)? == 0 {
///         return Ok(None);
///     }
///     let base = sys::read(t, PlatformField::CMR_BASE)?;
///     let size = sys::read(t, PlatformField::CMR_SIZE)?;
///     Ok(Some(CmrInfo { base, size }))
/// }
/// ```
///
/// Source: TDX module ABI, TDH.SYS.RD.
#[inline]
pub fn read<T: Transport + ?Sized, V: FieldValue>(
    t: &T,
    field: PlatformField<V>,
) -> Result<V, SeamcallError> {
    rd(t, field.id()).map(|(value, _)| V::from_register(value))
}
