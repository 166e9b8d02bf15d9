//! An entry that somebody else is changing: everybody but its owner steps back and nothing moves.

use crate::rig::{CONFIGS, Error, G1, K4, M2, Rig, Table};
use sept_core::test_util::MockOp;
use sept_core::{
    Class, Classify, Entry, Fill, Format, FrameNeeds, GpaEntry, Hpa, Level, TableMemory, TdxMirror, Word,
};
use std::sync::{Arc, atomic::Ordering, mpsc};

/// The word of `at`, found from the root by the levels' indices.
fn word(rig: &Rig, at: GpaEntry) -> (Hpa, Word) {
    let above = GpaEntry::containing(at.gpa(), at.level().parent().unwrap());
    let Ok(Entry::Table { hpa, .. }) = rig.table.entry(above) else { panic!("no table above {at}") };
    (hpa, Word::Entry(at.level().index(at.gpa())))
}

/// Does what the owner of an entry does for as long as the TEE works on it.
fn while_frozen(rig: &mut Rig, at: GpaEntry, work: impl FnOnce(&mut Rig)) {
    let (table, word) = word(rig, at);
    let raw = rig.table.memory().load(table, word, Ordering::Acquire);
    let frozen = TdxMirror::encode(rig.table.config(), at.level(), Entry::Frozen);
    rig.table.memory().store(table, word, frozen, Ordering::Release);
    work(rig);
    assert_eq!(rig.table.memory().load(table, word, Ordering::Acquire), frozen, "somebody broke in");
    rig.table.memory().store(table, word, raw, Ordering::Release);
    rig.check();
}

/// As [`Rig::refused`], while the mirror and the TEE may not be compared.
fn contended(rig: &mut Rig, at: GpaEntry, operation: impl FnOnce(&mut Rig) -> Result<(), Error>) {
    let before = rig.snapshot();
    assert_eq!(operation(rig), Err(Error::Contended { at }));
    assert_eq!(rig.snapshot(), before);
    assert_eq!(Error::Contended { at }.class(), Class::Retry);
}

#[test]
fn every_operation_steps_back() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, K4);
    rig.map(0, 0, K4, true).unwrap();
    rig.map(2 << 20, 2 << 20, M2, false).unwrap();
    for (offset, level) in [(0, K4), (0, M2), (2 << 20, M2), (4096, K4), (4 << 20, M2)] {
        let at = rig.at(offset, level);
        let _ = rig.table.block(at); // the free ones cannot be
        let fence = rig.fence();
        while_frozen(&mut rig, at, |rig| {
            let found = rig.table.lookup(rig.gpa(offset)).unwrap();
            assert_eq!((found.at, found.entry), (at, Entry::Frozen), "readers see it and do not wait");
            assert_eq!(rig.table.entry(at), Ok(Entry::Frozen));
            contended(rig, at, |rig| rig.table.block(at));
            contended(rig, at, |rig| rig.table.unblock(at, &fence));
            contended(rig, at, |rig| rig.remove(at, &fence));
            contended(rig, at, |rig| rig.unlink(at, &fence));
            contended(rig, at, |rig| rig.merge(at, &fence));
            contended(rig, at, |rig| rig.map(offset, 8 << 20, level, false));
            if level > K4 {
                contended(rig, at, |rig| rig.split(at, &fence));
                contended(rig, at, |rig| rig.link(at, None));
            }
        });
        let _ = rig.table.unblock(at, &fence);
    }
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn a_table_being_changed_hides_what_is_below() {
    let mut rig = Rig::new(CONFIGS[2], false);
    rig.link_to(0, K4);
    rig.map(0, 0, K4, true).unwrap();
    for level in [M2, G1, Level::L512G] {
        let (at, stop, free) = (rig.at(0, K4), rig.at(0, level), rig.at(4096, K4));
        let fence = rig.block_and_fence(at);
        while_frozen(&mut rig, stop, |rig| {
            contended(rig, stop, |rig| rig.table.block(free));
            contended(rig, stop, |rig| rig.table.probe(at).map(|_| ()));
            contended(rig, stop, |rig| rig.remove(at, &fence));
            contended(rig, stop, |rig| rig.map(4096, 4096, K4, false));
            assert_eq!(rig.table.entry(at), Err(Error::Contended { at: stop }));
            let items: Vec<_> = rig.table.entries(at.range()).collect();
            assert_eq!(items.len(), 1);
            assert_eq!((items[0].at, items[0].entry), (stop, Entry::Frozen));
        });
        rig.table.unblock(at, &fence).unwrap();
    }
    rig.stock(FrameNeeds::NONE);
    assert_eq!(rig.tee().refused(), []);
}

/// Runs `meanwhile` inside the next call of `op`, and says what it saw.
fn during<T: Send + 'static>(
    rig: &Rig,
    op: MockOp,
    after: bool,
    meanwhile: impl FnOnce(&Table) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (send, seen) = mpsc::channel();
    let table = Arc::clone(&rig.table);
    let hook = move || send.send(meanwhile(&table)).unwrap();
    if after {
        rig.tee().after(op, 1, hook);
    } else {
        rig.tee().before(op, 1, hook);
    }
    seen
}

#[test]
fn nobody_comes_between_the_tee_and_the_mirror() {
    for after in [false, true] {
        let mut rig = Rig::new(CONFIGS[0], false);
        rig.link_to(0, K4);
        let (at, twin) = (rig.at(0, K4), rig.page(4096, K4));
        let seen = during(&rig, MockOp::Map, after, move |table| {
            let refused = table.map(at, twin, Fill::OnAccept).unwrap_err();
            (refused.error, refused.held, table.block(at), table.entry(at))
        });
        rig.map(0, 0, K4, false).unwrap();
        let (error, twin, block, entry) = seen.try_recv().unwrap();
        assert_eq!((error, block), (Error::Contended { at }, Err(Error::Contended { at })));
        assert_eq!((twin.hpa(), entry), (Rig::hpa(4096), Ok(Entry::Frozen)));
        rig.ram.take_back(twin).unwrap();
        rig.check();

        let fence = rig.block_and_fence(at);
        let seen =
            during(&rig, MockOp::Unmap, after, move |table| (table.unblock(at, &fence), table.block(at)));
        rig.remove(at, &fence).unwrap();
        let contended = Err(Error::Contended { at });
        assert_eq!(seen.try_recv().unwrap(), (contended, contended));
        rig.check();
        assert_eq!(rig.tee().refused(), []);
    }
}

/// A fence that starts while the TEE is at a block may miss it: its proof must not cover the entry unless the TEE
/// agrees. The same for a block while the TEE is at a fence.
#[test]
fn fences_and_blocks_may_cross() {
    for after in [false, true] {
        let mut rig = Rig::new(CONFIGS[0], false);
        rig.map_region(0, 0);
        let (first, second) = (rig.at(0, K4), rig.at(4096, K4));
        let seen = during(&rig, MockOp::Block, after, |table| {
            let ticket = table.fence().unwrap();
            table.fenced(&ticket).unwrap()
        });
        rig.table.block(first).unwrap();
        let crossed = seen.try_recv().unwrap();
        if rig.tee().would(MockOp::Unmap, first).is_err() {
            assert_eq!(rig.remove(first, &crossed), Err(Error::NotFenced { at: first }));
        }

        let seen = during(&rig, MockOp::Fence, after, move |table| table.block(second));
        let crossed = rig.fence();
        assert_eq!(seen.try_recv().unwrap(), Ok(()));
        if rig.tee().would(MockOp::Unmap, second).is_err() {
            assert_eq!(rig.remove(second, &crossed), Err(Error::NotFenced { at: second }));
        }
        let fence = rig.fence();
        let _ = rig.remove(first, &fence);
        rig.remove(second, &fence).unwrap();
        rig.check();
        assert_eq!(rig.tee().refused(), [], "the table trusted a fence that the TEE does not");
    }
}

/// A table that is linked, filled or taken out elsewhere while the TEE works here does not disturb.
#[test]
fn neighbours_do_not_disturb_each_other() {
    let mut rig = Rig::new(CONFIGS[2], false);
    rig.link_to(0, K4);
    let (neighbour, page) = (rig.at(4096, K4), rig.page(4096, K4));
    let seen =
        during(&rig, MockOp::Map, false, move |table| table.map(neighbour, page, Fill::OnAccept).is_ok());
    rig.map(0, 0, K4, false).unwrap();
    assert_eq!(seen.try_recv(), Ok(true));
    rig.check();
}

/// Every change of the TEE's table is made under a frozen entry, from before the call until after it.
#[test]
fn every_call_finds_its_entry_frozen() {
    for after in [false, true] {
        let mut rig = Rig::new(CONFIGS[1], false);
        rig.link_to(0, M2);
        let at = rig.at(0, M2);
        let watch = |rig: &Rig, op| during(rig, op, after, move |table| table.entry(at));
        let mut seen = vec![watch(&rig, MockOp::Map), watch(&rig, MockOp::Block), watch(&rig, MockOp::Split)];
        rig.map(0, 0, M2, false).unwrap();
        let fence = rig.block_and_fence(at);
        rig.split(at, &fence).unwrap();
        seen.extend([watch(&rig, MockOp::Block), watch(&rig, MockOp::Unblock), watch(&rig, MockOp::Merge)]);
        let fence = rig.block_and_fence(at);
        rig.table.unblock(at, &fence).unwrap();
        let fence = rig.block_and_fence(at);
        rig.merge(at, &fence).unwrap();
        let fence = rig.block_and_fence(at);
        seen.push(watch(&rig, MockOp::Unmap));
        rig.remove(at, &fence).unwrap();
        seen.push(watch(&rig, MockOp::Link));
        rig.link(at, None).unwrap();
        let fence = rig.block_and_fence(at);
        seen.push(watch(&rig, MockOp::Unlink));
        rig.unlink(at, &fence).unwrap();
        for seen in seen {
            assert_eq!(seen.try_recv().unwrap(), Ok(Entry::Frozen));
        }
        rig.settle();
        rig.check();
    }
}
