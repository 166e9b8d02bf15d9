//! Memory has content and keys: what is kept, zeroed, lost, and what is recorded as wrong.

use crate::common::{BASE, Bench};
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::TdSpec;
use tdx_model::{GuestFault, Leaf, Machine, Seen, ViolationKind};

const GPA: u64 = 0x4000_0000;
const LARGE: u64 = BASE + (1 << 30);
/// Address bits of key id 33.
const KEY33: u64 = 33 << 46;

fn bench() -> Bench {
    let b = Bench::unaudited(Machine::builder(), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b
}

fn kinds(b: &Bench) -> Vec<ViolationKind> {
    b.machine.violations().iter().map(|violation| violation.kind).collect()
}

/// A 2 MiB page whose page `i` holds `100 + i`.
fn filled() -> Bench {
    let b = bench();
    b.aug(GPA, Level::L2M, LARGE);
    b.accept(GPA, Level::L2M);
    (0..512).for_each(|i| b.guest_writes(GPA + i * 4096, 100 + i));
    b
}

#[test]
fn accept_zeroes_and_split_and_merge_keep() {
    let b = bench();
    b.machine.host_write(Hpa::truncate(LARGE + 0x3000), 77);
    b.machine.host_flush(Hpa::truncate(LARGE), 512);
    b.aug(GPA, Level::L2M, LARGE);
    b.accept(GPA, Level::L2M);
    assert_eq!(b.guest_reads(GPA + 0x3000), 0, "the host's old content is gone");
    drop(b);
    let b = filled();
    let table = b.frame();
    b.block_and_track(GPA | 1);
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    assert_eq!(b.guest_reads(GPA + 5 * 4096), 105);
    b.block_and_track(GPA | 1);
    b.ok(Leaf::PagePromote, GPA | 1, b.tdr(), 0);
    assert!((0..512).all(|i| b.guest_reads(GPA + i * 4096) == 100 + i));
    assert_eq!(kinds(&b), []);
    assert_eq!(b.machine.check_invariants(), Vec::<String>::new());
}

#[test]
fn added_pages_copy_their_source_and_relocated_ones_keep_theirs() {
    let b = Bench::new(Machine::builder(), TdSpec { finalize: false, ..TdSpec::default() });
    b.tables(GPA, Level::L4K);
    b.machine.host_write(Hpa::truncate(0x4000_1000), 0xABCD);
    let (page, moved) = (b.frame(), b.frame());
    let add =
        seamcall::Regs { rax: 2, rcx: GPA, rdx: b.tdr(), r8: page, r9: 0x4000_1000, ..Default::default() };
    assert_eq!(b.raw(add).rax, 0);
    let before = b.machine.td(b.td.tdr).expect("the TD").measurement;
    b.ok(Leaf::MrExtend, GPA, b.tdr(), 0);
    assert_ne!(b.machine.td(b.td.tdr).expect("the TD").measurement, before);
    b.ok(Leaf::MrFinalize, b.tdr(), 0, 0);
    assert_eq!(b.guest_reads(GPA), 0xABCD);
    b.block_and_track(GPA);
    assert_eq!(b.ok(Leaf::PageRelocate, GPA, b.tdr(), moved).rcx, page);
    assert_eq!(b.guest_reads(GPA), 0xABCD);
    assert_eq!(b.machine.page(Hpa::truncate(moved)).owner, b.tdr());
}

/// Removal, write-back with the TD's key, direct stores: only then is the page the host's again.
#[test]
fn a_removed_page_is_noise_until_written_back_and_initialised() {
    let b = filled();
    b.block_and_track(GPA | 1);
    assert_eq!(b.ok(Leaf::PageRemove, GPA | 1, b.tdr(), 0).rcx, LARGE);
    let page = Hpa::truncate(LARGE + 0x2000);
    assert_eq!(b.machine.host_read(page), Seen::Ciphertext(33));
    b.machine.host_write(page, 1);
    assert_eq!(kinds(&b), [ViolationKind::HostReadCiphertext, ViolationKind::HostWriteUnflushed]);
    b.machine.clear_violations();
    let next = LARGE + 0x4000;
    b.ok(Leaf::PhymemPageWbinvd, next, 0, 0);
    assert_eq!(b.machine.peek(Hpa::truncate(next)).dirty, Some(33), "the wrong key flushes nothing");
    b.ok(Leaf::PhymemPageWbinvd, next | KEY33, 0, 0);
    b.machine.host_zero(Hpa::truncate(next), 1);
    assert_eq!(b.machine.host_read(Hpa::truncate(next)), Seen::Pattern(0));
    assert_eq!(kinds(&b), []);
}

/// The module may have touched any page that was the TD's, accepted or not.
#[test]
fn a_page_that_was_never_accepted_needs_its_write_back_too() {
    let b = bench();
    b.aug(GPA, Level::L2M, LARGE);
    b.block_and_track(GPA | 1);
    b.ok(Leaf::PageRemove, GPA | 1, b.tdr(), 0);
    b.machine.host_write(Hpa::truncate(LARGE), 1);
    assert_eq!(kinds(&b), [ViolationKind::HostWriteUnflushed]);
}

/// Children of a split start with BEPOCH 0, whatever their PAMT entries held; the merged entry keeps its old value.
#[test]
fn bepoch_after_split_and_merge() {
    let b = filled();
    let bepoch = |offset: u64| b.machine.page(Hpa::truncate(LARGE + offset)).bepoch;
    let table = b.frame();
    b.block_and_track(GPA | 1);
    let at_block = bepoch(0);
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    b.block_and_track(GPA + 0x3000);
    assert_ne!(bepoch(0x3000), 0);
    b.ok(Leaf::RangeUnblock, GPA + 0x3000, b.tdr(), 0);
    b.block_and_track(GPA | 1);
    b.ok(Leaf::PagePromote, GPA | 1, b.tdr(), 0);
    assert_eq!(bepoch(0), at_block, "static PAMT: stale from its life before the split");
    b.block_and_track(GPA | 1);
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    assert_eq!(bepoch(0x3000), 0);
}

#[test]
fn foreign_hands_on_private_memory_are_recorded() {
    let b = filled();
    let page = Hpa::truncate(LARGE + 0x7000);
    assert_eq!(b.machine.host_read(page), Seen::Ciphertext(33));
    b.machine.host_write(page, 9);
    b.machine.host_write(b.td.tdr, 9);
    let wrong =
        [ViolationKind::HostReadPrivate, ViolationKind::HostWritePrivate, ViolationKind::HostWritePrivate];
    assert_eq!(kinds(&b), wrong);
    b.guest().enter(0).expect("entered");
    assert_eq!(b.guest().read(Gpa::truncate(GPA + 0x7000)), Err(GuestFault::Fatal));
    assert_eq!(kinds(&b)[3], ViolationKind::GuestReadForeign);
    assert!(b.machine.td(b.td.tdr).expect("the TD").fatal);
    assert_eq!(b.call(Leaf::SeptRd, GPA, b.tdr(), 0).rax, 0xE000_0604_0000_0000);
}

#[test]
fn a_page_is_flushed_before_it_is_given_away() {
    let b = bench();
    let (table, large) = (b.frame(), LARGE + (2 << 20));
    b.machine.host_write(Hpa::truncate(table), 1);
    b.ok(Leaf::SeptAdd, 0x4020_0001, b.tdr(), table);
    b.machine.host_write(Hpa::truncate(large + 0x5000), 1);
    b.aug(GPA, Level::L2M, large);
    let recorded: Vec<_> = b.machine.violations().iter().map(|v| (v.kind, v.hpa, v.key)).collect();
    let unflushed = ViolationKind::DonatedUnflushed;
    assert_eq!(recorded, [(unflushed, table, 0), (unflushed, large + 0x5000, 0)]);
}

/// A failed DEMOTE has already overwritten the page it was given.
#[test]
fn a_failed_demote_taints_the_page_it_was_given() {
    let b = Bench::new(Machine::builder().version(tdx_model::ModuleVersion::V1_5_01), TdSpec::default());
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    b.accept(GPA, Level::L2M);
    b.block_and_track(GPA | 1);
    b.machine.set_interrupts(Some(tdx_model::Interrupts::nmi_after(0)));
    let table = b.frame();
    let out = b.call(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    assert_eq!((out.rax, out.rcx, out.rdx), (0x8000_0004_0000_0000, GPA | 1, b.tdr()));
    assert_eq!(b.machine.peek(Hpa::truncate(table)).dirty, Some(33));
    b.machine.host_write(Hpa::truncate(table), 1);
    assert_eq!(kinds(&b), [ViolationKind::HostWriteUnflushed]);
    b.machine.set_interrupts(None);
}

#[test]
fn pages_the_guest_may_not_touch() {
    let b = bench();
    b.guest().enter(0).expect("entered");
    b.aug(GPA, Level::L2M, LARGE);
    assert_eq!(b.guest().read(Gpa::truncate(GPA)), Err(GuestFault::Pending));
    assert_eq!(b.guest().read(Gpa::truncate(1 << 47)), Err(GuestFault::NotPrivate));
    let Err(GuestFault::Exit(exit)) = b.guest().write(Gpa::truncate(0x8000_0000), 1) else {
        panic!("an exit")
    };
    let violation = exit.ept_violation().expect("an EPT violation");
    assert_eq!((violation.kind, violation.gpa, violation.write), (0, 0x8000_0000, true));
    assert_eq!(b.guest().read(Gpa::truncate(GPA)), Err(GuestFault::NotRunning));
}

#[test]
fn pending_pages_make_the_vcpu_exit_when_the_td_asked_for_it() {
    let b = Bench::new(Machine::builder(), TdSpec { sept_ve_disable: true, ..TdSpec::default() });
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    b.guest().enter(0).expect("entered");
    let Err(GuestFault::Exit(exit)) = b.guest().read(Gpa::truncate(GPA + 4096)) else { panic!("an exit") };
    let violation = exit.ept_violation().expect("an EPT violation");
    assert_eq!((violation.kind, violation.gpa, violation.write), (6, GPA + 4096, false));
    assert!(!b.guest().is_inside());
}

/// A machine is shared between threads, each with its own logical processor and vCPU.
#[test]
fn several_threads_work_on_one_machine() {
    let b = Bench::unaudited(Machine::builder(), TdSpec { vcpus: 4, ..TdSpec::default() });
    (0..4).for_each(|thread| b.tables(GPA + (thread << 21), Level::L4K));
    let (machine, td) = (&b.machine, &b.td);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let (lp, guest) = (machine.lp(thread as u32), machine.guest(td.vcpus[thread as usize]));
                guest.enter(thread as u32).expect("entered");
                for index in 0..512 {
                    let gpa = Gpa::truncate(GPA + (thread << 21) + index * 4096);
                    let page = Hpa::truncate(LARGE + (thread << 21) + index * 4096);
                    tdx_model::boot::aug(&lp, td, gpa, Level::L4K, page).expect("AUG");
                    guest.accept(gpa, Level::L4K).expect("running");
                    guest.write(gpa, thread << 16 | index).expect("writable");
                }
                guest.exit();
            });
        }
    });
    assert!((0..4).all(|thread| b.guest_reads(GPA + (thread << 21) + 0x5000) == thread << 16 | 5));
    assert_eq!(b.machine.check_invariants(), Vec::<String>::new());
}

/// A translation stays usable while the page is only blocked, and is dropped by the next epoch.
#[test]
fn a_blocked_page_is_reachable_until_the_vcpu_enters_anew() {
    let b = filled();
    b.guest().enter(0).expect("entered");
    assert_eq!(b.guest().read(Gpa::truncate(GPA)), Ok(100));
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.guest().read(Gpa::truncate(GPA)), Ok(100), "still cached");
    b.ok(Leaf::MemTrack, b.tdr(), 0, 0);
    assert_eq!(b.call(Leaf::PageRemove, GPA | 1, b.tdr(), 0).rax, 0xC000_0B08_0000_0001);
    b.guest().exit();
    b.ok(Leaf::PageRemove, GPA | 1, b.tdr(), 0);
    b.guest().enter(0).expect("entered");
    assert!(matches!(b.guest().read(Gpa::truncate(GPA)), Err(GuestFault::Exit(_))));
    assert_eq!(kinds(&b), []);
}
