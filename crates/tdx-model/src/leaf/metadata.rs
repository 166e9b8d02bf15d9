//! MNG.RD and MNG.WR, VP.RD and VP.WR: fields of a TD and of a vCPU by id.
//!
//! Bits of an id: 23:0 field code, 33:32 size of an element (2 to its power bytes), 54:52 context, 61:56 class. A field may
//! be an array; its elements follow in the code. Context, size and the mask-valid bit of what the host asks for are
//! ignored. The fields here are those whose content the model keeps; any other is METADATA_FIELD_ID_INCORRECT, as unknown
//! ones are to the module. (TDX module ABI, "Metadata fields"; `tdr_tdcs_fields_lookup.c`, `tdvps_fields_lookup.c`.)

use crate::abi::{NULL_PA, Operand, Status, op_state};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::session::{Point, Session};
use crate::state::{Answer, State};

/// What the host may do with a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read it.
    Read,
    /// Read it, if the TD is a debug TD.
    DebugRead,
    /// Read it, and write the bits of the mask.
    Write(u64),
    /// The same, if the TD is a debug TD.
    DebugWrite(u64),
}

pub(super) struct Field {
    pub(super) id: u64,
    elements: u32,
    access: Access,
}

pub(super) const fn field(id: u64, elements: u32, access: Access) -> Field {
    Field { id, elements, access }
}

use Access::{DebugRead, DebugWrite, Read, Write};

const FATAL: u64 = 0x8010_0000_0000_0001;
const NUM_TDCX: u64 = 0x8010_0002_0000_0002;
const CHLDCNT: u64 = 0x8010_0003_0000_0004;
const LIFECYCLE_STATE: u64 = 0x8010_0002_0000_0005;
const TDCX_PA: u64 = 0x8010_0003_0000_0010;
const HKID: u64 = 0x8110_0001_0000_0001;
const PKG_CONFIG_BITMAP: u64 = 0x8110_0003_0000_0002;
const NUM_VCPUS: u64 = 0x9010_0002_0000_0001;
const NUM_ASSOC_VCPUS: u64 = 0x9010_0002_0000_0002;
const OP_STATE: u64 = 0x9010_0002_0000_0004;
const NUM_L2_VMS: u64 = 0x9010_0001_0000_0005;
const ATTRIBUTES: u64 = 0x1110_0003_0000_0000;
const XFAM: u64 = 0x1110_0003_0000_0001;
const MAX_VCPUS: u64 = 0x1110_0002_0000_0002;
const GPAW: u64 = 0x1110_0000_0000_0003;
const EPTP: u64 = 0x1110_0003_0000_0004;
const TSC_FREQUENCY: u64 = 0x1110_0001_0000_000C;
const NOTIFY_ENABLES: u64 = 0x9110_0003_0000_0010;
const HP_LOCK_TIMEOUT: u64 = 0x9110_0003_0000_0011;
const VM_CTLS: u64 = 0x9110_0003_0000_0012;
const CONFIG_FLAGS: u64 = 0x1110_0003_0000_0016;
const TD_CTLS: u64 = 0x1110_0003_0000_0017;
const TD_EPOCH: u64 = 0x9210_0003_0000_0000;
const REFCOUNT: u64 = 0x9210_0001_0000_0001;
const MIG_EPOCH: u64 = 0x9810_0002_0000_0004;
const BW_EPOCH: u64 = 0x9810_0003_0000_0005;
const DIRTY_COUNT: u64 = 0x9810_0003_0000_0030;
const SEPT_ROOT: u64 = 0x2110_0003_0000_0000;
const L2_SEPT_ROOTS: [u64; 3] = [0x2510_0003_0000_0000, 0x2910_0003_0000_0000, 0x2D10_0003_0000_0000];

/// Fields of a TD, in the order in which they follow each other.
const TD_FIELDS: [Field; 31] = [
    field(FATAL, 1, Read),
    field(NUM_TDCX, 1, Read),
    field(CHLDCNT, 1, Read),
    field(LIFECYCLE_STATE, 1, Read),
    field(TDCX_PA, 9, Read),
    field(HKID, 1, Read),
    field(PKG_CONFIG_BITMAP, 1, Read),
    field(NUM_VCPUS, 1, Read),
    field(NUM_ASSOC_VCPUS, 1, Read),
    field(OP_STATE, 1, Read),
    field(NUM_L2_VMS, 1, Read),
    field(ATTRIBUTES, 1, Read),
    field(XFAM, 1, Read),
    field(MAX_VCPUS, 1, Read),
    field(GPAW, 1, Read),
    field(EPTP, 1, Read),
    field(TSC_FREQUENCY, 1, Read),
    field(NOTIFY_ENABLES, 1, DebugWrite(1)),
    field(HP_LOCK_TIMEOUT, 1, Write(u64::MAX)),
    field(VM_CTLS, 4, Write(1)),
    field(CONFIG_FLAGS, 1, Read),
    field(TD_CTLS, 1, DebugRead),
    field(TD_EPOCH, 1, Read),
    field(REFCOUNT, 2, Read),
    field(MIG_EPOCH, 1, Read),
    field(BW_EPOCH, 1, Read),
    field(DIRTY_COUNT, 1, Read),
    field(SEPT_ROOT, 512, DebugRead),
    field(L2_SEPT_ROOTS[0], 512, DebugRead),
    field(L2_SEPT_ROOTS[1], 512, DebugRead),
    field(L2_SEPT_ROOTS[2], 512, DebugRead),
];

const VCPU_STATE: u64 = 0xA020_0000_0000_0000;
const VCPU_INDEX: u64 = 0xA020_0002_0000_0002;
const NUM_TDVPS_PAGES: u64 = 0xA020_0000_0000_0003;
const ASSOC_LPID: u64 = 0xA020_0002_0000_0004;
const VCPU_EPOCH: u64 = 0xA020_0003_0000_0006;
const CPUID_SUPERVISOR_VE: u64 = 0xA020_0000_0000_0007;
const CPUID_USER_VE: u64 = 0xA020_0000_0000_0008;
const LAST_EPF_GPA_LIST_IDX: u64 = 0xA020_0000_0000_000D;
const POSSIBLY_EPF_STEPPING: u64 = 0xA020_0000_0000_000E;
const LAST_TD_EXIT: u64 = 0xA020_0000_0000_000F;
const TDVPS_PAGE_PA: u64 = 0xA020_0003_0000_0010;
const HP_LOCK_BUSY: u64 = 0xA020_0000_0000_0031;
const CURR_VM: u64 = 0xA020_0001_0000_0041;

const VCPU_FIELDS: [Field; 13] = [
    field(VCPU_STATE, 1, DebugRead),
    field(VCPU_INDEX, 1, Read),
    field(NUM_TDVPS_PAGES, 1, Read),
    field(ASSOC_LPID, 1, Read),
    field(VCPU_EPOCH, 1, Read),
    field(CPUID_SUPERVISOR_VE, 1, Read),
    field(CPUID_USER_VE, 1, Read),
    field(LAST_EPF_GPA_LIST_IDX, 1, DebugRead),
    field(POSSIBLY_EPF_STEPPING, 1, DebugRead),
    field(LAST_TD_EXIT, 1, DebugRead),
    field(TDVPS_PAGE_PA, 15, Read),
    field(HP_LOCK_BUSY, 1, DebugRead),
    field(CURR_VM, 1, DebugRead),
];

/// Reserved bits of an id, and those that only lists of fields use.
const LIST_BITS: u64 = 0xFF00_0000 | 0x1FFF << 34 | 7 << 47 | 1 << 55 | 1 << 62;
const CLASS: u64 = 0x3F << 56;
const CODE: u64 = 0xFF_FFFF;

/// The field an id names, and which element of it; none for an id with bits that only lists use.
pub(super) fn find(fields: &[Field], id: u64) -> Option<(usize, u32)> {
    if id & LIST_BITS != 0 {
        return None;
    }
    fields.iter().enumerate().find_map(|(index, field)| {
        let element = (id & CODE).checked_sub(field.id & CODE)?;
        let same_class = id & CLASS == field.id & CLASS;
        (same_class && element < u64::from(field.elements)).then_some((index, element as u32))
    })
}

/// The element that follows `id` among those the host may read (and the model has): in an array the id as it came, one
/// further.
pub(super) fn next(fields: &[Field], debug: bool, id: u64, mut index: usize, element: u32) -> u64 {
    if element + 1 < fields[index].elements {
        return id + 1;
    }
    index += 1;
    first(&fields[index.min(fields.len())..], debug)
}

/// The first field that the host may read.
fn first(fields: &[Field], debug: bool) -> u64 {
    let readable = |field: &&Field| debug || !matches!(field.access, DebugRead | DebugWrite(_));
    fields.iter().find(readable).map_or(NULL_PA, |field| field.id)
}

/// Reads: R8 the element, and with version 1 RDX the next one.
fn read(c: &mut Ctx, fields: &[Field], debug: bool, value: impl Fn(u64, u32) -> Option<u64>) -> Answer {
    let id = c.regs.rdx;
    if c.version == 1 && id == NULL_PA {
        c.out.rdx = first(fields, debug);
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    let (index, element) = find(fields, id).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let read = value(fields[index].id, element).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    if !debug && matches!(fields[index].access, DebugRead | DebugWrite(_)) {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    c.out.r8 = read;
    if c.version == 1 {
        c.out.rdx = next(fields, debug, id, index, element);
    }
    Ok(())
}

/// Writes: R8 the value, R9 the mask. R8 comes back as what was there.
fn write(
    c: &mut Ctx,
    fields: &[Field],
    debug: bool,
    value: impl Fn(u64, u32) -> Option<u64>,
) -> Answer<(u64, u32, u64)> {
    let (id, new, mask) = (c.regs.rdx, c.regs.r8, c.regs.r9);
    let (index, element) = find(fields, id).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let Field { id, access, .. } = fields[index];
    let old = value(id, element).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let writable = match access {
        Write(bits) => bits,
        DebugWrite(bits) if debug => bits,
        _ => 0,
    };
    let written = writable & mask;
    if written == 0 {
        return Err(Status::METADATA_FIELD_NOT_WRITABLE);
    }
    if (old ^ new) & mask & !writable != 0 {
        return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
    }
    if id == HP_LOCK_TIMEOUT {
        /// Microseconds.
        const RANGE: core::ops::RangeInclusive<u64> = 10_000..=100_000_000;
        if written != u64::MAX {
            return Err(Status::METADATA_WR_MASK_NOT_VALID);
        }
        if !RANGE.contains(&new) {
            return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
        }
    }
    c.out.r8 = old;
    Ok((id, element, old & !written | new & written))
}

impl State {
    /// The element's value; `None` where the TD has no such field.
    fn td_field(&self, td: usize, id: u64, element: u32) -> Option<u64> {
        let domain = self.td(td);
        let controls = &domain.controls;
        let at = element as usize;
        let key = u64::from(domain.hkid) << self.cfg.hkid.start_bit;
        let root = domain.tdcx.get(crate::td::ROOT_TDCX).copied().unwrap_or(0);
        Some(match id {
            FATAL => domain.fatal.into(),
            NUM_TDCX => domain.tdcx.len() as u64,
            CHLDCNT => domain.chldcnt,
            LIFECYCLE_STATE => domain.lifecycle as u64,
            TDCX_PA => domain.tdcx.get(at).map_or(0, |page| page | key),
            HKID => domain.hkid.into(),
            PKG_CONFIG_BITMAP => domain.keyed_packages.into(),
            NUM_VCPUS => domain.num_vcpus.into(),
            NUM_ASSOC_VCPUS => domain.vcpus.iter().filter(|vcpu| vcpu.lp.is_some()).count() as u64,
            OP_STATE => domain.op_state.into(),
            NUM_L2_VMS => domain.num_l2_vms.into(),
            ATTRIBUTES => controls.attributes,
            XFAM => controls.xfam,
            MAX_VCPUS => controls.max_vcpus.into(),
            GPAW => domain.gpaw.into(),
            EPTP => 6 | u64::from(domain.root_level) << 3 | root,
            TSC_FREQUENCY => controls.tsc_frequency.into(),
            NOTIFY_ENABLES => controls.notify_enables,
            HP_LOCK_TIMEOUT => controls.hp_lock_timeout,
            VM_CTLS => controls.vm_ctls[at],
            CONFIG_FLAGS => controls.config_flags,
            TD_CTLS => controls.td_ctls,
            TD_EPOCH => domain.td_epoch,
            REFCOUNT => domain.refcount[at].into(),
            MIG_EPOCH => domain.migration.epoch.into(),
            BW_EPOCH => domain.migration.block_write_epoch,
            DIRTY_COUNT => domain.migration.dirty_count,
            SEPT_ROOT => self.mem.table(domain.root)[at],
            _ => {
                let vm = L2_SEPT_ROOTS.iter().position(|&root| root == id)?;
                let exists = vm < usize::from(domain.num_l2_vms);
                exists.then(|| self.mem.table(domain.l2_roots[vm])[at])?
            }
        })
    }

    fn set_td_field(&mut self, td: usize, id: u64, element: u32, value: u64) {
        let controls = &mut self.td_mut(td).controls;
        match id {
            NOTIFY_ENABLES => controls.notify_enables = value,
            HP_LOCK_TIMEOUT => controls.hp_lock_timeout = value,
            _ => controls.vm_ctls[element as usize] = value,
        }
    }

    fn vcpu_field(&self, td: usize, vcpu: usize, id: u64, element: u32) -> Option<u64> {
        let (domain, cpu) = (self.td(td), &self.td(td).vcpus[vcpu]);
        let key = u64::from(domain.hkid) << self.cfg.hkid.start_bit;
        Some(match id {
            VCPU_STATE => match (cpu.initialized, cpu.inside, cpu.disabled) {
                (false, ..) => 0,
                (_, _, true) => 8,
                (_, false, _) => 2,
                (_, true, _) => 4,
            },
            VCPU_INDEX => cpu.index.into(),
            NUM_TDVPS_PAGES => cpu.tdcx.len() as u64 + 1,
            ASSOC_LPID => cpu.lp.unwrap_or(u32::MAX).into(),
            VCPU_EPOCH => cpu.epoch,
            CPUID_SUPERVISOR_VE | CPUID_USER_VE | CURR_VM => 0,
            LAST_EPF_GPA_LIST_IDX => cpu.stepped_pages.len() as u64,
            POSSIBLY_EPF_STEPPING => cpu.faults.into(),
            LAST_TD_EXIT => cpu.left_by_trap.into(),
            HP_LOCK_BUSY => u64::from(cpu.refused > 0),
            _ => {
                let mut pages = [cpu.tdvpr].into_iter().chain(cpu.tdcx.iter().copied());
                pages.nth(element as usize).map_or(0, |page| page | key)
            }
        })
    }
}

/// TDH.MNG.RD and TDH.MNG.WR: RCX TDR, RDX field.
pub(super) fn td(s: &mut Session<'_>, c: &mut Ctx, writes: bool) -> Answer {
    let td = s.tdr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Shared)?;
    s.ready(td)?;
    s.lock_op_state(c, td, if writes { op_state::MEM_WR } else { op_state::SEPT_ANY })?;
    s.pause(c, Point::Commit);
    let debug = s.td(td).debug();
    if !writes {
        return read(c, &TD_FIELDS, debug, |id, element| s.td_field(td, id, element));
    }
    let (id, element, value) = write(c, &TD_FIELDS, debug, |id, element| s.td_field(td, id, element))?;
    s.set_td_field(td, id, element, value);
    Ok(())
}

/// TDH.VP.RD and TDH.VP.WR: RCX TDVPR, RDX field. The vCPU becomes associated with this logical processor.
pub(super) fn vcpu(s: &mut Session<'_>, c: &mut Ctx, writes: bool) -> Answer {
    let (td, vcpu) = s.tdvpr_operand(c, c.regs.rcx, Operand::Rcx, Mode::Shared)?;
    s.ready(td)?;
    s.lock_op_state(c, td, if writes { op_state::MEM_WR } else { op_state::SEPT_ANY })?;
    s.pause(c, Point::Commit);
    if !s.td(td).has_pages(vcpu) {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    s.associate(c.lp, td, vcpu, !writes)?;
    let debug = s.td(td).debug();
    let value = |id: u64, element: u32| s.vcpu_field(td, vcpu, id, element);
    if writes { write(c, &VCPU_FIELDS, debug, value).map(drop) } else { read(c, &VCPU_FIELDS, debug, value) }
}
