//! What a fence's proof covers.

use crate::rig::{CONFIGS, Error, K4, M2, Rig};
use sept_core::test_util::{MockFault, MockOp, MockRefusal, VecStore};
use sept_core::{Class, Classify, Fenced, Frame, FrameKind, FrameStore, GpaEntry};
use std::sync::Arc;

fn rig() -> Rig {
    let mut rig = Rig::new(CONFIGS[1], false);
    rig.map_region(0, 0);
    rig
}

/// All that needs a proof, on a page and on the table above it.
fn all_not_fenced(rig: &mut Rig, page: GpaEntry, table: GpaEntry, fence: &Fenced) {
    let calls = |rig: &Rig| {
        [MockOp::Unmap, MockOp::Unblock, MockOp::Split, MockOp::Unlink, MockOp::Merge]
            .map(|op| rig.tee().calls(op))
    };
    let before = calls(rig);
    rig.refused(Error::NotFenced { at: page }, |rig| rig.remove(page, fence));
    rig.refused(Error::NotFenced { at: page }, |rig| rig.table.unblock(page, fence));
    rig.refused(Error::NotFenced { at: page }, |rig| rig.unlink(page, fence));
    rig.refused(Error::NotFenced { at: table }, |rig| rig.unlink(table, fence));
    rig.refused(Error::NotFenced { at: table }, |rig| rig.merge(table, fence));
    assert_eq!(calls(rig), before, "the TEE was asked");
}

#[test]
fn what_is_not_blocked_is_not_covered() {
    let mut rig = rig();
    let fence = rig.fence();
    let (page, table) = (rig.at(0, K4), rig.at(0, M2));
    all_not_fenced(&mut rig, page, table, &fence);
    assert_eq!(Error::NotFenced { at: page }.class(), Class::Quiesce);
}

#[test]
fn what_was_blocked_after_the_fence_began_is_not_covered() {
    let mut rig = rig();
    rig.tee().hold_fences(true);
    let (early, late) = (rig.at(0, K4), rig.at(4096, K4));
    rig.table.block(early).unwrap();
    let ticket = rig.table.fence().unwrap();
    rig.table.block(late).unwrap();
    assert!(rig.table.fenced(&ticket).is_none(), "it has not ended");
    rig.tee().end_fences();
    let fence = rig.table.fenced(&ticket).unwrap();
    rig.refused(Error::NotFenced { at: late }, |rig| rig.remove(late, &fence));
    rig.remove(early, &fence).unwrap();
    rig.check();
    rig.tee().hold_fences(false);
    let fence = rig.fence();
    rig.remove(late, &fence).unwrap();
    rig.check();
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn one_proof_covers_a_batch_and_stays_good_for_it() {
    let mut rig = rig();
    let pages: Vec<_> = (0..512).map(|page| rig.at(page << 12, K4)).collect();
    for &page in &pages {
        rig.table.block(page).unwrap();
    }
    let fence = rig.fence();
    for &page in &pages {
        rig.remove(page, &fence).unwrap();
    }
    assert_eq!(rig.tee().calls(MockOp::Fence), 1);
    assert!(rig.tee().leaves().is_empty());
    rig.check();
}

#[test]
fn blocking_again_needs_another_fence() {
    let mut rig = rig();
    let page = rig.at(0, K4);
    let fence = rig.block_and_fence(page);
    rig.table.unblock(page, &fence).unwrap();
    rig.table.block(page).unwrap();
    rig.refused(Error::NotFenced { at: page }, |rig| rig.remove(page, &fence));
    let fence = rig.fence();
    rig.remove(page, &fence).unwrap();
}

#[test]
fn a_refused_fence_proves_nothing() {
    let mut rig = rig();
    let page = rig.at(0, K4);
    rig.table.block(page).unwrap();
    rig.tee().fail(MockOp::Fence, 1, MockFault::Busy);
    let error = rig.table.fence().unwrap_err();
    assert!(matches!(error, Error::External { error: MockRefusal::Busy, .. }));
    let fence = rig.fence();
    rig.remove(page, &fence).unwrap();
    rig.check();
}

#[test]
fn a_grace_period_is_no_fence_and_proofs_belong_to_one_table() {
    let mut rig = rig();
    let page = rig.at(0, K4);
    rig.table.block(page).unwrap();
    let grace = rig.table.grace();
    assert!(rig.table.quiet(&grace).is_some());
    assert!(rig.table.fenced(&grace).is_none());

    let stranger = rig.stranger();
    let ticket = stranger.fence().unwrap();
    assert!(rig.table.fenced(&ticket).is_none() && rig.table.quiet(&ticket).is_none());
    let foreign = stranger.fenced(&ticket).unwrap();
    rig.refused(Error::NotFenced { at: page }, |rig| rig.remove(page, &foreign));
    let fence = rig.fence();
    rig.remove(page, &fence).unwrap();
}

/// The stamp in an entry has 11 bits. A proof from before the block must never look as if it came after it,
/// however many fences lie between, and a new fence or the one after it must always do.
#[test]
fn stamps_may_wrap() {
    let mut rig = rig();
    let (page, table) = (rig.at(0, K4), rig.at(0, M2));
    let mut entries = (1..512).map(|page| page << 12);
    for aged in [0, 1, 2, 1022, 1023, 1024, 1025, 2045, 2046, 2047, 2048, 2049, 4095, 4096] {
        let before = rig.fence();
        let offset = entries.next().unwrap();
        let at = rig.at(offset, K4);
        rig.table.block(at).unwrap();
        for _ in 0..aged {
            let _ = rig.table.grace();
            assert_eq!(rig.remove(at, &before), Err(Error::NotFenced { at }));
        }
        let fence = rig.fence();
        if rig.remove(at, &fence).is_err() {
            let fence = rig.fence();
            rig.remove(at, &fence).unwrap();
        }
        rig.check();
    }
    let fence = rig.fence();
    all_not_fenced(&mut rig, page, table, &fence);
    assert_eq!(rig.tee().refused(), []);
}

/// A proof that is used late is refused, not misread; the same entry with a new one is fine.
#[test]
fn old_proofs_expire() {
    let mut rig = rig();
    let page = rig.at(0, K4);
    let fence = rig.block_and_fence(page);
    for _ in 0..5000 {
        let _ = rig.table.grace();
    }
    rig.refused(Error::NotFenced { at: page }, |rig| rig.remove(page, &fence));
    let (first, second) = (rig.fence(), rig.fence());
    rig.remove(page, &first).or_else(|_| rig.remove(page, &second)).unwrap();
    rig.check();
}

/// A store in which something happens elsewhere while frames are drawn.
struct Meanwhile<'a, F: FnMut()> {
    store: &'a mut VecStore,
    work: F,
}

impl<F: FnMut()> FrameStore for Meanwhile<'_, F> {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        self.store.put(kind, frame)
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        if kind == FrameKind::MirrorTable {
            (self.work)();
        }
        self.store.get(kind)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        self.store.count(kind)
    }
}

/// Between the look at a blocked entry and its freeze it is shown, hidden again, and reads the same after 2^11 fences.
#[test]
fn the_same_word_again_is_not_the_same_block() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, M2);
    rig.map(0, 0, M2, false).unwrap();
    let at = rig.at(0, M2);
    let fence = rig.block_and_fence(at);
    let word = rig.table.entry(at).unwrap();
    rig.stock(rig.table.table_cost(at, Some(Rig::hpa(0))));
    let table = Arc::clone(&rig.table);
    let work = || {
        table.unblock(at, &fence).unwrap();
        for _ in 0..2047 {
            let _ = table.grace();
        }
        table.block(at).unwrap();
        assert_eq!(table.entry(at), Ok(word));
    };
    let mut store = Meanwhile { store: &mut rig.store, work };
    assert_eq!(rig.table.split(at, &fence, &mut store), Err(Error::NotFenced { at }));
    assert_eq!(rig.tee().refused(), []);
    rig.check();
}
