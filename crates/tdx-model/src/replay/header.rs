//! From the header of a trace to the state every sequence starts from.

use std::sync::Arc;

use super::format::Step;
use super::number::Named;
use super::platform::{Header, Td as TdRow, Vcpu as VcpuRow};
use crate::abi::{Lifecycle, PageType, size_of_level};
use crate::builder::MachineBuilder;
use crate::config::{HkidLayout, ModuleVersion, Tdmr};
use crate::l2;
use crate::leaf::sysinit::SysState;
use crate::lock::Mode;
use crate::sept;
use crate::state::{KeyState, State};
use crate::td::{ATTRIBUTE_DEBUG, MIN_TDCX, ROOT_TDCX, Td, Vcpu};

/// The machine of a trace, and on which logical processor each of its vCPUs runs.
pub(super) struct Start {
    pub(super) state: State,
    pub(super) audit: bool,
    tdvprs: Vec<Vec<(u64, Option<u32>)>>,
}

pub(super) const OP_STATES: [&str; 11] = [
    "UNINITIALIZED",
    "INITIALIZED",
    "RUNNABLE",
    "LIVE_EXPORT",
    "PAUSED_EXPORT",
    "POST_EXPORT",
    "MEMORY_IMPORT",
    "STATE_IMPORT",
    "POST_IMPORT",
    "LIVE_IMPORT",
    "FAILED_IMPORT",
];

pub(super) const LIFECYCLES: [&str; 4] = ["HKID_ASSIGNED", "KEYS_CONFIGURED", "BLOCKED", "TEARDOWN"];

/// States of the module, by the end of their names.
const SYS_STATES: [&str; 5] = ["INIT_PENDING", "INIT_DONE", "CONFIG_DONE", "READY", "SHUTDOWN"];

const PAGE_TYPES: [(PageType, &str); 8] = [
    (PageType::Nda, "NDA"),
    (PageType::Rsvd, "RSVD"),
    (PageType::Reg, "REG"),
    (PageType::Tdr, "TDR"),
    (PageType::Tdcx, "TDCX"),
    (PageType::Tdvpr, "TDVPR"),
    (PageType::Ept, "EPT"),
    (PageType::Pamt, "PAMT"),
];

/// The type with that name in traces.
fn page_type(name: &str) -> Result<PageType, String> {
    let found = PAGE_TYPES.iter().find(|(_, known)| *known == name);
    found.map(|(kind, _)| *kind).ok_or_else(|| format!("unknown page type {name}"))
}

/// The name a type has in traces.
pub(super) fn page_type_name(kind: PageType) -> &'static str {
    PAGE_TYPES.iter().find(|(known, _)| *known == kind).map_or("?", |(_, name)| name)
}

fn sys_state(named: &Named) -> Result<SysState, String> {
    // Some names have no underscore before INIT and CONFIG.
    let named = match named {
        Named::Name(name) => Named::Name(name.strip_prefix("SYS").unwrap_or(name).to_owned()),
        Named::Number(_) => named.clone(),
    };
    Ok(match named.number_in(&SYS_STATES)? {
        0 => SysState::InitPending,
        1 => SysState::InitDone,
        2 => SysState::ConfigDone,
        3 => SysState::Ready,
        _ => SysState::Shutdown,
    })
}

fn version(module: &str) -> ModuleVersion {
    let named = module.split_whitespace().find_map(|word| word.parse().ok());
    named.unwrap_or(ModuleVersion::V1_5_01)
}

impl Start {
    pub(super) fn new(header: &Header, audit: bool) -> Result<Self, String> {
        let hkid = HkidLayout {
            start_bit: header.hkid.start_bit,
            bits: header.hkid.bits,
            private_min: header.hkid.private_min,
            private_max: header.hkid.private_max,
            global: header.hkid.global_private,
        };
        let mut builder = MachineBuilder::new()
            .version(version(&header.module))
            .addresses(header.max_pa_bits, hkid)
            .seamrr(header.seamrr.base.0, header.seamrr.size.0);
        for tdmr in &header.tdmrs {
            builder = builder.tdmr(Tdmr {
                base: tdmr.base.0,
                size: tdmr.size.0,
                initialized_end: tdmr.initialized_end(),
                reserved: tdmr
                    .reserved
                    .iter()
                    .map(|area| (area.pa.map_or(tdmr.base.0 + area.offset.0, |pa| pa.0), area.size.0))
                    .collect(),
            });
        }
        if let Some(enabled) = header.dynamic_pamt {
            builder = builder.dynamic_pamt(enabled);
        }
        if let Some(pieces) = header.cache_sub_blocks {
            builder = builder.cache_sub_blocks(pieces);
        }
        let mut state = builder.packages(header.packages.unwrap_or(1)).build_state();
        if let Some(named) = &header.sys_state {
            state.system.state = sys_state(named)?;
        }
        load_pamt(&mut state, header)?;
        let mut tdvprs = Vec::new();
        for (position, row) in header.tds.iter().enumerate() {
            let number = row.td.unwrap_or(position);
            if number >= MOST_TDS {
                return Err(format!("TD number {number}"));
            }
            load_td(&mut state, number, row)?;
            tdvprs.resize(tdvprs.len().max(number + 1), Vec::new());
            tdvprs[number] = vcpus_in_order(row)?.map(|vcpu| (vcpu.tdvpr.0, vcpu.lp)).collect();
        }
        Ok(Self { state, audit, tdvprs })
    }

    /// TDVPR and logical processor of a vCPU: of the header, or created since.
    pub(super) fn vcpu(&self, state: &State, step: &Step) -> Result<(u64, u32), String> {
        let (td, vcpu) = step.td.zip(step.vcpu).ok_or("no vCPU is named")?;
        let named = self.tdvprs.get(td).and_then(|vcpus| vcpus.get(vcpu)).copied();
        let created = || {
            let created = state.tds.get(td)?.as_ref()?.vcpus.get(vcpu)?;
            Some((created.tdvpr, created.lp))
        };
        let (tdvpr, lp) = named.or_else(created).ok_or("no such vCPU")?;
        Ok((tdvpr, step.lp.or(lp).unwrap_or(0)))
    }
}

fn load_pamt(state: &mut State, header: &Header) -> Result<(), String> {
    let cfg = Arc::clone(&state.cfg);
    for row in &header.pamt_initial {
        let kind = page_type(&row.pt)?;
        for index in 0..row.n {
            let page = row.pa.0 + index * size_of_level(row.lvl);
            state.mem.pamt_assign(&cfg, page, row.lvl, kind, row.owner.0);
            state.mem.entry_mut(&cfg, page, row.lvl).bepoch = row.bepoch.0;
        }
        if let Some(pair) = row.pair.filter(|_| kind == PageType::Pamt) {
            state.mem.attach_pair(&cfg, row.pa.0, pair.map(|page| page.0));
            pair.iter().for_each(|page| state.mem.mark_pamt_page(page.0, true));
        }
    }
    Ok(())
}

/// TDs that a header can have.
const MOST_TDS: usize = 4096;

/// The vCPUs as they are numbered.
fn vcpus_in_order(row: &TdRow) -> Result<impl Iterator<Item = &VcpuRow>, String> {
    let mut order: Vec<(usize, &VcpuRow)> =
        row.vcpus.iter().enumerate().map(|(position, vcpu)| (vcpu.vcpu.unwrap_or(position), vcpu)).collect();
    order.sort_by_key(|&(number, _)| number);
    if order.iter().map(|&(number, _)| number).ne(0..order.len()) {
        return Err(format!("the vCPUs of TD {:#x} are not numbered from 0", row.tdr.0));
    }
    Ok(order.into_iter().map(|(_, vcpu)| vcpu))
}

fn load_td(state: &mut State, number: usize, row: &TdRow) -> Result<(), String> {
    let mut td = Td::new(row.tdr.0, row.hkid);
    let packages = ((1u64 << state.cfg.packages) - 1) as u32;
    td.lifecycle = Lifecycle::from_number(row.lifecycle.number_in(&LIFECYCLES)?).ok_or("life cycle")?;
    if td.lifecycle != Lifecycle::HkidAssigned {
        td.keyed_packages = packages;
    }
    td.fatal = row.fatal;
    td.chldcnt = row.chldcnt;
    td.tdcx = row.tdcx.iter().map(|page| page.0).collect();
    td.op_state = row.op_state.number_in(&OP_STATES)?;
    td.gpaw = row.is_wide();
    td.root_level = row.root_level()?;
    td.controls.attributes = if row.debug { ATTRIBUTE_DEBUG } else { 0 };
    td.controls.xfam = 3;
    td.controls.config_flags = u64::from(td.gpaw);
    td.num_l2_vms = row.num_l2_vms;
    td.td_epoch = row.td_epoch;
    td.refcount = [row.epoch_refcount[0].fit()?, row.epoch_refcount[1].fit()?];
    let ready = row.vcpus.iter().filter(|vcpu| is_initialized(vcpu)).count() as u32;
    td.num_vcpus = row.num_vcpus.unwrap_or(ready);
    td.controls.max_vcpus = td.num_vcpus.max(row.vcpus.len() as u32);
    for page in &td.tdcx {
        state.mem.write(*page, 0, row.hkid);
    }
    let root = row.sept_root_page.map(|page| page.0).or_else(|| td.tdcx.get(ROOT_TDCX).copied());
    if let Some(root) = root {
        td.root = state.mem.new_table(root, sept::FREE, row.hkid);
    }
    for (root, &page) in td.l2_roots.iter_mut().zip(td.tdcx.iter().skip(MIN_TDCX)) {
        *root = state.mem.new_table(page, l2::FREE, row.hkid);
    }
    for (index, vcpu) in vcpus_in_order(row)?.enumerate() {
        state.mem.write(vcpu.tdvpr.0, (number as u64) << 32 | index as u64, row.hkid);
        let inside = vcpu.state == "ACTIVE";
        if inside {
            hold_as_guest(state, row.tdr.0, vcpu.tdvpr.0);
        }
        td.vcpus.push(Vcpu {
            tdvpr: vcpu.tdvpr.0,
            tdcx: vcpu.tdcx.iter().map(|page| page.0).collect(),
            initialized: is_initialized(vcpu),
            inside,
            index: index as u32,
            epoch: vcpu.vcpu_epoch,
            lp: vcpu.lp,
            ..Vcpu::default()
        });
    }
    let global = state.cfg.hkid.global;
    state.mem.write(row.tdr.0, number as u64, global);
    if let Some(key) = state.keys.get_mut(usize::from(row.hkid)) {
        *key = match td.lifecycle {
            Lifecycle::HkidAssigned | Lifecycle::KeysConfigured => KeyState::Assigned,
            Lifecycle::Blocked => KeyState::Flushing(packages),
            Lifecycle::Teardown => KeyState::Free,
        };
    }
    state.tds.resize(state.tds.len().max(number + 1), None);
    state.tds[number] = Some(td);
    Ok(())
}

fn is_initialized(vcpu: &VcpuRow) -> bool {
    matches!(vcpu.state.as_str(), "READY" | "ACTIVE")
}

/// The page locks of a vCPU in guest mode.
fn hold_as_guest(state: &mut State, tdr: u64, tdvpr: u64) {
    let cfg = Arc::clone(&state.cfg);
    // Nothing else can hold them yet.
    let _ = state.mem.pamt_walk(&cfg, tdvpr, 0, Mode::Shared);
    let _ = state.mem.pamt_lock(&cfg, tdr, 0, Mode::Shared);
}
