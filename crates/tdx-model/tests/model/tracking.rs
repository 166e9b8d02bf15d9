//! Blocking, tracking and locks where models go wrong, each with the value that the module gives.
//! (TDX module ABI; the file of module 1.5.01 is named at each.)

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::TdSpec;
use tdx_model::{Accept, Access, EntryState, Leaf, Lifecycle, Machine, ModuleVersion, Status, TdLock};

use crate::common::{
    BASE, BUSY_RCX, Bench, GPA, LARGE, NOT_BLOCKED, NOT_TRACKED, bench, building, with_large, with_small,
};

/// Bit 63 is clear although nothing was done. (`tdh_mem_range_block.c`)
#[test]
fn already_blocked_is_neither_zero_nor_an_error_bit_and_keeps_the_epoch() {
    let b = with_large();
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.rdmd(LARGE).r9, 1);
    b.fence();
    let again = b.answer(Leaf::RangeBlock, GPA | 1, 0);
    assert_eq!(again, (0x0000_0B07_0000_0001, 0x8000_0000_0000_00F0 | LARGE, 0x101));
    assert_eq!(b.rdmd(LARGE).r9, 1, "the block is as old as it was");
    b.ok(Leaf::PageRemove, GPA | 1, b.tdr(), 0);
}

/// KEYS_NOT_CONFIGURED looks as if waiting helped. (`tdx_error_codes_defs.h`)
#[test]
fn after_the_teardown_has_begun_keys_are_not_configured_for_good() {
    let b = with_large();
    b.tear_down();
    assert_eq!(b.machine.td(b.td.tdr).unwrap().lifecycle, Lifecycle::Teardown);
    assert_eq!(b.answer(Leaf::SeptRd, GPA | 1, 0), (0x8000_0810_0000_0000, 0, 0));
}

/// Removal, promotion and table removal lock the page before they ask for the block; DEMOTE at the end.
/// (`tdh_mem_page_remove.c`, `tdh_mem_page_demote.c`)
#[test]
fn a_busy_page_masks_a_missing_block_except_for_demote() {
    let b = with_large();
    let hold = b.machine.hold_page(Hpa::truncate(LARGE), Level::L2M, Access::Shared).unwrap();
    assert_eq!(b.answer(Leaf::PageRemove, GPA | 1, 0), (BUSY_RCX, 0, 0));
    let not_blocked = (NOT_BLOCKED, 0x8000_0000_0000_00F7 | LARGE, 0x401);
    assert_eq!(b.answer(Leaf::PageDemote, GPA | 1, b.frame()), not_blocked);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.answer(Leaf::PageDemote, GPA | 1, b.frame()), (NOT_TRACKED, 0, 0));
    b.fence();
    let table = b.frame();
    assert_eq!(b.answer(Leaf::PageDemote, GPA | 1, table), (BUSY_RCX, 0, 0), "without a description");
    assert_eq!(b.machine.peek(Hpa::truncate(table)).key, 33, "but the page offered is overwritten");
    b.machine.release(hold);
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    let table_hold = b.machine.hold_page(Hpa::truncate(table), Level::L4K, Access::Shared).unwrap();
    assert_eq!(b.answer(Leaf::PagePromote, GPA | 1, 0), (BUSY_RCX, 0, 0), "not blocked, but busy first");
    assert_eq!(b.answer(Leaf::SeptRemove, GPA | 1, 0), (BUSY_RCX, 0, 0));
    b.machine.release(table_hold);
    assert_eq!(b.answer(Leaf::PagePromote, GPA | 1, 0), (NOT_BLOCKED, 7, 0x8401));
}

/// What was write-blocked is writable after a block and an unblock. (`tdh_mem_range_block.c`)
#[test]
fn a_write_block_is_lost_in_a_block() {
    let (b, page) = with_small();
    assert!(b.machine.set_op_state(b.td.tdr, 3));
    // A list of one entry: the address, and operation 1 in bits 53:52.
    let list = 0x5000_0000;
    b.machine.host_write_bytes(Hpa::truncate(list), &(GPA | 1 << 52).to_le_bytes());
    let out = b.call(Leaf::ExportBlockw, list, b.tdr(), 0);
    assert_eq!(out.rax, 0, "{:?}", Status(out.rax));
    assert_eq!(b.raw_entry(GPA, Level::L4K), 0x8040_0000_0000_00F5 | page, "readable, not writable");
    assert_eq!(b.answer(Leaf::SeptRd, GPA, 0), (0, 0x8000_0000_0000_00F5 | page, 0x800));
    assert_eq!(b.rdmd(page).r9, 0, "the epoch of a write block is the TD's, not the page's");
    b.ok(Leaf::RangeBlock, GPA, b.tdr(), 0);
    b.fence();
    b.ok(Leaf::RangeUnblock, GPA, b.tdr(), 0);
    assert_eq!(b.state(GPA, Level::L4K), EntryState::Mapped);
}

/// A guest never reached it, and still it has to be blocked and tracked. (`sept_state_lookup.c`)
#[test]
fn a_pending_page_needs_a_fence_too() {
    let b = bench();
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    let pending = (NOT_BLOCKED, 0x8000_0000_0000_00F0 | LARGE, 0x201);
    assert_eq!(b.answer(Leaf::PageRemove, GPA | 1, 0), pending);
    assert_eq!(b.answer(Leaf::PageDemote, GPA | 1, b.frame()), pending);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.answer(Leaf::PageRemove, GPA | 1, 0), (NOT_TRACKED, 0, 0), "nobody was ever inside");
    b.fence();
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), b.frame());
    assert_eq!(b.state(GPA + 0x1F_F000, Level::L4K), EntryState::Pending);
}

/// A page that was blocked before the TD ran needs its fence afterwards. (`tdh_mem_page_remove.c`)
#[test]
fn a_block_from_the_build_needs_a_fence_once_the_td_runs() {
    let b = building();
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    b.ok(Leaf::RangeUnblock, GPA | 1, b.tdr(), 0);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    b.ok(Leaf::MrFinalize, b.tdr(), 0, 0);
    assert_eq!(b.answer(Leaf::PageRemove, GPA | 1, 0), (NOT_TRACKED, 0, 0));
    b.fence();
    b.ok(Leaf::PageRemove, GPA | 1, b.tdr(), 0);
}

/// tracked(B): B < E-1, or B = E-1 and nobody of that epoch inside. TRACK looks at E-1, the work at B. (`tdh_mem_track.c`)
#[test]
fn who_hinders_what() {
    let b = with_large();
    let busy = 0x8000_0201_0000_0000;
    let track = || b.call(Leaf::MemTrack, b.tdr(), 0, 0).rax;
    let remove = || b.call(Leaf::PageRemove, GPA | 1, b.tdr(), 0).rax;
    b.guest().enter(0).unwrap();
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(remove(), NOT_TRACKED);
    assert_eq!(track(), 0, "a vCPU of the current epoch does not hinder TRACK");
    assert_eq!(remove(), NOT_TRACKED, "but the work");
    assert_eq!(track(), busy, "one of the epoch before does");
    assert!(b.guest().exit());
    b.guest().enter(0).unwrap();
    assert_eq!(track(), 0, "it is in the new epoch now");
    assert_eq!(remove(), 0, "two epochs on: whoever is inside");
    assert_eq!(b.machine.td(b.td.tdr).unwrap().td_epoch, 3);
}

/// (`tdh_mem_range_unblock.c`)
#[test]
fn unblock_names_the_tree_for_what_is_not_tracked() {
    for (version, expected) in [
        (ModuleVersion::V1_5_01, 0xC000_0B08_0000_0092),
        (ModuleVersion::V1_5_28, 0xC000_0B08_0000_0092),
        (ModuleVersion::V2_0_08, NOT_TRACKED),
    ] {
        let builder = Machine::builder().version(version).dynamic_pamt(false);
        let b = Bench::new(builder, TdSpec::default());
        b.tables(GPA, Level::L2M);
        b.aug(GPA, Level::L2M, LARGE);
        b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
        assert_eq!(b.answer(Leaf::RangeUnblock, GPA | 1, 0), (expected, 0, 0), "{version:?}");
    }
}

/// (`tdh_mem_page_add.c`, `tdh_vp_enter.c`)
#[test]
fn a_running_vcpu_keeps_the_control_pages() {
    let b = bench();
    b.tables(GPA, Level::L4K);
    b.tables(GPA + 0x20_0000, Level::L2M);
    b.guest().enter(0).unwrap();
    let (tdr, tdvpr) = (b.tdr(), b.td.vcpus[0].raw());
    let busy = |op: u64| 0x8000_0200_0000_0000 | op;
    let page = b.frame();
    let add = Regs { rax: 2, rcx: GPA, rdx: tdr, r8: page, r9: 0x4000_0000, ..Regs::new() };
    assert_eq!(b.raw(add).rax, busy(2), "PAGE.ADD wants the TDR for itself, before it looks at the state");
    assert_eq!(b.call(Leaf::MrFinalize, tdr, 0, 0).rax, busy(1));
    assert_eq!(b.call(Leaf::VpFlush, tdvpr, 0, 0).rax, busy(1));
    // The lock comes before the type: a control page of the running vCPU is busy, not of the wrong type.
    assert_eq!(b.answer(Leaf::PageAug, (GPA + 0x20_0000) | 1, BASE).0, busy(8), "2 MiB around TDR and TDVPR");
    assert_eq!(b.answer(Leaf::PageAug, GPA, tdr).0, busy(8));
    assert_eq!(b.answer(Leaf::PageAug, GPA, tdvpr).0, busy(8));
    assert!(b.guest().exit());
    assert_eq!(b.answer(Leaf::PageAug, GPA, tdr).0, busy(8), "the TDR is an operand of the call itself");
    assert_eq!(b.answer(Leaf::PageAug, GPA, tdvpr).0, 0xC000_0300_0000_0008);
    assert_eq!(b.raw(add).rax, 0xC000_0608_0000_0000);
}

/// (`tdx_locks.h`)
#[test]
fn a_reader_that_loses_leaves_host_priority_until_a_host_comes_back() {
    let b = bench();
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    b.guest().enter(0).unwrap();
    let accept = || b.guest().accept(Gpa::truncate(GPA), Level::L4K).unwrap();
    let hold = b.machine.hold_entry(b.td.tdr, Gpa::truncate(GPA), Level::L4K).unwrap();
    assert_eq!(b.answer(Leaf::SeptRd, GPA, 0), (BUSY_RCX, 0x8000_0000_0000_00F0 | page, 0x200));
    assert_eq!(accept(), Accept::Returned(Status(BUSY_RCX)), "locked");
    b.machine.release(hold);
    assert_ne!(b.raw_entry(GPA, Level::L4K) & 1 << 52, 0, "the flag stays");
    assert_eq!(accept(), Accept::Returned(Status(BUSY_RCX)), "the guest does not see why");
    b.ok(Leaf::SeptRd, GPA, b.tdr(), 0);
    assert_eq!(b.raw_entry(GPA, Level::L4K) & 1 << 52, 0);
    assert_eq!(accept(), Accept::Returned(Status::SUCCESS));
}

/// Host priority can sit on an entry that maps nothing. (`tdx_locks.h`)
#[test]
fn a_free_entry_keeps_host_priority_too() {
    let b = bench();
    b.tables(GPA, Level::L4K);
    let hold = b.machine.hold_entry(b.td.tdr, Gpa::truncate(GPA), Level::L4K).unwrap();
    assert_eq!(b.answer(Leaf::PageAug, GPA, b.frame()).0, BUSY_RCX);
    b.machine.release(hold);
    assert_eq!(b.raw_entry(GPA, Level::L4K), 0x80F0_0000_0000_0000);
    b.guest().enter(0).unwrap();
    let accepted = b.guest().accept(Gpa::truncate(GPA), Level::L4K).unwrap();
    assert_eq!(accepted, Accept::Returned(Status(BUSY_RCX)), "busy instead of an exit");
    b.guest().exit();
    b.block_and_track(GPA | 1);
    b.ok(Leaf::SeptRemove, GPA | 1, b.tdr(), 0);
}

/// What is not about an operand names none. (Each leaf.)
#[test]
fn some_answers_name_no_operand() {
    let b = building();
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    let not_mapped = (0xC000_0B03_0000_0001, 0x8000_0000_0000_00F0 | page, 0x200);
    assert_eq!(b.answer(Leaf::MrExtend, GPA, 0), not_mapped, "a pending page is no leaf that can be reached");
    assert_eq!(b.answer(Leaf::MrExtend, GPA + 0x80, 0).0, 0xC000_0100_0000_0001, "256 bytes");
    let hold = b.machine.hold_td(b.td.tdr, TdLock::Epoch, Access::Shared).unwrap();
    assert_eq!(b.call(Leaf::MemTrack, b.tdr(), 0, 0).rax, 0x8000_0200_0000_00A9);
    b.machine.release(hold);
    let out = b.raw(Regs { rax: 38, rcx: b.tdr(), rdx: 77, ..Regs::new() });
    assert_eq!((out.rax, out.rcx, out.rdx), (0, b.tdr(), 77), "TRACK leaves its registers alone");
}
