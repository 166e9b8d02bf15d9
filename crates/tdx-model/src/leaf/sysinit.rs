//! SYS.INIT to SYS.TDMR.INIT: the module comes up; and shutdown. (TDX module ABI, "System leaves".)

use std::sync::Arc;

use crate::abi::{Operand, PAGE, Status};
use crate::call::Ctx;
use crate::session::{Point, Session};
use crate::state::{Answer, State};

use super::tdmr::{GIB, TDMR_INFO, TdmrInfo};

/// State of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SysState {
    InitPending,
    InitDone,
    ConfigDone,
    Ready,
    Shutdown,
    /// The module met what must not be and stopped for good.
    Halted,
}

/// How far the module is, and on which processors and packages.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) state: SysState,
    /// Initialised logical processors; `None`: all that there are.
    pub(crate) processors: Option<Vec<u32>>,
    keyed_packages: u32,
}

impl System {
    pub(crate) const fn ready() -> Self {
        Self { state: SysState::Ready, processors: None, keyed_packages: 0 }
    }

    pub(crate) const fn cold() -> Self {
        Self { state: SysState::InitPending, processors: Some(Vec::new()), keyed_packages: 0 }
    }

    fn initialised(&self) -> u32 {
        self.processors.as_ref().map_or(u32::MAX, |processors| processors.len() as u32)
    }

    pub(crate) fn knows(&self, lp: u32) -> bool {
        self.processors.as_ref().is_none_or(|processors| processors.contains(&lp))
    }
}

const MAX_TDMRS: u64 = 64;
const HANDOFF_VERSION: u64 = 0;

/// TDH.SYS.INIT: RCX 0.
pub(super) fn init(s: &mut State, c: &mut Ctx) -> Answer {
    if c.regs.rcx != 0 {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    if s.system.state != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    s.system.state = SysState::InitDone;
    Ok(())
}

/// TDH.SYS.LP.INIT: once on each logical processor.
pub(super) fn lp_init(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.state != SysState::InitDone {
        return Err(Status::SYS_LP_INIT_NOT_PENDING);
    }
    if s.system.knows(c.lp) {
        return Err(Status::SYS_LP_INIT_DONE);
    }
    s.system.processors.get_or_insert_default().push(c.lp);
    Ok(())
}

/// TDH.SYS.CONFIG: RCX array of addresses, RDX count, R8 the module's key id (bit 16: Dynamic PAMT).
///
/// From the check of the key id on the key is the module's, even when the regions are refused.
pub(super) fn config(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.state != SysState::InitDone || s.system.initialised() < s.cfg.logical_processors {
        return Err(Status::SYS_CONFIG_NOT_PENDING);
    }
    let (array, count, r8) = (c.regs.rcx, c.regs.rdx, c.regs.r8);
    if !s.cfg.shared_operand(array, TDMR_INFO) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    if !(1..=MAX_TDMRS).contains(&count) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    let (layout, dynamic) = (s.cfg.hkid, r8 & 1 << 16 != 0);
    let capable = s.cfg.profile.dynamic_pamt_capable && layout.start_bit <= 48;
    let private = u64::from(layout.private_min)..=u64::from(layout.private_max);
    if !private.contains(&(r8 & 0xFFFF)) || r8 >> 17 != 0 || dynamic && !capable {
        return Err(Status::OPERAND_INVALID.of(Operand::R8));
    }
    let cfg = Arc::make_mut(&mut s.cfg);
    cfg.hkid.global = r8 as u16;
    s.reserve_global_key();
    let mut offered: Vec<TdmrInfo> = Vec::new();
    for index in 0..count {
        let at = s.read_shared(array + index * 8);
        if !s.cfg.shared_operand(at, TDMR_INFO) {
            return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
        }
        offered.push(TdmrInfo::read(s, at));
        TdmrInfo::check(&offered, &s.cfg, dynamic)?;
    }
    let cfg = Arc::make_mut(&mut s.cfg);
    cfg.tdmrs = offered.iter().map(TdmrInfo::tdmr).collect();
    cfg.profile = cfg.profile.with_dynamic_pamt(dynamic);
    s.system.state = SysState::ConfigDone;
    Ok(())
}

/// TDH.SYS.KEY.CONFIG: once on each package; after the last the module is ready.
pub(super) fn key_config(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.state != SysState::ConfigDone {
        return Err(Status::SYS_KEY_CONFIG_NOT_PENDING);
    }
    let bit = 1 << (c.lp % s.cfg.packages);
    if s.system.keyed_packages & bit != 0 {
        return Err(Status::KEY_CONFIGURED);
    }
    s.system.keyed_packages |= bit;
    if s.system.keyed_packages.count_ones() == s.cfg.packages {
        s.system.state = SysState::Ready;
    }
    Ok(())
}

/// TDH.SYS.TDMR.INIT: RCX base. Out: RDX how far it is, in whole GiB.
pub(super) fn tdmr_init(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let base = c.regs.rcx;
    let dynamic = s.cfg.profile.dynamic_pamt;
    let position = s.cfg.tdmrs.iter().position(|tdmr| tdmr.base == base);
    let position = position.filter(|_| base.is_multiple_of(GIB) && s.cfg.plain(base));
    let position = position.ok_or(Status::OPERAND_INVALID.of(Operand::Rcx))?;
    s.lock_tdmr(c, base)?;
    s.pause(c, Point::Locked);
    // Entries that one call initialises.
    let step = PAGE * if dynamic { 4096 } else { 1024 };
    let tdmr = &mut Arc::make_mut(&mut s.cfg).tdmrs[position];
    let end = tdmr.base + tdmr.size;
    if tdmr.initialized_end >= end {
        return Err(Status::TDMR_ALREADY_INITIALIZED);
    }
    tdmr.initialized_end += step;
    c.out.rdx = tdmr.initialized_end & !(GIB - 1);
    Ok(())
}

/// TDH.SYS.LP.SHUTDOWN: kept for hosts that make it; it does nothing.
pub(super) const fn lp_shutdown() -> Answer {
    Ok(())
}

/// TDH.SYS.SHUTDOWN: RCX the version of what is handed to the next module, of which the module knows one.
pub(super) fn shutdown(s: &mut State, c: &mut Ctx) -> Answer {
    if c.regs.rcx != HANDOFF_VERSION {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.system.state = SysState::Shutdown;
    Ok(())
}
