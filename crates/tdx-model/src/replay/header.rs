//! From the header of a trace to the state every sequence starts from.

use std::sync::Arc;

use super::format::{Header, Td as TdRow};
use crate::abi::{Lifecycle, PageType, size_of_level};
use crate::builder::MachineBuilder;
use crate::config::{HkidLayout, ModuleVersion, Tdmr};
use crate::sept;
use crate::state::{KeyState, State};
use crate::td::{ROOT_TDCX, Td, Vcpu};

/// The machine of a trace, and on which logical processor each of its vCPUs runs.
pub(super) struct Start {
    pub(super) state: State,
    pub(super) audit: bool,
    tdvprs: Vec<Vec<(u64, u32)>>,
}

const OP_STATES: [&str; 11] = [
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

const LIFECYCLES: [&str; 4] = ["HKID_ASSIGNED", "KEYS_CONFIGURED", "BLOCKED", "TEARDOWN"];

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

fn number_of(names: &[&str], name: &str) -> Result<u8, String> {
    let found = names.iter().position(|known| *known == name);
    found.map(|number| number as u8).ok_or_else(|| format!("unknown state {name}"))
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
                initialized_end: tdmr.last_initialized.0,
                reserved: tdmr.reserved.iter().map(|area| (area.pa.0, area.size.0)).collect(),
            });
        }
        if let Some(enabled) = header.dynamic_pamt {
            builder = builder.dynamic_pamt(enabled);
        }
        let mut state = builder.packages(header.packages.unwrap_or(1)).build_state();
        load_pamt(&mut state, header)?;
        let mut tdvprs = Vec::new();
        for row in &header.tds {
            load_td(&mut state, row)?;
            tdvprs.push(row.vcpus.iter().map(|vcpu| (vcpu.tdvpr.0, vcpu.lp)).collect());
        }
        Ok(Self { state, audit, tdvprs })
    }

    /// TDVPR and logical processor of a vCPU: of the header, or created since.
    pub(super) fn vcpu(
        &self,
        state: &State,
        td: Option<usize>,
        vcpu: Option<usize>,
    ) -> Result<(u64, u32), String> {
        let (td, vcpu) = td.zip(vcpu).ok_or("no vCPU is named")?;
        let named = self.tdvprs.get(td).and_then(|vcpus| vcpus.get(vcpu)).copied();
        let created = || {
            let created = state.tds.get(td)?.as_ref()?.vcpus.get(vcpu)?;
            Some((created.tdvpr, created.lp.unwrap_or(0)))
        };
        named.or_else(created).ok_or_else(|| "no such vCPU".to_owned())
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
    }
    Ok(())
}

fn load_td(state: &mut State, row: &TdRow) -> Result<(), String> {
    if row.num_l2_vms != 0 {
        return Err("TDs with L2 VMs are not modelled".to_owned());
    }
    let index = state.tds.len();
    let mut td = Td::new(row.tdr.0, row.hkid);
    td.lifecycle = Lifecycle::from_number(number_of(&LIFECYCLES, &row.lifecycle)?).ok_or("life cycle")?;
    td.fatal = row.fatal;
    td.chldcnt = row.chldcnt;
    td.tdcx = row.tdcx.iter().map(|page| page.0).collect();
    td.op_state = row.op_state.as_ref().map_or(Ok(0), |name| number_of(&OP_STATES, name))?;
    td.gpaw = row.gpaw != 0;
    td.root_level = row.eptp_pwl.unwrap_or(3);
    td.debug = row.debug;
    td.td_epoch = row.td_epoch;
    td.refcount = row.epoch_refcount;
    td.max_vcpus = row.vcpus.len() as u16;
    for page in &td.tdcx {
        state.mem.write(*page, 0, row.hkid);
    }
    if let Some(&root) = td.tdcx.get(ROOT_TDCX) {
        td.root = state.mem.new_table(root, sept::FREE, row.hkid);
    }
    for (number, vcpu) in row.vcpus.iter().enumerate() {
        state.mem.write(vcpu.tdvpr.0, (index as u64) << 32 | number as u64, row.hkid);
        td.vcpus.push(Vcpu {
            tdvpr: vcpu.tdvpr.0,
            tdcx: vcpu.tdcx.iter().map(|page| page.0).collect(),
            initialized: vcpu.state == "READY",
            epoch: vcpu.vcpu_epoch,
            lp: Some(vcpu.lp),
            ..Vcpu::default()
        });
    }
    let global = state.cfg.hkid.global;
    state.mem.write(row.tdr.0, index as u64, global);
    if let Some(key) = state.keys.get_mut(usize::from(row.hkid)) {
        *key = KeyState::Assigned;
    }
    state.tds.push(Some(td));
    Ok(())
}
