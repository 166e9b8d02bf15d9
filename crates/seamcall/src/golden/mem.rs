use super::*;
use crate::mem::{self, Blocked, DemotePages, L2Mode, SeptPages};
use crate::testing::{entry, frame, frame_of, gpa};
use crate::{Leaf, SeptState, Status};
use sept_core::{Class, Classify, Hpa, Level};
use std::string::ToString;

#[test]
fn entry_operands_of_each_level() {
    for (level, rcx) in [(Level::L4K, 0x4000_0000), (Level::L2M, 0x4000_0001), (Level::L1G, 0x4000_0002)] {
        let script = Script::new();
        mem::sept_rd(&script, tdr(), entry(0x4000_0000, level)).unwrap();
        assert_eq!(script.only().rcx, rcx);
    }
    let script = Script::new();
    mem::sept_rd(&script, tdr(), entry(0, Level::L256T)).unwrap();
    assert_eq!(script.only().rcx, 4);
}

#[test]
fn sept_add() {
    let expected = Regs { r8: 0x200_0000, ..at_2m(3) };
    sends(Script::new(), expected, |t| mem::sept_add(t, tdr(), two_mib(), frame(0x200_0000))).unwrap();

    let script = Script::new().status(0xc000_0300_0000_0008);
    let back = mem::sept_add(&script, tdr(), two_mib(), frame(0x200_0000)).unwrap_err();
    assert_eq!(back.held.hpa().raw(), 0x200_0000);
    assert_eq!(back.error.status.to_string(), "TDX_PAGE_METADATA_INCORRECT|R8 (0xc000030000000008)");
    assert_eq!(back.error.class(), Class::Caller);
}

#[test]
fn sept_add_v1_takes_what_it_says() {
    let pages = SeptPages {
        l1: Some(frame(0x200_0000)),
        l2: [Some(frame(0x201_0000)), None, Some(frame(0x202_0000))],
    };
    let expected =
        Regs { rdx: TDR | 1, r8: 0x200_0000, r9: 0x201_0000, r10: NULL, r11: 0x202_0000, ..at_2m(0x1_0003) };
    // L1 not needed (bit 63), L2 VM 1 consumed, VM 3 not reached: interrupted.
    let script = Script::new().then(|regs| Regs {
        rax: 0x8000_0003_0000_0000,
        r8: regs.r8 | 1 << 63,
        r9: NULL,
        ..regs
    });
    let back = sends(script, expected, |t| mem::sept_add_v1(t, tdr(), two_mib(), true, pages)).unwrap_err();
    assert!(back.error.status.is(Status::INTERRUPTED_RESUMABLE));
    assert_eq!(back.error.class(), Class::Retry);
    let left = [back.held.l1, back.held.l2.into_iter().flatten().next()].map(|f| f.unwrap().hpa().raw());
    assert_eq!(left, [0x200_0000, 0x202_0000]);

    // A real add: everything consumed.
    let script = Script::new().then(|regs| Regs { rax: 0, r8: NULL, ..regs });
    let pages = SeptPages { l1: Some(frame(0x200_0000)), ..SeptPages::default() };
    let rest = mem::sept_add_v1(&script, tdr(), two_mib(), false, pages).unwrap();
    assert!(rest.l1.is_none() && rest.l2.iter().all(Option::is_none));
    assert_eq!(script.only().rdx, TDR);
}

#[test]
fn sept_rd() {
    let script = Script::new().details(0, 0x8000_0000_8000_00f7, 0x0401);
    let info = sends(script, at_2m(25), |t| mem::sept_rd(t, tdr(), two_mib())).unwrap();
    assert_eq!((info.state(), info.level(), info.vm()), (SeptState::Mapped, Some(Level::L2M), 0));
    assert_eq!(info.hpa(), Hpa::new(0x8000_0000));

    let script = Script::new().then(|regs| Regs { rax: 0, r8: 0x8003_0000_8001_0000, ..regs });
    let expected = Regs { rdx: TDR | 1, ..at_2m(25) };
    let (_, vms) = sends(script, expected, |t| mem::sept_rd_l2(t, tdr(), two_mib())).unwrap();
    let valid = mem::L2Attributes::VALID;
    let read_write = mem::L2Attributes::R | mem::L2Attributes::W;
    assert_eq!(vms, [valid | mem::L2Attributes::R, mem::L2Attributes::empty(), valid | read_write]);
}

#[test]
fn sept_remove() {
    let script = Script::new().details(0, 0x200_0000 | 1 << 62, 0);
    let page = sends(script, at_2m(30), |t| mem::sept_remove(t, tdr(), two_mib())).unwrap();
    assert_eq!((page.hpa.raw(), page.pair_idle), (0x200_0000, true));

    let script = Script::new().then(|regs| Regs {
        rax: 0,
        rcx: 0x200_0000,
        r9: NULL,
        r10: 0x300_0000,
        r11: NULL,
        ..regs
    });
    let pages = sends(script, at_2m(0x1_001e), |t| mem::sept_remove_v1(t, tdr(), two_mib())).unwrap();
    assert_eq!(pages.l1.hpa.raw(), 0x200_0000);
    assert_eq!(pages.l2.map(|page| page.map(|page| page.hpa.raw())), [None, Some(0x300_0000), None]);
}

#[test]
fn page_add() {
    let expected = Regs { rax: 2, rcx: 0x1000, rdx: TDR, r8: 0x8000_0000, r9: 0x4000_0000, ..Regs::new() };
    let source = crate::testing::hpa(0x4000_0000);
    sends(Script::new(), expected, |t| mem::page_add(t, tdr(), one_page(), frame(0x8000_0000), source))
        .unwrap();
}

#[test]
fn page_aug() {
    let expected = Regs { rax: 6, rcx: 0x1000, rdx: TDR, r8: 0x8000_0000, ..Regs::new() };
    sends(Script::new(), expected, |t| mem::page_aug(t, tdr(), one_page(), frame(0x8000_0000))).unwrap();
    let expected = Regs { r8: 0x8000_0000, ..at_2m(6) };
    let page = frame_of(0x8000_0000, Level::L2M);
    sends(Script::new(), expected, |t| mem::page_aug(t, tdr(), two_mib(), page)).unwrap();
}

#[test]
fn a_frame_of_the_wrong_size_makes_no_call() {
    let script = Script::new();
    let large = || frame_of(0x8000_0000, Level::L2M);
    let back = mem::page_aug(&script, tdr(), one_page(), large()).unwrap_err();
    assert_eq!(back.error.status.raw(), 0xc000_ff01_0000_0008);
    assert_eq!(back.held.level(), Level::L2M);
    assert!(mem::page_aug(&script, tdr(), two_mib(), frame(0x8000_0000)).is_err());
    assert!(mem::sept_add(&script, tdr(), two_mib(), large()).is_err());
    assert!(mem::page_add(&script, tdr(), one_page(), large(), crate::testing::hpa(0)).is_err());
    assert!(mem::page_relocate(&script, tdr(), one_page(), large()).is_err());
    let l2 = SeptPages { l1: None, l2: [None, None, Some(large())] };
    let back = mem::sept_add_v1(&script, tdr(), two_mib(), false, l2).unwrap_err();
    assert_eq!(back.error.status.raw(), 0xc000_ff01_0000_000b);
    let demote = DemotePages::new(frame(0x200_0000)).with_pair([frame(0x300_0000), large()]);
    let back = mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, demote).unwrap_err();
    assert_eq!(back.error.status.raw(), 0xc000_ff01_0000_000d);
    assert!(!back.held.is_tainted());
    assert!(script.calls().is_empty());
}

#[test]
fn page_remove_masks_the_hint() {
    let script = Script::new().details(0, 0x8000_0000 | 1 << 62, 0);
    let page = sends(script, at_2m(29), |t| mem::page_remove(t, tdr(), two_mib())).unwrap();
    assert_eq!((page.hpa.raw(), page.pair_idle), (0x8000_0000, true));
}

#[test]
fn page_relocate() {
    let expected = Regs { rax: 5, rcx: 0x1000, rdx: TDR, r8: 0x9000_0000, ..Regs::new() };
    let script = Script::new().details(0, 0x8000_0000, 0);
    let old = sends(script, expected, |t| mem::page_relocate(t, tdr(), one_page(), frame(0x9000_0000)));
    assert_eq!(old.unwrap().hpa.raw(), 0x8000_0000);
}

#[test]
fn block_unblock_track() {
    assert_eq!(sends(Script::new(), at_2m(7), |t| mem::range_block(t, tdr(), two_mib())), Ok(Blocked::Now));
    let script = Script::new().details(0x0000_0b07_0000_0001, 0x8000_0000_8000_00f0, 0x0101);
    match sends(script, at_2m(7), |t| mem::range_block(t, tdr(), two_mib())) {
        Ok(Blocked::Already(found)) => assert_eq!(found.state(), SeptState::Blocked),
        other => panic!("{other:?}"),
    }
    sends(Script::new(), at_2m(39), |t| mem::range_unblock(t, tdr(), two_mib())).unwrap();
    let expected = Regs { rax: 38, rcx: TDR, ..Regs::new() };
    sends(Script::new(), expected, |t| mem::track(t, tdr())).unwrap();
}

#[test]
fn track_errors_carry_no_entry() {
    // TRACK leaves RCX alone: what is in it is the TDR, not an entry.
    let script = Script::new().then(|regs| Regs { rax: 0x8000_0200_0000_0001, ..regs });
    let error = mem::track(&script, tdr()).unwrap_err();
    assert_eq!((error.entry(), error.at), (None, None));
    assert_eq!(error.class(), Class::Quiesce);
    assert_eq!(error.to_string(), "TDH.MEM.TRACK: TDX_OPERAND_BUSY|RCX (0x8000020000000001)");
}

#[test]
fn read_and_write() {
    let expected = Regs { rax: 12, rcx: 0x1008, rdx: TDR, ..Regs::new() };
    let script = Script::new().then(|regs| Regs { rax: 0, rcx: 0, rdx: 0, r8: 0x55, ..regs });
    assert_eq!(sends(script, expected, |t| mem::rd(t, tdr(), gpa(0x1008))), Ok(0x55));
    let expected = Regs { rax: 14, rcx: 0x1008, rdx: TDR, r8: 0x66, ..Regs::new() };
    let script = Script::new().then(|regs| Regs { rax: 0, rcx: 0, rdx: 0, r8: 0x55, ..regs });
    assert_eq!(sends(script, expected, |t| mem::wr(t, tdr(), gpa(0x1008), 0x66)), Ok(0x55));
}

/// The trace of a 2 MiB page that is split while a vCPU is inside, step by step.
#[test]
fn worked_trace() {
    let demote = |script: Script| {
        let back =
            mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, DemotePages::new(frame(0x200_0000)));
        back.unwrap_err().error
    };
    let error = demote(Script::new().details(0xc000_0b06_0000_0001, 0x8000_0000_8000_00f7, 0x0401));
    assert_eq!(
        error.to_string(),
        "TDH.MEM.PAGE.DEMOTE at 0x40000000/2M: TDX_GPA_RANGE_NOT_BLOCKED|RCX (0xc0000b0600000001), \
         found 2M MAPPED 0x80000000"
    );
    assert_eq!((error.leaf, error.class()), (Leaf::MEM_PAGE_DEMOTE, Class::Caller));
    let error = demote(Script::new().status(0xc000_0b08_0000_0001));
    assert_eq!((error.entry(), error.class()), (None, Class::Quiesce));
    let error = demote(Script::new().status(0x8000_0200_0000_0008));
    assert_eq!(error.class(), Class::Retry);
    let error = demote(Script::new().details(0xc000_0b0d_0000_0001, 0x7, 0x8401));
    assert_eq!(error.entry().unwrap().state(), SeptState::NlMapped);
    assert_eq!(error.entry().unwrap().hpa(), None);
    let error = mem::track(&Script::new().status(0x8000_0201_0000_0000), tdr()).unwrap_err();
    assert_eq!(error.class(), Class::Quiesce);
    let script = Script::new().details(0xc000_0b00_0000_0001, 0x8000_0000_8000_00f7, 0x0401);
    let back = mem::page_aug(&script, tdr(), entry(0x4000_0000, Level::L4K), frame(0x9000_0000)).unwrap_err();
    assert_eq!(back.error.entry().unwrap().level(), Some(Level::L2M));
}

#[test]
fn a_blocked_table_above_is_contention_and_a_missing_one_is_not() {
    let at = entry(0x4000_0000, Level::L4K);
    let aug = |rcx, rdx| {
        let script = Script::new().details(0xc000_0b00_0000_0001, rcx, rdx);
        mem::page_aug(&script, tdr(), at, frame(0x9000_0000)).unwrap_err().error
    };
    let hidden = aug(0, 0x8101);
    assert!(hidden.is_hidden() && hidden.class() == Class::Retry);
    let missing = aug(1 << 63, 0x0001);
    assert!(!missing.is_hidden() && missing.class() == Class::Caller);
}

#[test]
fn the_entry_lock_and_a_pamt_lock_are_told_apart() {
    let locked = Script::new().details(0x8000_0200_0000_0001, 0x8000_0000_8000_00f0, 0x0101);
    let error = mem::page_remove(&locked, tdr(), two_mib()).unwrap_err();
    assert!(error.is_entry_busy());
    let error = mem::page_remove(&Script::new().status(0x8000_0200_0000_0001), tdr(), two_mib()).unwrap_err();
    assert!(!error.is_entry_busy());
    assert_eq!(error.class(), Class::Quiesce);
}
