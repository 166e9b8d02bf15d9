//! TDH.SYS.*: the module itself.
//!
//! ```text
//! init (once) -> lp_init (every CPU) -> config (once) -> key_config (every package) -> tdmr_init (until all is done)
//! ```

use crate::mng::KeyConfig;
use crate::operand::invoke;
use crate::{
    Features0, FieldId, FieldValue, Hkid, Leaf, Operand, PlatformField, Regs, SeamcallError, Status,
    Transport, error::require_level,
};
use sept_core::{Frame, Hpa, Level};

/// TDH.SYS.INIT (33): begins the initialisation of the module. Once.
///
/// Operand: `RCX` 0. Module state SYSINIT_PENDING becomes SYSINIT_DONE.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `OPERAND_INVALID|RCX`, `SYS_INIT_NOT_PENDING`, then what the platform lacks
/// (statuses of class 9), `INCOMPATIBLE_SEAM_CAPABILITIES`, `RND_NO_ENTROPY`.
///
/// Source: TDX module ABI, TDH.SYS.INIT; `tdh_sys_init.c` of module 1.5.01.
#[inline]
pub fn init<T: Transport + ?Sized>(t: &T) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_INIT, Regs::new()).map(drop)
}

/// TDH.SYS.LP.INIT (35): initialises the calling CPU. Once on each.
///
/// Operands: none. Module state SYSINIT_DONE.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `SYS_LP_INIT_NOT_PENDING`, `SYS_LP_INIT_DONE`, `RND_NO_ENTROPY`, then differences
/// between this CPU and the first (`INCOMPATIBLE_SEAM_CAPABILITIES`, statuses of class 9).
///
/// Source: TDX module ABI, TDH.SYS.LP.INIT; `tdh_sys_lp_init.c` of module 1.5.01.
#[inline]
pub fn lp_init<T: Transport + ?Sized>(t: &T) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_LP_INIT, Regs::new()).map(drop)
}

/// TDH.SYS.CONFIG (45): gives the module its TDMRs, its key id and the memory for page metadata. Once.
///
/// Operands: `RCX` address of an array of `count` addresses of [`TdmrInfo`](crate::TdmrInfo), both in shared memory
/// and 512-byte aligned; `RDX` count, 1 to 64; `R8` global HKID, bit 16 enables Dynamic PAMT. Module state
/// SYSINIT_DONE, every CPU initialised.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `SYS_CONFIG_NOT_PENDING`, `OPERAND_INVALID` (`|RCX`, `|RDX`, `|R8`: the key id, or
/// Dynamic PAMT where key ids begin above bit 48), then for each TDMR `OPERAND_INVALID|RCX` (its address),
/// `NON_ORDERED_TDMR`, `INVALID_TDMR`, `NON_ORDERED_RESERVED_IN_TDMR` or `INVALID_RESERVED_IN_TDMR` (area by area),
/// `INVALID_PAMT`, `PAMT_OVERLAP`, `PAMT_OUTSIDE_CMRS`, `TDMR_OUTSIDE_CMRS`, with the indices in the
/// [`Detail`](crate::Detail).
///
/// # Safety
///
/// * The structures hold what [`TdmrInfo`](crate::TdmrInfo) says and do not change during the call.
/// * Their PAMT areas are the caller's to give; from now on nobody else reads or writes them.
///
/// Source: TDX module ABI, TDH.SYS.CONFIG; `tdh_sys_config.c` of module 1.5.01.
#[inline]
#[expect(unsafe_code, reason = "gives away memory that only the structures name")]
pub unsafe fn config<T: Transport + ?Sized>(
    t: &T,
    tdmrs: Hpa,
    count: u8,
    global_hkid: Hkid,
    dynamic_pamt: bool,
) -> Result<(), SeamcallError> {
    let r8 = u64::from(global_hkid.raw()) | u64::from(dynamic_pamt) << 16;
    invoke(t, Leaf::SYS_CONFIG, Regs { rcx: tdmrs.raw(), rdx: count.into(), r8, ..Regs::new() }).map(drop)
}

/// TDH.SYS.CONFIG (45), version 1: as [`config`], and turns on what has to be asked for.
///
/// Operands: as [`config`], and `R9` bits of [`Features0`]: those of [`Features0::NON_BLOCKING_EXPORT`],
/// [`Features0::UPDATE_COMPATIBILITY`] and [`Features0::TDID_VMID`] that the module has and the host wants. Module
/// state as [`config`].
///
/// # Errors
///
/// As [`config`], and `OPERAND_INVALID|R9` for a bit that the module does not have. A module without version 1 answers
/// `OPERAND_INVALID|RAX`.
///
/// # Safety
///
/// As [`config`].
///
/// Source: TDX module ABI, TDH.SYS.CONFIG; `tdx_vmm_dispatcher.c` of module 1.5.34.
#[inline]
#[expect(unsafe_code, reason = "gives away memory that only the structures name")]
pub unsafe fn config_v1<T: Transport + ?Sized>(
    t: &T,
    tdmrs: Hpa,
    count: u8,
    global_hkid: Hkid,
    dynamic_pamt: bool,
    enable: Features0,
) -> Result<(), SeamcallError> {
    let r8 = u64::from(global_hkid.raw()) | u64::from(dynamic_pamt) << 16;
    let regs = Regs { rcx: tdmrs.raw(), rdx: count.into(), r8, r9: enable.bits(), ..Regs::new() };
    invoke(t, Leaf::SYS_CONFIG.version(1), regs).map(drop)
}

/// TDH.SYS.KEY.CONFIG (31): sets the module's key on the package of the calling CPU. Once on each; the last makes the
/// module ready.
///
/// Operands: none. Module state SYSCONFIG_DONE.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `SYS_KEY_CONFIG_NOT_PENDING`, `KEY_GENERATION_FAILED` (retry). A package that has its
/// key is [`KeyConfig::Already`].
///
/// Source: TDX module ABI, TDH.SYS.KEY.CONFIG; `tdh_sys_key_config.c` of module 1.5.01.
#[inline]
pub fn key_config<T: Transport + ?Sized>(t: &T) -> Result<KeyConfig, SeamcallError> {
    invoke(t, Leaf::SYS_KEY_CONFIG, Regs::new()).map(|out| KeyConfig::from_output(&out))
}

/// How far a TDMR is initialised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a TDMR takes many calls"]
#[non_exhaustive]
pub enum TdmrProgress {
    /// Call again. Whole GiB below this address can be used already.
    Until(Hpa),
    /// All of it is initialised (`TDMR_ALREADY_INITIALIZED`, informational).
    Done,
}

/// TDH.SYS.TDMR.INIT (36): initialises the page metadata of some more of the TDMR at `base`.
///
/// Operand: `RCX` base. Output: `RDX` the address up to which it is done. Call until [`TdmrProgress::Done`]: 256 times
/// for a GiB (64 with Dynamic PAMT). Module state READY.
///
/// # Errors
///
/// In check order: `SYS_NOT_READY`, `OPERAND_INVALID|RCX` (no TDMR begins here), `OPERAND_BUSY|RCX` (another CPU is
/// at it).
///
/// Source: TDX module ABI, TDH.SYS.TDMR.INIT.
#[inline]
pub fn tdmr_init<T: Transport + ?Sized>(t: &T, base: Hpa) -> Result<TdmrProgress, SeamcallError> {
    let out = invoke(t, Leaf::SYS_TDMR_INIT, Regs { rcx: base.raw(), ..Regs::new() })?;
    Ok(if Status::from_raw(out.rax).is(Status::TDMR_ALREADY_INITIALIZED) {
        TdmrProgress::Done
    } else {
        TdmrProgress::Until(Hpa::truncate(out.rdx))
    })
}

/// What [`info`] wrote into the buffer.
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
/// Outputs: `RDX` bytes written, `R9` entries written. Any module state, on a CPU that is initialised.
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
/// `None` after the last. Any module state, on a CPU that is initialised.
///
/// # Errors
///
/// In check order: `SYS_LP_INIT_NOT_DONE`, `OPERAND_INVALID|RDX`, `METADATA_FIELD_ID_INCORRECT`.
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
    let regs = Regs { rdx: buffer.hpa().raw(), r8: first.raw(), ..Regs::new() };
    invoke(t, leaf, regs).map(|out| FieldId::next(out.r8))
}

/// TDH.SYS.LP.SHUTDOWN (44): does nothing on modules 1.5 and later; kept for hosts that still call it.
///
/// Operands: none. Any module state, shut down included.
///
/// # Errors
///
/// None of its own.
///
/// Source: TDX module ABI, TDH.SYS.LP.SHUTDOWN; `tdh_sys_lp_shutdown.c` of module 1.5.01.
#[inline]
pub fn lp_shutdown<T: Transport + ?Sized>(t: &T) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_LP_SHUTDOWN, Regs::new()).map(drop)
}

/// TDH.SYS.SHUTDOWN (52): ends the module and writes what its successor needs, in hand-off format `handoff`.
///
/// Operand: `RCX` hand-off version. Module state READY.
///
/// # Errors
///
/// In check order: `SYS_NOT_READY`, `OPERAND_INVALID|RCX` (no such version), `SYS_BUSY` (another CPU is in the module);
/// newer modules also `UPDATE_COMPATIBILITY_SENSITIVE` (try later).
///
/// Source: TDX module ABI, TDH.SYS.SHUTDOWN; `tdh_sys_shutdown.c` of module 1.5.01.
#[inline]
pub fn shutdown<T: Transport + ?Sized>(t: &T, handoff: u16) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_SHUTDOWN, Regs { rcx: handoff.into(), ..Regs::new() }).map(drop)
}

/// TDH.SYS.UPDATE (53): takes over from the module that was shut down.
///
/// Operands: none. Module state SYSINIT_DONE, every CPU initialised.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `SYS_STATE_INCORRECT`, `SYS_INVALID_HANDOFF`.
///
/// Source: TDX module ABI, TDH.SYS.UPDATE; `tdh_sys_update.c` of module 1.5.01.
#[inline]
pub fn update<T: Transport + ?Sized>(t: &T) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_UPDATE, Regs::new()).map(drop)
}

/// TDH.SYS.UPDATE (53), version 1: as [`update`], and turns on what has to be asked for, as [`config_v1`].
///
/// Operand: `R9` bits of [`Features0`]. Module state as [`update`].
///
/// # Errors
///
/// In check order: `OPERAND_INVALID|R9` (a bit that the module does not have), those of [`update`],
/// `OPERAND_INVALID|R9` (the module before this one exported in another way). A module without version 1 answers
/// `OPERAND_INVALID|RAX`.
///
/// Source: TDX module ABI, TDH.SYS.UPDATE; `tdh_sys_update.c` of module 1.5.34.
#[inline]
pub fn update_v1<T: Transport + ?Sized>(t: &T, enable: Features0) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_UPDATE.version(1), Regs { r9: enable.bits(), ..Regs::new() }).map(drop)
}

/// TDH.SYS.RD (34): reads a metadata field of the platform, and says which comes next (`None` after the last).
///
/// Operand: `RDX` field id. Outputs: `R8` value, `RDX` next field id. Any module state, on a CPU that is initialised.
/// [`FieldId::NONE`] asks for the first field (`METADATA_FIRST_FIELD_ID_IN_CONTEXT`, informational): the value is 0.
///
/// # Errors
///
/// In check order: `SYS_SHUTDOWN`, `SYS_LP_INIT_NOT_DONE`, `METADATA_FIELD_ID_INCORRECT`,
/// `METADATA_FIELD_NOT_READABLE`.
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
