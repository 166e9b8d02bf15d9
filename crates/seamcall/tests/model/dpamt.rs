//! Page pairs counted for two TDs at once, and the helpers that build and reclaim by range, against the module.

use crate::bench::{BASE, Bench, PARAMS, builder, entry, frame, write_params};
use core::{cell::RefCell, sync::atomic::AtomicU16};
use seamcall::dpamt::{PamtRegions, ReadySource, RegionError};
use seamcall::phymem::{self, CacheWb};
use seamcall::{Hkid, PageType, Status, Tdr, Tdvpr, Transport, mng, ranges, vp};
use sept_core::{Frame, FrameKind, FrameSource, Gpa, GpaRange, Hpa, Level};
use tdx_model::{Leaf, Machine, ModuleVersion};

/// Hands out table pages of the first 2 MiB and metadata pages from elsewhere; keeps what comes back.
#[derive(Default)]
struct Pool {
    next: RefCell<[u64; 2]>,
    back: RefCell<Vec<(FrameKind, Frame)>>,
}

impl FrameSource for Pool {
    fn take(&self, kind: FrameKind, _: Hpa) -> Option<Frame> {
        let [tables, metadata] = &mut *self.next.borrow_mut();
        let (next, first) =
            if kind == FrameKind::TeeTable { (tables, BASE) } else { (metadata, BASE + 0x3f00_0000) };
        let page = first + *next * 0x1000;
        *next += 1;
        Some(frame(page, Level::L4K))
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        self.back.borrow_mut().push((kind, frame));
    }
}

/// A TD with one vCPU, its control pages from `source`.
fn build<T: Transport>(t: &T, source: &dyn FrameSource, key: u16) -> (Tdr, Tdvpr) {
    let page = || source.take(FrameKind::TeeTable, Hpa::truncate(BASE)).unwrap();
    let tdr = mng::create(t, page(), Hkid::new(key)).unwrap();
    mng::key_config(t, tdr).unwrap();
    (0..6).for_each(|_| mng::addcx(t, tdr, page()).unwrap());
    mng::init(t, tdr, Hpa::truncate(PARAMS)).unwrap();
    let vcpu = vp::create(t, tdr, page()).unwrap();
    (0..5).for_each(|_| vp::addcx(t, vcpu, page()).unwrap());
    vp::init(t, vcpu, 0).unwrap();
    (tdr, vcpu)
}

/// The region's entry names the pair; that of a page in it does not.
#[test]
fn a_region_shows_its_pair() {
    let machine = Machine::builder().memory(BASE, 4).version(ModuleVersion::V2_0_08).build();
    let (t, region) = (machine.lp(0), Hpa::truncate(BASE + 0x20_0000));
    let first = BASE + 0x3f00_0000;
    phymem::pamt_add(&t, region, [frame(first, Level::L4K), frame(first + 0x1000, Level::L4K)]).unwrap();
    let info = phymem::page_rdmd_at(&t, region, Level::L2M).unwrap();
    assert_eq!((info.page_type, info.level, info.has_children), (PageType::Pamt, Some(Level::L2M), true));
    assert_eq!(info.pair.unwrap().map(Hpa::raw), [first, first + 0x1000]);
    let info = phymem::page_rdmd(&t, region).unwrap();
    assert_eq!((info.page_type, info.level), (PageType::NotAssigned, Some(Level::L4K)));
    assert_eq!((info.pair, info.has_children), (None, false));
}

/// The first page brings the region's pair, the last of both TDs takes it away, and then the region can be mapped
/// whole.
#[test]
fn two_tds_share_a_pair() {
    let machine = builder(true).build();
    write_params(&machine);
    let t = machine.lp(0);
    let counts: Vec<AtomicU16> = (0..2048).map(|_| AtomicU16::new(0)).collect();
    let regions = PamtRegions::new(Hpa::truncate(BASE), counts, ()).unwrap();
    let (pool, recycled) = (Pool::default(), RefCell::new(Vec::new()));
    let source = ReadySource::new(&t, &regions, &pool, |outcome| recycled.borrow_mut().push(outcome));
    let tds = [33, 34].map(|key| build(&t, &source, key));
    let region = Hpa::truncate(BASE);
    assert_eq!((regions.users(region), machine.stats().of(Leaf::PhymemPamtAdd)), (Some(2 * 13), 1));
    assert_eq!(regions.vacate(&t, region), Err(RegionError::InUse { page: region }));
    assert_eq!(machine.check_invariants(), Vec::<String>::new());

    for (tdr, vcpu) in tds {
        vp::flush(&t, vcpu).unwrap();
        mng::vpflushdone(&t, tdr).unwrap();
    }
    phymem::cache_wb(&t, CacheWb::Start).unwrap();
    let mut idle = 0;
    for (tdr, _) in tds {
        mng::key_freeid(&t, tdr).unwrap();
        // Its TDR goes last: what stands behind it first, then the page itself.
        for (first, pages) in [(tdr.hpa().raw() + 0x1000, 12), (tdr.hpa().raw(), 1)] {
            let mut freed = Vec::new();
            ranges::reclaim(&t, Hpa::truncate(first), pages, |page, info| freed.push((page, info))).unwrap();
            for (page, info) in freed {
                idle += u32::from(info.pair_idle);
                source.give(FrameKind::TeeTable, frame(page.raw(), Level::L4K));
            }
        }
    }
    assert_eq!((regions.users(region), idle), (Some(0), 1));
    let pair = [0x3f00_0000, 0x3f00_1000].map(|offset| Hpa::truncate(BASE + offset));
    assert_eq!(recycled.take(), [Ok(pair)]);
    assert_eq!(pool.back.borrow().len(), 26);
    assert_eq!(regions.vacate(&t, region), Ok(None));
    let error = phymem::pamt_remove(&t, region).unwrap_err();
    assert!(error.status.is(Status::NO_PAMT_PAGE_PAIR), "{error}");
    assert_eq!(machine.check_invariants(), Vec::<String>::new());
}

/// A range is added and measured, and what is beyond it is not touched.
#[test]
fn a_range_is_built() {
    let machine = builder(false).build();
    let bench = Bench::new(&machine, false, false);
    for (gpa, level) in [(0, Level::L512G), (0, Level::L1G), (0, Level::L2M)] {
        bench.link(entry(gpa, level), None);
    }
    let (t, td) = (bench.td.transport(), bench.td.tdr());
    let source = Hpa::truncate(PARAMS + 0x1000);
    machine.host_write(source, 0xabcd);
    let range = GpaRange::new(Gpa::truncate(0x1000), 0x3000).unwrap();
    let first = BASE + 0x1000_0000;
    let supply = |offset: u64| {
        move |at: sept_core::GpaEntry| Some((frame(first + offset + at.gpa().raw(), Level::L4K), source))
    };
    ranges::add(t, td, range, supply(0)).unwrap();
    ranges::extend(t, td, range.start(), range.len()).unwrap();
    // Beyond it there is no page to measure; inside, one is added already, and the new one comes back.
    assert_eq!(ranges::extend(t, td, Gpa::truncate(range.end()), 256).unwrap_err().at, Gpa::truncate(0x4000));
    let wider = GpaRange::new(Gpa::truncate(0), 0x2000).unwrap();
    let stopped = ranges::add(t, td, wider, supply(0x10_0000)).unwrap_err();
    assert_eq!(
        (stopped.at, stopped.page.unwrap().hpa().raw()),
        (entry(0x1000, Level::L4K), first + 0x10_1000)
    );
    bench.td.finalize().unwrap();
    bench.guest().enter(0).unwrap();
    for gpa in [0, 0x1000, 0x2000, 0x3000] {
        assert_eq!(bench.guest().read(Gpa::truncate(gpa)), Ok(0xabcd));
    }
    assert!(bench.guest().read(Gpa::truncate(0x4000)).is_err());
    bench.sound();
}
