//! TD exits: what VP.ENTER returns to the host, and the guard against a host that steps a guest by faults.

use seamcall::Regs;

use crate::abi::{PAGE, Status};
use crate::sept::{self, EntryState};
use crate::slot::Slot;
use crate::state::State;

/// VM exit reason "EPT violation": RAX of a TD exit of that kind.
pub const EPT_VIOLATION: u64 = 48;
/// VM exit reason "TDCALL".
pub(crate) const TDCALL: u64 = 77;

/// Exits at one place without progress after which the module notes the page.
const STEPPING_THRESHOLD: u8 = 6;
/// Pages it notes.
const STEPPING_PAGES: usize = 32;

/// What VP.ENTER returns to the host when the guest leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdExit {
    /// The registers of the host. Those not named are zero.
    pub regs: Regs,
}

/// A TD exit for an EPT violation, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptViolation {
    /// 0 an access, 1 ACCEPT, 2 a failed walk for an L2 VM, 5 ATTR.WR, 6 an access to a pending page.
    pub kind: u8,
    /// The page concerned.
    pub gpa: u64,
    /// The guest wrote (or accepted).
    pub write: bool,
    /// Level that the call asked for.
    pub requested_level: u8,
    /// Level of the entry that stopped it.
    pub reached_level: u8,
    /// Public state of that entry, as in SEPT.RD.
    pub state: u8,
    /// That entry is a leaf.
    pub leaf: bool,
    /// L2 VM concerned; 0: none.
    pub vm: u8,
}

impl TdExit {
    /// The EPT violation, if this is one.
    #[must_use]
    pub const fn ept_violation(&self) -> Option<EptViolation> {
        if self.regs.rax & 0xFFFF_FFFF_0000_FFFF != EPT_VIOLATION {
            return None;
        }
        let info = self.regs.rdx >> 32;
        Some(EptViolation {
            kind: (self.regs.rdx & 15) as u8,
            gpa: self.regs.r8,
            write: self.regs.rcx & 2 != 0,
            requested_level: (info & 7) as u8,
            reached_level: (info >> 3 & 7) as u8,
            state: (info >> 6) as u8,
            leaf: info >> 14 & 1 != 0,
            vm: (info >> 20 & 3) as u8,
        })
    }
}

/// What the host is told of an EPT violation.
#[derive(Clone, Copy, Default)]
pub(super) struct Violation {
    pub(super) kind: u64,
    pub(super) gpa: u64,
    /// Bits of the exit qualification.
    pub(super) qualification: u64,
    /// Bits 63:32 of the extended qualification.
    pub(super) info: u64,
}

impl Violation {
    /// A call stopped at an entry.
    pub(super) fn at(slot: &Slot, kind: u64, gpa: u64, requested_level: u8) -> Self {
        let info = u64::from(requested_level)
            | u64::from(slot.level) << 3
            | u64::from(slot.state().public()) << 6
            | (slot.entry & sept::LEAF) >> 7 << 14;
        Self { kind, gpa, qualification: 2 | (slot.entry & sept::RWX) << 3, info }
    }
}

impl State {
    pub(super) fn exit_for(&mut self, td: usize, vcpu: usize, violation: Violation) -> TdExit {
        self.exit_vcpu(td, vcpu);
        TdExit {
            regs: Regs {
                rax: EPT_VIOLATION,
                rcx: violation.qualification,
                rdx: violation.kind | violation.info << 32,
                r8: violation.gpa & !(PAGE - 1),
                ..Regs::default()
            },
        }
    }

    /// The TD became fatal while the vCPU was inside: its next exit is its last.
    pub(crate) fn exit_from_lost_td(&mut self, td: usize, vcpu: usize, reason: u64) -> TdExit {
        self.exit_vcpu(td, vcpu);
        TdExit { regs: Regs { rax: Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.0 | reason, ..Regs::default() } }
    }

    /// An access fault is logged; again and again at one page it looks like stepping.
    pub(super) fn log_fault(&mut self, td: usize, vcpu: usize, page: u64) {
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        if cpu.fault_page != Some(page) {
            cpu.fault_page = Some(page);
            cpu.faults = 0;
            cpu.stepped_pages.clear();
        }
        if cpu.faults < STEPPING_THRESHOLD {
            cpu.faults += 1;
        } else if cpu.stepped_pages.len() < STEPPING_PAGES && !cpu.stepped_pages.contains(&page) {
            cpu.stepped_pages.push(page);
        }
    }

    /// The guest has executed an instruction.
    pub(super) fn made_progress(&mut self, td: usize, vcpu: usize) {
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        if cpu.fault_page.take().is_some() {
            cpu.faults = 0;
            cpu.stepped_pages.clear();
        }
    }

    /// A noted page at which the vCPU would only exit again.
    pub(crate) fn stepping_at(&self, td: usize, vcpu: usize) -> Option<u64> {
        let usable = |page: u64| {
            let slot = self.walk(td, page, 0);
            slot.entry & sept::LEAF != 0 && slot.entry & sept::RWX == sept::RWX
        };
        self.td(td).vcpus[vcpu].stepped_pages.iter().copied().find(|&page| !usable(page))
    }

    /// An access to a pending page, which ACCEPT would make usable.
    pub(super) fn is_acceptable(slot: &Slot) -> bool {
        matches!(slot.state(), EntryState::Pending | EntryState::PendingExportedDirty)
    }
}
