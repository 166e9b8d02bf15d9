//! The guest's side: a vCPU enters, accepts, reads and writes its private memory.
//!
//! TDX module ABI, "TDG.MEM.PAGE.ACCEPT" and "TD exit".

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{Operand, PAGE, Status, size_of_level};
use crate::call::{Ctx, Held};
use crate::machine::Machine;
use crate::memory::FANOUT;
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::state::{Slot, State};
use crate::violation::ViolationKind;

/// VM exit reason "EPT violation": RAX of a TD exit of that kind.
pub const EPT_VIOLATION: u64 = 48;

/// What VP.ENTER returns to the host when the guest leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdExit {
    /// The registers of the host. Those not named are zero.
    pub regs: Regs,
}

/// A TD exit for an EPT violation, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptViolation {
    /// 0 an access, 1 ACCEPT, 6 an access to a pending page.
    pub kind: u8,
    /// The page concerned.
    pub gpa: u64,
    /// The guest wrote (or accepted).
    pub write: bool,
    /// Level that ACCEPT asked for.
    pub requested_level: u8,
    /// Level of the entry that stopped it.
    pub reached_level: u8,
    /// Public state of that entry, as in SEPT.RD.
    pub state: u8,
    /// That entry is a leaf.
    pub leaf: bool,
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
        })
    }
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
    /// The status VP.ENTER answered.
    pub fn enter(&self, lp: u32) -> Result<(), Status> {
        self.machine.with(|s| s.enter_guest(lp, self.tdvpr))
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
            !s.td(td).vcpus[vcpu].stuck && s.kick_vcpu(td, vcpu)
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
        self.machine.with(|s| {
            let (td, vcpu) = s.running(self.tdvpr)?;
            Ok(s.accept(td, vcpu, version, rcx))
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
    pub(crate) fn enter_guest(&mut self, lp: u32, tdvpr: u64) -> Result<(), Status> {
        let mut c = Ctx::new(lp, Regs { rcx: tdvpr, ..Regs::default() });
        let answer = self.enter_vcpu(&mut c).map(drop);
        self.release(&mut c);
        self.counters.note(0, answer.err().unwrap_or(Status::SUCCESS));
        answer
    }

    pub(crate) fn accept(&mut self, td: usize, vcpu: usize, version: u8, rcx: u64) -> Accept {
        self.counters.accepts += 1;
        let (gpa, level) = (rcx & !0xFFF, (rcx & 7) as u8);
        if version != 0 {
            return Accept::Returned(Status::OPERAND_INVALID.of(Operand::Rax));
        }
        if rcx & 0xFF8 != 0 || level > 1 || gpa % size_of_level(level) != 0 || !self.td(td).is_private(gpa) {
            return Accept::Returned(Status::OPERAND_INVALID.of(Operand::Rcx));
        }
        let slot = self.walk(td, gpa, level);
        let state = slot.state();
        let already = Accept::Returned(Status::PAGE_ALREADY_ACCEPTED.detail(u32::from(slot.level)));
        let readable_leaf = slot.entry & sept::LEAF != 0 && state.guest_accessible();
        if slot.level > level {
            return if readable_leaf { already } else { self.accept_exit(td, vcpu, &slot, gpa, level) };
        }
        let raw = self.mem.table(slot.table)[slot.index];
        if raw & self.lock_bit() != 0 {
            return Accept::Returned(Status::OPERAND_BUSY.of(Operand::Rcx));
        }
        if raw & sept::HOST_PRIORITY != 0 {
            return self.give_precedence(td, vcpu);
        }
        self.td_mut(td).vcpus[vcpu].refused = 0;
        if slot.entry & sept::LEAF == 0 && state != EntryState::Free {
            return Accept::Returned(Status::PAGE_SIZE_MISMATCH.detail(u32::from(slot.level)));
        }
        if readable_leaf {
            return already;
        }
        if !matches!(state, EntryState::Pending | EntryState::PendingExportedDirty) {
            return self.accept_exit(td, vcpu, &slot, gpa, level);
        }
        self.lock_and_accept(td, vcpu, &slot)
    }

    /// A host wants the entry: the guest is refused, and at last leaves so that the host gets its turn.
    fn give_precedence(&mut self, td: usize, vcpu: usize) -> Accept {
        let patience = self.cfg.host_priority_patience;
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.refused = cpu.refused.saturating_add(1);
        if patience.is_none_or(|patience| cpu.refused < patience) {
            return Accept::Returned(Status::OPERAND_BUSY.of(Operand::Rcx));
        }
        cpu.refused = 0;
        self.exit_vcpu(td, vcpu);
        let rax = Status::HOST_PRIORITY_BUSY_TIMEOUT.0;
        Accept::Exit(TdExit { regs: Regs { rax, ..Regs::new() } })
    }

    /// The guest's lock on the entry is taken and given back around the zeroing.
    fn lock_and_accept(&mut self, td: usize, vcpu: usize, slot: &Slot) -> Accept {
        let bit = self.lock_bit();
        self.mem.table_mut(slot.table)[slot.index] |= bit;
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.executing = true;
        let mut c = Ctx::of_guest(cpu.lp.unwrap_or(0));
        c.hold(Held::Entry(slot.table, slot.index));
        self.pause(&c, Point::Commit);
        let outcome = self.accept_pending(slot);
        self.release(&mut c);
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.executing = false;
        if cpu.kicked {
            self.exit_vcpu(td, vcpu);
        }
        outcome
    }
}

impl State {
    fn running(&self, tdvpr: u64) -> Result<(usize, usize), GuestFault> {
        let found = self.vcpu_of(tdvpr).filter(|&(td, vcpu)| self.td(td).vcpus[vcpu].inside);
        found.ok_or(GuestFault::NotRunning)
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

    fn ept_exit(
        &mut self,
        td: usize,
        vcpu: usize,
        slot: &Slot,
        kind: u64,
        request: (u64, bool, u8),
    ) -> TdExit {
        self.exit_vcpu(td, vcpu);
        let (gpa, write, level) = request;
        let access = if write { 2 } else { 1 };
        let info = u64::from(level)
            | u64::from(slot.level) << 3
            | u64::from(slot.state().public()) << 6
            | (slot.entry & sept::LEAF) >> 7 << 14;
        TdExit {
            regs: Regs {
                rax: EPT_VIOLATION,
                rcx: access | (slot.entry & sept::RWX) << 3,
                rdx: kind | if kind == 1 { info << 32 } else { 0 },
                r8: gpa & !(PAGE - 1),
                ..Regs::default()
            },
        }
    }

    fn accept_exit(&mut self, td: usize, vcpu: usize, slot: &Slot, gpa: u64, level: u8) -> Accept {
        Accept::Exit(self.ept_exit(td, vcpu, slot, 1, (gpa, true, level)))
    }

    /// Zeroes the page chunk by chunk; an interrupt after any chunk but the last leaves the rest for later.
    fn accept_pending(&mut self, slot: &Slot) -> Accept {
        let key = self.td(slot.td).hkid;
        let page = sept::address(&self.cfg, slot.entry, slot.level);
        if slot.level == 0 {
            self.mem.write(page, 0, key);
            self.set_entry(slot, sept::accepted(slot.entry));
            return Accept::Returned(Status::SUCCESS);
        }
        let done = sept::accept_counter(slot.entry);
        let left = FANOUT as u64 - done;
        if let Some(passed) = self.faults.guest_polls(left - 1) {
            let chunks = passed + 1;
            self.mem.fill(page + done * PAGE, chunks, 0, key, false);
            self.set_entry(slot, sept::with_counter(slot.entry, done + chunks));
            return Accept::Interrupted;
        }
        self.mem.fill(page + done * PAGE, left, 0, key, false);
        self.set_entry(slot, sept::accepted(sept::without_counter(slot.entry, slot.level)));
        Accept::Returned(Status::SUCCESS)
    }

    /// The host page behind a guest address, through cached translations or a walk.
    fn guest_page(&mut self, td: usize, vcpu: usize, gpa: u64, write: bool) -> Result<u64, GuestFault> {
        let page = gpa & !(PAGE - 1);
        if !self.td(td).is_private(gpa) {
            return Err(GuestFault::NotPrivate);
        }
        if self.td(td).fatal {
            self.exit_vcpu(td, vcpu);
            return Err(GuestFault::Fatal);
        }
        let slot = self.walk(td, page, 0);
        let leaf = slot.entry & sept::LEAF != 0;
        let offset = page & (size_of_level(slot.level) - 1);
        let target = sept::address(&self.cfg, slot.entry, slot.level) + offset;
        if let Some(cached) = self.td(td).vcpus[vcpu].translations.get(page) {
            if !leaf || cached != target {
                self.violate_stale(td, vcpu, page, cached);
            }
            return Ok(cached);
        }
        if leaf && slot.entry & if write { 2 } else { 1 } != 0 {
            self.td_mut(td).vcpus[vcpu].translations.insert(page, target);
            return Ok(target);
        }
        let pending = slot.state() == EntryState::Pending;
        if pending && !self.td(td).pending_ve_disable {
            return Err(GuestFault::Pending);
        }
        let kind = if pending { 6 } else { 0 };
        Err(GuestFault::Exit(self.ept_exit(td, vcpu, &slot, kind, (gpa, write, 0))))
    }

    fn guest_read(&mut self, td: usize, vcpu: usize, page: u64) -> Result<u64, GuestFault> {
        let (cell, key) = (self.mem.cell(page), self.td(td).hkid);
        let poisoned = self.faults.poison.contains(&page);
        if cell.key() == key && !poisoned {
            return Ok(self.mem.pattern(page));
        }
        if !poisoned {
            self.violate(ViolationKind::GuestReadForeign, page, cell.key());
        }
        self.td_mut(td).fatal = true;
        self.exit_vcpu(td, vcpu);
        Err(GuestFault::Fatal)
    }
}
