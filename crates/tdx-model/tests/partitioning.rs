//! TD partitioning: the tables of L2 VMs beside those of the TD, what the guest lets them do, what the host has to bring and
//! gets back. (TDX module ABI, "L2 entries"; `tdh_mem_sept_add.c`, `tdh_mem_page_demote.c`, `tdg_mem_page_attr_wr.c` of module
//! 1.5.01.)

use std::cell::Cell;

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Interrupts, Leaf, Machine, ModuleVersion, PageType, Status, TdCall};

const BASE: u64 = 0x1_0000_0000;
const GPA: u64 = 0x4000_0000;
const LARGE: u64 = BASE + 0x1000_0000;
const NONE: u64 = u64::MAX;
const UNUSED: u64 = 1 << 63;
const VALID: u64 = 1 << 15;

/// A running TD with L2 VMs, without any table; its vCPU is inside.
struct Bench {
    machine: Machine,
    td: TdPages,
    next: Cell<u64>,
}

fn bench(l2_vms: u8, version: ModuleVersion, debug: bool) -> Bench {
    let machine = Machine::builder().version(version).dynamic_pamt(false).memory(BASE, 1).audit(true).build();
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let spec = TdSpec { l2_vms, debug, ..TdSpec::default() };
    let td = boot::create(&machine.lp(0), &machine, &spec, &mut frames).unwrap();
    machine.guest(td.vcpus[0]).enter(0).unwrap();
    Bench { machine, td, next: Cell::new(BASE + 0x80_0000) }
}

impl Bench {
    fn frame(&self) -> u64 {
        self.next.replace(self.next.get() + 4096)
    }

    /// Leaf and version, RCX, flag beside the TDR, R8 to R11.
    fn call(&self, leaf: Leaf, version: u64, rcx: u64, flag: u64, pages: [u64; 4]) -> Regs {
        let (rax, rdx) = (leaf as u64 | version << 16, self.td.tdr.raw() | flag);
        let [r8, r9, r10, r11] = pages;
        self.machine.lp(0).raw(Regs { rax, rcx, rdx, r8, r9, r10, r11, ..Regs::new() })
    }

    #[track_caller]
    fn ok(&self, leaf: Leaf, rcx: u64) {
        let out = self.call(leaf, 0, rcx, 0, [0; 4]);
        assert_eq!(out.rax, 0, "{leaf:?}: {:?}", Status(out.rax));
    }

    /// A table for the TD and for each VM that is marked.
    #[track_caller]
    fn table(&self, gpa: u64, level: u64, vms: [bool; 3]) -> [u64; 4] {
        let [r9, r10, r11] = vms.map(|wanted| if wanted { self.frame() } else { NONE });
        let pages = [self.frame(), r9, r10, r11];
        let out = self.call(Leaf::SeptAdd, 1, gpa | level, 0, pages);
        assert_eq!((out.rax, out.r8, out.r9, out.r10, out.r11), (0, NONE, NONE, NONE, NONE));
        pages
    }

    /// Tables down to `level` for the TD and the VMs.
    fn tables(&self, gpa: u64, level: u64, vms: [bool; 3]) {
        for at in (level + 1..=3).rev() {
            self.table(gpa & !((4096 << (9 * at)) - 1), at, vms);
        }
    }

    fn aug(&self, gpa: u64, level: Level, page: u64) {
        boot::aug(&self.machine.lp(0), &self.td, Gpa::truncate(gpa), level, Hpa::truncate(page)).unwrap();
    }

    fn tdcall(&self, leaf: u64, rcx: u64, rdx: u64, r8: u64) -> TdCall {
        let regs = Regs { rax: leaf, rcx, rdx, r8, ..Regs::new() };
        self.machine.guest(self.td.vcpus[0]).tdcall(regs).unwrap()
    }

    /// Status, RCX and RDX of a guest's call that returns.
    #[track_caller]
    fn returns(&self, leaf: u64, rcx: u64, rdx: u64, r8: u64) -> (u64, u64, u64) {
        match self.tdcall(leaf, rcx, rdx, r8) {
            TdCall::Returned(out) => (out.rax, out.rcx, out.rdx),
            other => panic!("{other:x?}"),
        }
    }

    /// ATTR.WR of attributes for VM 1, all of them written.
    fn let_vm1(&self, entry: u64, attributes: u64) -> (u64, u64, u64) {
        self.returns(24, entry, attributes << 16, 0x807F << 16)
    }

    /// A 2 MiB page that is accepted, with tables for the VMs, and read, write, execute for VM 1.
    fn shared_with_vm1(l2_vms: u8) -> Self {
        let b = bench(l2_vms, ModuleVersion::V1_5_01, false);
        b.tables(GPA, 1, [1, 2, 3].map(|vm| vm <= l2_vms));
        b.aug(GPA, Level::L2M, LARGE);
        assert_eq!(b.returns(6, GPA | 1, 0, 0).0, 0);
        assert_eq!(b.let_vm1(GPA | 1, VALID | 7), (0, GPA | 1, (VALID | 7) << 16));
        b
    }

    fn block_and_track(&self, entry: u64) {
        self.ok(Leaf::RangeBlock, entry);
        boot::call(&self.machine.lp(0), Leaf::MemTrack, [self.td.tdr.raw(), 0, 0, 0]).unwrap();
        assert!(self.machine.guest(self.td.vcpus[0]).exit());
        self.machine.guest(self.td.vcpus[0]).enter(0).unwrap();
    }

    fn chldcnt(&self) -> u64 {
        self.machine.td(self.td.tdr).unwrap().chldcnt
    }

    fn kind(&self, page: u64) -> PageType {
        self.machine.page(Hpa::truncate(page)).kind
    }

    fn raw(&self, gpa: u64, level: Level) -> u64 {
        self.machine.entry(self.td.tdr, Gpa::truncate(gpa), level).unwrap().raw
    }
}

#[test]
fn tables_of_l2_vms_come_with_those_of_the_td() {
    let b = bench(2, ModuleVersion::V1_5_01, false);
    let before = b.chldcnt();
    let [page, vm1, ..] = b.table(0, 3, [true, false, false]);
    assert_eq!(b.chldcnt(), before + 2);
    assert_eq!([b.kind(page), b.kind(vm1)], [PageType::Ept; 2]);
    assert_eq!(b.raw(0, Level::L512G), 0x8400_0000_0000_0007 | page, "bit 58: VM 1 has a table there");
    let add = |level: u64, flag: u64, pages: [u64; 4]| {
        let out = b.call(Leaf::SeptAdd, 1, level, flag, pages);
        (out.rax, out.rcx, out.rdx, [out.r8, out.r9, out.r10, out.r11])
    };
    let (new, other) = (b.frame(), b.frame());
    // VM 3 does not exist. VM 2 has no table at level 3, so none at level 2.
    let pages = [NONE, NONE, NONE, new];
    assert_eq!(add(3, 0, pages), (0xC000_0100_0000_000B, 0, 0, pages));
    let pages = [new, NONE, other, NONE];
    assert_eq!(add(2, 0, pages), (0xC000_0B0F_0002_0003, 1 << 63, 0x2_4003, pages));
    // VM 1 has one already.
    let pages = [NONE, new, NONE, NONE];
    let exists = (0xC000_0B10_0001_0003, 0x407, 0x1_C403, pages);
    assert_eq!(add(3, 0, pages), exists);
    assert_eq!(add(3, 1, [NONE, 0x123, other, NONE]), (0, 0, 0, [NONE, 0x123 | UNUSED, NONE, NONE]));
    // One page for two tables: the second look finds it locked.
    assert_eq!(add(2, 0, [new, new, NONE, NONE]), (0x8000_0200_0000_0009, 0, 0, [new, new, NONE, NONE]));
    assert_eq!(add(2, 0, [NONE, new, NONE, NONE]).0, 0xC000_0B0D_0000_0001, "no table of the TD itself");
    // Version 0 looks at R8 only.
    assert_eq!(b.call(Leaf::SeptAdd, 0, 2, 0, [new, 1, 2, 3]).r9, 1);
    assert_eq!(b.raw(0, Level::L1G), 0x8000_0000_0000_0007 | new);
}

#[test]
fn an_interrupted_sept_add_goes_on_with_what_it_returned() {
    let b = bench(3, ModuleVersion::V1_5_01, false);
    let pages = [b.frame(), b.frame(), b.frame(), b.frame()];
    b.machine.set_interrupts(Some(Interrupts::nmi_after(1)));
    let out = b.call(Leaf::SeptAdd, 1, 3, 0, pages);
    assert_eq!((out.rax, out.rcx, out.rdx), (0x8000_0003_0000_0000, 3, b.td.tdr.raw()));
    assert_eq!([out.r8, out.r9, out.r10, out.r11], [NONE, NONE, pages[2], pages[3]]);
    b.machine.set_interrupts(None);
    let out = b.machine.lp(0).raw(Regs { rax: 3 | 1 << 16, ..out });
    assert_eq!((out.rax, out.r10, out.r11), (0, NONE, NONE));
    assert!(pages.into_iter().all(|page| b.kind(page) == PageType::Ept));
}

/// Attributes: R 0, W 1, Xs 2, Xu 3, VGP 4, PWA 5, SSS 6, VALID 15; VM 1 in bits 31:16.
#[test]
fn the_guest_decides_what_a_vm_may_do() {
    let b = bench(2, ModuleVersion::V1_5_01, false);
    b.tables(GPA, 0, [true, false, false]);
    b.aug(GPA, Level::L4K, LARGE);
    let (write, read) = (24, 23);
    let pending = 1 << 62;
    assert_eq!(b.let_vm1(GPA, VALID | 5), (0, GPA | pending, (VALID | 5) << 16), "before it is accepted");
    assert_eq!(b.returns(read, GPA + 0x123, 0, 0), (0, GPA | pending, (VALID | 5) << 16));
    assert_eq!(b.returns(6, GPA, 0, 0).0, 0);
    assert_eq!(b.returns(read, GPA, 0, 0), (0, GPA, (VALID | 5) << 16));
    // Only the bits of the mask: execute goes, write comes.
    assert_eq!(b.returns(write, GPA, (VALID | 2) << 16, (VALID | 6) << 16), (0, GPA, (VALID | 3) << 16));
    // Write without read is illegal; the answer says what there is.
    assert_eq!(b.let_vm1(GPA, VALID | 2), (0xC000_0B11_0000_0000, 0, (VALID | 3) << 16));
    // No access: the VM's entry goes.
    assert_eq!(b.let_vm1(GPA, VALID), (0, GPA, VALID << 16));
    assert_eq!(b.returns(read, GPA, 0, 0), (0, GPA, 0));
    assert_eq!(b.raw(GPA, Level::L4K) >> 57 & 0xF, 0, "no alias is left");
    // VM 2 has no tables: the guest is told which level is missing; VM 3 is none at all; bits 15:0 are the TD's own.
    let vm2 = b.returns(write, GPA, (VALID | 1) << 32, (VALID | 1) << 32);
    assert_eq!(vm2, (0xC000_0B0F_0002_0003, 0, 0));
    assert_eq!(b.returns(write, GPA, (VALID | 1) << 48, 0), (0xC000_0100_0000_0002, 0, 0));
    assert_eq!(b.returns(write, GPA, VALID, 0).0, 0xC000_0100_0000_0002);
    assert_eq!(b.returns(write, GPA, 1 << 16, 0).0, 0xC000_0100_0000_0002, "without VALID");
    assert_eq!(b.returns(write, GPA, 0, VALID << 48).0, 0xC000_0100_0000_0008);
    assert_eq!(b.returns(write, GPA | 8, 0, 0).0, 0xC000_0100_0000_0001);
    assert_eq!(b.returns(write, GPA | 1, 0, 0).0, 0xC000_0B0B_0000_0001, "a table is there");
    // What is not there is for the host.
    let TdCall::Exit(exit) = b.tdcall(write, GPA + 4096, 0, 0) else { panic!() };
    let violation = exit.ept_violation().unwrap();
    assert_eq!((violation.kind, violation.gpa, violation.state, violation.leaf), (5, GPA + 4096, 0, false));
}

#[test]
fn the_host_of_a_debug_td_reads_attributes() {
    let b = bench(1, ModuleVersion::V1_5_01, true);
    b.tables(GPA, 1, [true, false, false]);
    b.aug(GPA, Level::L2M, LARGE);
    b.returns(6, GPA | 1, 0, 0);
    assert_eq!(b.let_vm1(GPA | 1, VALID | 3).0, 0);
    let out = b.call(Leaf::SeptRd, 0, GPA | 1, 1, [5; 4]);
    assert_eq!((out.rax, out.r8), (0, (VALID | 3) << 16));
    let out = b.call(Leaf::SeptRd, 0, GPA | 2, 1, [5; 4]);
    assert_eq!((out.rcx, out.rdx, out.r8), (7, 0x8402, (VALID | 0xF) << 16), "a table has them all");
    b.ok(Leaf::RangeBlock, GPA | 1);
    let out = b.call(Leaf::SeptRd, 0, GPA | 1, 1, [5; 4]);
    assert_eq!((out.rdx, out.r8), (0x101, (VALID | 3) << 16), "kept aside while blocked");
    assert_eq!(b.call(Leaf::SeptRd, 0, GPA | 1, 0, [5; 4]).r8, 5, "not asked for");
}

#[test]
fn a_split_needs_a_table_for_each_vm_that_has_the_page() {
    let b = Bench::shared_with_vm1(2);
    b.block_and_track(GPA | 1);
    let demote = |flag: u64, pages: [u64; 4]| {
        let out = b.call(Leaf::PageDemote, 0, GPA | 1, flag, pages);
        (out.rax, [out.r9, out.r10, out.r11])
    };
    let pages = [b.frame(), b.frame(), b.frame(), 0x77];
    let [page, vm1, vm2, _] = pages;
    assert_eq!(demote(0, [page, NONE, NONE, 0x77]), (0xC000_0B12_0000_0009, [NONE, NONE, 0x77]));
    assert_eq!(demote(0, [page, 0x123, NONE, 0x77]).0, 0xC000_0100_0000_0009);
    assert_eq!(demote(0, [page, vm1, page, 0x77]).0, 0x8000_0200_0000_000A, "the same page again");
    let before = b.chldcnt();
    // Sparse: VM 2 does not have the page, so its table is not needed; R11 is no VM's.
    assert_eq!(demote(1, [page, vm1 | UNUSED, vm2, 0x77]), (0, [vm1 | UNUSED, vm2 | UNUSED, 0x77]));
    assert_eq!(b.chldcnt(), before + 2);
    assert_eq!([b.kind(page), b.kind(vm1), b.kind(vm2)], [PageType::Ept, PageType::Ept, PageType::Nda]);
    assert_eq!(b.raw(GPA, Level::L2M), 0x8400_0000_0000_0007 | page);
    assert_eq!(
        b.raw(GPA + 0x7000, Level::L4K),
        0x8400_0000_0000_00F7 | (LARGE + 0x7000),
        "aliases are inherited"
    );
    assert_eq!(b.returns(23, GPA + 0x7000, 0, 0), (0, GPA + 0x7000, (VALID | 7) << 16), "and attributes");
}

#[test]
fn all_mode_makes_tables_for_every_vm_with_a_page() {
    let b = Bench::shared_with_vm1(2);
    b.block_and_track(GPA | 1);
    let pages = [b.frame(), b.frame(), b.frame(), NONE];
    let out = b.call(Leaf::PageDemote, 0, GPA | 1, 0, pages);
    assert_eq!((out.rax, out.r9, out.r10), (0, pages[1], pages[2]));
    assert_eq!(b.kind(pages[2]), PageType::Ept);
    assert_eq!(b.raw(GPA, Level::L2M), 0x8C00_0000_0000_0007 | pages[0], "VM 1 and VM 2");
    assert_eq!(b.raw(GPA, Level::L4K), 0x8400_0000_0000_00F7 | LARGE, "VM 2 has no page of it");
    // Merged again: both tables come back, VM 2's because all of it is free.
    b.block_and_track(GPA | 1);
    let out = b.call(Leaf::PagePromote, 1, GPA | 1, 0, [9; 4]);
    assert_eq!((out.rax, out.rcx), (0, pages[0]));
    assert_eq!([out.r9, out.r10, out.r11], [pages[1], pages[2], NONE]);
    assert_eq!(b.returns(23, GPA, 0, 0), (0, GPA | 1, (VALID | 7) << 16));
}

#[test]
fn a_split_that_finds_no_tables_of_a_vm_has_already_written() {
    let b = bench(2, ModuleVersion::V1_5_01, false);
    b.tables(GPA, 1, [true, false, false]);
    b.aug(GPA, Level::L2M, LARGE);
    b.block_and_track(GPA | 1);
    let pages = [b.frame(), b.frame(), b.frame(), NONE];
    let out = b.call(Leaf::PageDemote, 0, GPA | 1, 0, pages);
    assert_eq!((out.rax, out.rcx, out.rdx), (0xC000_0B0F_0002_0003, 1 << 63, 0x2_4003));
    assert_eq!(b.kind(pages[0]), PageType::Nda);
    assert_eq!(b.machine.peek(Hpa::truncate(pages[0])).key, 33, "overwritten all the same");
}

#[test]
fn every_l2_page_is_a_chance_to_be_interrupted() {
    for (version, vms, polls) in [
        (ModuleVersion::V1_5_01, 0, 1),
        (ModuleVersion::V1_5_01, 1, 2),
        (ModuleVersion::V1_5_28, 0, 0),
        (ModuleVersion::V1_5_28, 1, 2),
        (ModuleVersion::V2_0_08, 0, 1),
    ] {
        let b = bench(vms, version, false);
        b.tables(GPA, 1, [vms > 0, false, false]);
        b.aug(GPA, Level::L2M, LARGE);
        b.block_and_track(GPA | 1);
        let pages = [b.frame(), b.frame(), NONE, NONE];
        for poll in 0..polls {
            b.machine.set_interrupts(Some(Interrupts::nmi_after(poll)));
            let out = b.call(Leaf::PageDemote, 0, GPA | 1, 0, pages);
            let restart = (0x8000_0004_0000_0000, GPA | 1, b.td.tdr.raw(), pages[0], pages[1]);
            assert_eq!((out.rax, out.rcx, out.rdx, out.r8, out.r9), restart, "{version:?} {vms} {poll}");
        }
        b.machine.set_interrupts(Some(Interrupts::nmi_after(polls)));
        assert_eq!(b.call(Leaf::PageDemote, 0, GPA | 1, 0, pages).rax, 0, "{version:?} {vms}");
    }
}

#[test]
fn pages_that_differ_for_a_vm_do_not_merge() {
    let b = Bench::shared_with_vm1(1);
    b.block_and_track(GPA | 1);
    let pages = [b.frame(), b.frame(), NONE, NONE];
    assert_eq!(b.call(Leaf::PageDemote, 0, GPA | 1, 0, pages).rax, 0);
    let promote = || {
        b.block_and_track(GPA | 1);
        let out = b.call(Leaf::PagePromote, 1, GPA | 1, 0, [0; 4]);
        if out.rax != 0 {
            assert_eq!(b.call(Leaf::RangeUnblock, 0, GPA | 1, 0, [0; 4]).rax, 0);
        }
        (out.rax, out.r9)
    };
    let invalid = (0xC000_0B09_0000_0001, NONE);
    assert_eq!(b.let_vm1(GPA + 0x3000, VALID | 1).0, 0, "one may do less");
    assert_eq!(promote(), invalid);
    assert_eq!(b.let_vm1(GPA + 0x3000, VALID).0, 0, "one may do nothing");
    assert_eq!(promote(), invalid);
    assert_eq!(b.let_vm1(GPA + 0x3000, VALID | 7).0, 0);
    assert_eq!(promote(), (0, pages[1]));
}

#[test]
fn a_table_goes_with_those_of_the_vms() {
    for version in [0, 1] {
        let b = bench(1, ModuleVersion::V1_5_01, false);
        b.tables(GPA, 1, [true, false, false]);
        let [page, vm1, ..] = b.table(GPA, 1, [true, false, false]);
        b.block_and_track(GPA | 1);
        let before = b.chldcnt();
        let out = b.call(Leaf::SeptRemove, version, GPA | 1, 0, [5; 4]);
        assert_eq!((out.rax, out.rcx, out.r9), (0, page, if version == 0 { 5 } else { vm1 }));
        assert_eq!(b.chldcnt(), before - 2, "both are gone, told or not");
        assert_eq!([b.kind(page), b.kind(vm1)], [PageType::Nda; 2]);
        assert_eq!(b.raw(GPA, Level::L2M), 0x80E0_0000_0000_0000, "no alias is left");
    }
}

#[test]
fn removing_and_moving_a_page_takes_the_vms_along() {
    let b = bench(1, ModuleVersion::V1_5_01, false);
    b.tables(GPA, 0, [true, false, false]);
    b.aug(GPA, Level::L4K, LARGE);
    b.returns(6, GPA, 0, 0);
    assert_eq!(b.let_vm1(GPA, VALID | 3).0, 0);
    b.block_and_track(GPA);
    let moved = b.call(Leaf::PageRelocate, 0, GPA, 0, [LARGE + 4096, 0, 0, 0]);
    assert_eq!((moved.rax, moved.rcx), (0, LARGE));
    assert_eq!(b.returns(23, GPA, 0, 0), (0, GPA, (VALID | 3) << 16));
    b.block_and_track(GPA);
    b.ok(Leaf::PageRemove, GPA);
    assert_eq!(b.raw(GPA, Level::L4K), 0x80E0_0000_0000_0000);
    b.aug(GPA, Level::L4K, LARGE);
    assert_eq!(b.returns(23, GPA, 0, 0), (0, GPA | 1 << 62, 0), "a new page, nothing is left of the old one");
}

/// Bits 57, 58 and 60 in 2.0.08, where bit 59 is the lock.
#[test]
fn aliases_moved_in_version_two() {
    for (version, bits) in [(ModuleVersion::V1_5_28, [58, 59, 60]), (ModuleVersion::V2_0_08, [57, 58, 60])] {
        let b = bench(3, version, false);
        for (vm, bit) in bits.into_iter().enumerate() {
            let mut vms = [false; 3];
            vms[vm] = true;
            let gpa = (vm as u64) << 39;
            b.table(gpa, 3, vms);
            assert_eq!(b.raw(gpa, Level::L512G) >> 56 & 0x1F, 1 << (bit - 56), "{version:?} VM {vm}");
        }
    }
}
