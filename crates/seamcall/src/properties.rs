//! Properties over all register values: nothing panics, nothing is lost. A fixed seed, a great many draws.

use crate::testing::{Script, entry, frame, hpa};
use crate::{
    Detail, EntryInfo, EptViolation, FieldId, Leaf, MapGpa, Regs, SeptLayout, Status, Tdr, mem, phymem,
};
use sept_core::{Class, Classify, Gpa, Level, TdxConfig};
use std::string::ToString;

/// SplitMix64, with values near the ends and with few bits made likelier.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn next(&mut self) -> u64 {
        let value = self.bits();
        match self.bits() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => value & 0xff,
            3 => 1 << (value % 64),
            4 => value & !0xfff,
            5 => value & self.bits() & self.bits(),
            _ => value,
        }
    }

    /// A status: half of them a known code with any detail.
    fn status(&mut self) -> u64 {
        let index = usize::try_from(self.bits() % 1000).unwrap();
        match Status::ALL.get(index) {
            Some(code) => code.raw() | self.next() & 0xffff_ffff,
            None => self.next(),
        }
    }

    fn regs(&mut self) -> Regs {
        let mut next = || self.next();
        let (rcx, rdx, r8, r9, r10, r11, r12, r13) =
            (next(), next(), next(), next(), next(), next(), next(), next());
        Regs { rax: self.status(), rcx, rdx, r8, r9, r10, r11, r12, r13 }
    }
}

const DRAWS: u32 = 50_000;

#[test]
fn statuses() {
    let mut draw = Draw(1);
    for _ in 0..DRAWS {
        let status = Status::from_raw(draw.status());
        assert_eq!(u64::from(status.detail().raw()), status.raw() & 0xffff_ffff);
        assert_eq!(status.code().with_detail(status.detail()), status);
        assert_eq!(status.class().is_none(), status.is_success());
        assert!(!status.to_string().is_empty());
        if let Detail::Operand(operand) = status.detail() {
            assert_eq!(u64::from(operand.id()), status.raw() & 0xffff_ffff);
        }
    }
}

#[test]
fn entries_and_leaves() {
    let mut draw = Draw(2);
    for _ in 0..DRAWS {
        let (rcx, rdx) = (draw.next(), draw.next());
        let info = EntryInfo::new(rcx, rdx);
        assert_eq!((info.raw(), info.raw_info()), (rcx, rdx));
        assert!(!info.to_string().is_empty());
        if let (Some(hpa), Some(level)) = (info.hpa(), info.level()) {
            assert!(hpa.is_aligned(level));
        }
        let leaf = Leaf::from_rax(rcx);
        assert_eq!(leaf.rax(), rcx & 0x00ff_ffff);
        let field = FieldId::new(rcx);
        assert!([1, 2, 4, 8].contains(&field.element_size()) && field.class() < 64);
        let _ = (field.context(), SeptLayout::state(rcx), SeptLayout::shown(rcx));
    }
}

#[test]
fn exits() {
    let mut draw = Draw(3);
    for _ in 0..DRAWS {
        let mut regs = draw.regs();
        regs.rax = if draw.bits().is_multiple_of(2) { 48 } else { 77 };
        if let Some(violation) = EptViolation::decode(&regs) {
            assert_eq!((violation.qualification, violation.extended), (regs.rcx, regs.rdx));
            let _ = violation.accept();
        }
        regs.r10 = 0;
        regs.r11 = MapGpa::LEAF;
        for config in [TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_52] {
            if let Some(Ok(request)) = MapGpa::decode(&regs, config) {
                let shared = u64::from(request.to_shared) << config.shared_bit();
                assert_eq!((request.range.start().raw() | shared, request.range.len()), (regs.r12, regs.r13));
                assert!(request.range.end() <= 1 << config.shared_bit());
            }
        }
    }
}

/// Whatever a module answers, a wrapper keeps the status, and an error's class and text can be had.
#[test]
fn answers() {
    let mut draw = Draw(4);
    let td = Tdr::new(hpa(0x100_0000)).unwrap();
    let at = entry(0x4000_0000, Level::L2M);
    for _ in 0..DRAWS / 10 {
        let out = draw.regs();
        let answer = || Script::new().then(move |_| out);
        let check = |result: Result<(), crate::SeamcallError>| match result {
            Ok(()) => assert!(Status::from_raw(out.rax).is_success()),
            Err(error) => {
                assert_eq!(error.status.raw(), out.rax);
                assert_ne!(error.to_string(), "");
                let _: Class = error.class();
                if let Some(entry) = error.entry {
                    assert_eq!((entry.raw(), entry.raw_info()), (out.rcx, out.rdx));
                }
            }
        };
        check(mem::range_block(&answer(), td, at).map(drop));
        check(mem::sept_rd(&answer(), td, at).map(drop));
        check(mem::page_remove(&answer(), td, at).map(drop));
        check(mem::sept_remove_v1(&answer(), td, at).map(drop));
        check(mem::page_promote(&answer(), td, at, true).map(drop));
        check(mem::track(&answer(), td));
        check(mem::rd(&answer(), td, Gpa::truncate(out.rcx)).map(drop));
        check(phymem::page_rdmd(&answer(), hpa(0x1000)).map(drop));
        check(phymem::page_reclaim(&answer(), hpa(0x1000)).map(drop));
        check(phymem::pamt_remove(&answer(), hpa(0x20_0000)).map(drop));
        let back = mem::sept_add(&answer(), td, at, frame(0x200_0000));
        if let Err(back) = &back {
            assert_eq!(back.held.hpa().raw(), 0x200_0000);
        }
        check(back.map_err(|back| back.error));
    }
}
