//! MNG.RD, MNG.WR, VP.RD, VP.WR: fields by id. (TDX module ABI, "Metadata fields"; `tdr_tdcs_fields_lookup.c`,
//! `tdvps_fields_lookup.c` of module 1.5.01.)

use seamcall::Regs;
use tdx_model::boot::TdSpec;
use tdx_model::{Leaf, Machine, ModuleVersion};

use crate::common::{Bench, bench};

const TD_EPOCH: u64 = 0x9210_0003_0000_0000;
const REFCOUNT: u64 = 0x9210_0001_0000_0001;
const CHLDCNT: u64 = 0x8010_0003_0000_0004;
const NOTIFY_ENABLES: u64 = 0x9110_0003_0000_0010;
const HP_LOCK_TIMEOUT: u64 = 0x9110_0003_0000_0011;
const TD_CTLS: u64 = 0x1110_0003_0000_0017;
const VCPU_STATE: u64 = 0xA020_0000_0000_0000;
const VCPU_EPOCH: u64 = 0xA020_0003_0000_0006;
const TDVPS_PAGES: u64 = 0xA020_0003_0000_0010;
const NONE: u64 = u64::MAX;

fn debug_bench() -> Bench {
    let spec = TdSpec { debug: true, l2_vms: 1, ..TdSpec::default() };
    Bench::new(Machine::builder().version(ModuleVersion::V1_5_01), spec)
}

impl Bench {
    /// Status, RDX, R8.
    fn read(&self, leaf: Leaf, version: u64, field: u64) -> (u64, u64, u64) {
        let page = if leaf == Leaf::VpRd { self.td.vcpus[0].raw() } else { self.tdr() };
        let rax = leaf as u64 | version << 16;
        let out = self.raw(Regs { rax, rcx: page, rdx: field, r8: 5, ..Regs::new() });
        (out.rax, out.rdx, out.r8)
    }

    fn write(&self, leaf: Leaf, field: u64, value: u64, mask: u64) -> (u64, u64) {
        let page = if leaf == Leaf::VpWr { self.td.vcpus[0].raw() } else { self.tdr() };
        let out =
            self.raw(Regs { rax: leaf as u64, rcx: page, rdx: field, r8: value, r9: mask, ..Regs::new() });
        (out.rax, out.r8)
    }
}

#[test]
fn the_host_watches_epochs_and_counts() {
    let b = bench();
    b.guest().enter(0).unwrap();
    b.fence();
    assert_eq!(b.read(Leaf::MngRd, 0, TD_EPOCH), (0, TD_EPOCH, 2));
    assert_eq!(b.read(Leaf::MngRd, 1, REFCOUNT), (0, REFCOUNT + 1, 0), "version 1 says which comes next");
    assert_eq!(b.read(Leaf::MngRd, 0, REFCOUNT + 1).2, 1, "the vCPU of epoch 1");
    assert_eq!(b.read(Leaf::MngRd, 0, CHLDCNT).2, b.chldcnt());
    for (field, value) in [
        (0x8010_0000_0000_0001, 0),
        (0x8010_0002_0000_0002, 6),
        (0x8010_0002_0000_0005, 1),
        (0x8110_0001_0000_0001, 33),
        (0x9010_0002_0000_0004, 2),
        (0x9010_0001_0000_0005, 0),
        (0x1110_0000_0000_0003, 0),
        (0x1110_0003_0000_0016, 0),
    ] {
        assert_eq!(b.read(Leaf::MngRd, 0, field), (0, field, value), "{field:#x}");
    }
    let root = b.td.control[3].raw();
    assert_eq!(b.read(Leaf::MngRd, 0, 0x1110_0003_0000_0004).2, root | 6 | 3 << 3, "EPTP");
    // Context, element size and the mask-valid bit are not looked at.
    assert_eq!(b.read(Leaf::MngRd, 0, TD_EPOCH & !(7 << 52) & !(3 << 32)).2, 2);
    assert_eq!(b.read(Leaf::VpRd, 0, VCPU_EPOCH), (0xC000_0700_0000_0000, VCPU_EPOCH, 0), "it is inside");
    b.guest().exit();
    assert_eq!(b.read(Leaf::VpRd, 0, VCPU_EPOCH), (0, VCPU_EPOCH, 1));
}

#[test]
fn fields_of_a_debug_td_only() {
    let (plain, debug) = (bench(), debug_bench());
    let not_readable = 0xC000_0C02_0000_0000;
    assert_eq!(plain.read(Leaf::MngRd, 0, TD_CTLS), (not_readable, TD_CTLS, 0));
    assert_eq!(plain.read(Leaf::VpRd, 1, VCPU_STATE), (not_readable, NONE, 0));
    assert_eq!(debug.read(Leaf::MngRd, 0, TD_CTLS), (0, TD_CTLS, 0));
    assert_eq!(debug.read(Leaf::VpRd, 0, VCPU_STATE), (0, VCPU_STATE, 2), "ready");
    // The root of the Secure EPT, entry by entry.
    assert_eq!(debug.read(Leaf::MngRd, 0, 0x2110_0003_0000_0000 + 511).2, 0x80E0_0000_0000_0000);
    assert_eq!(debug.read(Leaf::MngRd, 0, 0x2510_0003_0000_0000).2, 0, "of VM 1");
    assert_eq!(
        debug.read(Leaf::MngRd, 0, 0x2910_0003_0000_0000).0,
        0xC000_0C00_0000_0000,
        "there is no VM 2"
    );
}

#[test]
fn what_may_be_written() {
    let (plain, debug) = (bench(), debug_bench());
    let (not_writable, not_valid) = (0xC000_0C01_0000_0000, 0xC000_0C03_0000_0000);
    assert_eq!(plain.write(Leaf::MngWr, TD_EPOCH, 9, NONE), (not_writable, 0));
    assert_eq!(plain.write(Leaf::MngWr, NOTIFY_ENABLES, 1, NONE), (not_writable, 0));
    assert_eq!(debug.write(Leaf::MngWr, NOTIFY_ENABLES, 1, 1), (0, 0), "the old value comes back");
    assert_eq!(debug.write(Leaf::MngWr, NOTIFY_ENABLES, 0, 1), (0, 1));
    assert_eq!(debug.write(Leaf::MngWr, NOTIFY_ENABLES, 2, 3), (not_valid, 0), "a bit that is fixed");
    assert_eq!(debug.write(Leaf::MngWr, NOTIFY_ENABLES, 1, 2).0, not_writable, "no bit of it");
    // Microseconds, from 10 ms to 100 s, whole.
    assert_eq!(plain.write(Leaf::MngWr, HP_LOCK_TIMEOUT, 10_000, NONE), (0, 1_000_000));
    assert_eq!(plain.write(Leaf::MngWr, HP_LOCK_TIMEOUT, 9_999, NONE).0, not_valid);
    assert_eq!(plain.write(Leaf::MngWr, HP_LOCK_TIMEOUT, 100_000_001, NONE).0, not_valid);
    assert_eq!(
        plain.write(Leaf::MngWr, HP_LOCK_TIMEOUT, 20_000, 0xFFFF_FFFF).0,
        0xC000_0C0A_0000_0000,
        "in part"
    );
    assert_eq!(plain.read(Leaf::MngRd, 0, HP_LOCK_TIMEOUT).2, 10_000);
    assert_eq!(plain.write(Leaf::VpWr, VCPU_EPOCH, 9, NONE), (not_writable, 0));
}

#[test]
fn fields_follow_each_other() {
    let b = bench();
    for (leaf, expected) in [(Leaf::MngRd, 37), (Leaf::VpRd, 21)] {
        let (status, first, value) = b.read(leaf, 1, NONE);
        assert_eq!((status, value), (0x0000_0C0B_0000_0000, 0), "{leaf:?}");
        let (mut field, mut count) = (first, 0);
        while field != NONE {
            let (status, next, _) = b.read(leaf, 1, field);
            assert_eq!(status, 0, "{field:#x}");
            (field, count) = (next, count + 1);
        }
        assert_eq!(count, expected, "{leaf:?}");
        assert_eq!(b.read(leaf, 1, 0x7F00_0003_0000_0000), (0xC000_0C00_0000_0000, NONE, 0));
        assert_eq!(b.read(leaf, 0, first | 1 << 62).0, 0xC000_0C00_0000_0000, "a reserved bit");
        assert_eq!(b.read(leaf, 2, first).0, 0xC000_0100_0000_0000);
    }
    let pages = b.read(Leaf::VpRd, 0, TDVPS_PAGES).2;
    assert_eq!(pages, b.td.vcpus[0].raw() | 33 << 46, "with the key id in it");
}
