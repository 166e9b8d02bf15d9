//! What the host gives the module: memory and key ids.

use crate::mng::KeyConfig;
use crate::operand::invoke;
use crate::{Features0, Hkid, Leaf, Regs, SeamcallError, Status, Transport};
use sept_core::Hpa;

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
/// Operands: as [`config`], and `R9` bits of [`Features0`]: what the module can do and the host wants of
/// [`Features0::NON_BLOCKING_EXPORT`], [`Features0::SCAN_EXPORT_RESTORE`] and [`Features0::TDID_VMID`]; other bits that
/// the module has change nothing. Module state as [`config`].
///
/// # Errors
///
/// As [`config`]; after the key id and before what is said about Dynamic PAMT, `OPERAND_INVALID|R9` for a bit that the
/// module does not have. A module without version 1 answers `OPERAND_INVALID|RAX`.
///
/// # Safety
///
/// As [`config`].
///
/// Source: TDX module ABI, TDH.SYS.CONFIG; `tdh_sys_config.c` of the modules that have version 1, `tdx_vmm_dispatcher.c`
/// of module 1.5.34.
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
/// In check order: `SYS_BUSY`, `SYS_KEY_CONFIG_NOT_PENDING`, `OPERAND_BUSY|KET`, `KEY_GENERATION_FAILED` (retry). A
/// package that has its key is [`KeyConfig::Already`], before the last two.
///
/// Source: TDX module ABI, TDH.SYS.KEY.CONFIG; `tdh_sys_key_config.c` of module 1.5.01.
#[inline]
pub fn key_config<T: Transport + ?Sized>(t: &T) -> Result<KeyConfig, SeamcallError> {
    invoke(t, Leaf::SYS_KEY_CONFIG, Regs::new()).map(|out| KeyConfig::from_output(&out))
}

/// How far a TDMR is initialised.
///
/// Source: TDX module ABI, TDH.SYS.TDMR.INIT.
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
