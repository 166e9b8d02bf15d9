//! Dynamic PAMT (module 2.0.08): page pairs, and who asks for them.

use crate::common::BASE;
use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, Leaf, Machine, ModuleVersion, PageType, Status};

const GPA: u64 = 0x4000_0000;
/// The region of control pages and tables, one of PAMT pages, one for data.
const CONTROL: u64 = BASE;
const PAIRS: u64 = BASE + 0x20_0000;
const DATA: u64 = BASE + 0x40_0000;

struct Bench {
    machine: Machine,
    td: TdPages,
    next: u64,
}

fn call(machine: &Machine, leaf: Leaf, rcx: u64, rdx: u64, r8: u64) -> Regs {
    machine.lp(0).raw(Regs { rax: leaf as u64, rcx, rdx, r8, ..Regs::default() })
}

fn bench() -> Bench {
    let machine = Machine::builder().version(ModuleVersion::V2_0_08).memory(BASE, 2).audit(true).build();
    let mut frames = (CONTROL..).step_by(4096).map(Hpa::truncate);
    let refused = boot::create(&machine.lp(0), &machine, &TdSpec::default(), &mut frames);
    assert_eq!(refused, Err(Status(0x8000_0308_0000_0001)), "the region of the TDR has no pair");
    assert_eq!(call(&machine, Leaf::PhymemPamtAdd, CONTROL | 1, PAIRS, PAIRS + 4096).rax, 0);
    let td = boot::create(&machine.lp(0), &machine, &TdSpec::default(), &mut frames).expect("a TD");
    boot::map_tables(&machine.lp(0), &td, Gpa::truncate(GPA), Level::L2M, &mut frames).expect("tables");
    let next = frames.next().expect("a frame").raw();
    Bench { machine, td, next }
}

impl Bench {
    fn call(&self, leaf: Leaf, rcx: u64, rdx: u64, r8: u64) -> Regs {
        call(&self.machine, leaf, rcx, rdx, r8)
    }

    fn mapped() -> Self {
        let b = bench();
        assert_eq!(b.call(Leaf::PageAug, GPA | 1, b.td.tdr.raw(), DATA).rax, 0);
        let guest = b.machine.guest(b.td.vcpus[0]);
        guest.enter(0).expect("entered");
        assert_eq!(guest.accept(Gpa::truncate(GPA), Level::L2M), Ok(Accept::Returned(Status::SUCCESS)));
        guest.exit();
        b
    }

    fn fence(&self) {
        assert_eq!(self.call(Leaf::RangeBlock, GPA | 1, self.td.tdr.raw(), 0).rax, 0);
        assert_eq!(self.call(Leaf::MemTrack, self.td.tdr.raw(), 0, 0).rax, 0);
    }

    fn demote(&self, r12: u64, r13: u64) -> Regs {
        self.machine.lp(0).raw(Regs {
            rax: 15,
            rcx: GPA | 1,
            rdx: self.td.tdr.raw(),
            r8: self.next,
            r12,
            r13,
            ..Regs::default()
        })
    }
}

#[test]
fn a_pair_is_added_and_removed_under_checks_in_order() {
    let b = bench();
    let add = |rcx, rdx, r8| b.call(Leaf::PhymemPamtAdd, rcx, rdx, r8).rax;
    let (p, q) = (PAIRS + 0x2000, PAIRS + 0x3000);
    assert_eq!(add(DATA, p, q), 0xC000_0100_0000_0001, "level 0");
    assert_eq!(add(DATA | 0x1001, p, q), 0xC000_0100_0000_0001, "not a region");
    assert_eq!(add(DATA | 1, p + 8, q), 0xC000_0100_0000_0002);
    assert_eq!(add(DATA | 1, 0x1000, q + 8), 0xC000_0101_0000_0002, "RDX is done before R8");
    assert_eq!(add(0x4000_0001, p, q), 0xC000_0101_0000_0001);
    assert_eq!(add(CONTROL | 1, p, q), 0xC000_0304_0000_0001, "it has a pair");
    assert_eq!(add(DATA | 1, PAIRS, q), 0xC000_0303_0000_0002, "a page of another pair");
    assert_eq!(add(DATA | 1, p, p), 0xC000_0303_0000_0008, "the same page twice");
    assert_eq!(add(DATA | 1, b.td.tdr.raw(), q), 0xC000_0303_0000_0002, "a TDR");
    assert_eq!(add(DATA | 1, p, q), 0);
    let remove = |rcx| b.call(Leaf::PhymemPamtRemove, rcx, 0, 0);
    assert_eq!(remove(PAIRS | 1).rax, 0xC000_0305_0000_0001);
    assert_eq!(remove(CONTROL | 1).rax, 0xC000_0306_0000_0000, "the first page holds entries in use");
    let out = remove(DATA | 1);
    assert_eq!((out.rax, out.rdx, out.r8), (0, p, q));
    assert_eq!(b.machine.peek(Hpa::truncate(p)).dirty, Some(32), "it was written with the module's key");
}

#[test]
fn a_large_page_needs_a_region_without_pair() {
    let b = bench();
    assert_eq!(b.call(Leaf::PhymemPamtAdd, DATA | 1, PAIRS + 0x2000, PAIRS + 0x3000).rax, 0);
    let aug = |page| b.call(Leaf::PageAug, GPA | 1, b.td.tdr.raw(), page).rax;
    assert_eq!(aug(DATA), 0xC000_0300_0000_0008, "an empty pair spoils it");
    assert_eq!(aug(PAIRS), 0xC000_0300_0000_0008, "so do pages that serve as PAMT pages");
    assert_eq!(b.call(Leaf::PhymemPamtRemove, DATA | 1, 0, 0).rax, 0);
    assert_eq!(aug(DATA), 0);
}

#[test]
fn demote_takes_the_pair_last_and_promote_returns_it() {
    let b = Bench::mapped();
    let (p, q) = (PAIRS + 0x4000, PAIRS + 0x5000);
    assert_eq!(b.demote(p, q).rax, 0xC000_0B06_0000_0001, "not blocked comes before the pair");
    b.fence();
    assert_eq!(b.demote(p + 8, q).rax, 0xC000_0100_0000_000C);
    assert_eq!(b.demote(p, 0x1000).rax, 0xC000_0101_0000_000D);
    assert_eq!(b.demote(0x1000, 0x2000).rax, 0xC000_0101_0000_000C, "R12 before R13");
    assert_eq!(b.demote(p, p).rax, 0xC000_0303_0000_000D);
    assert_eq!(b.demote(DATA + 0x1000, q).rax, 0x8000_0200_0000_000C, "inside the page being split");
    assert_eq!(b.demote(b.next, q).rax, 0x8000_0200_0000_000C, "the new table");
    assert_eq!(b.demote(PAIRS, q).rax, 0xC000_0303_0000_000C);
    assert_eq!(b.machine.peek(Hpa::truncate(b.next)).dirty, Some(33), "the table was written before");
    let out = b.demote(p, q);
    assert_eq!((out.rax, out.rcx, out.rdx, out.r12, out.r13), (0, 0, 0, p, q));
    let region = call(&b.machine, Leaf::PhymemPageRdmd, DATA | 1, 0, 0);
    assert_eq!((region.rcx, region.r8, region.r10, region.r11), (1 << 63 | 15, 1, p, q));
    assert_eq!(b.machine.page(Hpa::truncate(DATA)).kind, PageType::Reg);
    b.fence();
    let out = b.call(Leaf::PagePromote, GPA | 1, b.td.tdr.raw(), 0);
    assert_eq!((out.rax, out.rcx, out.r12, out.r13), (0, b.next, p, q));
    let merged = b.machine.page(Hpa::truncate(DATA));
    assert_eq!((merged.kind, merged.level, merged.bepoch), (PageType::Reg, 1, 0));
}

#[test]
fn the_last_small_page_of_a_region_is_returned_with_a_hint() {
    let b = Bench::mapped();
    b.fence();
    let (p, q) = (PAIRS + 0x4000, PAIRS + 0x5000);
    assert_eq!(b.demote(p, q).rax, 0);
    let tdr = b.td.tdr.raw();
    for index in 0..512 {
        assert_eq!(b.call(Leaf::RangeBlock, GPA + index * 4096, tdr, 0).rax, 0);
    }
    assert_eq!(b.call(Leaf::MemTrack, tdr, 0, 0).rax, 0);
    for index in 0..512 {
        let out = b.call(Leaf::PageRemove, GPA + index * 4096, tdr, 0);
        let hint = if index == 511 { 1 << 62 } else { 0 };
        assert_eq!((out.rax, out.rcx), (0, (DATA + index * 4096) | hint));
    }
    let out = b.call(Leaf::PhymemPamtRemove, DATA | 1, 0, 0);
    assert_eq!((out.rax, out.rdx, out.r8), (0, p, q));
}

/// Between 2 MiB and 1 GiB no pair is needed: R12 and R13 may hold anything and come back as they were.
#[test]
fn a_1_gib_page_is_split_and_merged_without_a_pair() {
    let machine = Machine::builder().version(ModuleVersion::V2_0_08).memory(BASE, 2).build();
    assert_eq!(call(&machine, Leaf::PhymemPamtAdd, CONTROL | 1, PAIRS, PAIRS + 4096).rax, 0);
    let mut frames = (CONTROL..).step_by(4096).map(Hpa::truncate);
    let lp = machine.lp(0);
    let td = boot::create(&lp, &machine, &TdSpec::default(), &mut frames).expect("a TD");
    boot::map_tables(&lp, &td, Gpa::truncate(GPA), Level::L2M, &mut frames).expect("tables");
    let (tdr, guest, data) = (td.tdr.raw(), machine.guest(td.vcpus[0]), BASE + (1 << 30));
    guest.enter(0).expect("entered");
    for offset in (0..1 << 30).step_by(1 << 21) {
        boot::aug(&lp, &td, Gpa::truncate(GPA + offset), Level::L2M, Hpa::truncate(data + offset))
            .expect("AUG");
        let accepted = guest.accept(Gpa::truncate(GPA + offset), Level::L2M);
        assert_eq!(accepted, Ok(Accept::Returned(Status::SUCCESS)));
    }
    guest.exit();
    let fence = || {
        assert_eq!(call(&machine, Leaf::RangeBlock, GPA | 2, tdr, 0).rax, 0);
        assert_eq!(call(&machine, Leaf::MemTrack, tdr, 0, 0).rax, 0);
    };
    fence();
    let regs = Regs { rcx: GPA | 2, rdx: tdr, r12: 0x11, r13: 0x22, ..Regs::default() };
    let merged = lp.raw(Regs { rax: 23, ..regs });
    assert_eq!((merged.rax, merged.r12, merged.r13), (0, 0x11, 0x22));
    let page = machine.page(Hpa::truncate(data + 0x1234_5000));
    assert_eq!((page.kind, page.level, page.owner), (PageType::Reg, 2, tdr));
    fence();
    let split = lp.raw(Regs { rax: 15, r8: merged.rcx & !(1 << 62), ..regs });
    assert_eq!((split.rax, split.rcx, split.r12, split.r13), (0, 0, 0x11, 0x22));
    assert_eq!(machine.page(Hpa::truncate(data + 0x1234_5000)).level, 1);
    assert_eq!(machine.check_invariants(), Vec::<String>::new());
}
