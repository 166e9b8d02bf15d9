use super::*;
use crate::Regs;
use crate::testing::{Script, frame, hpa};
use core::cell::RefCell;
use sept_core::{FrameKind, FrameSource};
use std::vec::Vec;

const BASE: u64 = 0x4000_0000;
const BUSY: u64 = 0x8000_0200_0000_0001;

fn regions() -> PamtRegions<[AtomicU16; 4]> {
    PamtRegions::new(hpa(BASE), [const { AtomicU16::new(0) }; 4], ()).unwrap()
}

fn pair() -> UnusedPair {
    Some([frame(0x300_0000), frame(0x300_1000)])
}

fn removed(regs: Regs) -> Regs {
    Regs { rax: 0, rdx: 0x300_0000, r8: 0x300_1000, ..regs }
}

#[test]
fn the_first_brings_a_pair_and_the_last_takes_it() {
    let script = Script::new().status(0).then(removed);
    let regions = regions();
    let (one, two) = (hpa(BASE + 0x20_0000), hpa(BASE + 0x20_5000));
    assert!(regions.hold(&script, one, pair()).unwrap().is_none());
    // The second user's pair is not needed.
    assert!(regions.hold(&script, two, pair()).unwrap().is_some());
    assert_eq!((regions.users(one), regions.users(hpa(BASE))), (Some(2), Some(0)));
    assert_eq!(regions.release(&script, one), Ok(None));
    let back = regions.release(&script, two).unwrap().unwrap();
    assert_eq!(back.map(Hpa::raw), [0x300_0000, 0x300_1000]);
    assert_eq!(script.leaves(), [58, 59]);
    assert!(script.calls().iter().all(|call| call.rcx == BASE + 0x20_0001));
}

#[test]
fn a_refusal_counts_nothing() {
    let script = Script::new().status(BUSY).status(0).status(0xc000_0306_0000_0001);
    let regions = regions();
    let page = hpa(BASE);
    let back = regions.hold(&script, page, None).unwrap_err();
    assert_eq!(back.error, RegionError::NeedsPair { page });
    let back = regions.hold(&script, page, pair()).unwrap_err();
    assert_eq!((back.held.is_some(), regions.users(page)), (true, Some(0)));
    regions.hold(&script, page, back.held).unwrap();
    assert!(regions.release(&script, page).is_err());
    assert_eq!(regions.users(page), Some(1));
}

#[test]
fn an_idle_region_is_vacated_and_a_used_one_is_not() {
    let script = Script::new().then(removed).status(0xc000_0305_0000_0001).status(BUSY);
    let regions = regions();
    let page = hpa(BASE + 0x5000);
    assert_eq!(regions.vacate(&script, page), Ok(Some([hpa(0x300_0000), hpa(0x300_1000)])));
    assert_eq!(regions.vacate(&script, page), Ok(None), "there was none");
    assert!(matches!(regions.vacate(&script, page), Err(RegionError::Seamcall(_))));
    assert!(script.calls().iter().all(|call| (call.rax, call.rcx) == (59, BASE | 1)));
    regions.hold(&script, page, pair()).unwrap();
    assert_eq!(regions.vacate(&script, page), Err(RegionError::InUse { page }));
    assert_eq!(regions.vacate(&script, hpa(0)), Err(RegionError::Outside { page: hpa(0) }));
    assert_eq!(script.leaves(), [59, 59, 59, 58]);
}

#[test]
fn miscounts_and_strangers() {
    let script = Script::new();
    let regions = regions();
    assert_eq!(regions.release(&script, hpa(BASE)), Err(RegionError::Miscounted { page: hpa(BASE) }));
    for stranger in [BASE - 0x1000, BASE + 0x80_0000, 0] {
        assert_eq!(regions.users(hpa(stranger)), None);
        let back = regions.hold(&script, hpa(stranger), pair()).unwrap_err();
        assert_eq!(back.error, RegionError::Outside { page: hpa(stranger) });
        assert!(back.held.is_some());
    }
    assert!(PamtRegions::new(hpa(BASE + 0x1000), [const { AtomicU16::new(0) }; 1], ()).is_none());
    let full = PamtRegions::new(hpa(BASE), [AtomicU16::new(u16::MAX)], ()).unwrap();
    assert!(full.hold(&script, hpa(BASE), None).is_err());
    assert!(script.calls().is_empty());
}

/// Hands out listed frames; what is out and what came back is the difference.
#[derive(Default)]
struct Pool(RefCell<Vec<(FrameKind, Frame)>>);

impl FrameSource for Pool {
    fn take(&self, kind: FrameKind, _: Hpa) -> Option<Frame> {
        let mut pool = self.0.borrow_mut();
        let index = pool.iter().position(|(other, _)| *other == kind)?;
        Some(pool.swap_remove(index).1)
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        self.0.borrow_mut().push((kind, frame));
    }
}

fn pool(metadata: u64) -> Pool {
    let tables = (0..2).map(|i| (FrameKind::TeeTable, frame(BASE + i * 0x1000)));
    let metadata = (0..metadata).map(|i| (FrameKind::TeeMetadata, frame(0x300_0000 + i * 0x1000)));
    Pool(RefCell::new(tables.chain(metadata).collect()))
}

#[test]
fn ready_pages_have_their_pair() {
    let script = Script::new().status(0).then(removed);
    let (regions, pool) = (regions(), pool(2));
    let recycled = RefCell::new(Vec::new());
    let source = ReadySource::new(&script, &regions, &pool, |pair| recycled.borrow_mut().push(pair));
    let near = hpa(0);
    let one = source.take(FrameKind::TeeTable, near).unwrap();
    let two = source.take(FrameKind::TeeTable, near).unwrap();
    assert!(pool.0.borrow().is_empty());
    assert_eq!(script.leaves(), [58]);
    source.give(FrameKind::TeeTable, one);
    source.give(FrameKind::TeeTable, two);
    assert_eq!(script.leaves(), [58, 59]);
    assert_eq!(pool.0.borrow().len(), 2);
    assert_eq!(*recycled.borrow(), [Ok([hpa(0x300_0000), hpa(0x300_1000)])]);
}

#[test]
fn a_page_that_cannot_be_made_ready_is_not_taken() {
    // One metadata page is no pair; and the module refuses.
    for (metadata, script) in [(1, Script::new()), (2, Script::new().status(0xc000_0304_0000_0001))] {
        let (regions, pool) = (regions(), pool(metadata));
        let heard = RefCell::new(Vec::new());
        let source = ReadySource::new(&script, &regions, &pool, |outcome| heard.borrow_mut().push(outcome));
        assert!(source.take(FrameKind::TeeTable, hpa(0)).is_none());
        let errors = heard.borrow();
        let missing = matches!(errors[..], [Err(RegionError::NeedsPair { .. })]);
        let refused = matches!(errors[..], [Err(RegionError::Seamcall(_))]);
        assert_eq!((missing, refused), (metadata == 1, metadata == 2), "{errors:?}");
        assert_eq!(pool.0.borrow().len(), 2 + usize::try_from(metadata).unwrap());
        assert_eq!(regions.users(hpa(BASE)), Some(0));
    }
}

/// Another call works on a page of the region: that passes, and nothing is lost meanwhile.
#[test]
fn a_busy_region_is_waited_for_in_bounds() {
    let script = Script::new().status(BUSY).status(BUSY).status(0).status(BUSY).then(removed);
    let (regions, pool) = (regions(), pool(2));
    let recycled = RefCell::new(Vec::new());
    let source = ReadySource::new(&script, &regions, &pool, |pair| recycled.borrow_mut().push(pair));
    let page = source.take(FrameKind::TeeTable, hpa(0)).unwrap();
    source.give(FrameKind::TeeTable, page);
    assert_eq!(script.leaves(), [58, 58, 58, 59, 59]);
    assert_eq!(*recycled.borrow(), [Ok([hpa(0x300_0000), hpa(0x300_1000)])]);

    let stuck = (0..65).fold(Script::new(), |script, _| script.status(BUSY));
    let source = ReadySource::new(&stuck, &regions, &pool, |outcome| assert!(outcome.is_err()));
    pool.give(FrameKind::TeeMetadata, frame(0x300_2000));
    pool.give(FrameKind::TeeMetadata, frame(0x300_3000));
    let before = pool.0.borrow().len();
    assert!(source.take(FrameKind::TeeTable, hpa(0)).is_none());
    assert_eq!((stuck.calls().len(), pool.0.borrow().len()), (65, before));
}

#[test]
fn a_region_that_cannot_be_let_go_is_heard() {
    let script = Script::new().status(0).status(0xc000_0306_0000_0000);
    let (regions, pool) = (regions(), pool(2));
    let heard = RefCell::new(0);
    let source = ReadySource::new(&script, &regions, &pool, |outcome| {
        assert!(outcome.is_err());
        *heard.borrow_mut() += 1;
    });
    let page = source.take(FrameKind::TeeTable, hpa(0)).unwrap();
    source.give(FrameKind::TeeTable, page);
    assert_eq!((*heard.borrow(), regions.users(hpa(BASE)), pool.0.borrow().len()), (1, Some(1), 2));
}
