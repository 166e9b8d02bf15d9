//! A TD from MNG.CREATE to the reclaim of its TDR, and what is refused on the way.

use crate::common::{BASE, Bench, frames};
use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdSpec};
use tdx_model::{Accept, Fault, GuestFault, Interrupts, Leaf, Lifecycle, Machine, ModuleVersion, Status};

const GPA: u64 = 0x4000_0000;

fn lifecycle(b: &Bench) -> Lifecycle {
    b.machine.td(b.td.tdr).expect("the TD").lifecycle
}

#[test]
fn teardown_gives_every_page_back_the_root_last() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, BASE + (1 << 30));
    let (tdr, tdvpr) = (b.tdr(), b.td.vcpus[0].raw());
    assert_eq!(b.call(Leaf::MngVpFlushDone, tdr, 0, 0).rax, 0x8000_0824_0000_0000);
    b.guest().enter(0).expect("entered");
    assert_eq!(b.call(Leaf::VpFlush, tdvpr, 0, 0).rax, 0x8000_0200_0000_0001);
    b.guest().exit();
    b.ok(Leaf::VpFlush, tdvpr, 0, 0);
    assert_eq!(b.call(Leaf::VpFlush, tdvpr, 0, 0).rax, 0x8000_0702_0000_0000);
    assert_eq!(b.call(Leaf::PhymemCacheWb, 0, 0, 0).rax, 0x0000_0821_0000_0000);
    b.ok(Leaf::MngVpFlushDone, tdr, 0, 0);
    assert_eq!(b.call(Leaf::SeptRd, GPA, tdr, 0).rax, 0x8000_0810_0000_0000);
    assert_eq!(b.call(Leaf::MngKeyFreeId, tdr, 0, 0).rax, 0x8000_0817_0000_0000);
    assert_eq!(b.call(Leaf::PhymemPageReclaim, tdr, 0, 0).rax, 0xC000_0607_0000_0000);
    b.ok(Leaf::PhymemCacheWb, 0, 0, 0);
    b.ok(Leaf::MngKeyFreeId, tdr, 0, 0);
    assert_eq!(lifecycle(&b), Lifecycle::Teardown);
    let early = b.call(Leaf::PhymemPageReclaim, tdr, 0, 0);
    assert_eq!((early.rax, early.rcx, early.rdx, early.r8), (0xC000_0400_0000_0000, 4, 0, 0));
    let inner = b.call(Leaf::PhymemPageReclaim, BASE + (1 << 30) + 4096, 0, 0);
    assert_eq!((inner.rax, inner.rcx, inner.rdx, inner.r8), (0xC000_0100_0000_0001, 3, tdr, 1));
    b.ok(Leaf::PhymemPageReclaim, BASE + (1 << 30), 0, 0);
    for page in (BASE..BASE + 0x40_0000).step_by(4096).filter(|&page| page != tdr) {
        let status = b.call(Leaf::PhymemPageReclaim, page, 0, 0).rax;
        assert!(status == 0 || status == 0xC000_0300_0000_0001, "{page:#x}: {status:#x}");
    }
    b.ok(Leaf::PhymemPageReclaim, tdr, 0, 0);
    assert_eq!(b.machine.td(b.td.tdr), None);
    // The root was written with the module's key (32): it needs its own write-back.
    b.ok(Leaf::PhymemPageWbinvd, tdr | 32 << 46, 0, 0);
    b.machine.host_zero(Hpa::truncate(BASE), 1024);
    assert_eq!(b.machine.violations(), []);
    // The key id is free for the next TD.
    boot::create(&b.machine.lp(0), &b.machine, &TdSpec::default(), &mut frames()).expect("another TD");
}

#[test]
fn key_ids_and_packages() {
    let machine = Machine::builder().memory(BASE, 1).packages(2).audit(true).build();
    let lp = machine.lp(0);
    let create =
        |page: u64, hkid| Status(lp.raw(Regs { rax: 9, rcx: page, rdx: hkid, ..Regs::default() }).rax);
    assert_eq!(create(BASE, 5), Status(0xC000_0100_0000_0002), "a shared key id");
    assert_eq!(create(BASE, 32), Status(0xC000_0820_0000_0000), "the module's own");
    assert_eq!(create(BASE + 8, 33), Status(0xC000_0100_0000_0001));
    assert_eq!(create(0x4000_0000, 33), Status(0xC000_0101_0000_0001));
    assert_eq!(create(BASE, 33), Status::SUCCESS);
    assert_eq!(create(BASE + 4096, 33), Status(0xC000_0820_0000_0000));
    let key = |lp| Status(machine.lp(lp).raw(Regs { rax: 8, rcx: BASE, ..Regs::default() }).rax);
    assert_eq!(key(0), Status::SUCCESS);
    assert_eq!(key(2), Status(0x0000_0815_0000_0000), "package 0 again");
    let info = || machine.td(Hpa::truncate(BASE)).expect("the TD").lifecycle;
    assert_eq!(info(), Lifecycle::HkidAssigned);
    assert_eq!(key(1), Status::SUCCESS);
    assert_eq!(info(), Lifecycle::KeysConfigured);
    assert_eq!(key(1), Status(0xC000_0607_0000_0000));
}

#[test]
fn td_params_are_checked_field_by_field() {
    let cases: [(usize, u64, u64); 7] = [
        (0, 2, 64),           // ATTRIBUTES
        (8, 0, 65),           // XFAM without x87 and SSE
        (16, 0, 68),          // MAX_VCPUS 0
        (24, 6 | 2 << 3, 67), // three levels
        (24, 0x1E | 1 << 12, 67),
        (32, 1, 67), // GPA width 52 needs five levels
        (40, 3, 70), // TSC frequency too low
    ];
    for (at, value, operand) in cases {
        let machine = Machine::builder().memory(BASE, 1).build();
        let lp = machine.lp(0);
        let call = |leaf, rcx, rdx| lp.raw(Regs { rax: leaf, rcx, rdx, ..Regs::default() }).rax;
        assert_eq!((call(9, BASE, 33), call(8, BASE, 0)), (0, 0));
        assert_eq!(call(21, BASE, 0x4000_0000), 0xC000_0606_0000_0000, "no TDCS pages yet");
        (1..7).for_each(|page| assert_eq!(call(1, BASE + page * 4096, BASE), 0));
        let mut params = boot::td_params(&TdSpec::default());
        params[at..at + if at == 16 || at == 40 { 2 } else { 8 }]
            .copy_from_slice(&value.to_le_bytes()[..if at == 16 || at == 40 { 2 } else { 8 }]);
        machine.host_write_bytes(Hpa::truncate(0x4000_0400), &params);
        assert_eq!(call(21, BASE, 0x4000_0400), 0xC000_0100_0000_0000 | operand, "byte {at} = {value:#x}");
        assert_eq!(call(21, BASE, 0x4000_0404), 0xC000_0100_0000_0002, "misaligned");
    }
}

/// MNG.INIT returns RCX 0, whatever comes of it. TD_PARAMS may end where SEAM memory begins. (`tdh_mng_init.c`)
#[test]
fn td_params_up_to_seam_memory() {
    let machine = Machine::builder().memory(BASE, 1).seamrr(0x8000_0000, 0x200_0000).build();
    let call = |rax, rcx, rdx| machine.lp(0).raw(Regs { rax, rcx, rdx, ..Regs::default() });
    assert_eq!((call(9, BASE, 33).rax, call(8, BASE, 0).rax), (0, 0));
    (1..7).for_each(|page| assert_eq!(call(1, BASE + page * 4096, BASE).rax, 0));
    let at = 0x7FFF_FC00;
    machine.host_write_bytes(Hpa::truncate(at), &boot::td_params(&TdSpec::default()));
    let init = |at| call(21, BASE, at);
    let refused = init(0x8000_0000);
    assert_eq!((refused.rax, refused.rcx, refused.rdx), (0xC000_0100_0000_0002, 0, 0x8000_0000));
    let done = init(at);
    assert_eq!((done.rax, done.rcx, done.rdx), (0, 0, at));
    let again = init(at);
    assert_eq!((again.rax, again.rcx), (0xC000_0608_0000_0000, 0));
}

#[test]
fn five_levels_and_wide_addresses() {
    let spec = TdSpec { sept_levels: 5, wide_gpa: true, ..TdSpec::default() };
    let b = Bench::new(Machine::builder(), spec);
    let gpa = 0x0007_FFFF_C000_0000;
    b.tables(gpa, Level::L4K);
    b.aug(gpa, Level::L4K, b.frame());
    b.accept(gpa, Level::L4K);
    b.guest_writes(gpa, 5);
    assert_eq!(b.guest_reads(gpa), 5);
    let shared = b.call(Leaf::SeptRd, 1 << 51, b.tdr(), 0);
    assert_eq!(shared.rax, 0xC000_0100_0000_0001);
}

/// A vCPU stays associated with its logical processor until it is flushed there.
#[test]
fn association_epochs_and_a_vcpu_that_stays_inside() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    assert_eq!(b.guest().enter(1), Err(Status(0x8000_0701_0000_0000)));
    b.guest().enter(0).expect("entered");
    b.guest().set_stuck(true);
    assert!(!b.guest().exit());
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    assert_eq!(b.call(Leaf::MemTrack, b.tdr(), 0, 0).rax, 0x8000_0201_0000_0000);
    b.guest().set_stuck(false);
    assert!(b.guest().exit());
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    let out = b.call(Leaf::VpEnter, b.td.vcpus[0].raw(), 0, 0);
    assert_eq!(out, Regs { rax: 1, ..Regs::default() }, "left by an external interrupt");
}

/// An interrupted 2 MiB ACCEPT keeps its progress in the entry; SEPT.RD shows it.
#[test]
fn accept_goes_on_where_it_was_interrupted() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, BASE + (1 << 30));
    b.guest().enter(0).expect("entered");
    b.machine.set_interrupts(Some(Interrupts { after: 4, events: 1, host_interruptible: false }));
    let accept = || b.guest().accept(Gpa::truncate(GPA), Level::L2M).expect("running");
    assert_eq!(accept(), Accept::Interrupted);
    let rd = b.call(Leaf::SeptRd, GPA | 1, b.tdr(), 0);
    assert_eq!((rd.rcx, rd.rdx), (0x8000_0001_4000_50F0, 0x0201), "five chunks are done");
    assert_eq!(accept(), Accept::Interrupted);
    b.machine.set_interrupts(Some(Interrupts { after: 505, events: 2, host_interruptible: true }));
    assert_eq!(accept(), Accept::Returned(Status::SUCCESS), "506 chunks are left, and 505 polls");
    assert_eq!(accept(), Accept::Returned(Status(0x0000_0B0A_0000_0001)));
}

#[test]
fn ordered_faults_strike_once_and_touch_nothing() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L4K);
    let busy = Status::OPERAND_BUSY.of(tdx_model::Operand::SeptTree);
    b.machine.inject(Fault::nth(Leaf::PageAug, 2, busy));
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    let out = b.call(Leaf::PageAug, GPA + 4096, b.tdr(), b.frame());
    assert_eq!((out.rax, out.rcx, out.rdx), (0x8000_0200_0000_0092, 0, 0));
    assert_eq!(b.call(Leaf::SeptRd, GPA + 4096, b.tdr(), 0).rcx, 1 << 63, "nothing was done");
    b.aug(GPA + 4096, Level::L4K, b.frame());
    let stats = b.machine.stats();
    assert_eq!(stats.of(Leaf::PageAug), 3);
    assert_eq!(stats.answers.get(&(6, Status::OPERAND_BUSY)), Some(&1));
    b.machine.reset_stats();
    assert_eq!(b.machine.stats().total, 0);
}

#[test]
fn a_consumed_memory_error_makes_the_td_fatal_and_it_can_still_be_torn_down() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    b.machine.announce_memory_error(Hpa::truncate(page));
    b.block_and_track(GPA);
    b.ok(Leaf::RangeUnblock, GPA, b.tdr(), 0);
    assert!(b.machine.consume_memory_error(Hpa::truncate(page)));
    for leaf in [Leaf::SeptRd, Leaf::PageAug, Leaf::RangeBlock, Leaf::PageDemote, Leaf::SeptAdd] {
        assert_eq!(b.call(leaf, GPA, b.tdr(), 0).rax, 0xE000_0604_0000_0000, "{leaf:?}");
    }
    assert_eq!(b.guest().enter(0), Err(Status(0xE000_0604_0000_0000)));
    b.ok(Leaf::VpFlush, b.td.vcpus[0].raw(), 0, 0);
    b.ok(Leaf::MngVpFlushDone, b.tdr(), 0, 0);
    b.ok(Leaf::PhymemCacheWb, 0, 0, 0);
    b.ok(Leaf::MngKeyFreeId, b.tdr(), 0, 0);
    b.ok(Leaf::PhymemPageReclaim, page, 0, 0);
}

#[test]
fn versions_say_what_they_can() {
    for (version, features) in [
        // Bits 0 to 5, 7 to 11, 16 to 19 in all.
        (ModuleVersion::V1_5_01, 0xF_0FBF),
        (ModuleVersion::V1_5_28, 0xF_0FBF | 1 << 23 | 1 << 36 | 1 << 51),
        (ModuleVersion::V2_0_08, 0xF_0FBF | 1 << 23 | 1 << 36 | 1 << 38),
    ] {
        let machine = Machine::builder().version(version).memory(BASE, 1).build();
        let out = machine.lp(0).raw(Regs { rax: 34, rdx: 0x0A00_0003_0000_0008, ..Regs::default() });
        assert_eq!((out.rax, out.r8), (0, features), "{version:?}");
    }
}

/// Each answer names the field that follows; the last one none.
#[test]
fn platform_fields_follow_each_other() {
    for (version, fields) in [(ModuleVersion::V1_5_01, 92), (ModuleVersion::V2_0_08, 94)] {
        let machine = Machine::builder().version(version).memory(BASE, 3).packages(2).build();
        let read = |rdx| machine.lp(0).raw(Regs { rax: 34, rdx, r8: 5, ..Regs::default() });
        let first = read(u64::MAX);
        assert_eq!((first.rax, first.r8), (0x0000_0C0B_0000_0000, 0), "the first field's id");
        let (mut id, mut seen) = (first.rdx, Vec::new());
        while id != u64::MAX {
            let out = read(id);
            assert_eq!(out.rax, 0, "{id:#x}");
            seen.push((id, out.r8));
            id = out.rdx;
        }
        assert_eq!(seen.len(), fields);
        let value = |id: u64| seen.iter().find(|&&(seen, _)| seen == id).map(|&(_, value)| value);
        assert_eq!(value(0x0000_0002_0000_0000), Some(2), "packages");
        assert_eq!(value(0x9000_0003_0000_0080), Some(BASE));
        assert_eq!(value(0x9000_0003_0000_0100), Some(3 << 30));
        assert_eq!(value(0x9000_0003_0000_011F), Some(0), "the last of 32 ranges");
        assert_eq!(value(0x9100_0001_0000_0010), Some(16), "bytes of a PAMT entry");
        assert_eq!(value(0x9800_0001_0000_0100), Some(6 << 12), "TDCS");
        assert_eq!(value(0x9800_0001_0000_0200), Some(6 << 12), "TDVPS");
        assert_eq!(value(0x9100_0000_0000_0013), (fields == 94).then_some(1), "bits of the PAMT bitmap");
        let unknown = read(0x7100_0001_0000_0008);
        assert_eq!((unknown.rax, unknown.rdx, unknown.r8), (0xC000_0C00_0000_0000, u64::MAX, 0));
    }
}

/// Exits without end at one page look like stepping: after six of them the module notes the page, and does not enter the vCPU
/// as long as it would only exit there again. The test of that takes the tree for itself. (`tdh_vp_enter.c`, `td_exit.c`)
#[test]
fn a_vcpu_that_only_faults_is_not_entered() {
    let b = Bench::new(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L4K);
    let read = || b.guest().read(Gpa::truncate(GPA + 0x123 * 8));
    for _ in 0..7 {
        b.guest().enter(0).unwrap();
        assert!(matches!(read(), Err(GuestFault::Exit(_))));
    }
    // Now without a guest instruction, as an EPT violation (exit reason 48) at that page.
    let out = b.call(Leaf::VpEnter, b.td.vcpus[0].raw(), 0, 0);
    assert_eq!((out.rax, out.rcx, out.rdx, out.r8), (48, 2, 0, GPA));
    assert!(!b.guest().is_inside());
    assert_eq!(b.machine.td(b.td.tdr).unwrap().refcount, [0, 0]);
    let hold = b.machine.hold_td(b.td.tdr, tdx_model::TdLock::SeptTree, tdx_model::Access::Shared).unwrap();
    b.fence();
    assert_eq!(b.guest().enter(0), Err(Status(0x8000_0200_0000_0092)));
    let vcpu_epoch = b.call(Leaf::VpRd, b.td.vcpus[0].raw(), 0xA020_0003_0000_0006, 0);
    assert_eq!((vcpu_epoch.rax, vcpu_epoch.r8), (0, 2), "it had got as far as the new epoch");
    assert_eq!(b.machine.td(b.td.tdr).unwrap().refcount, [0, 0], "and was not counted into it");
    b.machine.release(hold);
    b.aug(GPA, Level::L4K, b.frame());
    assert_eq!(b.guest().enter(0), Err(Status(48)), "pending is not usable");
    b.block_and_track(GPA);
    b.ok(Leaf::PageRemove, GPA, b.tdr(), 0);
    assert_eq!(b.guest().enter(0), Err(Status(48)));
}

/// An entry that ends at once with a fault has brought the vCPU into the new epoch all the same: what it had cached is gone.
#[test]
fn a_vcpu_that_is_not_entered_loses_its_translations_too() {
    let spec = TdSpec { vcpus: 2, ..TdSpec::default() };
    let b = Bench::new(Machine::builder(), spec);
    let kept = GPA + 0x1000;
    b.tables(GPA, Level::L4K);
    b.aug(kept, Level::L4K, b.frame());
    b.accept(kept, Level::L4K);
    b.guest().enter(0).unwrap();
    b.guest().write(Gpa::truncate(kept), 1).unwrap();
    for _ in 0..7 {
        assert!(matches!(b.guest().read(Gpa::truncate(GPA)), Err(GuestFault::Exit(_))));
        let _ = b.guest().enter(0);
    }
    assert!(!b.guest().is_inside());
    b.block_and_track(kept);
    assert_eq!(b.guest().enter(0), Err(Status(48)), "in the new epoch");
    b.ok(Leaf::PageRemove, kept, b.tdr(), 0);
    b.aug(GPA, Level::L4K, b.frame());
    let other = b.machine.guest(b.td.vcpus[1]);
    other.enter(1).unwrap();
    other.accept(Gpa::truncate(GPA), Level::L4K).unwrap();
    b.guest().enter(0).unwrap();
    assert!(matches!(b.guest().read(Gpa::truncate(kept)), Err(GuestFault::Exit(_))));
    assert!(b.machine.violations().iter().all(|violation| violation.stale.is_none()));
}
