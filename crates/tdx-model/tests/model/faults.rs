//! The fault plan: what was ordered happens when it was ordered, once, and nothing else does.

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::TdSpec;
use tdx_model::{
    Accept, Fault, FaultPlan, GuestFault, Leaf, Machine, MachineCheck, ModuleVersion, Operand, Status,
};

use crate::common::{BASE, Bench};

const GPA: u64 = 0x4000_0000;
const TD_FATAL: u64 = 0xE000_0604_0000_0000;

fn hpa(page: u64) -> Hpa {
    Hpa::truncate(page)
}

/// A 2 MiB page that is accepted, blocked and tracked.
fn split_ready(plan: FaultPlan) -> Bench {
    let b = Bench::new(Machine::builder().version(ModuleVersion::V1_5_01).faults(plan), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, BASE + (1 << 30));
    b.accept(GPA, Level::L2M);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    b.guest().exit();
    b
}

#[test]
fn the_second_demote_is_busy() {
    let b = split_ready(FaultPlan::new().busy(Leaf::PageDemote, 2, Operand::SeptTree));
    let (table, rcx) = (b.frame(), GPA | 1);
    let demote = |r8| b.call(Leaf::PageDemote, rcx, b.tdr(), r8);
    assert_eq!(demote(table + 1).rax, 0xC000_0100_0000_0008, "the first is executed");
    let before = b.machine.digest();
    let out = demote(table);
    assert_eq!((out.rax, out.rcx, out.rdx), (0x8000_0200_0000_0092, 0, 0));
    assert_eq!(b.machine.digest(), before);
    assert_eq!(demote(table).rax, 0);
}

#[test]
fn an_answer_can_repeat_and_count_every_call() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.machine.inject(Fault::nth_call(2, Status::OPERAND_BUSY.of(Operand::Rcx)).times(2));
    let track = || b.call(Leaf::MemTrack, b.tdr(), 0, 0).rax;
    assert_eq!([track(), track(), track(), track()], [0, 0x8000_0200_0000_0001, 0x8000_0200_0000_0001, 0]);
    b.machine.inject(Fault::nth(Leaf::VpEnter, 1, Status::OPERAND_BUSY.of(Operand::TdEpoch)));
    assert_eq!(b.guest().enter(0), Err(Status(0x8000_0200_0000_00A9)));
    assert_eq!(b.guest().enter(0), Ok(()));
    b.machine.inject(Fault::nth(Leaf::MemTrack, 1, Status::OPERAND_BUSY));
    b.machine.clear_faults();
    assert_eq!(track(), 0);
}

/// SEPT.RD shows how many chunks are accepted in bits 20:12 of the entry.
#[test]
fn an_interrupt_comes_after_so_many_chunks() {
    for chunks in [1, 2, 3, 200, 511] {
        let b = Bench::new(Machine::builder(), TdSpec::default());
        b.tables(GPA, Level::L2M);
        b.aug(GPA, Level::L2M, BASE + (1 << 30));
        b.guest().enter(0).unwrap();
        b.machine.order(FaultPlan::new().interrupt_after_chunks(chunks));
        let accept = || b.guest().accept(Gpa::truncate(GPA), Level::L2M).unwrap();
        assert_eq!(accept(), Accept::Interrupted);
        assert_eq!(b.ok(Leaf::SeptRd, GPA | 1, b.tdr(), 0).rcx >> 12 & 0x1FF, chunks);
        b.machine.set_interrupts(None);
        assert_eq!(accept(), Accept::Returned(Status::SUCCESS));
    }
}

#[test]
fn a_cache_write_back_is_interrupted_and_resumed() {
    let b = Bench::new(Machine::builder().cache_sub_blocks(4), TdSpec::default());
    b.ok(Leaf::VpFlush, b.td.vcpus[0].raw(), 0, 0);
    b.ok(Leaf::MngVpFlushDone, b.tdr(), 0, 0);
    b.machine.order(FaultPlan::new().interrupt_after_chunks(2));
    assert_eq!(b.call(Leaf::PhymemCacheWb, 0, 0, 0).rax, 0x8000_0003_0000_0000);
    assert_eq!(
        b.call(Leaf::MngKeyFreeId, b.tdr(), 0, 0).rax,
        0x8000_0817_0000_0000,
        "not all is written back"
    );
    b.machine.clear_faults();
    b.ok(Leaf::PhymemCacheWb, 1, 0, 0);
    b.ok(Leaf::MngKeyFreeId, b.tdr(), 0, 0);
}

#[test]
fn vcpu_two_stays_in_the_guest() {
    let spec = TdSpec { vcpus: 3, ..TdSpec::default() };
    let b = Bench::new(Machine::builder().faults(FaultPlan::new().vcpu_stays(2)), spec);
    let guests: Vec<_> = b.td.vcpus.iter().map(|&page| b.machine.guest(page)).collect();
    guests.iter().zip(0..).for_each(|(guest, lp)| guest.enter(lp).unwrap());
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    assert_eq!(guests.iter().map(|guest| guest.exit()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(b.call(Leaf::MemTrack, b.tdr(), 0, 0).rax, 0x8000_0201_0000_0000);
    b.machine.clear_faults();
    assert!(guests[2].exit());
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
}

#[test]
fn a_page_pair_is_missing_when_it_is_needed() {
    let builder = Machine::builder().version(ModuleVersion::V2_0_08).memory(BASE, 2).audit(true);
    let data = BASE + 0x40_0000;
    let machine = builder.faults(FaultPlan::new().page_pair_missing(hpa(data + 0x5000))).build();
    let call = |leaf: Leaf, rcx, rdx, r8| {
        machine.lp(0).raw(Regs { rax: leaf as u64, rcx, rdx, r8, ..Regs::default() })
    };
    let (pair, other) = (BASE + 0x20_0000, BASE + 0x20_2000);
    assert_eq!(call(Leaf::PhymemPamtAdd, data | 1, pair, pair + 4096).rax, 0);
    assert_eq!(call(Leaf::PhymemPamtAdd, BASE | 1, other, other + 4096).rax, 0);
    assert_eq!(call(Leaf::MngCreate, BASE, 33, 0).rax, 0, "another region has its pair");
    let create = call(Leaf::MngCreate, data, 34, 0);
    assert_eq!(create.rax, 0x8000_0308_0000_0001, "MISSING_PAMT_PAGE_PAIR names the operand");
    assert_eq!(call(Leaf::PhymemPamtAdd, data | 1, pair, pair + 4096).rax, 0, "the host adds it again");
    assert_eq!(call(Leaf::MngCreate, data, 34, 0).rax, 0, "once");
    machine.order(FaultPlan::new().page_pair_missing(hpa(data)));
    assert_eq!(call(Leaf::MngCreate, data + 4096, 35, 0).rax, 0, "the region is in use");
}

#[test]
fn an_announced_error_waits_for_a_reader() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    let guest = b.guest();
    guest.enter(0).unwrap();
    b.accept(GPA, Level::L4K);
    b.machine.order(FaultPlan::new().machine_check(hpa(page), 2, MachineCheck::Announced));
    b.ok(Leaf::SeptRd, GPA, b.tdr(), 0);
    assert!(guest.read(Gpa::truncate(GPA)).is_ok(), "not yet");
    b.ok(Leaf::SeptRd, GPA, b.tdr(), 0);
    assert!(!b.machine.td(b.td.tdr).unwrap().fatal, "nobody has looked");
    assert_eq!(guest.read(Gpa::truncate(GPA)), Err(GuestFault::Fatal));
    assert!(b.machine.td(b.td.tdr).unwrap().fatal && !guest.is_inside());
}

#[test]
fn a_consumed_error_makes_every_leaf_say_that_the_td_is_fatal() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    b.machine.order(FaultPlan::new().machine_check(hpa(page), 1, MachineCheck::Consumed));
    let (tdr, tdvpr, new) = (b.tdr(), b.td.vcpus[0].raw(), b.frame());
    // Where each leaf takes the TD: RCX a TDR or TDVPR, or RDX a TDR.
    use Leaf as L;
    let by_address = [
        L::PageAdd,
        L::SeptAdd,
        L::PageRelocate,
        L::PageAug,
        L::RangeBlock,
        L::MemRd,
        L::MemWr,
        L::PageDemote,
        L::MrExtend,
        L::PagePromote,
        L::SeptRd,
        L::PageRemove,
        L::SeptRemove,
        L::RangeUnblock,
        L::ExportUnblockw,
    ];
    for leaf in by_address {
        assert_eq!(b.call(leaf, GPA, tdr, new).rax, TD_FATAL, "{leaf:?}");
    }
    for leaf in [L::MemTrack, L::MrFinalize, L::MngRd, L::MngWr, L::MngInit, L::MngKeyConfig] {
        assert_eq!(b.call(leaf, tdr, 0, 0).rax, TD_FATAL, "{leaf:?}");
    }
    for leaf in [L::VpEnter, L::VpInit, L::VpRd, L::VpWr] {
        assert_eq!(b.call(leaf, tdvpr, 0, 0).rax, TD_FATAL, "{leaf:?}");
    }
    for (leaf, owner) in [(L::MngAddCx, tdr), (L::VpCreate, tdr), (L::VpAddCx, tdvpr)] {
        assert_eq!(b.call(leaf, new, owner, 0).rax, TD_FATAL, "{leaf:?}");
    }
    assert_eq!(b.guest().enter(0), Err(Status(TD_FATAL)));
}
