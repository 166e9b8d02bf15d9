//! Hiding entries and making everybody forget them: BLOCK, UNBLOCK, TRACK.

use crate::operand::{invoke, invoke_at, mapping};
use crate::{EntryInfo, Leaf, SeamcallError, Status, Tdr, Transport, mng::on_tdr};
use sept_core::GpaEntry;

/// What TDH.MEM.RANGE.BLOCK found.
///
/// Source: TDX module ABI, TDH.MEM.RANGE.BLOCK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an entry that was blocked before was not stamped with the present epoch"]
#[non_exhaustive]
pub enum Blocked {
    /// The entry is blocked now, stamped with the present epoch.
    Now,
    /// It had been blocked before, and keeps its older stamp (`GPA_RANGE_ALREADY_BLOCKED`, informational).
    Already(EntryInfo),
}

/// TDH.MEM.RANGE.BLOCK (7): hides `at`, a page or a table, from the guest.
///
/// Operands: `RCX` entry (any level), `RDX` TDR. Op states: all from INITIALIZED but imports before POST_IMPORT and
/// FAILED_IMPORT. Entry NL_MAPPED, MAPPED, BLOCKEDW, PENDING or PENDING_BLOCKEDW. Tree lock exclusive.
///
/// # Errors
///
/// The common errors and nothing else, but on 1.5.34 `BLOCKING_DISALLOWED` during some exports; an entry that is
/// blocked already is [`Blocked::Already`].
///
/// Source: TDX module ABI, TDH.MEM.RANGE.BLOCK.
#[inline]
pub fn range_block<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<Blocked, SeamcallError> {
    let out = invoke_at(t, Leaf::MEM_RANGE_BLOCK, at, mapping(td, at))?;
    Ok(if Status::from_raw(out.rax).is(Status::GPA_RANGE_ALREADY_BLOCKED) {
        Blocked::Already(EntryInfo::new(out.rcx, out.rdx))
    } else {
        Blocked::Now
    })
}

/// TDH.MEM.RANGE.UNBLOCK (39): shows `at` again.
///
/// Operands: `RCX` entry (any level), `RDX` TDR. Op states as [`range_block`]. Entry NL_BLOCKED, BLOCKED or
/// PENDING_BLOCKED; tracked while the TD runs. Write-blocking is forgotten: the result is MAPPED or PENDING. Tree lock
/// exclusive.
///
/// # Errors
///
/// The common errors, then `TLB_TRACKING_NOT_DONE` with operand `SEPT_TREE` (1.5.01) or `RCX` (later). 1.5.34,
/// configured for non-blocking export, does not take it in PAUSED_EXPORT (`OP_STATE_INCORRECT` with the state).
///
/// Source: TDX module ABI, TDH.MEM.RANGE.UNBLOCK.
#[inline]
pub fn range_unblock<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<(), SeamcallError> {
    invoke_at(t, Leaf::MEM_RANGE_UNBLOCK, at, mapping(td, at)).map(drop)
}

/// TDH.MEM.TRACK (38): begins a new epoch. Everything blocked so far is tracked once each vCPU that entered before
/// has left; so kick them now.
///
/// Operand: `RCX` TDR. Op states: all from INITIALIZED but FAILED_IMPORT. Needed even while no vCPU runs.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`; `TDCS_NOT_ALLOCATED`;
/// `OPERAND_BUSY|OP_STATE`; `OP_STATE_INCORRECT`; `OPERAND_BUSY|TD_EPOCH`; `PREVIOUS_TLB_EPOCH_BUSY` while a vCPU is
/// inside that entered in the epoch before this one: kick it, then try again.
///
/// ```
/// use seamcall::{Removed, SeamcallError, Tdr, Transport, mem};
/// use sept_core::GpaEntry;
///
/// /// Block, track, kick, remove: how a page leaves a running TD.
/// fn zap<T: Transport>(t: &T, td: Tdr, at: GpaEntry, kick: impl FnOnce()) -> Result<Removed, SeamcallError> {
///     let _ = mem::range_block(t, td, at)?; // blocked before or now: both will do
///     mem::track(t, td)?;
///     kick();
///     mem::page_remove(t, td, at)
/// }
/// ```
///
/// Source: TDX module ABI, TDH.MEM.TRACK.
#[inline]
pub fn track<T: Transport + ?Sized>(t: &T, td: Tdr) -> Result<(), SeamcallError> {
    invoke(t, Leaf::MEM_TRACK, on_tdr(td)).map(drop)
}
