use super::*;
use crate::phymem::{self, CacheWb, CacheWritten};
use crate::testing::frame;
use crate::{Hkid, KeyIdBits, PageType};
use sept_core::{Hpa, Level};

fn on(rax: u64, rcx: u64) -> Regs {
    Regs { rax, rcx, ..Regs::new() }
}

#[test]
fn reclaim() {
    let script = Script::new().then(|regs| Regs {
        rax: 0,
        rcx: 3,
        rdx: TDR,
        r8: 1,
        r9: 1 << 62,
        r10: 0,
        r11: 0,
        ..regs
    });
    let info = sends(script, on(28, 0x8000_0000), |t| phymem::page_reclaim(t, hpa(0x8000_0000))).unwrap();
    assert_eq!((info.page_type, info.owner, info.level), (PageType::Regular, Some(tdr()), Some(Level::L2M)));
    assert!(info.pair_idle && info.block_epoch == 0);
}

#[test]
fn rdmd() {
    let script = Script::new().then(|regs| Regs {
        rax: 0,
        rcx: 1 << 63 | 15,
        rdx: 0,
        r8: 1,
        r9: 0,
        r10: 0x300_0000,
        r11: 0x300_1000,
        ..regs
    });
    let region = |t: &Script| phymem::page_rdmd_at(t, hpa(0x8000_0000), Level::L2M);
    let info = sends(script, on(24, 0x8000_0001), region).unwrap();
    assert_eq!((info.page_type, info.owner, info.has_children), (PageType::Pamt, None, true));
    assert_eq!(info.pair.unwrap().map(Hpa::raw), [0x300_0000, 0x300_1000]);

    let script = Script::new().then(|regs| Regs { rax: 0, rcx: 3, rdx: TDR, r8: 0, r9: 7, ..regs });
    let info = sends(script, on(24, 0x8000_0000), |t| phymem::page_rdmd(t, hpa(0x8000_0000))).unwrap();
    assert_eq!((info.owner, info.level, info.block_epoch), (Some(tdr()), Some(Level::L4K), 7));
    // An address that looks like one with a level.
    let script = Script::new();
    assert_eq!(refused(phymem::page_rdmd(&script, hpa(0x8000_0001))), 0xc000_ff01_0000_0001);
    assert!(script.calls().is_empty());
}

#[test]
fn wbinvd_puts_the_key_above_the_address() {
    let bits = KeyIdBits::new(46, 6).unwrap();
    let expected = on(41, 0x2100_8000_0000);
    sends(Script::new(), expected, |t| phymem::page_wbinvd(t, hpa(0x8000_0000), Hkid::new(33), bits))
        .unwrap();
    let script = Script::new();
    let status = refused(phymem::page_wbinvd(&script, hpa(0x8000_0000), Hkid::new(64), bits));
    assert_eq!(status, 0xc000_ff01_0000_0001);
    let status = refused(phymem::page_wbinvd(&script, hpa(1 << 40), Hkid::new(1), bits));
    assert_eq!(status, 0xc000_ff01_0000_0001);
    assert!(script.calls().is_empty());
}

#[test]
fn cache_wb() {
    let start = sends(Script::new(), on(40, 0), |t| phymem::cache_wb(t, CacheWb::Start));
    assert_eq!(start, Ok(CacheWritten::Done));
    sends(Script::new(), on(40, 1), |t| phymem::cache_wb(t, CacheWb::Resume)).unwrap();
    let script = Script::new().status(0x0000_0821_0000_0000);
    assert_eq!(phymem::cache_wb(&script, CacheWb::Start), Ok(CacheWritten::NothingToDo));
}

#[test]
fn pamt() {
    let region = hpa(0x8000_0000);
    let pair = || [frame(0x300_0000), frame(0x300_1000)];
    let expected = Regs { rdx: 0x300_0000, r8: 0x300_1000, ..on(58, 0x8000_0001) };
    sends(Script::new(), expected, |t| phymem::pamt_add(t, region, pair())).unwrap();
    let back = phymem::pamt_add(&Script::new().status(0xc000_0304_0000_0001), region, pair()).unwrap_err();
    assert_eq!(back.error.status.name(), Some("TDX_HPA_RANGE_NOT_FREE"));
    assert_eq!(back.held.map(|page| page.hpa().raw()), [0x300_0000, 0x300_1000]);

    let script = Script::new().then(|regs| Regs { rax: 0, rdx: 0x300_0000, r8: 0x300_1000, ..regs });
    let pages = sends(script, on(59, 0x8000_0001), |t| phymem::pamt_remove(t, region)).unwrap();
    assert_eq!(pages.map(Hpa::raw), [0x300_0000, 0x300_1000]);

    let script = Script::new();
    assert_eq!(refused(phymem::pamt_remove(&script, hpa(0x8000_1000))), 0xc000_ff01_0000_0001);
    assert!(phymem::pamt_add(&script, hpa(0x8000_1000), pair()).is_err());
    assert!(script.calls().is_empty());
}
