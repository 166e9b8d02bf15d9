use super::*;
use crate::mem::{self, DemotePages, L2Mode, MaybeTainted};
use crate::testing::{entry, frame};
use sept_core::{Hpa, Level};
use std::string::ToString;

#[test]
fn page_demote() {
    let expected = Regs { r8: 0x200_0000, r9: NULL, r10: NULL, r11: NULL, ..at_2m(0xf) };
    sends(Script::new(), expected, |t| {
        mem::page_demote(t, tdr(), two_mib(), L2Mode::All, DemotePages::new(frame(0x200_0000)))
    })
    .unwrap();

    let pages = DemotePages::new(frame(0x200_0000))
        .with_l2(2, [Some(frame(0x201_0000)), Some(frame(0x202_0000)), None])
        .with_pair([frame(0x300_0000), frame(0x300_1000)]);
    let expected = Regs {
        rdx: TDR | 1,
        r8: 0x200_0000,
        r9: 0x201_0000,
        r10: 0x202_0000,
        r11: NULL,
        r12: 0x300_0000,
        r13: 0x300_1000,
        ..at_2m(0xf)
    };
    let script = Script::new().then(|regs| Regs { rax: 0, rcx: 0, rdx: 0, r10: regs.r10 | 1 << 63, ..regs });
    let unused =
        sends(script, expected, |t| mem::page_demote(t, tdr(), two_mib(), L2Mode::Sparse, pages)).unwrap();
    assert_eq!(unused.map(|page| page.map(|page| page.hpa().raw())), [None, Some(0x202_0000), None]);
}

/// The module does not look at the operand of a VM that the TD does not have: its page would be nobody's.
#[test]
fn a_page_for_a_vm_that_is_not_there_is_not_given() {
    for (vms, index, operand) in [(0, 0, 9), (1, 1, 10), (2, 2, 11), (0, 2, 11)] {
        let mut l2 = [None, None, None];
        l2[index] = Some(frame(0x201_0000));
        let pages = DemotePages::new(frame(0x200_0000)).with_l2(vms, l2);
        let script = Script::new();
        let back = mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, pages).unwrap_err();
        assert_eq!(back.error.status.raw(), 0xc000_ff01_0000_0000 | operand);
        assert!(script.calls().is_empty() && !back.held.is_tainted());
        let (_, l2, _) = back.held.into_parts();
        assert!(l2[index].is_some());
    }
}

#[test]
fn a_failed_demote_taints_the_tables_and_not_the_pair() {
    let pages = DemotePages::new(frame(0x200_0000)).with_pair([frame(0x300_0000), frame(0x300_1000)]);
    let script = Script::new().status(0xc000_0303_0000_000d);
    let back = mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, pages).unwrap_err();
    assert_eq!(back.error.status.to_string(), "TDX_PAGE_NOT_FREE|R13 (0xc00003030000000d)");
    assert!(back.held.is_tainted());
    // The same pages once more: the same registers.
    let back = mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, back.held);
    assert!(back.is_ok());
    assert_eq!(script.calls()[0], script.calls()[1]);

    let pages = DemotePages::new(frame(0x200_0000)).with_pair([frame(0x300_0000), frame(0x300_1000)]);
    let script = Script::new().status(0x8000_0004_0000_0000);
    let back = mem::page_demote(&script, tdr(), two_mib(), L2Mode::All, pages).unwrap_err();
    let (table, _, pair) = back.held.into_parts();
    assert!(matches!(table, MaybeTainted::Tainted(page) if page.hpa().raw() == 0x200_0000));
    assert!(pair.is_some());
}

/// A page pair belongs to a region of 2 MiB: where the module would not look at it, it is not given away.
#[test]
fn a_pair_for_a_larger_page_comes_back() {
    let script = Script::new();
    let pages = DemotePages::new(frame(0x200_0000)).with_pair([frame(0x300_0000), frame(0x300_1000)]);
    let large = entry(0x4000_0000, Level::L1G);
    let back = mem::page_demote(&script, tdr(), large, L2Mode::All, pages).unwrap_err();
    assert_eq!(back.error.status.raw(), 0xc000_ff01_0000_000c);
    assert!(!back.held.is_tainted() && script.calls().is_empty());
    let (_, _, pair) = back.held.into_parts();
    assert!(pair.is_some());
}

#[test]
fn page_promote() {
    let script = Script::new().then(|regs| Regs {
        rax: 0,
        rcx: 0x200_0000 | 1 << 62,
        rdx: 0,
        r12: 0x300_0000,
        r13: 0x300_1000,
        ..regs
    });
    let merged = sends(script, at_2m(0x17), |t| mem::page_promote(t, tdr(), two_mib())).unwrap();
    assert_eq!((merged.table.hpa.raw(), merged.table.pair_idle), (0x200_0000, true));
    assert_eq!(merged.pair.unwrap().map(Hpa::raw), [0x300_0000, 0x300_1000]);

    // 1 GiB, or a static PAMT: R12 and R13 are not outputs.
    let script = Script::new();
    let merged = mem::page_promote(&script, tdr(), entry(0x4000_0000, Level::L1G)).unwrap();
    assert_eq!(merged.pair, None);
    assert_eq!(mem::page_promote(&Script::new(), tdr(), two_mib()).unwrap().pair, None);

    let script = Script::new().then(|regs| Regs {
        rax: 0,
        rcx: 0x200_0000,
        r9: 0x210_0000,
        r10: NULL,
        r11: NULL,
        ..regs
    });
    let (_, l2) = sends(script, at_2m(0x1_0017), |t| mem::page_promote_v1(t, tdr(), two_mib())).unwrap();
    assert_eq!(l2.map(|page| page.map(|page| page.hpa.raw())), [Some(0x210_0000), None, None]);
}
