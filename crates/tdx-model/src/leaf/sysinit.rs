//! SYS.INIT to SYS.TDMR.INIT: the module comes up; and shutdown. (TDX module ABI, "System leaves".)

use std::sync::Arc;

use crate::abi::{Operand, PAGE, Status};
use crate::call::Ctx;
use crate::config::Tdmr;
use crate::state::{Answer, State};

/// State of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SysState {
    InitPending,
    InitDone,
    ConfigDone,
    Ready,
    Shutdown,
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

    pub(crate) fn knows(&self, lp: u32) -> bool {
        self.processors.as_ref().is_none_or(|processors| processors.contains(&lp))
    }
}

const TDMR_INFO: u64 = 512;
const MAX_TDMRS: u64 = 64;
const RESERVED_AREAS: usize = 16;
const GIB: u64 = 1 << 30;

/// TDH.SYS.INIT: RCX 0.
pub(super) fn init(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.state != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    if c.regs.rcx != 0 {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.system.state = SysState::InitDone;
    Ok(())
}

/// TDH.SYS.LP.INIT: once on each logical processor.
pub(super) fn lp_init(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.knows(c.lp) {
        return Err(Status::SYS_LP_INIT_DONE);
    }
    if s.system.state != SysState::InitDone {
        return Err(Status::SYS_LP_INIT_NOT_PENDING);
    }
    s.system.processors.get_or_insert_default().push(c.lp);
    Ok(())
}

/// TDH.SYS.CONFIG: RCX array of addresses, RDX count, R8 the module's key id (bit 16: Dynamic PAMT).
pub(super) fn config(s: &mut State, c: &mut Ctx) -> Answer {
    if s.system.state != SysState::InitDone {
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
    let mut tdmrs: Vec<Tdmr> = Vec::new();
    for index in 0..count {
        let at = number(s, array + index * 8);
        if !s.cfg.shared_operand(at, TDMR_INFO) {
            return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
        }
        tdmrs.push(read_tdmr(s, at, index, dynamic, tdmrs.last())?);
    }
    let cfg = Arc::make_mut(&mut s.cfg);
    cfg.tdmrs = tdmrs;
    cfg.hkid.global = r8 as u16;
    cfg.profile = cfg.profile.with_dynamic_pamt(dynamic);
    s.reserve_global_key();
    s.system.state = SysState::ConfigDone;
    Ok(())
}

/// Eight bytes of ordinary memory.
fn number(s: &State, at: u64) -> u64 {
    let at = at & !s.cfg.hkid.mask();
    let bytes = s.mem.read_bytes(at & !(PAGE - 1));
    bytes[(at % PAGE) as usize..][..8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Reads and checks TDMR_INFO. Convertible memory ranges are not modelled: all memory is convertible.
fn read_tdmr(s: &State, at: u64, index: u64, dynamic: bool, before: Option<&Tdmr>) -> Answer<Tdmr> {
    let field = |position: u64| number(s, at + position * 8);
    let index = index as u32;
    let (base, size) = (field(0), field(1));
    let end = base.checked_add(size).filter(|&end| s.cfg.plain(end - 1));
    if size == 0 || !base.is_multiple_of(GIB) || !size.is_multiple_of(GIB) || end.is_none() {
        return Err(Status::INVALID_TDMR.detail(index));
    }
    if before.is_some_and(|before| base < before.base + before.size) {
        return Err(Status::NON_ORDERED_TDMR.detail(index));
    }
    let entries = if dynamic { [16, 16, 1] } else { [16; 3] };
    let needed = seamcall::pamt_sizes(size, entries, dynamic).unwrap_or([u64::MAX; 3]);
    for (kind, needed) in (0u32..).zip(needed) {
        let (base, size) = (field(2 + 2 * u64::from(kind)), field(3 + 2 * u64::from(kind)));
        if !base.is_multiple_of(PAGE) || size < needed || !s.cfg.plain(base) {
            // Byte 1 of the detail is the page size that the area is for.
            return Err(Status::INVALID_PAMT.detail(index | (2 - kind) << 8));
        }
    }
    let mut reserved: Vec<(u64, u64)> = Vec::new();
    for area in 0..RESERVED_AREAS as u32 {
        let (offset, bytes) = (field(8 + 2 * u64::from(area)), field(9 + 2 * u64::from(area)));
        if bytes == 0 {
            break;
        }
        let detail = index | area << 8;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
        if !offset.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) || !inside {
            return Err(Status::INVALID_RESERVED_IN_TDMR.detail(detail));
        }
        if reserved.last().is_some_and(|&(last, bytes)| base + offset < last + bytes) {
            return Err(Status::NON_ORDERED_RESERVED_IN_TDMR.detail(detail));
        }
        reserved.push((base + offset, bytes));
    }
    Ok(Tdmr { base, size, initialized_end: base, reserved })
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
pub(super) fn tdmr_init(s: &mut State, c: &mut Ctx) -> Answer {
    let base = c.regs.rcx;
    let dynamic = s.cfg.profile.dynamic_pamt;
    let position = s.cfg.tdmrs.iter().position(|tdmr| tdmr.base == base);
    let position = position.filter(|_| base.is_multiple_of(GIB) && s.cfg.plain(base));
    let position = position.ok_or(Status::OPERAND_INVALID.of(Operand::Rcx))?;
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

/// TDH.SYS.LP.SHUTDOWN: the processor is out of the module, and the module is down.
pub(super) fn lp_shutdown(s: &mut State, c: &mut Ctx) -> Answer {
    if !s.system.knows(c.lp) {
        return Err(Status::SYS_LP_INIT_NOT_DONE);
    }
    if let Some(processors) = &mut s.system.processors {
        processors.retain(|&processor| processor != c.lp);
    }
    s.system.state = SysState::Shutdown;
    Ok(())
}

/// TDH.SYS.SHUTDOWN: RCX the version of what is handed to the next module.
pub(super) fn shutdown(s: &mut State, c: &mut Ctx) -> Answer {
    if c.regs.rcx > 0xFFFF {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.system.state = SysState::Shutdown;
    Ok(())
}
