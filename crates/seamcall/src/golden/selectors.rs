//! Every leaf and version there is a wrapper for, by the number it sends. The images are in the modules beside this
//! one.

use super::*;
use crate::export::GpaList;
use crate::mem::{DemotePages, L2Mode, SeptPages};
use crate::phymem::CacheWb;
use crate::testing::{entry, frame, gpa};
use crate::{
    FatalErrorConfig, FatalNotification, Features0, FieldId, Hkid, KeyIdBits, PlatformField, TdField, export,
    mem, mng, mr, phymem, sys, vp,
};
use sept_core::Level;
use std::vec::Vec;

/// Calls a wrapper and gives the selector it sent.
fn selector<R>(call: impl FnOnce(&Script) -> R) -> u64 {
    let script = Script::new();
    let _ = call(&script);
    script.only().rax
}

#[test]
#[expect(unsafe_code, reason = "the script takes no memory")]
fn every_leaf_and_version() {
    let (td, vcpu, key, field) = (tdr(), tdvpr(), Hkid::new(33), FieldId::TD_EPOCH);
    let (small, large) = (entry(0x1000, Level::L4K), entry(0x4000_0000, Level::L2M));
    let page = || frame(0x300_0000);
    let (at, region) = (hpa(0x8000_0000), hpa(0x8000_0000));
    let mut buffer = frame(0x5000);
    let fatal = FatalErrorConfig::new(None, FatalNotification::Nmi).unwrap();
    let calls: Vec<(u64, u64)> = [
        (1, selector(|t| mng::addcx(t, td, page()))),
        (2, selector(|t| mem::page_add(t, td, small, page(), at))),
        (3, selector(|t| mem::sept_add(t, td, large, page()))),
        (0x1_0003, selector(|t| mem::sept_add_v1(t, td, large, true, SeptPages::default()))),
        (4, selector(|t| vp::addcx(t, vcpu, page()))),
        (5, selector(|t| mem::page_relocate(t, td, small, page()))),
        (6, selector(|t| mem::page_aug(t, td, small, page()))),
        (7, selector(|t| mem::range_block(t, td, large))),
        (8, selector(|t| mng::key_config(t, td))),
        (9, selector(|t| mng::create(t, page(), key))),
        (10, selector(|t| vp::create(t, td, page()))),
        (11, selector(|t| mng::rd(t, td, field))),
        (0x1_000b, selector(|t| mng::rd_next(t, td, field))),
        (12, selector(|t| mem::rd(t, td, gpa(8)))),
        (13, selector(|t| mng::wr(t, td, field, 1, 1))),
        (14, selector(|t| mem::wr(t, td, gpa(8), 1))),
        (15, selector(|t| mem::page_demote(t, td, large, L2Mode::All, DemotePages::new(page())))),
        (16, selector(|t| mr::extend(t, td, gpa(256)))),
        (17, selector(|t| mr::finalize(t, td))),
        (18, selector(|t| vp::flush(t, vcpu))),
        (19, selector(|t| mng::vpflushdone(t, td))),
        (20, selector(|t| mng::key_freeid(t, td))),
        (21, selector(|t| mng::init(t, td, at))),
        (22, selector(|t| vp::init(t, vcpu, 0))),
        (0x1_0016, selector(|t| vp::init_x2apic(t, vcpu, 0, 0))),
        (23, selector(|t| mem::page_promote(t, td, large))),
        (0x1_0017, selector(|t| mem::page_promote_v1(t, td, large))),
        (24, selector(|t| phymem::page_rdmd(t, at))),
        (25, selector(|t| mem::sept_rd(t, td, large))),
        (25, selector(|t| mem::sept_rd_l2(t, td, large))),
        (26, selector(|t| vp::rd(t, vcpu, field))),
        (0x1_001a, selector(|t| vp::rd_next(t, vcpu, field))),
        (28, selector(|t| phymem::page_reclaim(t, at))),
        (29, selector(|t| mem::page_remove(t, td, large))),
        (30, selector(|t| mem::sept_remove(t, td, large))),
        (0x1_001e, selector(|t| mem::sept_remove_v1(t, td, large))),
        (31, selector(sys::key_config)),
        (32, selector(|t| sys::info(t, &mut buffer))),
        (33, selector(sys::init)),
        // SAFETY: a script stands for the module; it writes nothing.
        (0x1_0021, selector(|t| unsafe { sys::init_v1(t, fatal) })),
        (34, selector(|t| sys::rd(t, field))),
        (35, selector(sys::lp_init)),
        (36, selector(|t| sys::tdmr_init(t, at))),
        (37, selector(|t| sys::rd_all(t, &mut buffer, field))),
        (38, selector(|t| mem::track(t, td))),
        (39, selector(|t| mem::range_unblock(t, td, large))),
        (40, selector(|t| phymem::cache_wb(t, CacheWb::Start))),
        (41, selector(|t| phymem::page_wbinvd(t, at, key, KeyIdBits::new(46, 6).unwrap()))),
        (43, selector(|t| vp::wr(t, vcpu, field, 1, 1))),
        (44, selector(sys::lp_shutdown)),
        // SAFETY: a script stands for the module; it reads and takes nothing.
        (45, selector(|t| unsafe { sys::config(t, at, 1, key, false) })),
        // SAFETY: a script stands for the module; it reads and takes nothing.
        (0x1_002d, selector(|t| unsafe { sys::config_v1(t, at, 1, key, false, Features0::empty()) })),
        (52, selector(|t| sys::shutdown(t, 0))),
        (53, selector(sys::update)),
        (0x1_0035, selector(|t| sys::update_v1(t, Features0::empty()))),
        (34, selector(|t| sys::read(t, PlatformField::NUM_CMRS))),
        (11, selector(|t| mng::read(t, td, TdField::OP_STATE))),
        (58, selector(|t| phymem::pamt_add(t, region, [page(), frame(0x300_1000)]))),
        (59, selector(|t| phymem::pamt_remove(t, region))),
        (65, selector(|t| export::blockw(t, td, GpaList::new(&mut buffer, 0, 1).unwrap()).is_ok())),
        (0x1_0041, selector(|t| export::blockw_v1(t, td, GpaList::new(&mut buffer, 0, 1).unwrap()).is_ok())),
        (75, selector(|t| export::unblockw(t, td, small))),
    ]
    .into();
    for (expected, sent) in &calls {
        assert_eq!(sent, expected);
    }
    // As many as there are documented leaves but VP.ENTER, which is no such call: none is missing here.
    assert_eq!(calls.len(), 62);
}

/// A question for the first field: the informational status is an answer with nothing but the next field.
#[test]
fn the_first_field() {
    let first = 0x0800_0001_0000_0003;
    let reply = move |regs: Regs| Regs { rax: 0x0000_0c0b_0000_0000, rdx: first, r8: 0, ..regs };
    let none = FieldId::NONE;
    let expected = Ok((0, Some(FieldId::new(first))));
    let regs = |rax, rcx| Regs { rax, rcx, rdx: u64::MAX, ..Regs::new() };
    assert_eq!(sends(Script::new().then(reply), regs(34, 0), |t| sys::rd(t, none)), expected);
    assert_eq!(
        sends(Script::new().then(reply), regs(0x1_000b, TDR), |t| mng::rd_next(t, tdr(), none)),
        expected
    );
    assert_eq!(
        sends(Script::new().then(reply), regs(0x1_001a, TDVPR), |t| vp::rd_next(t, tdvpr(), none)),
        expected
    );
}

/// Numbers and names of the leaves without a wrapper, and that no two are one.
#[test]
fn names() {
    for (number, name) in [
        (27, "TDH.MNG.KEY.RECLAIMID"),
        (48, "TDH.SERVTD.BIND"),
        (64, "TDH.EXPORT.ABORT"),
        (74, "TDH.EXPORT.STATE.VP"),
        (87, "TDH.IMPORT.STATE.VP"),
        (92, "TDH.MEM.SCAN.RANGE"),
        (95, "TDH.MEM.SCAN.RESET"),
        (96, "TDH.MIG.STREAM.CREATE"),
        (97, "TDH.SERVTD.REBIND"),
        (128, "TDH.IOMMU.SETREG"),
        (158, "TDH.MMIO.MAP"),
        (163, "TDH.MEM.SHARED.SEPT.WR"),
        (166, "TDH.DEVIF.MT.RD"),
    ] {
        assert_eq!(crate::Leaf::new(number).name(), Some(name));
    }
    for absent in [46, 54, 141, 149, 167, 0xfe] {
        assert_eq!(crate::Leaf::new(absent).name(), None);
    }
    let mut names: Vec<_> = crate::Leaf::ALL.iter().map(|leaf| leaf.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), crate::Leaf::ALL.len());
}
