//! The worked trace of the ABI facts: 1.5.01, 4-level S-EPT, a 2 MiB page split and merged under a running vCPU.

use crate::common::Bench;
use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::TdSpec;
use tdx_model::{Leaf, Machine, ModuleVersion, PageType};

const GPA: u64 = 0x4000_0000;
const ENTRY: u64 = GPA | 1;
const PAGE: u64 = 0x1_8000_0000;
const TABLE: u64 = 0x1_4000_0000;

/// A TD whose epoch is `5` with its vCPU inside since then, and the page mapped and accepted.
fn at_epoch_five() -> Bench {
    let b = Bench::new(Machine::builder().version(ModuleVersion::V1_5_01), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, PAGE);
    b.accept(GPA, Level::L2M);
    for _ in 1..5 {
        b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    }
    b.guest().enter(0).expect("entered");
    let td = b.machine.td(b.td.tdr).expect("the TD");
    assert_eq!((td.td_epoch, td.refcount), (5, [0, 1]));
    b
}

#[track_caller]
fn expect(out: Regs, rax: u64, rcx: u64, rdx: u64) {
    assert_eq!((out.rax, out.rcx, out.rdx), (rax, rcx, rdx), "got {out:x?}");
}

#[test]
fn the_worked_trace() {
    let b = at_epoch_five();
    let (tdr, mapped) = (b.tdr(), 0x8000_0000_0000_00F7 | PAGE);
    let demote = |r8| b.call(Leaf::PageDemote, ENTRY, tdr, r8);
    let chldcnt = || b.machine.td(b.td.tdr).expect("the TD").chldcnt;
    expect(demote(TABLE), 0xC000_0B06_0000_0001, mapped, 0x0401);
    b.ok(Leaf::RangeBlock, ENTRY, tdr, 0);
    assert_eq!(b.machine.page(Hpa::truncate(PAGE)).bepoch, 5);
    let again = b.call(Leaf::RangeBlock, ENTRY, tdr, 0);
    expect(again, 0x0000_0B07_0000_0001, 0x8000_0000_0000_00F0 | PAGE, 0x0101);
    expect(demote(TABLE), 0xC000_0B08_0000_0001, 0, 0);
    b.ok(Leaf::MemTrack, tdr, 0, 0);
    expect(demote(TABLE), 0xC000_0B08_0000_0001, 0, 0);
    assert_eq!(b.call(Leaf::MemTrack, tdr, 0, 0).rax, 0x8000_0201_0000_0000);
    assert!(b.guest().exit());
    assert_eq!(b.machine.td(b.td.tdr).expect("the TD").refcount, [0, 0]);
    expect(demote(TABLE + 0x800), 0xC000_0100_0000_0008, 0, 0);
    expect(demote(tdr), 0x8000_0200_0000_0008, 0, 0);
    let before = chldcnt();
    expect(demote(TABLE), 0, 0, 0);
    assert_eq!(chldcnt(), before + 1);
    let raw = |gpa: u64, level| b.machine.entry(b.td.tdr, Gpa::truncate(gpa), level).expect("an entry").raw;
    assert_eq!(raw(GPA, Level::L2M), 0x8000_0000_0000_0007 | TABLE);
    for index in 0..512 {
        let child = 0x8000_0000_0000_00F7 | (PAGE + index * 0x1000);
        assert_eq!(raw(GPA + index * 0x1000, Level::L4K), child);
        let page = b.machine.page(Hpa::truncate(PAGE + index * 0x1000));
        assert_eq!((page.kind, page.level, page.owner, page.bepoch), (PageType::Reg, 0, tdr, 0));
    }
    expect(demote(TABLE), 0xC000_0B0D_0000_0001, 7, 0x8401);
    expect(b.call(Leaf::RangeUnblock, ENTRY, tdr, 0), 0xC000_0B0D_0000_0001, 7, 0x8401);
    expect(b.call(Leaf::SeptRd, GPA, tdr, 0), 0, mapped, 0x0400);
    expect(b.call(Leaf::PagePromote, ENTRY, tdr, 0), 0xC000_0B06_0000_0001, 7, 0x8401);
    b.block_and_track(ENTRY);
    expect(b.call(Leaf::PagePromote, ENTRY, tdr, 0), 0, TABLE, 0);
    assert_eq!(raw(GPA, Level::L2M), mapped);
    assert_eq!(chldcnt(), before);
    expect(b.call(Leaf::PageRemove, ENTRY, tdr, 0), 0xC000_0B06_0000_0001, mapped, 0x0401);
    expect(b.call(Leaf::SeptRemove, ENTRY, tdr, 0), 0xC000_0B0D_0000_0001, mapped, 0x0401);
    expect(b.call(Leaf::PageAug, GPA, tdr, TABLE), 0xC000_0B00_0000_0001, mapped, 0x0401);
}

/// Version and reserved bits of RAX; unknown leaves; what is single-version.
#[test]
fn the_dispatcher_refuses_what_it_does_not_know() {
    let b = Bench::new(Machine::builder().version(ModuleVersion::V1_5_01), TdSpec::default());
    let invalid = 0xC000_0100_0000_0000;
    for rax in [0x0100_0006, 1 << 32, 6 | 1 << 63, 0x99, 0x1000F, 0x10006, 58, 59] {
        let input = Regs { rax, rcx: 0x11, rdx: 0x22, r8: 0x33, ..Regs::default() };
        assert_eq!(b.raw(input), Regs { rax: invalid, ..input }, "{rax:#x}");
    }
    let input = Regs { rax: 0x2_0017, rcx: 0x11, rdx: 0x22, r9: 0x33, ..Regs::default() };
    let nulls = Regs { rax: invalid, r9: u64::MAX, r10: u64::MAX, r11: u64::MAX, ..Regs::default() };
    assert_eq!(b.raw(input), nulls, "PROMOTE version 2 clears its outputs first");
}
