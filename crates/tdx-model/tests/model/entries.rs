//! S-EPT entries, tables, splits and merges where models go wrong, each with the value that the module gives.
//! (TDX module ABI; the file of module 1.5.01 is named at each.)

use seamcall::Regs;
use sept_core::{Gpa, Level};
use tdx_model::{Accept, EntryState, Interrupts, Leaf, PageType, Status};

use crate::common::{
    BUSY_RCX, GPA, LARGE, NOT_BLOCKED, OTHER, WALK_FAILED, WRONG_STATE, bench, building, with_large,
    with_small,
};

/// Raw values of entries, and what is shown of them. (`sept_manager.h`)
#[test]
fn raw_entries_and_what_the_host_sees() {
    let b = with_large();
    let small = GPA + 0x20_0000;
    b.tables(small, Level::L4K);
    let page = b.frame();
    b.aug(small, Level::L4K, page);
    assert_eq!(b.raw_entry(small + 4096, Level::L4K), 0x80E0_0000_0000_0000, "FREE is not 0");
    assert_eq!(b.raw_entry(GPA, Level::L2M), 0x8000_0000_0000_00F7 | LARGE);
    assert_eq!(b.raw_entry(small, Level::L4K), 0x8100_0000_0000_00F0 | page, "bit 7 is set at 4 KiB too");
    let table = b.raw_entry(small, Level::L2M);
    assert_eq!(table & !0x000F_FFFF_FFFF_F000, 0x8000_0000_0000_0007);
    let rd = |entry: u64| b.answer(Leaf::SeptRd, entry, 0);
    assert_eq!(rd(small), (0, 0x8000_0000_0000_00F0 | page, 0x0200));
    assert_eq!(rd(small + 4096), (0, 1 << 63, 0), "FREE");
    assert_eq!(rd(small | 1), (0, 7, 0x8401), "a table's page is never shown");
    b.ok(Leaf::RangeBlock, small | 1, b.tdr(), 0);
    assert_eq!(rd(small | 1), (0, 0, 0x8101), "only RDX tells it from a removed entry");
    assert_eq!(b.raw_entry(small, Level::L2M), table & !7 | 1 << 55);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.raw_entry(GPA, Level::L2M), 0x8080_0000_0000_00F0 | LARGE, "the memory type stays");
}

/// The level is that of the parent; the root is a TDCX page. (`tdh_mem_sept_add.c`, `tdh_mng_add_cx.c`)
#[test]
fn the_first_table_is_added_to_the_root_which_is_a_control_page() {
    let b = bench();
    let root = b.td.control[3];
    assert_eq!(b.machine.page(root).kind, PageType::Tdcx);
    assert_eq!(b.rdmd(root.raw()).rcx, 5);
    assert_eq!(b.answer(Leaf::SeptAdd, 1, b.frame()), (WALK_FAILED, 1 << 63, 3), "the walk ends in the root");
    assert_eq!(
        b.answer(Leaf::SeptAdd, 4, b.frame()).0,
        0xC000_0100_0000_0001,
        "no level 4 in a tree of four"
    );
    for level in [3, 2, 1] {
        b.ok(Leaf::SeptAdd, level, b.tdr(), b.frame());
    }
    assert_eq!(b.answer(Leaf::SeptRd, 0x1000, 0), (0, 1 << 63, 0), "a table of level 1 has 4 KiB entries");
    assert_eq!(b.answer(Leaf::SeptRemove, 4, 0).0, 0xC000_0100_0000_0001, "the root stays");
}

/// A walk stops where there is no access, whatever the state. (`sept_manager.c`)
#[test]
fn a_blocked_parent_hides_what_is_below_and_the_level_is_the_one_reached() {
    let (b, page) = with_small();
    b.ok(Leaf::RangeBlock, GPA | 2, b.tdr(), 0);
    for leaf in [Leaf::SeptRd, Leaf::RangeBlock, Leaf::PageRemove] {
        assert_eq!(b.answer(leaf, GPA, 0), (WALK_FAILED, 0, 0x8102), "{leaf:?}");
    }
    assert_eq!(b.answer(Leaf::RangeBlock, GPA | 1, 0), (WALK_FAILED, 0, 0x8102));
    b.fence();
    b.ok(Leaf::RangeUnblock, GPA | 2, b.tdr(), 0);
    b.ok(Leaf::RangeBlock, GPA, b.tdr(), 0);
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    b.fence();
    assert_eq!(b.answer(Leaf::RangeUnblock, GPA, 0), (WALK_FAILED, 0, 0x8101), "undone from above");
    b.ok(Leaf::RangeUnblock, GPA | 1, b.tdr(), 0);
    let child = (0, 0x8000_0000_0000_00F0 | page, 0x100);
    assert_eq!(b.answer(Leaf::SeptRd, GPA, 0), child, "the child kept its state");
}

/// (`tdh_mem_page_demote.c`, `tdh_mem_page_promote.c`)
#[test]
fn splits_and_merges_leave_nothing_blocked() {
    let b = with_large();
    b.block_and_track(GPA | 1);
    let (children, table) = (b.chldcnt(), b.frame());
    b.ok(Leaf::PageDemote, GPA | 1, b.tdr(), table);
    assert_eq!(b.chldcnt(), children + 1, "only the table is new");
    assert_eq!(b.answer(Leaf::RangeUnblock, GPA | 1, 0), (WRONG_STATE, 7, 0x8401));
    assert_eq!(b.answer(Leaf::PageDemote, GPA | 1, b.frame()), (WRONG_STATE, 7, 0x8401), "already split");
    for index in [0, 1, 511] {
        let child = 0x8000_0000_0000_00F7 | (LARGE + index * 4096);
        assert_eq!(b.answer(Leaf::SeptRd, GPA + index * 4096, 0), (0, child, 0x400));
        assert_eq!(b.rdmd(LARGE + index * 4096).r9, 0, "BEPOCH of the small pages");
    }
    b.block_and_track(GPA | 1);
    assert_eq!(b.ok(Leaf::PagePromote, GPA | 1, b.tdr(), 0).rcx, table);
    assert_eq!(b.chldcnt(), children);
    assert_eq!(b.answer(Leaf::PagePromote, GPA | 1, 0), (WRONG_STATE, 0x8000_0000_0000_00F7 | LARGE, 0x401));
    assert_eq!(b.rdmd(LARGE).r9, 1, "BEPOCH of the merged page is that of its last block");
    assert_eq!(b.rdmd(table).rdx, b.tdr(), "the owner of a free page is the last one");
}

/// (`tdh_mem_sept_add.c`)
#[test]
fn a_table_that_exists_may_be_allowed_and_then_nothing_else_is_looked_at() {
    let (b, _) = with_small();
    let add = |version: u64, flag: u64, r8: u64| {
        let (rax, rdx, unused) = (3 | version << 16, b.tdr() | flag, u64::MAX);
        let regs = Regs { rax, rcx: GPA | 1, rdx, r8, r9: unused, r10: unused, r11: unused, ..Regs::new() };
        let out = b.raw(regs);
        (out.rax, out.rcx, out.rdx, out.r8)
    };
    assert_eq!(add(0, 0, 0x123), (WRONG_STATE, 7, 0x8401, 0x123));
    assert_eq!(add(0, 1, 0x123), (0, 0, 0, 0x123), "version 0 does not say that the page was not used");
    assert_eq!(add(0, 1, u64::MAX).0, 0xC000_0100_0000_0008);
    assert_eq!(add(1, 1, 0x123), (0, 0, 0, 0x123 | 1 << 63), "version 1 does");
    assert_eq!(add(1, 0, u64::MAX), (0, 0, 0, u64::MAX), "no page needed");
    assert_eq!(add(1, 0, 0x123), (WRONG_STATE, 7, 0x8401, 0x123), "R8 comes back on errors too");
    assert_eq!(
        add(1, 2, 0x123 | 1 << 63),
        (0xC000_0100_0000_0002, 0, 0, 0x123),
        "bit 63 is ignored, and gone"
    );
    assert_eq!(add(2, 1, 0x123), (0xC000_0100_0000_0000, 0, 0, 0x123));
    b.ok(Leaf::RangeBlock, GPA | 1, b.tdr(), 0);
    assert_eq!(add(1, 1, 0x123), (WRONG_STATE, 0, 0x8101, 0x123), "a blocked table is none");
}

/// (`tdh_mem_page_promote.c`, `tdh_mem_sept_remove.c`)
#[test]
fn version_one_clears_the_registers_of_l2_tables_whatever_happens() {
    let b = with_large();
    for leaf in [Leaf::PagePromote, Leaf::SeptRemove] {
        let call = |version: u64, rdx: u64| {
            let rax = leaf as u64 | version << 16;
            let out = b.raw(Regs { rax, rcx: GPA | 1, rdx, r9: 1, r10: 2, r11: 3, ..Regs::new() });
            (out.rax, [out.r9, out.r10, out.r11])
        };
        assert_eq!(call(1, b.tdr()), (WRONG_STATE, [u64::MAX; 3]), "{leaf:?}");
        assert_eq!(call(1, 0x123), (0xC000_0100_0000_0002, [u64::MAX; 3]), "{leaf:?}");
        assert_eq!(call(0, b.tdr()), (WRONG_STATE, [1, 2, 3]), "{leaf:?}");
    }
    let demote = b.raw(Regs { rax: 15 | 1 << 16, rcx: GPA | 1, rdx: b.tdr(), ..Regs::new() });
    assert_eq!((demote.rax, demote.rcx), (0xC000_0100_0000_0000, GPA | 1), "DEMOTE has no version 1");
}

/// The parent is described, not the child that is in the way. (`tdh_mem_page_promote.c`)
#[test]
fn a_merge_needs_512_alike() {
    let b = building();
    b.tables(GPA, Level::L4K);
    let invalid = (0xC000_0B09_0000_0001, 7, 0x8401);
    let map = |index: u64, page: u64| b.aug(GPA + index * 4096, Level::L4K, page);
    let promote = || b.answer(Leaf::PagePromote, GPA | 1, 0);
    assert_eq!(promote(), invalid, "all free");
    (0..511).for_each(|index| map(index, LARGE + index * 4096));
    assert_eq!(promote(), invalid, "one free");
    assert_eq!(b.answer(Leaf::SeptRemove, GPA | 1, 0), (0xC000_0B0E_0000_0001, 7, 0x8401));
    map(511, OTHER);
    assert_eq!(promote(), invalid, "one elsewhere");
    b.ok(Leaf::PageRelocate, GPA + 511 * 4096, b.tdr(), LARGE + 511 * 4096);
    b.ok(Leaf::RangeBlock, GPA + 7 * 4096, b.tdr(), 0);
    assert_eq!(promote(), invalid, "one blocked");
    for index in (0..512).filter(|&index| index != 7) {
        b.ok(Leaf::RangeBlock, GPA + index * 4096, b.tdr(), 0);
    }
    assert_eq!(promote(), invalid, "all blocked alike");
    for index in 0..512 {
        b.ok(Leaf::RangeUnblock, GPA + index * 4096, b.tdr(), 0);
    }
    let hold = b.machine.hold_entry(b.td.tdr, Gpa::truncate(GPA + 9 * 4096), Level::L4K).unwrap();
    assert_eq!(promote(), (BUSY_RCX, 7, 0x8401), "a child is locked");
    b.machine.release(hold);
    // All 64 bits are compared, but the lock that PROMOTE takes clears the child's host priority.
    b.ok(Leaf::PagePromote, GPA | 1, b.tdr(), 0);
    assert_eq!(b.state(GPA, Level::L2M), EntryState::Pending);
}

/// (`helpers.h`)
#[test]
fn an_interrupt_costs_the_whole_merge_and_gives_the_operands_back() {
    let b = with_large();
    b.block_and_track(GPA | 1);
    let poll = |events: u64, host_interruptible: bool| {
        b.machine.set_interrupts(Some(Interrupts { after: 0, events, host_interruptible }));
    };
    let table = b.frame();
    let demote = |r8: u64| b.answer(Leaf::PageDemote, GPA | 1, r8);
    let restart = (0x8000_0004_0000_0000, GPA | 1, b.tdr());
    poll(1, true);
    assert_eq!(demote(table), restart);
    assert_eq!(demote(0x123), (0xC000_0100_0000_0008, 0, 0), "errors come first");
    poll(2, false);
    assert_eq!(demote(table), restart, "an NMI always counts");
    poll(1, false);
    assert_eq!(demote(table).0, 0, "a plain one only where the host takes it");
    b.block_and_track(GPA | 1);
    poll(1, true);
    let promote = || b.answer(Leaf::PagePromote, GPA | 1, 0);
    assert_eq!([promote(), promote()], [restart, restart], "again and again");
    poll(1, false);
    assert_eq!(promote().0, 0);
}

/// (`tdg_mem_page_accept.c`)
#[test]
fn a_removed_entry_is_not_a_free_one() {
    let (b, _) = with_small();
    assert!(b.machine.set_op_state(b.td.tdr, 9));
    b.block_and_track(GPA);
    b.ok(Leaf::PageRemove, GPA, b.tdr(), 0);
    assert_eq!(b.state(GPA, Level::L4K), EntryState::Removed);
    assert_eq!(b.answer(Leaf::SeptRd, GPA, 0), (0, 0, 0x500), "RCX is 0, unlike a free entry's");
    b.guest().enter(0).unwrap();
    let accepted = b.guest().accept(Gpa::truncate(GPA), Level::L4K).unwrap();
    assert_eq!(accepted, Accept::Returned(Status(0xC000_0B0B_0000_0000)), "even at level 0");
    b.guest().exit();
    b.block_and_track(GPA | 1);
    assert_eq!(b.answer(Leaf::SeptRemove, GPA | 1, 0).0, 0xC000_0B0E_0000_0001, "its table is not empty");
    b.ok(Leaf::RangeUnblock, GPA | 1, b.tdr(), 0);
    assert!(b.machine.set_op_state(b.td.tdr, 1));
    let add = Regs { rax: 2, rcx: GPA, rdx: b.tdr(), r8: b.frame(), r9: 0x4000_0000, ..Regs::new() };
    assert_eq!(b.raw(add).rax, WRONG_STATE, "not for PAGE.ADD");
    b.ok(Leaf::PageAug, GPA, b.tdr(), b.frame());
}

/// The counter is part of the address that SEPT.RD shows; a block forgets it. (`sept_manager.c`)
#[test]
fn the_progress_of_an_accept_leaks_and_is_lost_in_a_block() {
    let b = bench();
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    b.guest().enter(0).unwrap();
    b.machine.set_interrupts(Some(Interrupts { after: 9, events: 4, host_interruptible: false }));
    let accept = || b.guest().accept(Gpa::truncate(GPA), Level::L2M).unwrap();
    assert_eq!(accept(), Accept::Interrupted);
    let shown = |counter: u64| 0x8000_0000_0000_00F0 | LARGE | counter << 12;
    assert_eq!(b.answer(Leaf::SeptRd, GPA | 1, 0), (0, shown(10), 0x201));
    assert_eq!(b.answer(Leaf::PagePromote, GPA | 1, 0), (WRONG_STATE, shown(10), 0x201), "in errors too");
    // Removal and split look at a copy without it.
    assert_eq!(b.answer(Leaf::PageRemove, GPA | 1, 0), (NOT_BLOCKED, shown(0), 0x201));
    b.machine.set_interrupts(None);
    b.guest().exit();
    b.block_and_track(GPA | 1);
    b.ok(Leaf::RangeUnblock, GPA | 1, b.tdr(), 0);
    assert_eq!(b.answer(Leaf::SeptRd, GPA | 1, 0).1, shown(0));
    // Polls come after each chunk but the last: with 511 that see nothing the page is done.
    b.guest().enter(0).unwrap();
    b.machine.set_interrupts(Some(Interrupts { after: 511, events: 1, host_interruptible: false }));
    assert_eq!(accept(), Accept::Returned(Status::SUCCESS));
}

/// (`tdx_api_defs.h`)
#[test]
fn flags_share_a_register_with_the_tdr() {
    let b = with_large();
    for leaf in [Leaf::SeptAdd, Leaf::PageDemote, Leaf::SeptRd] {
        for bit in [1, 11, 52, 62] {
            let rdx = b.tdr() | 1 << bit;
            assert_eq!(b.call(leaf, GPA | 1, rdx, 0).rax, 0xC000_0100_0000_0002, "{leaf:?} bit {bit}");
        }
    }
    assert_eq!(b.call(Leaf::SeptRd, GPA | 1, b.tdr() | 1, 0).rax, 0xC000_0100_0000_0002, "no debug TD");
    assert_eq!(b.call(Leaf::RangeBlock, GPA | 1, b.tdr() | 1, 0).rax, 0xC000_0100_0000_0002, "no flags here");
}
