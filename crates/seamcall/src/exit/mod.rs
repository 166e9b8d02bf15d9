//! What a guest asks of its host: the exits that concern private memory, decoded from what TDH.VP.ENTER returns.
//!
//! A guest's TDG.MEM.PAGE.ACCEPT that the module cannot do by itself, and every access to a page that is not there,
//! end in an EPT violation: [`EptViolation`]. A request to convert memory is a hypercall: [`MapGpa`].
//!
//! ```
//! use seamcall::{EptViolation, Regs, SeptState};
//! use sept_core::Level;
//! // The guest accepts 4 KiB inside a page that is pending at 2 MiB: split it, then enter again.
//! let out = Regs { rax: 48, rcx: 0x2, rdx: 0x4088_0000_0001, r8: 0x4000_1000, ..Regs::new() };
//! let violation = EptViolation::decode(&out).unwrap();
//! let accept = violation.details().unwrap();
//! assert_eq!((accept.requested, accept.found), (Some(Level::L4K), Some(Level::L2M)));
//! assert_eq!(accept.state, SeptState::Pending);
//! ```

mod map_gpa;
#[cfg(test)]
mod tests;

pub use map_gpa::{MapGpa, MapGpaError, MapGpaReply};

use crate::{Regs, SeptState, Status};
use core::fmt;
use sept_core::{Gpa, GpaEntry, Level, TdxConfig};

const EPT_VIOLATION: u16 = 48;
const TDCALL: u16 = 77;

/// A VMX exit reason, `RAX` bits 31:0 of a TD exit.
///
/// Bits 15:0 are the reason as such; compare those, for the others come and go with it.
///
/// Source: Intel SDM, "Exit reason"; `src/common/x86_defs/vmcs_defs.h` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitReason(u32);

impl ExitReason {
    /// The reason with these bits.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// All bits.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The basic exit reason, bits 15:0.
    #[must_use]
    pub const fn basic(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Whether a bus lock was detected on the way, bit 26: deal with that too, besides the reason as such.
    #[must_use]
    pub const fn bus_lock(self) -> bool {
        self.0 & 1 << 26 != 0
    }

    /// Whether the entry failed, bit 31.
    #[must_use]
    pub const fn entry_failed(self) -> bool {
        self.0 & 1 << 31 != 0
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitReason({}", self.basic())?;
        match self.0 >> 16 {
            0 => f.write_str(")"),
            flags => write!(f, ", flags {flags:#x})"),
        }
    }
}

/// The VMX exit reason of a TD exit, if `out` is one that leaves the TD able to run.
#[must_use]
pub const fn exit_reason(out: &Regs) -> Option<ExitReason> {
    let status = Status::from_raw(out.rax);
    if status.is(Status::SUCCESS) { Some(ExitReason(status.low())) } else { None }
}

/// The VM that the exit is about, `RCX` bits 33:32: 0 for L1, 1 to 3 for an L2 VM.
#[must_use]
pub const fn exit_vm(out: &Regs) -> u8 {
    let [_, _, _, _, vm, ..] = out.rcx.to_le_bytes();
    vm & 0b11
}

const fn has_reason(out: &Regs, basic: u16) -> bool {
    match exit_reason(out) {
        Some(reason) => reason.basic() == basic,
        None => false,
    }
}

/// What TDH.VP.ENTER came back with, as far as private memory is concerned.
///
/// ```
/// use seamcall::{Regs, exit::Exit};
/// use sept_core::TdxConfig;
/// let out = Regs { rax: 0x9000_0205_0000_0000, ..Regs::new() };
/// assert_eq!(Exit::decode(&out, TdxConfig::LEVELS_4), Exit::HostPriority);
/// ```
///
/// Source: TDX module ABI, TDH.VP.ENTER.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// The guest needs an entry that is not there, or cannot be accepted as it is.
    EptViolation(EptViolation),
    /// The guest asks to convert a range.
    MapGpa(MapGpa),
    /// It asked with operands that make no sense.
    BadMapGpa(MapGpaError),
    /// A guest was kept out of an entry for too long (`HOST_PRIORITY_BUSY_TIMEOUT`): finish or give up what was begun
    /// there, then enter again.
    HostPriority,
    /// Another TD exit.
    Other(ExitReason),
    /// No plain TD exit: entry was refused, the vCPU or the TD is lost ([`Status::class`]), or an L2 VM is concerned.
    Status(Status),
}

impl Exit {
    /// Reads all outputs.
    #[must_use]
    pub const fn decode(out: &Regs, config: TdxConfig) -> Self {
        if let Some(violation) = EptViolation::decode(out) {
            return Self::EptViolation(violation);
        }
        match MapGpa::decode(out, config) {
            Some(Ok(request)) => return Self::MapGpa(request),
            Some(Err(error)) => return Self::BadMapGpa(error),
            None => {}
        }
        let status = Status::from_raw(out.rax);
        if status.is(Status::HOST_PRIORITY_BUSY_TIMEOUT) {
            return Self::HostPriority;
        }
        match exit_reason(out) {
            Some(reason) => Self::Other(reason),
            None => Self::Status(status),
        }
    }
}

/// What the module knows about an EPT violation, `RDX` bits 3:0.
///
/// Source: TDX module ABI, TDH.VP.ENTER, "Extended exit qualification".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// An access to a private page that is not present, or to a shared one.
    Access,
    /// TDG.MEM.PAGE.ACCEPT found an entry that it cannot accept.
    Accept,
    /// TDG.MEM.PAGE.ATTR.WR found no table of an L2 VM to write to, and the VM asks for an exit then:
    /// [`EptViolation::missing_l2`].
    GpaDetails,
    /// An MSR could not be loaded on entry. Comes with a failed entry, not with an EPT violation.
    EntryMsrLoad,
    /// The extended state could not be loaded on entry. Comes with a failed entry, not with an EPT violation.
    EntryXstateLoad,
    /// TDG.MEM.PAGE.ATTR.WR found an entry that it cannot change.
    AttrWr,
    /// An access to a page that waits for acceptance, of a TD that gets no #VE for it.
    Pending,
    /// A number that this crate does not know.
    Other(u8),
}

/// What stopped a TDG.MEM.PAGE.ACCEPT or TDG.MEM.PAGE.ATTR.WR.
///
/// Source: TDX module ABI, TDH.VP.ENTER, "Extended exit qualification"; `td_other_exits.c` of module 1.5.01; recorded
/// exits of that module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ViolationDetails {
    /// Level that the guest asked for.
    pub requested: Option<Level>,
    /// Level of the entry that stopped it.
    pub found: Option<Level>,
    /// State of that entry.
    pub state: SeptState,
    /// Whether that entry is a leaf.
    pub is_leaf: bool,
    /// The VM whose table it is in: 0 for L1.
    pub vm: u8,
}

/// A TD exit for an EPT violation.
///
/// Source: TDX module ABI, TDH.VP.ENTER, "TD exit: EPT violation".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EptViolation {
    /// The address: the page of a private one, with the shared bit of a shared one.
    pub gpa: Gpa,
    /// Exit qualification, bits 31:0 as of VMX: 2:0 read, write, fetch; 5:3 what the entry allowed. Bits 33:32: the VM,
    /// [`exit_vm`].
    pub qualification: u64,
    /// Extended exit qualification, undecoded.
    pub extended: u64,
}

impl EptViolation {
    /// Reads `RCX`, `RDX` and `R8`; `None` if `out` is no EPT violation.
    #[must_use]
    pub const fn decode(out: &Regs) -> Option<Self> {
        if has_reason(out, EPT_VIOLATION) {
            Some(Self { gpa: Gpa::truncate(out.r8), qualification: out.rcx, extended: out.rdx })
        } else {
            None
        }
    }

    /// What the module knows about it.
    #[must_use]
    pub const fn kind(&self) -> ViolationKind {
        let [low, ..] = self.extended.to_le_bytes();
        match low & 0xf {
            0 => ViolationKind::Access,
            1 => ViolationKind::Accept,
            2 => ViolationKind::GpaDetails,
            3 => ViolationKind::EntryMsrLoad,
            4 => ViolationKind::EntryXstateLoad,
            5 => ViolationKind::AttrWr,
            6 => ViolationKind::Pending,
            other => ViolationKind::Other(other),
        }
    }

    /// The entry that a failed ACCEPT or ATTR.WR asked for: its GPA at the level requested. `None` if it was neither.
    #[must_use]
    pub const fn wanted(&self) -> Option<GpaEntry> {
        match self.details() {
            Some(ViolationDetails { requested: Some(level), .. }) => {
                Some(GpaEntry::containing(self.gpa, level))
            }
            _ => None,
        }
    }

    /// The entry of an L2 VM that has no table, and the VM, 1 to 3 ([`ViolationKind::GpaDetails`]): give it one with
    /// [`sept_add_v1`](crate::mem::sept_add_v1), then enter again.
    #[must_use]
    pub const fn missing_l2(&self) -> Option<(GpaEntry, u8)> {
        let read = self.read();
        match (self.kind(), read.found) {
            (ViolationKind::GpaDetails, Some(level)) => {
                Some((GpaEntry::containing(self.gpa, level), read.vm))
            }
            _ => None,
        }
    }

    /// Whether the address is a shared one in a TD of `config`.
    #[must_use]
    pub const fn is_shared(&self, config: TdxConfig) -> bool {
        self.gpa.raw() >> config.shared_bit() & 1 != 0
    }

    /// The details of a failed ACCEPT or ATTR.WR; [`EptViolation::kind`] says which.
    ///
    /// * A page found above the level asked for (ACCEPT: a `Pending` one): split it, then enter again.
    /// * `Free`, or a missing table: map a page.
    /// * Blocked: a change is under way; enter again when it is done.
    #[must_use]
    pub const fn details(&self) -> Option<ViolationDetails> {
        match self.kind() {
            ViolationKind::Accept | ViolationKind::AttrWr => Some(self.read()),
            _ => None,
        }
    }

    const fn read(&self) -> ViolationDetails {
        // Bits 34:32 requested level, 37:35 level found, 45:38 state, 46 leaf, 53:52 VM.
        let [low, ..] = (self.extended >> 32).to_le_bytes();
        let [state, ..] = (self.extended >> 38).to_le_bytes();
        let [vm, ..] = (self.extended >> 52).to_le_bytes();
        ViolationDetails {
            requested: Level::new(low & 0b111),
            found: Level::new((low >> 3) & 0b111),
            state: SeptState::from_public(state),
            is_leaf: self.extended & (1 << 46) != 0,
            vm: vm & 0b11,
        }
    }
}
