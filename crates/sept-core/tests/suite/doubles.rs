//! The test doubles themselves: a TEE that accepts anything would prove nothing.

use crate::rig::{G1, K4, M2};
use sept_core::test_util::{Arena, FramePool, MockFault, MockOp, MockRefusal, MockTee, RamLedger, VecStore};
use sept_core::{
    CacheKey, Class, Classify, External, Fill, Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Gpa,
    GpaEntry, Hpa, LeafState, Level, Observed, SideWord, TableMemory, Word,
};
use std::sync::atomic::Ordering;

const BASE: u64 = 0x10_0000;

fn at(raw: u64, level: Level) -> GpaEntry {
    GpaEntry::new(Gpa::new(raw).unwrap(), level).unwrap()
}

struct Host {
    tee: MockTee,
    pool: FramePool,
    ram: RamLedger,
}

impl Host {
    /// A TEE with tables down to the 4 KiB entries of the first 2 MiB.
    fn new() -> Self {
        let host = Self {
            tee: MockTee::new(Level::L512G),
            pool: FramePool::new(Hpa::new(BASE).unwrap(), 64),
            ram: RamLedger::new(Hpa::new(1 << 30).unwrap(), 2048),
        };
        for level in [Level::L512G, G1, M2] {
            host.link(at(0, level)).unwrap();
        }
        host
    }

    fn link(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        let mut store = VecStore::default();
        let page = self.pool.take(FrameKind::TeeTable, Hpa::default()).unwrap();
        store.put(FrameKind::TeeTable, page).unwrap();
        let pages = self.tee.gather(at, None, &mut store).unwrap();
        self.tee.link(at, None, pages).map_err(|refused| refused.error)
    }

    fn page(&self, offset: u64, level: Level) -> Frame {
        self.ram.lend(Hpa::new((1 << 30) + offset).unwrap(), level).unwrap()
    }

    fn map(&self, at: GpaEntry, offset: u64) -> Result<(), MockRefusal> {
        let page = self.page(offset, at.level());
        self.tee.map(at, page, Fill::OnAccept).map_err(|refused| refused.error)
    }
}

#[test]
fn the_tee_enforces_block_then_track() {
    let host = Host::new();
    let (page, hpa) = (at(0, K4), Hpa::new(1 << 30).unwrap());
    host.map(page, 0).unwrap();
    assert_eq!(host.tee.unmap(page, hpa), Err(MockRefusal::NotBlocked));
    host.tee.hold_fences(true);
    let early = host.tee.fence().unwrap();
    host.tee.block(page).unwrap();
    assert_eq!(host.tee.block(page), Err(MockRefusal::State));
    host.tee.end_fences();
    assert!(host.tee.fenced(early));
    assert_eq!(host.tee.unmap(page, hpa), Err(MockRefusal::NotTracked), "that fence began before the block");
    let late = host.tee.fence().unwrap();
    assert!(!host.tee.fenced(late));
    assert_eq!(host.tee.unmap(page, hpa), Err(MockRefusal::NotTracked));
    assert_eq!(MockRefusal::NotTracked.class(), Class::Quiesce);
    let grace = host.tee.grace();
    host.tee.end_fences();
    assert!(host.tee.fenced(late) && host.tee.fenced(grace));
    assert_eq!(host.tee.unmap(page, Hpa::default()), Err(MockRefusal::Page));
    host.tee.unmap(page, hpa).unwrap();
    assert_eq!(host.tee.probe(page), Ok(Observed::Free));
    assert_eq!(host.tee.refused().len(), 5);
    assert_eq!(host.tee.calls(MockOp::Unmap), 5);
}

#[test]
fn the_tee_refuses_what_does_not_fit() {
    let host = Host::new();
    host.map(at(0, K4), 0).unwrap();
    host.map(at(2 << 20, M2), 2 << 20).unwrap();
    assert_eq!(host.map(at(0, K4), 4096), Err(MockRefusal::State)); // over a page
    assert_eq!(host.map(at(0, M2), 4 << 20), Err(MockRefusal::State)); // over a table
    assert_eq!(host.map(at(2 << 20, K4), 8192), Err(MockRefusal::Walk)); // below a page
    assert_eq!(host.map(at(1 << 30, M2), 6 << 20), Err(MockRefusal::Walk)); // without a table
    assert_eq!(host.link(at(0, Level::L256T)), Err(MockRefusal::Level));
    assert_eq!(host.link(at(0, M2)), Err(MockRefusal::State));
    assert_eq!(host.tee.unlink(at(0, M2), None), Err(MockRefusal::NotBlocked));
    host.tee.block(at(0, M2)).unwrap();
    host.tee.fence().unwrap();
    assert_eq!(host.tee.unlink(at(0, M2), None), Err(MockRefusal::NotEmpty));
    assert_eq!(host.tee.merge(at(0, M2), Hpa::default()), Err(MockRefusal::NotUniform));
    assert_eq!(host.map(at(4096, K4), 12288), Err(MockRefusal::Hidden));
    assert_eq!(host.tee.probe(at(0, K4)), Ok(Observed::Hidden));
    assert!(!host.tee.accept(Gpa::default()), "the guest cannot see it");
    host.tee.unblock(at(0, M2)).unwrap();
    assert!(host.tee.accept(Gpa::default()) && !host.tee.accept(Gpa::default()));
    assert_eq!(host.tee.probe(at(0, K4)), Ok(Observed::Leaf(LeafState::Mapped)));
}

#[test]
fn the_tee_takes_no_page_twice() {
    let host = Host::new();
    let (one, two) = (at(0, K4), at(4096, K4));
    let page = host.page(0, K4);
    let again = page.hpa();
    host.tee.map(one, page, Fill::OnAccept).unwrap();
    let other = RamLedger::new(again, 1);
    let twin = other.lend(again, K4).unwrap();
    let refused = host.tee.map(two, twin, Fill::OnAccept).unwrap_err();
    assert_eq!((refused.error, refused.held.hpa()), (MockRefusal::Page, again));
}

#[test]
fn planned_failures_come_once_and_in_their_turn() {
    let host = Host::new();
    host.map(at(0, K4), 0).unwrap();
    host.tee.fail(MockOp::Block, 2, MockFault::Fatal);
    host.tee.fail(MockOp::Unblock, 1, MockFault::Busy);
    host.tee.block(at(0, K4)).unwrap();
    assert_eq!(host.tee.block(at(0, M2)), Err(MockRefusal::Fatal));
    assert_eq!(host.tee.unblock(at(0, K4)), Err(MockRefusal::Busy));
    host.tee.block(at(0, M2)).unwrap();
    assert_eq!(host.tee.refused(), []);
    host.tee.fail(MockOp::WriteBack, 1, MockFault::Busy);
    let page = host.page(4096, K4).taint();
    assert_eq!(host.tee.write_back(&page, CacheKey::Module), Err(MockRefusal::Busy));
    host.tee.write_back(&page, CacheKey::Module).unwrap();
    assert_eq!(host.tee.written_back(), [(page.hpa(), K4, CacheKey::Module)]);
}

#[test]
fn a_detached_table_starts_with_clear_side_words() {
    let base = Hpa::new(BASE).unwrap();
    let arena = Arena::new(base, 1, Box::new(|_, _| {}));
    for side in SideWord::ALL {
        arena.store(base, Word::Side(side), u64::MAX, Ordering::Release);
    }
    let frame = FramePool::new(base, 1).take(FrameKind::MirrorTable, base).unwrap();
    arena.write_detached(&frame, u64::from);
    assert!(SideWord::ALL.iter().all(|&side| arena.load(base, Word::Side(side), Ordering::Acquire) == 0));
    assert!((0..512).all(|i| arena.load(base, Word::Entry(i), Ordering::Acquire) == u64::from(i)));
}

#[test]
fn the_ledgers_notice_foreign_frames() {
    let pool = FramePool::new(Hpa::new(BASE).unwrap(), 4);
    let frame = pool.take(FrameKind::TeeTable, Hpa::default()).unwrap();
    let hpa = frame.hpa();
    pool.give(FrameKind::MirrorTable, frame);
    assert_eq!(pool.faults(), [(hpa, FrameKind::MirrorTable)]);
    // Still out, as what it was taken for.
    assert_eq!(pool.outstanding(), FrameNeeds::of(FrameKind::TeeTable, 1));
    pool.fail_after(Some(1));
    assert!(pool.take(FrameKind::TeeTable, hpa).is_some() && pool.take(FrameKind::TeeTable, hpa).is_none());
    assert_eq!(pool.outstanding(), FrameNeeds::of(FrameKind::TeeTable, 2));

    let uneven = RamLedger::new(Hpa::new(0x1000).unwrap(), 2048);
    assert!(uneven.lend(Hpa::new(2 << 20).unwrap(), M2).is_none());
    assert_eq!(uneven.lent_pages(), 0);
    let page = uneven.lend(Hpa::new(0x3000).unwrap(), K4).unwrap();
    uneven.take_back(page).unwrap();
    assert_eq!(uneven.lent_pages(), 0);
}
