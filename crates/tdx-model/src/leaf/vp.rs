//! VP.*: vCPUs are created, entered and flushed.
//!
//! A vCPU in guest mode keeps its TDVPR page locked shared with all its PAMT parents, and the 4 KiB entry of its TDR.
//! (TDX module ABI, "Concurrency".)

use crate::abi::{Lifecycle, Operand, PageType, Status, op_state};
use crate::call::Ctx;
use crate::guest::EPT_VIOLATION;
use crate::lock::Mode;
use crate::session::{Point, Session};
use crate::state::{Answer, State};
use crate::td::{MAX_VCPU_TDCX, Vcpu};

/// VM exit reason "external interrupt".
const EXTERNAL_INTERRUPT: u64 = 1;
/// Flags beside the address in VP.ENTER's RCX: the host says that trying again may help; resume L1.
const RECOVERABILITY_HINT: u64 = 1 << 52;
const RESUME_L1: u64 = 1 << 53;
const ENTER_RESERVED: u64 = !0x003F_FFFF_FFFF_F000;

const fn handle(td: usize, vcpu: usize) -> u64 {
    (td as u64) << 32 | vcpu as u64
}

impl State {
    /// The TD and vCPU of a TDVPR page.
    pub(crate) fn vcpu_of(&self, tdvpr: u64) -> Option<(usize, usize)> {
        let found = self.mem.leaf_entry(&self.cfg, tdvpr);
        if found.level != 0 || found.entry.kind() != PageType::Tdvpr {
            return None;
        }
        let value = self.mem.cell(tdvpr).value();
        Some(((value >> 32) as usize, value as u32 as usize))
    }

    pub(super) fn tdvpr_operand(
        &mut self,
        c: &mut Ctx,
        page: u64,
        op: Operand,
        mode: Mode,
    ) -> Answer<(usize, usize)> {
        self.tdvpr_and_td(c, page, op, mode, Mode::Shared)
    }

    fn tdvpr_and_td(
        &mut self,
        c: &mut Ctx,
        page: u64,
        op: Operand,
        mode: Mode,
        tdr_mode: Mode,
    ) -> Answer<(usize, usize)> {
        self.page_operand(c, page, 0, op, PageType::Tdvpr, mode)?;
        let value = self.mem.cell(page).value();
        let (td, vcpu) = ((value >> 32) as usize, value as u32 as usize);
        let tdr = self.td(td).tdr;
        self.implicit_page(c, tdr, 0, Operand::Tdr, tdr_mode)?;
        Ok((td, vcpu))
    }

    /// Associates the vCPU with the logical processor, if it is not another's. A vCPU in guest mode is not ready for it.
    /// Says whether the association is new: then nothing of it can be cached there.
    pub(super) fn associate(
        &mut self,
        lp: u32,
        td: usize,
        vcpu: usize,
        allow_disabled: bool,
    ) -> Answer<bool> {
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        if !cpu.initialized || cpu.inside || cpu.disabled && !allow_disabled {
            return Err(Status::VCPU_STATE_INCORRECT);
        }
        if cpu.lp.is_some_and(|associated| associated != lp) {
            return Err(Status::VCPU_ASSOCIATED);
        }
        Ok(cpu.lp.replace(lp).is_none())
    }

    /// The vCPU is of the TD's epoch from now on, and without translations from an earlier one.
    fn adopt_epoch(&mut self, td: usize, vcpu: usize, newly_associated: bool) {
        let domain = self.td_mut(td);
        let cpu = &mut domain.vcpus[vcpu];
        if cpu.epoch != domain.td_epoch || newly_associated {
            cpu.translations.flush();
        }
        cpu.epoch = domain.td_epoch;
    }

    /// The vCPU leaves guest mode.
    pub(crate) fn exit_vcpu(&mut self, td: usize, vcpu: usize) {
        let domain = self.td_mut(td);
        let (tdr, cpu) = (domain.tdr, &mut domain.vcpus[vcpu]);
        cpu.inside = false;
        cpu.kicked = false;
        let tdvpr = cpu.tdvpr;
        let parity = (cpu.epoch & 1) as usize;
        // The module does not look into a TD that is lost.
        if !domain.fatal {
            domain.refcount[parity] -= 1;
        }
        let cfg = self.cfg.clone();
        self.mem.pamt_unlock(&cfg, tdr, 0, Mode::Shared);
        self.mem.pamt_unwalk(&cfg, tdvpr, 0, Mode::Shared);
    }
}

impl Session<'_> {
    /// Enters the vCPU: on success it is in guest mode and keeps its two page locks.
    pub(crate) fn enter_vcpu(&mut self, c: &mut Ctx) -> Answer<(usize, usize)> {
        let invalid = Status::OPERAND_INVALID.of(Operand::Rcx);
        if c.regs.rcx & ENTER_RESERVED != 0 {
            return Err(invalid);
        }
        let page = c.regs.rcx & !(RECOVERABILITY_HINT | RESUME_L1);
        let (td, vcpu) = self.tdvpr_operand(c, page, Operand::Rcx, Mode::Shared)?;
        self.ready(td)?;
        self.lock_op_state(c, td, op_state::ENTER)?;
        if !self.td(td).has_pages(vcpu) {
            return Err(Status::TDCX_NUM_INCORRECT);
        }
        let new = self.associate(c.lp, td, vcpu, false)?;
        let hinted = c.regs.rcx & RECOVERABILITY_HINT != 0;
        // There is no guest in an L2 VM here, so nothing to resume L1 from.
        if hinted && !self.td(td).vcpus[vcpu].left_by_trap || c.regs.rcx & RESUME_L1 != 0 {
            return Err(invalid);
        }
        self.lock_epoch(c, td, Mode::Shared)?;
        self.pause(c, Point::Commit);
        // Another processor may have tried the same vCPU: only one of them wins.
        if self.td(td).vcpus[vcpu].inside {
            return Err(Status::VCPU_STATE_INCORRECT);
        }
        self.adopt_epoch(td, vcpu, new);
        if !self.td(td).vcpus[vcpu].stepped_pages.is_empty() {
            // A guest that may be stepped: nobody changes the tree while the module looks at it.
            self.lock_tree(c, td, Mode::Exclusive)?;
            if let Some(page) = self.stepping_at(td, vcpu) {
                c.out = seamcall::Regs { rcx: 2, r8: page, ..seamcall::Regs::default() };
                return Err(Status(EPT_VIOLATION));
            }
        }
        let domain = self.td_mut(td);
        domain.refcount[(domain.td_epoch & 1) as usize] += 1;
        let cpu = &mut domain.vcpus[vcpu];
        cpu.inside = true;
        cpu.left_by_trap = false;
        c.keep_pages();
        Ok((td, vcpu))
    }
}

/// TDH.VP.ENTER made as a plain call: the guest is left at once, by an external interrupt.
pub(super) fn enter(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (td, vcpu) = s.enter_vcpu(c)?;
    s.exit_vcpu(td, vcpu);
    c.out = seamcall::Regs::default();
    Err(Status(EXTERNAL_INTERRUPT))
}

/// TDH.VP.CREATE: RCX page, RDX TDR.
pub(super) fn create(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (page, tdr) = (c.regs.rcx, c.regs.rdx);
    let td = s.tdr_operand(c, tdr, Operand::Rdx, Mode::Shared)?;
    s.ready(td)?;
    s.lock_op_state(c, td, op_state::VP_BUILD)?;
    s.new_page(c, page, Operand::Rcx)?;
    s.pause(c, Point::Commit);
    let (cfg, key) = (s.cfg.clone(), s.td(td).hkid);
    s.donated(page, 1, key);
    let number = s.td(td).vcpus.len();
    s.mem.write(page, handle(td, number), key);
    s.mem.pamt_assign(&cfg, page, 0, PageType::Tdvpr, tdr);
    let domain = s.td_mut(td);
    domain.vcpus.push(Vcpu { tdvpr: page, ..Vcpu::default() });
    domain.chldcnt += 1;
    Ok(())
}

/// TDH.VP.ADDCX: RCX page, RDX TDVPR.
pub(super) fn add_cx(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let page = c.regs.rcx;
    let (td, vcpu) = s.tdvpr_operand(c, c.regs.rdx, Operand::Rdx, Mode::Exclusive)?;
    s.ready(td)?;
    s.lock_op_state(c, td, op_state::VP_BUILD)?;
    if s.td(td).vcpus[vcpu].initialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    if s.td(td).vcpus[vcpu].tdcx.len() >= MAX_VCPU_TDCX {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    s.new_page(c, page, Operand::Rcx)?;
    s.pause(c, Point::Commit);
    let (cfg, key, tdr) = (s.cfg.clone(), s.td(td).hkid, s.td(td).tdr);
    s.donated(page, 1, key);
    s.mem.write(page, 0, key);
    s.mem.pamt_assign(&cfg, page, 0, PageType::Tdcx, tdr);
    let domain = s.td_mut(td);
    domain.vcpus[vcpu].tdcx.push(page);
    domain.chldcnt += 1;
    Ok(())
}

/// TDH.VP.INIT: RCX TDVPR. The vCPU is associated with this logical processor. Version 1 (2.0.08) has the TD for itself and takes
/// an x2APIC id in R8, which no other vCPU of the TD may have.
pub(super) fn init(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let with_id = c.version == 1;
    let tdr_mode = if with_id { Mode::Exclusive } else { Mode::Shared };
    let (td, vcpu) = s.tdvpr_and_td(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive, tdr_mode)?;
    s.ready(td)?;
    s.lock_op_state(c, td, op_state::BUILD)?;
    s.pause(c, Point::Commit);
    let (lp, id) = (c.lp, c.regs.r8 as u32);
    let domain = s.td_mut(td);
    if !domain.has_pages(vcpu) {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    if domain.vcpus[vcpu].initialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    if domain.num_vcpus >= domain.controls.max_vcpus {
        return Err(Status::MAX_VCPUS_EXCEEDED);
    }
    if with_id && domain.vcpus.iter().any(|other| other.x2apic_id == Some(id)) {
        return Err(Status::X2APIC_ID_NOT_UNIQUE.detail(id));
    }
    let cpu = &mut domain.vcpus[vcpu];
    cpu.initialized = true;
    cpu.x2apic_id = with_id.then_some(id);
    cpu.index = domain.num_vcpus;
    cpu.lp = Some(lp);
    domain.num_vcpus += 1;
    Ok(())
}

/// TDH.VP.FLUSH: RCX TDVPR. Ends the association with this logical processor, also of a fatal TD.
pub(super) fn flush(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (td, vcpu) = s.tdvpr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    if s.td(td).lifecycle != Lifecycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    s.pause(c, Point::Commit);
    if !s.td(td).has_pages(vcpu) {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let lp = c.lp;
    let cpu = &mut s.td_mut(td).vcpus[vcpu];
    if cpu.lp != Some(lp) {
        return Err(Status::VCPU_NOT_ASSOCIATED);
    }
    cpu.lp = None;
    cpu.translations.flush();
    Ok(())
}
