//! Register values of small pools, and the operands that each leaf expects.

use arbitrary::Arbitrary;
use seamcall::Regs;
use tdx_model::{Leaf, NULL_PA};

use super::World;

pub(super) const BASE: u64 = 0x1_0000_0000;
pub(super) const PAGE: u64 = 4096;
pub(super) const CHUNK: u64 = PAGE << 9;
/// Small pages to give, large pages to give, pairs for Dynamic PAMT.
pub(super) const SMALL: u64 = BASE + 0x10_0000;
pub(super) const LARGE: u64 = BASE + 0x40_0000;
pub(super) const PAIRS: u64 = BASE + 0x3100_0000;
/// Ordinary memory; a list of pages for BLOCKW.
pub(super) const SHARED: u64 = 0x4000_0000;

pub(super) const LIST: u64 = SHARED + 0x10_0000;
/// Small pages in the pool.
const SMALLS: u64 = 28;

/// Epoch, priority time-out, controls of a VM, debug-only notification; vCPU epoch and state; no field.
const FIELDS: [u64; 7] = [
    0x9210_0003_0000_0000,
    0x9110_0003_0000_0011,
    0x9110_0003_0000_0013,
    0x9110_0003_0000_0010,
    0xA020_0003_0000_0006,
    0xA020_0000_0000_0000,
    NULL_PA,
];

/// A register value that may mean something.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Value {
    Zero,
    None,
    Small(u8),
    Large(u8),
    Inside {
        large: u8,
        page: u16,
    },
    Pair(u8),
    Shared(u8),
    Region(u8),
    Control {
        td: bool,
        page: u8,
    },
    Tdr(bool),
    Vcpu {
        td: bool,
        vcpu: bool,
    },
    Entry(Entry),
    WithKey(u8),
    /// The id of a field of a TD or a vCPU.
    Field(u8),
    Raw(u64),
}

/// An entry of one of the trees: mostly in three 2 MiB ranges.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Entry {
    pub(super) level: u8,
    range: u8,
    page: u8,
    odd: u8,
}

impl Entry {
    pub(super) fn raw(self) -> u64 {
        let level = u64::from(if self.odd == 0 { self.level % 8 } else { self.level % 2 });
        let gpa = (u64::from(self.range) % 3 * CHUNK) + (u64::from(self.page) % 4 * PAGE);
        match self.odd {
            1 => gpa | level,
            2 => gpa | 1 << 47 | level,
            _ => gpa & !((PAGE << (9 * level.min(4))) - 1) | level,
        }
    }
}

impl World {
    pub(super) fn value(&self, value: Value) -> u64 {
        match value {
            Value::Zero => 0,
            Value::None => NULL_PA,
            Value::Small(page) => SMALL + u64::from(page) % SMALLS * PAGE,
            Value::Large(page) => LARGE + u64::from(page) % 4 * CHUNK,
            Value::Inside { large, page } => {
                LARGE + u64::from(large) % 4 * CHUNK + u64::from(page) % 512 * PAGE
            }
            Value::Pair(page) => PAIRS + u64::from(page) % 16 * PAGE,
            Value::Shared(page) => SHARED + u64::from(page) * 512,
            Value::Region(region) => (BASE + u64::from(region) % 8 * CHUNK) | 1,
            Value::Control { td, page } => {
                let pages = &self.tds[usize::from(td)].control;
                pages[usize::from(page) % pages.len()].raw()
            }
            Value::Tdr(td) => self.tds[usize::from(td)].tdr.raw(),
            Value::Vcpu { td, vcpu } => self.tds[usize::from(td)].vcpus[usize::from(vcpu)].raw(),
            Value::Entry(entry) => entry.raw(),
            Value::WithKey(page) => (SMALL + u64::from(page) % SMALLS * PAGE) | 33 << 46,
            Value::Field(field) => FIELDS[usize::from(field) % FIELDS.len()],
            Value::Raw(raw) => raw,
        }
    }

    /// The operands that the leaf wants, with an entry and a page of the pools.
    pub(super) fn operands(&self, leaf: Leaf, td: bool, entry: Entry, page: u8) -> Regs {
        let tdr = self.value(Value::Tdr(td));
        let small = self.value(Value::Small(page));
        let mut rcx = entry.raw();
        if matches!(leaf, Leaf::PageDemote | Leaf::PagePromote | Leaf::SeptAdd | Leaf::SeptRemove) {
            rcx = rcx & !0x1F_F007 | 1;
        }
        let large = leaf == Leaf::PageAug && rcx & 7 == 1;
        // A table for each L2 VM, where there can be one.
        let l2_page = |vm: u8| match leaf {
            Leaf::SeptAdd | Leaf::PageDemote if page & vm != 0 => {
                self.value(Value::Small(page.wrapping_add(vm)))
            }
            _ => NULL_PA,
        };
        let mut regs = Regs {
            rax: leaf as u64,
            rcx,
            rdx: tdr,
            r8: if large { self.value(Value::Large(page)) } else { small },
            r9: l2_page(1),
            r10: l2_page(2),
            r11: NULL_PA,
            r12: self.value(Value::Pair(page & !1)),
            r13: self.value(Value::Pair(page | 1)),
        };
        let vcpu = self.value(Value::Vcpu { td, vcpu: page & 1 != 0 });
        match leaf {
            Leaf::PageAdd => regs.r9 = SHARED,
            Leaf::MemTrack
            | Leaf::MrFinalize
            | Leaf::MngKeyConfig
            | Leaf::MngVpFlushDone
            | Leaf::MngKeyFreeId => {
                regs.rcx = tdr;
            }
            Leaf::MngRd | Leaf::MngWr => (regs.rcx, regs.rdx) = (tdr, self.value(Value::Field(page))),
            Leaf::VpRd | Leaf::VpWr => (regs.rcx, regs.rdx) = (vcpu, self.value(Value::Field(page))),
            Leaf::ExportBlockw => regs.rcx = LIST | u64::from(page % 4) << 55,
            Leaf::MngInit => (regs.rcx, regs.rdx) = (tdr, SHARED),
            Leaf::MngCreate => (regs.rcx, regs.rdx) = (small, 35),
            Leaf::MngAddCx | Leaf::VpCreate => regs.rcx = small,
            Leaf::VpAddCx => (regs.rcx, regs.rdx) = (small, vcpu),
            Leaf::VpEnter | Leaf::VpInit | Leaf::VpFlush => regs.rcx = vcpu,
            Leaf::PhymemPageRdmd | Leaf::PhymemPageReclaim => regs.rcx = small,
            Leaf::PhymemPageWbinvd => regs.rcx = self.value(Value::WithKey(page)),
            Leaf::PhymemPamtAdd | Leaf::PhymemPamtRemove => {
                regs.rcx = self.value(Value::Region(page));
                (regs.rdx, regs.r8) = (regs.r12, regs.r13);
            }
            Leaf::PhymemCacheWb => regs.rcx = 0,
            Leaf::MemRd | Leaf::MemWr => regs.rcx = entry.raw() & !7,
            _ => {}
        }
        regs
    }
}

pub(super) fn register_mut(regs: &mut Regs, number: u8) -> &mut u64 {
    match number % 8 {
        0 => &mut regs.rcx,
        1 => &mut regs.rdx,
        2 => &mut regs.r8,
        3 => &mut regs.r9,
        4 => &mut regs.r10,
        5 => &mut regs.r11,
        6 => &mut regs.r12,
        _ => &mut regs.r13,
    }
}
