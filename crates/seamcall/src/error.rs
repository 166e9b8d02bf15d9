//! The error of every wrapper.

use crate::{EntryInfo, Leaf, Operand, Regs, Status};
use core::{error::Error, fmt};
use sept_core::{Class, Classify, Frame, FrameState, GpaEntry, Level};

/// A SEAMCALL that did not do what it was asked for.
///
/// [`Classify::class`] says what to do about it: as [`Status::class`], but a walk that stopped at a blocked entry
/// ([`SeamcallError::is_hidden`]) is contention.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SeamcallError {
    /// The leaf that was called.
    pub leaf: Leaf,
    /// What the module answered.
    pub status: Status,
    /// The entry the call was about, if it was about one.
    pub at: Option<GpaEntry>,
    /// `RCX` and `RDX` as the call left them: read when somebody asks.
    rcx: u64,
    rdx: u64,
}

impl SeamcallError {
    /// The error of a call that came back with `out`.
    #[inline]
    pub(crate) const fn from_output(leaf: Leaf, at: Option<GpaEntry>, out: &Regs) -> Self {
        Self { leaf, status: Status::from_raw(out.rax), at, rcx: out.rcx, rdx: out.rdx }
    }

    /// The entry the module stopped at, when it says so: not always `at`, a failed walk stops above it.
    #[must_use]
    pub const fn entry(&self) -> Option<EntryInfo> {
        if self.at.is_some() && carries_entry(self.status) && (self.rcx | self.rdx) != 0 {
            Some(EntryInfo::new(self.rcx, self.rdx))
        } else {
            None
        }
    }

    /// `RCX` and `RDX` as the call left them, for what few leaves say there: PAGE.RECLAIM type and owner of the page,
    /// SYS.INIT and MNG.INIT the CPUID leaf that is wrong. What most say is [`SeamcallError::entry`].
    #[must_use]
    pub const fn registers(&self) -> (u64, u64) {
        (self.rcx, self.rdx)
    }

    /// The error of a wrapper that made no call.
    #[inline]
    pub(crate) const fn refused(leaf: Leaf, at: Option<GpaEntry>, operand: Operand) -> Self {
        let status = Status::from_raw(Status::NOT_ISSUED.raw() | operand.id() as u64);
        Self { leaf, status, at, rcx: 0, rdx: 0 }
    }

    /// Whether the walk stopped at an entry above that is blocked.
    #[must_use]
    pub const fn is_hidden(&self) -> bool {
        match self.entry() {
            Some(entry) => self.status.is(Status::EPT_WALK_FAILED) && entry.state().is_blocked(),
            None => false,
        }
    }

    /// Whether another host call or a guest ACCEPT held the lock of the entry itself.
    ///
    /// Such a refusal leaves the module's host-priority flag on the entry: the guest cannot accept it until some
    /// host call on it (SEPT.RD will do) succeeds. It is the entry at `at`, but after MEM.RD and MEM.WR at the level
    /// that [`SeamcallError::entry`] tells.
    #[must_use]
    pub const fn is_entry_busy(&self) -> bool {
        // UNBLOCKW does not describe the entry; `RCX` is its only lock.
        let undescribed =
            self.leaf.number() == Leaf::EXPORT_UNBLOCKW.number() && self.status.low() == Operand::RCX.id();
        self.status.is(Status::OPERAND_BUSY) && (self.entry().is_some() || undescribed)
    }
}

/// The statuses that describe an entry in `RCX` and `RDX`. A BUSY does so for the entry's lock only; for the others
/// both registers are 0.
const fn carries_entry(status: Status) -> bool {
    match status.code() {
        Status::EPT_WALK_FAILED
        | Status::EPT_ENTRY_STATE_INCORRECT
        | Status::EPT_ENTRY_NOT_PRESENT
        | Status::EPT_PAGE_NOT_FREE
        | Status::EPT_INVALID_PROMOTE_CONDITIONS
        | Status::GPA_RANGE_NOT_BLOCKED
        | Status::GPA_RANGE_ALREADY_BLOCKED
        | Status::L2_SEPT_WALK_FAILED
        | Status::L2_SEPT_ENTRY_NOT_FREE => true,
        Status::OPERAND_BUSY => status.low() == Operand::RCX.id(),
        _ => false,
    }
}

impl fmt::Display for SeamcallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.leaf)?;
        if let Some(at) = self.at {
            write!(f, " at {at}")?;
        }
        write!(f, ": {}", self.status)?;
        match self.entry() {
            Some(entry) => write!(f, ", found {entry}"),
            None => Ok(()),
        }
    }
}

impl Error for SeamcallError {}

impl Classify for SeamcallError {
    fn class(&self) -> Class {
        match self.status.class() {
            // The way is closed by a block that somebody is about to finish or to undo.
            Some(Class::Caller) if self.is_hidden() => Class::Retry,
            Some(class) => class,
            None => Class::Caller,
        }
    }
}

/// Refuses a frame that is not of the size the leaf takes: the rest of a larger one would be lost.
#[inline]
pub(crate) fn require_level<S: FrameState>(
    frame: &Frame<S>,
    level: Level,
    leaf: Leaf,
    operand: Operand,
) -> Result<(), SeamcallError> {
    if frame.level() == level { Ok(()) } else { Err(SeamcallError::refused(leaf, None, operand)) }
}
