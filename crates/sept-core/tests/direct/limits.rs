//! What an entry cannot say, and how many frames a range takes where large tables meet.

use crate::rig::{Rig, frames, range};
use proptest::prelude::*;
use sept_core::test_util::{Arena, FramePool, Kick, MockTee, VecStore};
use sept_core::{
    Class, Classify, Direct, Ept, EptConfig, External, Fill, Format, FrameKind, FrameNeeds, FrameSource,
    FrameStore, Gpa, GpaEntry, Hpa, Level, Permissions, Plan, RangeError, Rtt, RttConfig, SecurePageTable,
    TableError, TdxConfig, TdxMirror, X86, X86Config,
};
use std::collections::BTreeSet;

const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

fn hpa(raw: u64) -> Hpa {
    Hpa::new(raw).unwrap()
}

fn at(raw: u64, level: Level) -> GpaEntry {
    GpaEntry::containing(Gpa::new(raw).unwrap(), level)
}

/// AMD APM volume 2, section 15.34: the C-bit is one of the address bits of an entry, so no page lies there. Arm
/// DDI0487: without LPA2 an output address has 48 bits.
#[test]
fn an_address_that_an_entry_cannot_name_is_refused() {
    fn refuses<F: Format>(config: F::Config, first: u64) {
        let mut rig = Rig::<F>::new(config);
        let here = at(G1, Level::L4K);
        rig.map(range(G1 + M2, 0x1000), first - 0x1000, Level::L4K);
        let page = || frames(first, 1).take(Level::L4K).unwrap();
        let mut store = VecStore::default();
        store.fill(&FrameNeeds::of(FrameKind::MirrorTable, 1), Hpa::default(), &rig.pool).unwrap();
        rig.table.link_to(here, None, &mut store).unwrap();
        let error = TableError::Address { at: here, hpa: hpa(first) };
        let refused = rig.table.map(here, page(), Fill::OnAccept).unwrap_err();
        assert_eq!((refused.error, refused.held.hpa()), (error, hpa(first)));
        assert_eq!(refused.error.class(), Class::Caller);
        let refused = rig.table.exclusive().map(here, page(), Fill::OnAccept).unwrap_err();
        assert_eq!((refused.error, refused.held.hpa()), (error, hpa(first)));
        // Not even one page of the memory, wherever it is.
        for (from, pages) in [(first, 1), (first - 0x1000, 2), (first - 0x1000, 1 << 20)] {
            let plan = rig.table.plan_map(range(2 * G1, pages << 12), hpa(from), Level::L4K);
            assert!(matches!(plan, Err(RangeError::Pages { .. })), "{from:#x}, {pages} pages: {plan:?}");
        }
        assert_eq!(rig.leaves(range(0, 4 * G1)), [(at(G1 + M2, Level::L4K), hpa(first - 0x1000))]);
    }
    refuses::<X86>(X86Config::NESTED_4.with_c_bit(32).unwrap(), 1 << 32);
    refuses::<X86>(X86Config::NESTED_5.with_c_bit(51).unwrap(), 1 << 51);
    refuses::<Rtt>(RttConfig::LEVELS_4, 1 << 48);

    // Around the C-bit is memory again: both ends can be named, the middle cannot.
    let rig = Rig::<X86>::new(X86Config::NESTED_4.with_c_bit(32).unwrap());
    let around = rig.table.plan_map(range(0, 8 << 30), hpa(1 << 31), Level::L1G);
    assert!(matches!(around, Err(RangeError::Pages { .. })));
    assert!(rig.table.plan_map(range(0, 8 << 30), hpa(1 << 33), Level::L1G).is_err());
    assert!(rig.table.plan_map(range(0, 4 << 30), hpa(1 << 33), Level::L1G).is_ok());
}

#[test]
fn a_table_that_an_entry_cannot_name_goes_back_to_the_store() {
    let base = hpa(1 << 47);
    let pool = FramePool::new(base, 8);
    let root = pool.take(FrameKind::MirrorTable, base).unwrap();
    let arena = Arena::new(base, 8, Box::new(|_, _| {}));
    let config = X86Config::NESTED_4.with_c_bit(47).unwrap();
    let table =
        SecurePageTable::<X86, _, _>::new(config, arena, Direct::new(Kick::new(|| {}, || true)), root);
    let mut store = VecStore::default();
    store.fill(&FrameNeeds::of(FrameKind::MirrorTable, 1), base, &pool).unwrap();
    let here = at(0, Level::L512G);
    let error = table.link(here, None, &mut store).unwrap_err();
    assert_eq!(error, TableError::Address { at: here, hpa: hpa((1 << 47) + 0x1000) });
    assert_eq!((store.count(FrameKind::MirrorTable), table.live(here)), (1, Ok(None)));
}

/// A fault below a table that is blocked or closed for a merge is tried again, by range as by page.
#[test]
fn mapping_a_range_below_a_blocked_or_closed_table_is_tried_again() {
    let rig = Rig::<X86>::new(X86Config::NESTED_4);
    let (block, pages) = (at(G1, Level::L2M), range(G1 + 0x3000, 0x2000));
    rig.map(range(G1, 0x1000), G1, Level::L4K);
    for close in [false, true] {
        if close {
            rig.table.close(block).unwrap();
        } else {
            rig.table.block(block).unwrap();
        }
        let plan = rig.table.plan_map(pages, hpa(2 * G1), Level::L4K).unwrap();
        assert_eq!(plan.needs(), FrameNeeds::NONE);
        let reserved = plan.reserve(&rig.pool, VecStore::default()).unwrap();
        let refused = rig.table.map_range(reserved, frames(2 * G1, 2)).unwrap_err();
        let error = TableError::Hidden { at: block, stop: block };
        assert_eq!(refused.error, RangeError::Stopped { next: pages.start(), error });
        assert_eq!((refused.error.class(), refused.held.1.count()), (Class::Retry, 2));
        if close {
            rig.table.reopen(block).unwrap();
        } else {
            rig.table.unblock(block, &rig.fence()).unwrap();
        }
    }
}

/// TDX module 1.5.34, `tdh_mem_page_promote.c`: children must be MAPPED or PENDING, not BLOCKEDW.
#[test]
fn write_blocked_pages_are_not_merged() {
    let mut rig = Rig::<TdxMirror>::new(TdxConfig::LEVELS_4);
    let all = range(G1, M2);
    rig.map(all, G1, Level::L4K);
    let (block, read) = (at(G1, Level::L2M), Permissions::READ | Permissions::EXECUTE);
    assert_eq!(rig.table.mergeable(block), Ok(()));
    rig.table.protect_range(all, read).unwrap();
    let first = block.child(0).unwrap();
    let found = rig.table.entry(first).unwrap();
    assert_eq!(rig.table.mergeable(block), Err(TableError::NotUniform { at: block, child: first, found }));
    rig.table.block(block).unwrap();
    let fence = rig.fence();
    assert!(rig.table.merge(block, &fence, &mut rig.owed).is_err());
    rig.table.unblock(block, &fence).unwrap();
    rig.table.protect_range(all, Permissions::all()).unwrap();
    assert_eq!(rig.table.mergeable(block), Ok(()));
}

/// The pages that make up a range, and the tables above them, one by one.
struct Reference {
    top: Level,
    largest: Level,
    tables: BTreeSet<(u64, Level)>,
}

impl Reference {
    /// Tables that are new, and those of them whose pages lie in one 2 MiB block of the host: Dynamic PAMT wants a pair of
    /// pages for each.
    fn map(&mut self, start: u64, hpa: u64, len: u64) -> (u32, u32) {
        let (before, mut pairs, mut gpa) = (self.tables.len(), 0, start);
        while gpa < start + len {
            let host = gpa - start + hpa;
            let fits = |level: &&Level| {
                let size = 1_u64 << [12, 21, 30][usize::from(level.raw())];
                gpa.is_multiple_of(size) && host.is_multiple_of(size) && gpa + size <= start + len
            };
            let levels = [Level::L1G, Level::L2M, Level::L4K];
            let level = *levels.iter().filter(|level| **level <= self.largest).find(fits).unwrap();
            for above in Level::ALL.into_iter().filter(|above| *above > level && *above <= self.top) {
                let shift = 12 + 9 * u32::from(above.raw());
                let new = self.tables.insert((gpa >> shift, above));
                pairs += u32::from(new && above == Level::L2M && gpa % M2 == host % M2);
            }
            gpa += level.size();
        }
        (u32::try_from(self.tables.len() - before).unwrap(), pairs)
    }
}

/// Maps a page, then what follows it; what that takes is what the reference counts.
fn takes_what_is_counted<F: Format, X: External>(
    config: F::Config,
    external: X,
    start: u64,
    len: u64,
    skew: u64,
    largest: Level,
) {
    let pool = FramePool::new(Hpa::default(), 8192);
    let arena = Arena::new(Hpa::default(), 8192, Box::new(|_, _| {}));
    let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
    let tee = external.table_cost(at(start, Level::L1G), None)[FrameKind::TeeTable];
    let table = SecurePageTable::<F, _, X>::new(config, arena, external, root);
    let mut reference = Reference { top: F::top(config), largest, tables: BTreeSet::new() };
    // Guest and host addresses differ by `skew`, and by much.
    let host = (1 << 44) + start % (1 << 40) + skew;
    for (start, host, len) in [(start, host, 0x1000), (start + 0x1000, host + 0x1000, len - 0x1000)] {
        let (tables, pairs) = reference.map(start, host, len);
        let (range, hpa) = (range(start, len), hpa(host));
        let plan = table.plan_map(range, hpa, largest).unwrap();
        let metadata = table.table_cost(at(0, Level::L2M), Some(hpa.align_down(Level::L2M)));
        let expect = FrameNeeds::of(FrameKind::MirrorTable, tables)
            .plus(FrameNeeds::of(FrameKind::TeeTable, tables * tee))
            .plus(FrameNeeds::of(FrameKind::TeeMetadata, pairs * metadata[FrameKind::TeeMetadata]));
        assert_eq!(plan.needs(), expect, "{range} to {hpa:#x} in {largest}");
        let reserved = plan.reserve(&pool, VecStore::default()).unwrap();
        let done = table
            .map_range(reserved, frames(host, range.pages()))
            .unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!((done.used, done.rest.kept()), (expect, FrameNeeds::NONE));
    }
    assert_eq!(table.audit().unwrap().tables, 1 + u64::try_from(reference.tables.len()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Ranges across the borders of 1 GiB, 512 GiB and 256 TiB entries, and up to the end of the address space.
    #[test]
    fn a_range_takes_what_an_independent_count_says(
        border in prop::sample::select(vec![G1, 512 << 30, 3 << 48, 1 << 52]),
        before in (0..2_u64, 0..3_u64, 2..600_u64),
        after in (0..2_u64, 0..3_u64, 1..600_u64),
        skew in prop::sample::select(vec![0, 0x1000, M2, M2 - 0x1000, G1]),
        largest in prop::sample::select(vec![Level::L4K, Level::L2M, Level::L1G]),
    ) {
        let small = largest == Level::L4K || skew % M2 != 0;
        let bytes = |(large, medium, pages): (u64, u64, u64), most: Level| {
            let large = if most == Level::L1G && skew % G1 == 0 { large } else { 0 };
            large * G1 + if small { 0 } else { medium * M2 } + (pages << 12)
        };
        let span = |end: u64, most| {
            let border = border.min(end);
            let start = border - bytes(before, most).min(border);
            (start, (border + bytes(after, most)).min(end) - start)
        };
        let (start, len) = span(1 << 52, largest);
        let kick = || Direct::new(Kick::new(|| {}, || true));
        takes_what_is_counted::<Ept, _>(EptConfig::LEVELS_5, kick(), start, len, skew, largest);
        let (start, len) = span(1 << 48, largest);
        takes_what_is_counted::<X86, _>(X86Config::NESTED_4, kick(), start, len, skew, largest);
        let most = largest.min(Level::L2M);
        let tee = || MockTee::new(Level::L256T).with_metadata();
        let (start, len) = span(1 << 51, most);
        takes_what_is_counted::<TdxMirror, _>(TdxConfig::LEVELS_5_GPAW_52, tee(), start, len, skew, most);
    }
}
