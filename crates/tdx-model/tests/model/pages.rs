//! The PAMT, page operands and counts where models go wrong, each with the value that the module gives.
//! (TDX module ABI; the file of module 1.5.01 is named at each.)

use seamcall::Regs;
use sept_core::{Hpa, Level};
use tdx_model::{Access, HkidLayout, Leaf, Machine, PageType};

use crate::common::{Bench, GPA, LARGE, NOT_BLOCKED, OTHER, bench, building, with_large, with_small};

/// 1, 512 and 262,144 pages of 4 KiB. (`tdh_mem_page_aug.c`, `tdh_mem_page_remove.c`)
#[test]
fn children_are_counted_in_small_pages() {
    let b = building();
    b.tables(GPA, Level::L2M);
    let start = b.chldcnt();
    for index in 0..512 {
        b.aug(GPA + (index << 21), Level::L2M, LARGE + (index << 21));
    }
    assert_eq!(b.chldcnt(), start + 262_144);
    b.ok(Leaf::PagePromote, GPA | 2, b.tdr(), 0);
    assert_eq!(b.chldcnt(), start + 262_144 - 1, "without the table");
    assert_eq!(b.answer(Leaf::PageAug, GPA | 2, LARGE).0, 0xC000_0100_0000_0001, "AUG has no 1 GiB");
    assert_eq!(b.answer(Leaf::PageRelocate, GPA | 2, LARGE).0, 0xC000_0100_0000_0001, "nor has RELOCATE");
    assert_eq!(b.rdmd(LARGE + 0x1234_5000).r8, 2, "any address of the GiB");
    assert_eq!(b.ok(Leaf::PageRemove, GPA | 2, b.tdr(), 0).rcx, LARGE);
    assert_eq!(b.chldcnt(), start - 1);
}

/// RECLAIM says what it found before its last checks. (`tdh_phymem_page_reclaim.c`)
#[test]
fn reclaim_describes_the_page_even_when_it_refuses() {
    let b = with_large();
    let reclaim = |page: u64| {
        let out = b.raw(Regs { rax: 28, rcx: page, rdx: 7, r8: 7, r9: 7, r10: 7, r11: 7, ..Regs::new() });
        assert_eq!((out.r9, out.r10, out.r11), (0, 0, 0));
        (out.rax, out.rcx, out.rdx, out.r8)
    };
    assert_eq!(reclaim(LARGE), (0xC000_0607_0000_0000, 3, b.tdr(), 1), "the TD lives");
    assert_eq!(reclaim(LARGE + 4096), (0xC000_0100_0000_0001, 3, b.tdr(), 1), "inside a 2 MiB page");
    assert_eq!(reclaim(OTHER), (0xC000_0300_0000_0001, 0, 0, 0), "free");
    assert_eq!(reclaim(b.tdr()), (0xC000_0607_0000_0000, 4, 0, 0));
    assert_eq!(reclaim(LARGE + 1), (0xC000_0100_0000_0001, 0, 0, 0));
    assert_eq!(reclaim(0x4000_0000), (0xC000_0101_0000_0001, 0, 0, 0), "in no region");
    b.tear_down();
    assert_eq!(reclaim(b.tdr()), (0xC000_0400_0000_0000, 4, 0, 0), "it still has pages");
    let hold = b.machine.hold_page(b.td.tdr, Level::L4K, Access::Exclusive).unwrap();
    assert_eq!(reclaim(LARGE), (0x8000_0200_0000_0080, 3, b.tdr(), 1), "its TDR is held");
    b.machine.release(hold);
    assert_eq!(reclaim(LARGE), (0, 3, b.tdr(), 1));
}

/// (`tdh_phymem_page_rdmd.c`)
#[test]
fn a_free_page_shows_its_last_owner() {
    let (b, page) = with_small();
    b.block_and_track(GPA);
    b.ok(Leaf::PageRemove, GPA, b.tdr(), 0);
    let out = b.rdmd(page);
    assert_eq!((out.rcx, out.rdx, out.r8, out.r9), (0, b.tdr(), 0, 0), "no BEPOCH of a free page");
    assert_eq!(b.call(Leaf::PhymemPageRdmd, 1 << 52, 0, 0).rax, 0xC000_0100_0000_0001);
    assert_eq!(b.call(Leaf::PhymemPageRdmd, page | 1 << 46, 0, 0).rax, 0xC000_0100_0000_0001, "a key id");
}

/// (`tdh_phymem_page_wbinvd.c`, `helpers.c`)
#[test]
fn write_back_takes_free_pages_and_a_key_in_the_address() {
    let (b, page) = with_small();
    let key = 33u64 << 46;
    assert_eq!(b.call(Leaf::PhymemPageWbinvd, page | key, 0, 0).rax, 0xC000_0300_0000_0001, "in use");
    b.block_and_track(GPA);
    assert_eq!(b.ok(Leaf::PageRemove, GPA, b.tdr(), 0).rcx, page);
    b.ok(Leaf::PhymemPageWbinvd, page | key, 0, 0);
    assert_eq!(b.answer(Leaf::PageAug, GPA, page | key).0, 0xC000_0100_0000_0008, "no other operand has one");
    let out = b.raw(Regs { rax: 41, rcx: 0x123, rdx: 9, ..Regs::new() });
    assert_eq!((out.rax, out.rcx, out.rdx), (0xC000_0100_0000_0001, 0x123, 9), "registers stay");
}

/// (`pamt_manager.c`)
#[test]
fn a_large_page_needs_every_small_one_free() {
    let b = with_large();
    let next = GPA + 0x20_0000;
    b.tables(next + 0x20_0000, Level::L4K);
    b.aug(next + 0x20_0000, Level::L4K, OTHER + 0x1000);
    assert_eq!(b.answer(Leaf::PageAug, next | 1, OTHER), (0xC000_0300_0000_0008, 0, 0), "one is in use");
    assert_eq!(b.answer(Leaf::PageAug, next | 1, LARGE + 4096).0, 0xC000_0100_0000_0008, "misaligned");
    assert_eq!(b.answer(Leaf::PageAug, next | 1, LARGE).0, 0xC000_0300_0000_0008, "taken");
    let inside = b.answer(Leaf::PageAug, next + 0x20_1000, LARGE + 4096).0;
    assert_eq!(inside, 0xC000_0300_0000_0008, "a small page of a large one");
    b.ok(Leaf::SeptAdd, (GPA + 0x60_0000) | 1, b.tdr(), OTHER + 0x20_0000);
    assert_eq!(
        b.answer(Leaf::PageAug, next | 1, OTHER + 0x20_0000).0,
        0xC000_0300_0000_0008,
        "a table in it"
    );
}

/// (`helpers.c`, `pamt_manager.c`)
#[test]
fn the_same_page_twice_is_busy() {
    let b = building();
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    assert_eq!(b.answer(Leaf::PageRelocate, GPA, page), (0xC000_0100_0000_0008, 0, 0), "to itself");
    assert_eq!(b.answer(Leaf::PageRelocate, GPA, b.tdr()).0, 0x8000_0200_0000_0008);
    // Two operands in one region are no problem: their common parents are shared.
    assert_eq!(b.ok(Leaf::PageRelocate, GPA, b.tdr(), page + 4096).rcx, page);
    assert_eq!(b.ok(Leaf::PageRemove, GPA, b.tdr(), 0).rcx, page + 4096);
}

/// To the page itself: that is looked at before the block, in 52 bits of the operand. (`tdh_mem_page_relocate.c`)
#[test]
fn a_page_is_not_relocated_to_itself() {
    let (b, page) = with_small();
    for high in [0, 1 << 52, 1 << 63] {
        assert_eq!(
            b.answer(Leaf::PageRelocate, GPA, page | high),
            (0xC000_0100_0000_0008, 0, 0),
            "{high:#x}"
        );
    }
    for other in [page | 1 << 51, page | 1 << 11, b.frame()] {
        assert_eq!(b.answer(Leaf::PageRelocate, GPA, other).0, NOT_BLOCKED, "{other:#x}");
    }
}

/// Addresses beyond the platform's width are in no region; only those beyond 52 bits are no addresses. (`x86_defs.h`)
#[test]
fn an_address_has_52_bits_on_every_platform() {
    let hkid = HkidLayout { start_bit: 40, bits: 6, private_min: 32, private_max: 63, global: 32 };
    let machine = Machine::builder().addresses(46, hkid).memory(LARGE, 1).build();
    let rdmd = |page| machine.lp(0).raw(Regs { rax: 24, rcx: page, ..Regs::new() }).rax;
    assert_eq!(rdmd(LARGE), 0);
    assert_eq!(rdmd(LARGE | 1 << 45), 0xC000_0100_0000_0001, "a key id");
    assert_eq!([46, 51].map(|bit| rdmd(LARGE | 1 << bit)), [0xC000_0101_0000_0001; 2]);
    assert_eq!(rdmd(LARGE | 1 << 52), 0xC000_0100_0000_0001);
}

/// (`tdh_mng_add_cx.c`)
#[test]
fn the_operation_state_matters_from_the_seventh_control_page_on() {
    let b = building();
    let page = b.frame();
    assert_eq!(b.call(Leaf::MngAddCx, page, b.tdr(), 0).rax, 0xC000_0608_0000_0000);
    assert_eq!(b.machine.peek(Hpa::truncate(page)).key, 33, "the page is filled all the same");
    assert_eq!(b.machine.page(Hpa::truncate(page)).kind, PageType::Nda);
    assert_eq!(b.chldcnt(), 12);
}

/// Any shared key, anywhere but in the module's own range; the PAMT is not asked. (`tdh_mem_page_add.c`)
#[test]
fn the_source_of_page_add() {
    let b = building();
    b.tables(GPA, Level::L4K);
    let add = |b: &Bench, r8: u64, r9: u64| {
        b.raw(Regs { rax: 2, rcx: GPA, rdx: b.tdr(), r8, r9, ..Regs::new() }).rax
    };
    let invalid = 0xC000_0100_0000_0009;
    for source in [0x4000_0800, 0x8000_0000, 0x81FF_F000, 32 << 46, 1 << 52] {
        assert_eq!(add(&b, 0x123, source), invalid, "{source:#x}, before R8");
    }
    assert_eq!(add(&b, 0x123, 0x4000_0000), 0xC000_0100_0000_0008);
    let page = b.frame();
    for source in [0x7FFF_F000, 0x8200_0000, 31 << 46 | 0x4000_0000, b.tdr()] {
        assert_eq!(add(&b, page, source), 0, "{source:#x}");
        b.ok(Leaf::PageRemove, GPA, b.tdr(), 0);
        b.ok(Leaf::PhymemPageWbinvd, page | 33 << 46, 0, 0);
    }
}

/// The lock of each owner's TDR counts, not only that of the call's. (`tdh_vp_create.c`, `helpers.c`)
#[test]
fn control_pages_of_a_vcpu_hold_their_td() {
    let b = bench();
    let hold = b.machine.hold_page(b.td.tdr, Level::L4K, Access::Exclusive).unwrap();
    for leaf in [Leaf::VpInit, Leaf::VpFlush, Leaf::VpRd] {
        assert_eq!(b.call(leaf, b.td.vcpus[0].raw(), 0, 0).rax, 0x8000_0200_0000_0080, "{leaf:?}");
    }
    assert_eq!(b.guest().enter(0), Err(tdx_model::Status(0x8000_0200_0000_0080)));
    b.machine.release(hold);
}
