//! The guest's side: a vCPU enters, calls the module, reads and writes its private memory.
//!
//! A [`Guest`] is a handle that any thread may use; one thread per vCPU is a guest that runs. Its accesses go through
//! translations that the vCPU has cached, or through a walk of the Secure EPT. Only what the tracking protocol says drops
//! a cached translation: a new association with a logical processor, or an entry in a later epoch. So a host that skips
//! the fence makes a guest use a page it no longer owns, and [`Machine::violations`] tells which.
//! (TDX module ABI, "TDG.MEM.PAGE.ACCEPT", "TD exit" and "TLB tracking".)

mod accept;
mod access;
mod attributes;
mod exit;

pub use exit::{EPT_VIOLATION, EptViolation, TdExit};

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{Operand, Status};
use crate::call::Ctx;
use crate::machine::Machine;
use crate::session::Session;
use crate::state::State;

/// TDG.MEM.PAGE.ACCEPT.
const PAGE_ACCEPT: u64 = 6;
/// TDG.MEM.PAGE.ATTR.RD.
const PAGE_ATTR_RD: u64 = 23;
/// TDG.MEM.PAGE.ATTR.WR.
const PAGE_ATTR_WR: u64 = 24;

/// Outcome of a guest's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TdCall {
    /// The guest goes on with these registers.
    Returned(Regs),
    /// The vCPU left guest mode.
    Exit(TdExit),
    /// An interrupt came between two chunks of an ACCEPT; executing it again goes on from there.
    Interrupted,
}

/// Outcome of TDG.MEM.PAGE.ACCEPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accept {
    /// The guest got this status.
    Returned(Status),
    /// The vCPU left guest mode.
    Exit(TdExit),
    /// An interrupt came between two chunks; executing it again goes on from there.
    Interrupted,
}

/// Why a guest access did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFault {
    /// The vCPU is not in guest mode.
    NotRunning,
    /// The address is not private: the host decides what is there.
    NotPrivate,
    /// #VE: the page is pending.
    Pending,
    /// The vCPU left guest mode.
    Exit(TdExit),
    /// The access consumed a memory error or foreign content: the TD is fatal, the vCPU outside.
    Fatal,
}

/// One vCPU of a TD.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'m> {
    machine: &'m Machine,
    tdvpr: u64,
}

impl Machine {
    /// The vCPU whose TDVPR page is at `tdvpr`.
    #[must_use]
    pub const fn guest(&self, tdvpr: Hpa) -> Guest<'_> {
        Guest { machine: self, tdvpr: tdvpr.raw() }
    }
}

impl Guest<'_> {
    /// TDH.VP.ENTER on logical processor `lp`; on success the vCPU stays in guest mode.
    ///
    /// # Errors
    ///
    /// The status VP.ENTER answered. [`EPT_VIOLATION`] as a status: the vCPU has exited at one page so often that it was
    /// not entered, because it would only exit there again.
    pub fn enter(&self, lp: u32) -> Result<(), Status> {
        self.machine.with(|s| s.enter_guest(lp, self.tdvpr)).map_err(|out| Status(out.rax))
    }

    /// An external interrupt makes the vCPU leave guest mode. Says whether it did: one in the middle of an ACCEPT leaves
    /// when that is over.
    #[expect(
        clippy::must_use_candidate,
        reason = "an action: who did not make the vCPU stuck knows the answer"
    )]
    pub fn exit(&self) -> bool {
        self.machine.with(|s| {
            let Some((td, vcpu)) = s.vcpu_of(self.tdvpr) else { return false };
            !s.is_stuck(td, vcpu) && s.kick_vcpu(td, vcpu)
        })
    }

    /// Whether the vCPU is in guest mode.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.machine.with(|s| s.vcpu_of(self.tdvpr).is_some_and(|(td, vcpu)| s.td(td).vcpus[vcpu].inside))
    }

    /// From now on (or no longer) the vCPU ignores interrupts and stays in the guest.
    pub fn set_stuck(&self, stuck: bool) {
        self.machine.with(|s| {
            if let Some((td, vcpu)) = s.vcpu_of(self.tdvpr) {
                s.td_mut(td).vcpus[vcpu].stuck = stuck;
            }
        });
    }

    /// A TDCALL with any registers: PAGE.ACCEPT (6), PAGE.ATTR.RD (23) and PAGE.ATTR.WR (24); any other leaf answers
    /// OPERAND_INVALID.
    ///
    /// # Errors
    ///
    /// The vCPU is not in guest mode.
    pub fn tdcall(&self, regs: Regs) -> Result<TdCall, GuestFault> {
        self.machine.with(|s| {
            let (td, vcpu) = s.running(self.tdvpr)?;
            Ok(s.tdcall(td, vcpu, regs))
        })
    }

    /// TDG.MEM.PAGE.ACCEPT, once.
    ///
    /// # Errors
    ///
    /// The vCPU is not in guest mode.
    pub fn accept(&self, gpa: Gpa, level: Level) -> Result<Accept, GuestFault> {
        self.accept_raw(0, gpa.raw() | u64::from(level.raw()))
    }

    /// TDG.MEM.PAGE.ACCEPT with any version and any RCX.
    ///
    /// # Errors
    ///
    /// The vCPU is not in guest mode.
    pub fn accept_raw(&self, version: u8, rcx: u64) -> Result<Accept, GuestFault> {
        let rax = PAGE_ACCEPT | u64::from(version) << 16;
        Ok(match self.tdcall(Regs { rax, rcx, ..Regs::new() })? {
            TdCall::Returned(regs) => Accept::Returned(Status(regs.rax)),
            TdCall::Exit(exit) => Accept::Exit(exit),
            TdCall::Interrupted => Accept::Interrupted,
        })
    }

    /// Reads the pattern of the page at `gpa`.
    ///
    /// # Errors
    ///
    /// See [`GuestFault`].
    pub fn read(&self, gpa: Gpa) -> Result<u64, GuestFault> {
        self.machine.with(|s| {
            let (td, vcpu) = s.running(self.tdvpr)?;
            let page = s.guest_page(td, vcpu, gpa.raw(), false)?;
            s.guest_read(td, vcpu, page)
        })
    }

    /// Writes the pattern of the page at `gpa`.
    ///
    /// # Errors
    ///
    /// See [`GuestFault`].
    pub fn write(&self, gpa: Gpa, pattern: u64) -> Result<(), GuestFault> {
        self.machine.with(|s| {
            let (td, vcpu) = s.running(self.tdvpr)?;
            let page = s.guest_page(td, vcpu, gpa.raw(), true)?;
            let key = s.td(td).hkid;
            s.mem.write(page, pattern, key);
            Ok(())
        })
    }
}

impl Session<'_> {
    /// VP.ENTER with that RCX; what a host sees of an entry that did not lead into the guest.
    pub(crate) fn enter_guest(&mut self, lp: u32, rcx: u64) -> Result<(), Regs> {
        let mut c = Ctx::new(lp, Regs { rcx, ..Regs::default() });
        let halted = self.is_halted().then_some(Status::VM_FAIL_INVALID);
        self.meet_faults(&c.regs);
        let answer = match halted.or_else(|| self.faults.strike(0)) {
            Some(status) => Err(status),
            None => self.enter_vcpu(&mut c).map(drop),
        };
        self.release(&mut c);
        self.counters.note(0, answer.err().unwrap_or(Status::SUCCESS));
        answer.map_err(|status| Regs { rax: status.0, ..c.out })
    }

    /// Executes one TDCALL of a vCPU that is in guest mode.
    pub(crate) fn tdcall(&mut self, td: usize, vcpu: usize, regs: Regs) -> TdCall {
        /// Bits 31:24 and 63:32 of RAX must be zero.
        const RAX_RESERVED: u64 = !0x00FF_FFFF;
        if self.td(td).fatal {
            return TdCall::Exit(self.exit_from_lost_td(td, vcpu, exit::TDCALL));
        }
        let known = regs.rax & RAX_RESERVED == 0 && regs.rax >> 16 == 0;
        let outcome = match regs.rax {
            PAGE_ACCEPT if known => self.accept(td, vcpu, regs),
            PAGE_ATTR_RD if known => self.read_attributes(td, vcpu, regs),
            PAGE_ATTR_WR if known => self.write_attributes(td, vcpu, regs),
            _ => returned(Status::OPERAND_INVALID.of(Operand::Rax), regs),
        };
        self.after_call(td, vcpu, outcome)
    }

    /// The instruction is over unless it will be executed again: whatever page it exited at, the guest goes on.
    fn after_call(&mut self, td: usize, vcpu: usize, outcome: TdCall) -> TdCall {
        let TdCall::Returned(regs) = outcome else { return outcome };
        self.made_progress(td, vcpu);
        if Status(regs.rax).code() != Status::OPERAND_BUSY_HOST_PRIORITY.code() {
            self.td_mut(td).vcpus[vcpu].refused = 0;
            return outcome;
        }
        self.give_precedence(td, vcpu, regs)
    }

    /// A host wants what the guest wanted: the guest is refused, and at last leaves so that the host gets its turn. It is
    /// never told the reason.
    fn give_precedence(&mut self, td: usize, vcpu: usize, regs: Regs) -> TdCall {
        let patience = self.cfg.host_priority_patience;
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.refused = cpu.refused.saturating_add(1);
        if patience.is_none_or(|patience| cpu.refused < patience) {
            let rax = Status::OPERAND_BUSY.0 | regs.rax & 0xFFFF_FFFF;
            return TdCall::Returned(Regs { rax, ..regs });
        }
        cpu.refused = 0;
        cpu.left_by_trap = true;
        self.exit_vcpu(td, vcpu);
        let rax = Status::HOST_PRIORITY_BUSY_TIMEOUT.0;
        TdCall::Exit(TdExit { regs: Regs { rax, ..Regs::new() } })
    }
}

const fn returned(status: Status, regs: Regs) -> TdCall {
    TdCall::Returned(Regs { rax: status.0, ..regs })
}

impl State {
    fn running(&self, tdvpr: u64) -> Result<(usize, usize), GuestFault> {
        let found = self.vcpu_of(tdvpr).filter(|&(td, vcpu)| self.td(td).vcpus[vcpu].inside);
        found.ok_or(GuestFault::NotRunning)
    }

    fn is_stuck(&self, td: usize, vcpu: usize) -> bool {
        let cpu = &self.td(td).vcpus[vcpu];
        cpu.stuck || self.faults.stays(vcpu)
    }

    /// The vCPU leaves guest mode by itself, if it is there.
    pub(crate) fn leave_guest(&mut self, tdvpr: u64) {
        if let Ok((td, vcpu)) = self.running(tdvpr) {
            self.kick_vcpu(td, vcpu);
        }
    }

    /// Makes the vCPU leave guest mode, or take note of it. Says whether it has left.
    pub(crate) fn kick_vcpu(&mut self, td: usize, vcpu: usize) -> bool {
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        let leaves = cpu.inside && !cpu.executing;
        cpu.kicked = cpu.inside && cpu.executing;
        if leaves {
            self.exit_vcpu(td, vcpu);
        }
        leaves
    }

    /// Takes the guest's lock on an entry.
    fn lock_entry_for_guest(&mut self, table: u32, index: usize) -> Result<(), Status> {
        let bit = self.lock_bit();
        let entry = &mut self.mem.table_mut(table)[index];
        if *entry & bit != 0 {
            return Err(Status::OPERAND_BUSY.of(Operand::Rcx));
        }
        if *entry & crate::sept::HOST_PRIORITY != 0 {
            return Err(Status::OPERAND_BUSY_HOST_PRIORITY.of(Operand::Rcx));
        }
        *entry |= bit;
        Ok(())
    }
}
