//! SYS.RD and SYS.INFO: what the module says about itself.

use super::metadata::{Access, Field, field, find, next};
use crate::abi::{NULL_PA, Operand, PAGE, Status};
use crate::call::Ctx;
use crate::config::ModuleVersion;
use crate::state::{Answer, State};
use crate::td::{MIN_TDCX, VCPU_TDCX, VCPU_TDCX_PER_L2_VM};
use crate::td_params::{ATTRIBUTES, CONFIG_FLAGS, XFAM};

/// Convertible memory ranges that the module can tell of.
const MAX_CMRS: u32 = 32;

/// Fields of the platform in the order in which they follow each other. Not here: families of processors, build, handoff,
/// CPUID, migration, service TDs, controls of L2 VMs.
const FIELDS: [Field; 32] = {
    const fn one(id: u64) -> Field {
        field(id, 1, Access::Read)
    }
    [
        one(0x0000_0002_0000_0000),
        one(0x0800_0002_0000_0000),
        one(0x0800_0001_0000_0003),
        one(0x0800_0001_0000_0004),
        one(0x0800_0001_0000_0005),
        one(0x0800_0001_0000_0006),
        one(0x8900_0001_0000_0000),
        one(0x8900_0001_0000_0001),
        one(0x8900_0000_0000_0002),
        one(0x0A00_0002_0000_0000),
        one(0x0A00_0000_0000_0001),
        one(0x0A00_0003_0000_0008),
        one(0x9000_0001_0000_0000),
        field(0x9000_0003_0000_0080, MAX_CMRS, Access::Read),
        field(0x9000_0003_0000_0100, MAX_CMRS, Access::Read),
        one(0x9100_0001_0000_0008),
        one(0x9100_0001_0000_0009),
        one(0x9100_0001_0000_0010),
        one(0x9100_0001_0000_0011),
        one(0x9100_0001_0000_0012),
        one(0x9100_0000_0000_0013),
        one(0x9100_0000_0000_0014),
        one(0x9800_0001_0000_0000),
        one(0x9800_0001_0000_0100),
        one(0x9800_0001_0000_0101),
        one(0x9800_0001_0000_0200),
        one(0x9800_0001_0000_0201),
        one(0x1900_0003_0000_0000),
        one(0x1900_0003_0000_0001),
        one(0x1900_0003_0000_0002),
        one(0x1900_0003_0000_0003),
        one(0x9900_0003_0000_0006),
    ]
};

impl State {
    /// The element's value; `None` where the module has no such field.
    fn platform_field(&self, id: u64, element: u32) -> Option<u64> {
        let profile = &self.cfg.profile;
        let (major, minor, update) = match profile.version {
            ModuleVersion::V1_5_01 => (1, 5, 1),
            ModuleVersion::V1_5_28 => (1, 5, 28),
            ModuleVersion::V2_0_08 => (2, 0, 8),
        };
        let dynamic = |value: u64| profile.dynamic_pamt_capable.then_some(value);
        Some(match id {
            0x0000_0002_0000_0000 => self.cfg.packages.into(),
            0x0800_0002_0000_0000 => 0x8086,
            0x0800_0001_0000_0003 => minor,
            0x0800_0001_0000_0004 => major,
            0x0800_0001_0000_0005 => update,
            0x0A00_0000_0000_0001 => 1,
            0x0A00_0003_0000_0008 => profile.features0(),
            0x9000_0001_0000_0000 => MAX_CMRS.into(),
            0x9000_0003_0000_0080 => self.convertible_range(element).0,
            0x9000_0003_0000_0100 => self.convertible_range(element).1,
            0x9100_0001_0000_0008 => 64,
            0x9100_0001_0000_0009 | 0x9100_0001_0000_0010..=0x9100_0001_0000_0012 => 16,
            // Bits of the bitmap for each 4 KiB page; key id bits that addresses must have for 36-bit page numbers.
            0x9100_0000_0000_0013 => dynamic(1)?,
            0x9100_0000_0000_0014 => dynamic(u64::from(self.cfg.max_pa_bits.saturating_sub(48)))?,
            0x9800_0001_0000_0000 | 0x9800_0001_0000_0101 => PAGE,
            0x9800_0001_0000_0100 => MIN_TDCX as u64 * PAGE,
            0x9800_0001_0000_0200 => (VCPU_TDCX as u64 + 1) * PAGE,
            0x9800_0001_0000_0201 => VCPU_TDCX_PER_L2_VM as u64 * PAGE,
            0x1900_0003_0000_0000 => ATTRIBUTES,
            0x1900_0003_0000_0002 => XFAM.1,
            0x1900_0003_0000_0003 => XFAM.0,
            0x9900_0003_0000_0006 => CONFIG_FLAGS,
            _ => 0,
        })
    }

    /// TDSYSINFO_STRUCT: module at 0, memory at 32, control structures at 48, capabilities at 64. No CPUID configuration.
    fn sys_info(&self) -> [u8; SYS_INFO] {
        let field = |id: u64| self.platform_field(id, 0).unwrap_or(0);
        let mut info = [0; SYS_INFO];
        let fields = [
            (4, 4, field(0x0800_0002_0000_0000)),
            (14, 2, field(0x0800_0001_0000_0003)),
            (16, 2, field(0x0800_0001_0000_0004)),
            // SYS.RD exists.
            (18, 1, 1),
            (32, 2, field(0x9100_0001_0000_0008)),
            (34, 2, field(0x9100_0001_0000_0009)),
            (36, 2, field(0x9100_0001_0000_0010)),
            (48, 2, field(0x9800_0001_0000_0100)),
            (52, 2, field(0x9800_0001_0000_0200)),
            (64, 8, ATTRIBUTES),
            (80, 8, XFAM.1),
            (88, 8, XFAM.0),
        ];
        for (at, size, value) in fields {
            info[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        info
    }

    /// First byte and bytes; without any, the regions are all the convertible memory that is known of.
    fn convertible_range(&self, element: u32) -> (u64, u64) {
        let index = element as usize;
        let range = match &self.cfg.convertible {
            Some(ranges) => ranges.get(index).copied(),
            None => self.cfg.tdmrs.get(index).map(|tdmr| (tdmr.base, tdmr.size)),
        };
        range.unwrap_or((0, 0))
    }
}

/// TDH.SYS.RD: RDX field id (all ones: the first). Out: RDX the next field id, R8 the value.
pub(super) fn rd(s: &mut State, c: &mut Ctx) -> Answer {
    let id = c.regs.rdx;
    if id == NULL_PA {
        c.out.rdx = FIELDS[0].id;
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    let unknown = Status::METADATA_FIELD_ID_INCORRECT;
    let (index, element) = find(&FIELDS, id).ok_or(unknown)?;
    c.out.r8 = s.platform_field(FIELDS[index].id, element).ok_or(unknown)?;
    let mut following = next(&FIELDS, false, id, index, element);
    while let Some((index, element)) = find(&FIELDS, following)
        && s.platform_field(FIELDS[index].id, element).is_none()
    {
        following = next(&FIELDS, false, following, index, element);
    }
    c.out.rdx = following;
    Ok(())
}

/// Bytes of TDSYSINFO_STRUCT, and of the array of convertible ranges.
const SYS_INFO: usize = 1024;
const CMR_INFO: u64 = MAX_CMRS as u64 * 16;

/// TDH.SYS.INFO: RCX and RDX a buffer and its size, R8 and R9 an array of convertible ranges and its length. Out: RDX and R9 how
/// much of them was written.
pub(super) fn info(s: &mut State, c: &mut Ctx) -> Answer {
    let (buffer, bytes, ranges, count) = (c.regs.rcx, c.regs.rdx, c.regs.r8, c.regs.r9);
    let invalid = |op: Operand| Err(Status::OPERAND_INVALID.of(op));
    if !s.cfg.shared_operand(buffer, SYS_INFO as u64) {
        return invalid(Operand::Rcx);
    }
    if bytes < SYS_INFO as u64 {
        return invalid(Operand::Rdx);
    }
    if !s.cfg.shared_operand(ranges, CMR_INFO) {
        s.write_shared_bytes(buffer, &[0; SYS_INFO]);
        return invalid(Operand::R8);
    }
    if count < MAX_CMRS.into() {
        s.write_shared_bytes(buffer, &[0; SYS_INFO]);
        return invalid(Operand::R9);
    }
    let info = s.sys_info();
    s.write_shared_bytes(buffer, &info);
    let list: Vec<u8> = (0..MAX_CMRS)
        .flat_map(|index| <[u64; 2]>::from(s.convertible_range(index)))
        .flat_map(u64::to_le_bytes)
        .collect();
    s.write_shared_bytes(ranges, &list);
    c.out.rdx = SYS_INFO as u64;
    c.out.r9 = MAX_CMRS.into();
    Ok(())
}
