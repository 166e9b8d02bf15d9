//! Beginning and end of a module.

use crate::operand::invoke;
use crate::{FatalErrorConfig, Features0, Leaf, Regs, SeamcallError, Transport};

/// TDH.SYS.INIT (33): begins the initialisation of the module. Once.
///
/// Operand: `RCX` 0. Module state SYSINIT_PENDING becomes SYSINIT_DONE.
///
/// # Errors
///
/// In check order: `SYS_BUSY`, `OPERAND_INVALID|RCX`, `SYS_INIT_NOT_PENDING`, then what the platform lacks
/// (statuses of class 9; `INCORRECT_CPUID_VALUE` with leaf and subleaf in `RCX` and the bits of `EAX` and `EBX` that
/// count in `RDX`: [`SeamcallError::registers`]), `INCOMPATIBLE_SEAM_CAPABILITIES`, `RND_NO_ENTROPY`.
///
/// Source: TDX module ABI, TDH.SYS.INIT; `tdh_sys_init.c` of module 1.5.01.
#[inline]
pub fn init<T: Transport + ?Sized>(t: &T) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_INIT, Regs::new()).map(drop)
}

/// TDH.SYS.INIT (33), version 1: as [`init`], and says how the module is to tell of its own end.
///
/// Operands: `RCX` 0, `R8` [`FatalErrorConfig`]. Module state as [`init`].
///
/// # Errors
///
/// As [`init`], and after them `OPERAND_INVALID|R8` (the memory is not shared memory, or the vector is below 16). A
/// module without version 1 answers `OPERAND_INVALID|RAX`.
///
/// # Safety
///
/// The [`FatalInfo`](crate::FatalInfo) that `fatal` names is the caller's to give, and nobody else writes it for as long
/// as the module is loaded: the module does, at any time, when it or the SEAM loader meets an error that ends it.
///
/// Source: TDX module ABI, TDH.SYS.INIT; `tdh_sys_init.c`, `fatal_info.h` of module 2.0.08.
#[inline]
#[expect(unsafe_code, reason = "gives memory away for the life of the module")]
pub unsafe fn init_v1<T: Transport + ?Sized>(t: &T, fatal: FatalErrorConfig) -> Result<(), SeamcallError> {
    invoke(t, Leaf::SYS_INIT.version(1), Regs { r8: fatal.raw(), ..Regs::new() }).map(drop)
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

/// TDH.SYS.UPDATE (53), version 1: as [`update`], and turns on what has to be asked for, as
/// [`config_v1`](super::config_v1).
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
