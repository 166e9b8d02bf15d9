//! Page metadata and the pages that leaves hand out, from whatever a module answers.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::phymem::{self, PageInfo};
use seamcall::{Call, Regs, Status, Tdr, Transport, mem, sys, sys::TdmrProgress};
use sept_core::{Gpa, GpaEntry, Hpa, Level};

#[derive(Arbitrary, Debug)]
struct Input {
    rax: Option<u64>,
    rcx: u64,
    rdx: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
}

/// Answers each call with the same registers.
struct Answer(Regs);

impl Transport for Answer {
    fn call(&self, _: Call<'_>) -> Regs {
        self.0
    }
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fuzz_target!(|input: Input| {
    let out = Regs {
        rax: input.rax.unwrap_or(0),
        rcx: input.rcx,
        rdx: input.rdx,
        r8: input.r8,
        r9: input.r9,
        r10: input.r10,
        r11: input.r11,
        r12: input.r12,
        r13: input.r13,
    };
    let (t, page) = (Answer(out), Hpa::truncate(0x8000_0000));
    let success = Status::from_raw(out.rax).is_success();
    let (rdmd, reclaim) = (phymem::page_rdmd(&t, page), phymem::page_reclaim(&t, page));
    assert_eq!((rdmd.is_ok(), reclaim.is_ok()), (success, success));
    let (Ok(rdmd), Ok(reclaim)) = (rdmd, reclaim) else { return };
    common(&rdmd, &out);
    assert_eq!((rdmd.block_epoch, rdmd.pair_idle), (out.r9, false));
    assert_eq!(rdmd.pair.is_some(), out.r10 != 0);
    if let Some([first, second]) = rdmd.pair {
        assert_eq!((first.raw(), second.raw()), (out.r10 & ADDRESS, out.r11 & ADDRESS));
    }
    common(&reclaim, &out);
    assert_eq!((reclaim.pair, reclaim.block_epoch), (None, 0));
    assert_eq!(reclaim.pair_idle, out.r9 >> 62 & 1 == 1);

    // A removed page never carries the hint in its address.
    let td = Tdr::new(Hpa::truncate(0x100_0000)).unwrap();
    let at = GpaEntry::containing(Gpa::truncate(0x4000_0000), Level::L2M);
    let removed = mem::page_remove(&t, td, at).unwrap();
    assert_eq!((removed.hpa.raw(), removed.pair_idle), (out.rcx & ADDRESS, out.rcx >> 62 & 1 == 1));
    let table = mem::sept_remove_v1(&t, td, at).unwrap();
    assert_eq!(table.l1, removed);
    for (page, register) in table.l2.into_iter().zip([out.r9, out.r10, out.r11]) {
        assert_eq!(
            page.map(|page| page.hpa.raw()),
            Some(register & ADDRESS).filter(|_| register != u64::MAX)
        );
    }
    let merged = mem::page_promote(&t, td, at).unwrap();
    let pair = [out.r12 & ADDRESS, out.r13 & ADDRESS];
    assert_eq!(merged.pair.map(|pair| pair.map(Hpa::raw)), Some(pair).filter(|_| out.r12 | out.r13 != 0));
    let pair = phymem::pamt_remove(&t, page).unwrap();
    assert_eq!(pair.map(Hpa::raw), [out.rdx & ADDRESS, out.r8 & ADDRESS]);
    if let TdmrProgress::Until(next) = sys::tdmr_init(&t, page).unwrap() {
        assert_eq!(next.raw(), out.rdx & (ADDRESS | 0xfff));
    }
});

fn common(info: &PageInfo, out: &Regs) {
    assert_eq!(u64::from(info.page_type.raw()), out.rcx & 0xff);
    assert_eq!(info.owner.map(|tdr| tdr.hpa().raw()), Some(out.rdx & ADDRESS).filter(|_| out.rdx != 0));
    assert_eq!(info.level.map(|level| u64::from(level.raw())), Some(out.r8 & 7).filter(|level| *level < 5));
    assert_eq!(info.has_children, out.rcx >> 63 == 1);
}
