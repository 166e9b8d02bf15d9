//! Whatever a module answers, each wrapper keeps the status, and gives back every page that the module did not take.

use super::registers;
use crate::mem::{self, DemotePages, L2Mode, MaybeTainted, SeptPages};
use crate::phymem::{self, CacheWb};
use crate::testing::{Script, entry, frame, frame_of, gpa, hpa};
use crate::{
    FatalErrorConfig, FatalNotification, Features0, FieldId, Hkid, KeyIdBits, PlatformField, Regs,
    SeamcallError, Status, TdField, Tdr, Tdvpr,
    export::{self, GpaList},
    mng, mr, sys, vp,
};
use proptest::prelude::*;
use sept_core::{Class, Classify, Frame, Level, Returned};
use std::{string::ToString, vec::Vec};

const PAGE: u64 = 0x200_0000;

/// What the caller has after a call: how it went, and the pages that came back.
type After = (Result<(), SeamcallError>, Vec<u64>);

fn plain<R>(result: Result<R, SeamcallError>) -> After {
    (result.map(drop), Vec::new())
}

/// A call that gave one page, at [`PAGE`].
fn gave<R>(result: Result<R, Returned<SeamcallError, Frame>>) -> After {
    match result {
        Ok(_) => (Ok(()), Vec::new()),
        Err(back) => (Err(back.error), [back.held.hpa().raw()].into()),
    }
}

fn maybe_written<R>(result: Result<R, Returned<SeamcallError, MaybeTainted>>) -> After {
    match result {
        Ok(_) => (Ok(()), Vec::new()),
        Err(back) => (Err(back.error), [address(&back.held)].into()),
    }
}

fn address(page: &MaybeTainted) -> u64 {
    match page {
        MaybeTainted::Clean(page) => page.hpa().raw(),
        MaybeTainted::Tainted(page) => page.hpa().raw(),
    }
}

/// Each wrapper that gives no page away.
#[expect(unsafe_code, reason = "a script takes no memory")]
fn without_pages(t: &dyn Fn() -> Script) -> Vec<After> {
    let (td, vcpu) = (Tdr::new(hpa(0x100_0000)).unwrap(), Tdvpr::new(hpa(0x101_0000)).unwrap());
    let (small, large) = (entry(0x1000, Level::L4K), entry(0x4000_0000, Level::L2M));
    let (at, key, field) = (hpa(0x8000_0000), Hkid::new(33), FieldId::TD_EPOCH);
    let mut buffer = frame(0x5000);
    [
        plain(mem::sept_rd(&t(), td, large)),
        plain(mem::sept_rd_l2(&t(), td, large)),
        plain(mem::sept_remove(&t(), td, large)),
        plain(mem::sept_remove_v1(&t(), td, large)),
        plain(mem::page_remove(&t(), td, large)),
        plain(mem::page_promote(&t(), td, large)),
        plain(mem::page_promote_v1(&t(), td, large)),
        plain(mem::range_block(&t(), td, large)),
        plain(mem::range_unblock(&t(), td, large)),
        plain(mem::track(&t(), td)),
        plain(mem::rd(&t(), td, gpa(8))),
        plain(mem::wr(&t(), td, gpa(8), 1)),
        plain(mng::key_config(&t(), td)),
        plain(mng::init(&t(), td, at)),
        plain(mng::vpflushdone(&t(), td)),
        plain(mng::key_freeid(&t(), td)),
        plain(mng::rd(&t(), td, field)),
        plain(mng::rd_next(&t(), td, field)),
        plain(mng::read(&t(), td, TdField::OP_STATE)),
        plain(mng::wr(&t(), td, field, 1, 1)),
        plain(mr::extend(&t(), td, gpa(256))),
        plain(mr::finalize(&t(), td)),
        plain(vp::init(&t(), vcpu, 0)),
        plain(vp::init_x2apic(&t(), vcpu, 0, 0)),
        plain(vp::flush(&t(), vcpu)),
        plain(vp::rd(&t(), vcpu, field)),
        plain(vp::rd_next(&t(), vcpu, field)),
        plain(vp::wr(&t(), vcpu, field, 1, 1)),
        plain(phymem::page_rdmd(&t(), at)),
        plain(phymem::page_rdmd_at(&t(), at, Level::L2M)),
        plain(phymem::page_reclaim(&t(), at)),
        plain(phymem::page_wbinvd(&t(), at, key, KeyIdBits::new(46, 6).unwrap())),
        plain(phymem::cache_wb(&t(), CacheWb::Start)),
        plain(phymem::pamt_remove(&t(), at)),
        plain(export::unblockw(&t(), td, small)),
        plain(export::blockw(&t(), td, GpaList::new(&mut frame(0x6000), 2, 9).unwrap()).map_err(|back| {
            assert_eq!(back.held.raw() & !0xff8, 9 << 55 | 0x6000);
            back.error
        })),
        plain(
            export::blockw_v1(&t(), td, GpaList::new(&mut frame(0x6000), 2, 9).unwrap())
                .map_err(|back| back.error),
        ),
        plain(sys::init(&t())),
        // SAFETY: a script stands for the module; it writes nothing.
        plain(unsafe { sys::init_v1(&t(), FatalErrorConfig::new(None, FatalNotification::Nmi).unwrap()) }),
        plain(sys::lp_init(&t())),
        // SAFETY: a script stands for the module; it reads and takes nothing.
        plain(unsafe { sys::config(&t(), at, 1, key, true) }),
        // SAFETY: a script stands for the module; it reads and takes nothing.
        plain(unsafe { sys::config_v1(&t(), at, 1, key, true, Features0::empty()) }),
        plain(sys::key_config(&t())),
        plain(sys::tdmr_init(&t(), at)),
        plain(sys::info(&t(), &mut buffer)),
        plain(sys::rd(&t(), field)),
        plain(sys::read(&t(), PlatformField::MAX_TDMRS)),
        plain(sys::lp_shutdown(&t())),
        plain(sys::shutdown(&t(), 1)),
        plain(sys::update(&t())),
        plain(sys::update_v1(&t(), Features0::empty())),
    ]
    .into()
}

/// Each wrapper that gives the page at [`PAGE`] away.
fn with_a_page(t: &dyn Fn() -> Script) -> Vec<After> {
    let (td, vcpu) = (Tdr::new(hpa(0x100_0000)).unwrap(), Tdvpr::new(hpa(0x101_0000)).unwrap());
    let (small, large) = (entry(0x1000, Level::L4K), entry(0x4000_0000, Level::L2M));
    let page = || frame(PAGE);
    [
        gave(mem::sept_add(&t(), td, large, page())),
        gave(mem::page_add(&t(), td, small, page(), hpa(0x5000))),
        gave(mem::page_aug(&t(), td, large, frame_of(PAGE, Level::L2M))),
        gave(mem::page_relocate(&t(), td, small, page())),
        gave(vp::create(&t(), td, page())),
        gave(vp::addcx(&t(), vcpu, page())),
        maybe_written(mng::create(&t(), page(), Hkid::new(33))),
        maybe_written(mng::addcx(&t(), td, page())),
    ]
    .into()
}

fn check(out: &Regs, result: &Result<(), SeamcallError>) -> Result<(), TestCaseError> {
    match result {
        Ok(()) => prop_assert!(Status::from_raw(out.rax).is_success()),
        Err(error) => {
            prop_assert_eq!(error.status.raw(), out.rax);
            prop_assert_eq!(error.registers(), (out.rcx, out.rdx));
            prop_assert!(!error.to_string().is_empty());
            let _: Class = error.class();
            if let Some(entry) = error.entry() {
                prop_assert_eq!((entry.raw(), entry.raw_info()), (out.rcx, out.rdx));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_answer_is_lost(out in registers()) {
        let answer = || Script::new().then(move |_| out);
        // A list that is full is neither the end nor an error.
        match sys::rd_all(&answer(), &mut frame(0x5000), FieldId::TD_EPOCH) {
            Ok(next) if Status::from_raw(out.rax).is(Status::METADATA_LIST_OVERFLOW) => {
                prop_assert_eq!(next.map(FieldId::raw), Some(out.r8));
            }
            result => check(&out, &result.map(drop))?,
        }
        for (result, _) in without_pages(&answer) {
            check(&out, &result)?;
        }
        for (result, back) in with_a_page(&answer) {
            check(&out, &result)?;
            prop_assert_eq!(back, if result.is_ok() { Vec::new() } else { [PAGE].into() });
        }
    }

    /// The leaves that take several pages: a register that still names its page says that it is left over, and one
    /// that says anything else that it is not.
    #[test]
    fn no_page_of_several_is_lost(out in registers(), said in proptest::array::uniform3(0..4_u8)) {
        const UNUSED: u64 = 1 << 63;
        let say = |choice: u8, page: u64, any: u64| match choice {
            0 => page,
            1 => page | UNUSED,
            2 => u64::MAX,
            _ => any,
        };
        let [r8, r9, r11] = said;
        let out = Regs {
            r8: say(r8, PAGE, out.r8),
            r9: say(r9, PAGE + 0x1000, out.r9),
            r11: say(r11, PAGE + 0x3000, out.r11),
            ..out
        };
        let answer = || Script::new().then(move |_| out);
        let (td, at) = (Tdr::new(hpa(0x100_0000)).unwrap(), entry(0x4000_0000, Level::L2M));
        let succeeded = Status::from_raw(out.rax).is_success();
        let of = |page: &Frame| page.hpa().raw();

        let l2 = || [Some(frame(PAGE + 0x1000)), None, Some(frame(PAGE + 0x3000))];
        let pages = SeptPages { l1: Some(frame(PAGE)), l2: l2() };
        let (result, left) = match mem::sept_add_v1(&answer(), td, at, true, pages) {
            Ok(left) => (Ok(()), left),
            Err(back) => (Err(back.error), back.held),
        };
        check(&out, &result)?;
        let [one, two, three] = &left.l2;
        let kept = |register: u64, page: u64| (register & !UNUSED == page).then_some(page);
        prop_assert_eq!(left.l1.as_ref().map(of), kept(out.r8, PAGE));
        prop_assert_eq!(one.as_ref().map(of), kept(out.r9, PAGE + 0x1000));
        prop_assert_eq!(two.as_ref().map(of), None);
        prop_assert_eq!(three.as_ref().map(of), kept(out.r11, PAGE + 0x3000));

        let pair = || [frame(0x300_0000), frame(0x300_1000)];
        let pages = DemotePages::new(frame(PAGE)).with_l2(3, l2()).with_pair(pair());
        match mem::page_demote(&answer(), td, at, L2Mode::Sparse, pages) {
            Ok(left) => {
                prop_assert!(succeeded);
                let unused = |register: u64, page: u64| (register == page | UNUSED).then_some(page);
                let expected = [unused(out.r9, PAGE + 0x1000), None, unused(out.r11, PAGE + 0x3000)];
                prop_assert_eq!(left.each_ref().map(|page| page.as_ref().map(of)), expected);
            }
            Err(back) => {
                check(&out, &Err(back.error))?;
                let (table, l2, pair) = back.held.into_parts();
                prop_assert_eq!(address(&table), PAGE);
                let l2 = l2.each_ref().map(|page| page.as_ref().map(address));
                prop_assert_eq!(l2, [Some(PAGE + 0x1000), None, Some(PAGE + 0x3000)]);
                prop_assert_eq!(pair.unwrap().each_ref().map(of), [0x300_0000, 0x300_1000]);
            }
        }

        match phymem::pamt_add(&answer(), hpa(0x8000_0000), pair()) {
            Ok(()) => prop_assert!(succeeded),
            Err(back) => {
                check(&out, &Err(back.error))?;
                prop_assert_eq!(back.held.each_ref().map(of), [0x300_0000, 0x300_1000]);
            }
        }
    }
}
