//! MNG.* and MR.*: a TD is created, keyed, initialised, measured and torn down.

use crate::abi::{Lifecycle, NULL_PA, Operand, PAGE, PageType, Status, op_state};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::memory::fold;
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::state::{Answer, KeyState};
use crate::td::{MAX_TDCX, MIN_TDCX, ROOT_TDCX, Td};

/// Bytes of TD_PARAMS.
const TD_PARAMS: u64 = 1024;

/// ATTRIBUTES: no #VE for pending pages.
const SEPT_VE_DISABLE: u64 = 1 << 28;

/// TDH.MNG.CREATE: RCX page, RDX key id.
pub(super) fn create(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let (page, hkid) = (c.regs.rcx, c.regs.rdx);
    let layout = s.cfg.hkid;
    let private = u64::from(layout.private_min)..=u64::from(layout.private_max);
    if !private.contains(&hkid) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    s.new_page(c, page, Operand::Rcx)?;
    s.lock_key_table(c)?;
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

/// TDH.MNG.ADDCX: RCX page, RDX TDR. The fourth page becomes the S-EPT root.
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
    if number == ROOT_TDCX {
        s.td_mut(td).root = s.mem.new_table(page, sept::FREE, key);
    } else {
        s.mem.write(page, 0, key);
    }
    if number >= MIN_TDCX {
        s.allow_op_state(td, op_state::FRESH)?;
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
    let at = at & !s.cfg.hkid.mask();
    let bytes = s.mem.read_bytes(at & !(PAGE - 1));
    let params = TdParams::read(&bytes[(at % PAGE) as usize..][..TD_PARAMS as usize]);
    params.check(s.cfg.max_pa_bits)?;
    s.pause(c, Point::Commit);
    let domain = s.td_mut(td);
    domain.debug = params.attributes & 1 != 0;
    domain.pending_ve_disable = params.attributes & SEPT_VE_DISABLE != 0;
    domain.max_vcpus = params.max_vcpus;
    domain.gpaw = params.config_flags & 1 != 0;
    domain.root_level = params.root_level();
    domain.op_state = op_state::INITIALIZED;
    domain.td_epoch = 1;
    domain.refcount = [0; 2];
    Ok(())
}

/// The fields of TD_PARAMS the model looks at.
struct TdParams {
    attributes: u64,
    xfam: u64,
    max_vcpus: u16,
    num_l2_vms: u8,
    eptp_controls: u64,
    config_flags: u64,
    tsc_frequency: u16,
    reserved_clear: bool,
}

impl TdParams {
    /// Reads the little-endian structure.
    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize, size: usize| {
            bytes[at..at + size].iter().rev().fold(0, |value: u64, &byte| value << 8 | u64::from(byte))
        };
        let clear = |range: core::ops::Range<usize>| bytes[range].iter().all(|&byte| byte == 0);
        Self {
            attributes: number(0, 8),
            xfam: number(8, 8),
            max_vcpus: number(16, 2) as u16,
            num_l2_vms: bytes[18],
            eptp_controls: number(24, 8),
            config_flags: number(32, 8),
            tsc_frequency: number(40, 2) as u16,
            reserved_clear: clear(19..24) && clear(42..80) && clear(232..256),
        }
    }

    const fn root_level(&self) -> u8 {
        (self.eptp_controls >> 3 & 7) as u8
    }

    /// The checks in the order of the ABI.
    fn check(&self, max_pa_bits: u32) -> Answer {
        /// Debug, SEPT_VE_DISABLE, protection keys, key locker, performance monitoring.
        const ATTRIBUTES: u64 = 1 | SEPT_VE_DISABLE | 1 << 30 | 1 << 31 | 1 << 63;
        /// x87 and SSE are needed; AVX, AVX-512, PT, PK, CET, ULI, LBR, AMX are possible.
        const XFAM: (u64, u64) = (0x3, 0x6_DBE7);
        /// GPAW, flexible pending #VE, no RBP modification.
        const CONFIG_FLAGS: u64 = 7;
        const MAX_VCPUS: u16 = 576;
        let wide = self.config_flags & 1 != 0;
        let level = self.root_level();
        let eptp_valid =
            self.eptp_controls & !0x38 == 6 && (level == 4 && max_pa_bits >= 49 || level == 3 && !wide);
        let checks = [
            (self.attributes & !ATTRIBUTES == 0, Operand::Attributes),
            (self.xfam & XFAM.0 == XFAM.0 && self.xfam & !XFAM.1 == 0, Operand::Xfam),
            ((1..=MAX_VCPUS).contains(&self.max_vcpus), Operand::MaxVcpus),
            (self.num_l2_vms == 0, Operand::NumL2Vms),
            (self.reserved_clear, Operand::Rdx),
            (self.config_flags & !CONFIG_FLAGS == 0, Operand::ConfigFlags),
            (eptp_valid, Operand::EptpControls),
            ((4..=400).contains(&self.tsc_frequency), Operand::TscFrequency),
        ];
        match checks.into_iter().find(|&(holds, _)| !holds) {
            Some((_, operand)) => Err(Status::OPERAND_INVALID.of(operand)),
            None => Ok(()),
        }
    }
}

/// TDH.MNG.VPFLUSHDONE: no vCPU of the TD is associated any more; its key can be flushed.
pub(super) fn vp_flush_done(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Exclusive)?;
    s.pause(c, Point::Commit);
    let packages = s.cfg.packages;
    let domain = s.td_mut(td);
    if !matches!(domain.lifecycle, Lifecycle::HkidAssigned | Lifecycle::KeysConfigured) {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    if domain.vcpus.iter().any(|vcpu| vcpu.lp.is_some()) {
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
    s.pause(c, Point::Commit);
    let key = usize::from(s.td(td).hkid);
    if s.keys[key] != KeyState::Flushing(0) {
        return Err(Status::WBCACHE_NOT_COMPLETE);
    }
    s.keys[key] = KeyState::Free;
    s.td_mut(td).lifecycle = Lifecycle::Teardown;
    Ok(())
}

/// TDH.MNG.RD: a metadata field of a TD.
pub(super) fn rd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Shared)?;
    let field = c.regs.rdx;
    if c.version == 1 {
        c.out.rdx = NULL_PA;
    }
    c.out.r8 = 0;
    let domain = s.td(td);
    let of_tdr = match field {
        0x8010_0000_0000_0001 => Some(u64::from(domain.fatal)),
        0x8010_0003_0000_0004 => Some(domain.chldcnt),
        0x8010_0002_0000_0002 => Some(domain.tdcx.len() as u64),
        0x8010_0002_0000_0005 => Some(domain.lifecycle as u64),
        0x8110_0001_0000_0001 => Some(u64::from(domain.hkid)),
        _ => None,
    };
    if let Some(value) = of_tdr {
        c.out.r8 = value;
        return Ok(());
    }
    s.ready(td)?;
    s.lock_op_state(c, td, op_state::ANY)?;
    s.pause(c, Point::Commit);
    let domain = s.td(td);
    c.out.r8 = match field {
        0x9210_0003_0000_0000 => domain.td_epoch,
        0x9210_0001_0000_0001 => u64::from(domain.refcount[0]),
        0x9210_0001_0000_0002 => u64::from(domain.refcount[1]),
        0x9010_0002_0000_0004 => u64::from(domain.op_state),
        0x9010_0001_0000_0005 => 0,
        0x1110_0000_0000_0003 => u64::from(domain.gpaw),
        0x1110_0003_0000_0004 => 6 | u64::from(domain.root_level) << 3,
        _ => return Err(Status::METADATA_FIELD_ID_INCORRECT),
    };
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
    let slot = s.walk(td, gpa & !(PAGE - 1), 0);
    if slot.entry & sept::LEAF == 0 {
        return Err(s.details(c, &slot, Status::EPT_ENTRY_NOT_PRESENT));
    }
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
    if !domain.vcpus.iter().any(|vcpu| vcpu.initialized) {
        return Err(Status::NO_VCPUS);
    }
    domain.op_state = op_state::RUNNABLE;
    Ok(())
}
