//! MNG.* and MR.*: a TD is created, keyed, initialised, measured and torn down.

use crate::abi::{Lifecycle, Operand, PAGE, PageType, Status, op_state};
use crate::call::Ctx;
use crate::l2;
use crate::lock::Mode;
use crate::memory::fold;
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::state::{Answer, KeyState, State};
use crate::td::{MAX_TDCX, MIN_TDCX, ROOT_TDCX, Td};
use crate::td_params::{TD_PARAMS, TdParams};

/// TDH.MNG.CREATE: RCX page, RDX key id.
pub(super) fn create(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (page, hkid) = (c.regs.rcx, c.regs.rdx);
    let layout = s.cfg.hkid;
    let private = u64::from(layout.private_min)..=u64::from(layout.private_max);
    if !private.contains(&hkid) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    s.new_page(c, page, Operand::Rcx)?;
    s.lock_key_table(c, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    if s.keys[hkid as usize] != KeyState::Free {
        return Err(Status::HKID_NOT_FREE);
    }
    s.keys[hkid as usize] = KeyState::Assigned;
    let td = Td::new(page, hkid as u16);
    let index = match s.tds.iter().position(Option::is_none) {
        Some(index) => index,
        None => {
            s.tds.push(None);
            s.tds.len() - 1
        }
    };
    s.tds[index] = Some(td);
    let cfg = s.cfg.clone();
    s.donated(page, 1, layout.global);
    s.mem.write(page, index as u64, layout.global);
    s.mem.pamt_assign(&cfg, page, 0, PageType::Tdr, 0);
    Ok(())
}

/// TDH.MNG.KEY.CONFIG: once per package.
pub(super) fn key_config(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    let (package, packages) = (c.lp % s.cfg.packages, s.cfg.packages);
    let td = s.td_mut(td);
    if td.fatal {
        return Err(Status::TD_FATAL);
    }
    if td.lifecycle != Lifecycle::HkidAssigned {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    if td.keyed_packages & 1 << package != 0 {
        return Err(Status::KEY_CONFIGURED);
    }
    td.keyed_packages |= 1 << package;
    if td.keyed_packages.count_ones() == packages {
        td.lifecycle = Lifecycle::KeysConfigured;
    }
    Ok(())
}

/// TDH.MNG.ADDCX: RCX page, RDX TDR. The fourth page becomes the S-EPT root, the seventh and later ones those of L2 VMs.
pub(super) fn add_cx(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (page, tdr) = (c.regs.rcx, c.regs.rdx);
    let td = s.tdr_operand(c, tdr, Operand::Rdx, Mode::Exclusive)?;
    s.keyed(td)?;
    let (number, key) = (s.td(td).tdcx.len(), s.td(td).hkid);
    if number == MAX_TDCX {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    s.new_page(c, page, Operand::Rcx)?;
    s.pause(c, Point::Commit);
    s.donated(page, 1, key);
    // The page is written before the last check.
    if number >= MIN_TDCX && s.td(td).op_state != op_state::UNINITIALIZED {
        s.mem.write(page, 0, key);
        return Err(Status::OP_STATE_INCORRECT);
    }
    match number {
        ROOT_TDCX => s.td_mut(td).root = s.mem.new_table(page, sept::FREE, key),
        MIN_TDCX..MAX_TDCX => s.td_mut(td).l2_roots[number - MIN_TDCX] = s.mem.new_table(page, l2::FREE, key),
        _ => s.mem.write(page, 0, key),
    }
    let cfg = s.cfg.clone();
    s.mem.pamt_assign(&cfg, page, 0, PageType::Tdcx, tdr);
    let domain = s.td_mut(td);
    domain.tdcx.push(page);
    domain.chldcnt += 1;
    Ok(())
}

/// TDH.MNG.INIT: RCX TDR, RDX TD_PARAMS in shared memory.
pub(super) fn init(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    s.ready(td)?;
    s.allow_op_state(td, op_state::FRESH)?;
    let at = c.regs.rdx;
    if !s.cfg.shared_operand(at, TD_PARAMS) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    let bytes = s.shared_page(at);
    let params = TdParams::read(&bytes[(at % PAGE) as usize..][..TD_PARAMS as usize]);
    params.check(s.cfg.max_pa_bits, s.td(td).tdcx.len())?;
    s.pause(c, Point::Commit);
    let domain = s.td_mut(td);
    domain.controls = params.controls();
    domain.num_l2_vms = params.num_l2_vms;
    domain.gpaw = params.config_flags & 1 != 0;
    domain.root_level = params.root_level();
    domain.op_state = op_state::INITIALIZED;
    domain.num_vcpus = 0;
    domain.td_epoch = 1;
    domain.refcount = [0; 2];
    Ok(())
}

/// TDH.MNG.VPFLUSHDONE: no vCPU of the TD is associated any more; its key can be flushed.
pub(super) fn vp_flush_done(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    s.lock_key_table(c, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    let packages = s.cfg.packages;
    let domain = s.td_mut(td);
    if !matches!(domain.lifecycle, Lifecycle::HkidAssigned | Lifecycle::KeysConfigured) {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    let initialized = domain.op_state != op_state::UNINITIALIZED;
    if initialized && domain.vcpus.iter().any(|vcpu| vcpu.lp.is_some()) {
        return Err(Status::FLUSHVP_NOT_DONE);
    }
    domain.lifecycle = Lifecycle::Blocked;
    let key = usize::from(domain.hkid);
    s.keys[key] = KeyState::Flushing(((1u64 << packages) - 1) as u32);
    Ok(())
}

/// TDH.MNG.KEY.FREEID: the key id is free again.
pub(super) fn key_free_id(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    if s.td(td).lifecycle != Lifecycle::Blocked {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    s.lock_key_table(c, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    let key = usize::from(s.td(td).hkid);
    if s.keys[key] != KeyState::Flushing(0) {
        return Err(Status::WBCACHE_NOT_COMPLETE);
    }
    s.keys[key] = KeyState::Free;
    s.td_mut(td).lifecycle = Lifecycle::Teardown;
    Ok(())
}

/// TDH.MNG.KEY.RECLAIMID: does nothing, for compatibility.
pub(super) const fn reclaim_id(_: &mut State, _: &mut Ctx) -> Answer {
    Ok(())
}

/// TDH.MR.EXTEND: RCX GPA, RDX TDR. Measures 256 bytes.
pub(super) fn mr_extend(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rdx, Operand::Rdx, Mode::Exclusive)?;
    s.ready(td)?;
    s.allow_op_state(td, op_state::BUILD)?;
    let gpa = c.regs.rcx;
    if !gpa.is_multiple_of(256) || !s.td(td).is_private(gpa) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.pause(c, Point::Commit);
    let slot = s.walk_to_leaf(c, td, gpa)?;
    if slot.state() != EntryState::Mapped {
        return Err(Status::EPT_ENTRY_NOT_PRESENT);
    }
    let page = s.page_of(&slot).0 + (gpa & !(PAGE - 1)) % crate::abi::size_of_level(slot.level);
    let content = s.mem.pattern(page);
    let domain = s.td_mut(td);
    domain.measurement = fold(fold(domain.measurement, gpa), content);
    Ok(())
}

/// TDH.MR.FINALIZE: the measurement ends, vCPUs may run.
pub(super) fn mr_finalize(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    s.ready(td)?;
    s.allow_op_state(td, op_state::BUILD)?;
    s.pause(c, Point::Commit);
    let domain = s.td_mut(td);
    if domain.num_vcpus == 0 {
        return Err(Status::NO_VCPUS);
    }
    domain.op_state = op_state::RUNNABLE;
    Ok(())
}
