//! Link, map, block, probe, remove and unlink: each success and each refusal.

use crate::rig::{CONFIGS, Error, G1, K4, M2, Rig};
use sept_core::test_util::{MockFault, MockOp, MockRefusal};
use sept_core::{
    CacheKey, Class, Classify, Entry, FrameKind, FrameNeeds, FrameStore, Gpa, GpaEntry, LeafState, Level,
    Observed,
};

const FREE: Entry = Entry::Free;

fn rig() -> Rig {
    Rig::new(CONFIGS[0], false)
}

/// A planned refusal of the TEE.
fn busy(at: GpaEntry) -> Error {
    Error::External { at, error: MockRefusal::Busy }
}

#[test]
fn link_takes_exactly_its_cost() {
    for config in CONFIGS {
        let mut rig = Rig::new(config, true);
        rig.link_to(0, M2);
        rig.check();
        let (at, backing) = (rig.at(0, M2), Some(Rig::hpa(0)));
        // One page for the mirror, one for the TEE, and a metadata pair only where the backing is known.
        let cost = |metadata| {
            FrameNeeds::of(FrameKind::MirrorTable, 1)
                .plus(FrameNeeds::of(FrameKind::TeeTable, 1))
                .plus(FrameNeeds::of(FrameKind::TeeMetadata, metadata))
        };
        assert_eq!(rig.table.table_cost(at, backing), cost(2));
        assert_eq!(rig.table.table_cost(at, None), cost(0));
        rig.stock(cost(2));
        rig.table.link(at, backing, &mut rig.store).unwrap();
        assert!(FrameKind::ALL.iter().all(|&kind| rig.store.count(kind) == 0));
        assert_eq!(rig.tee().donated()[FrameKind::TeeMetadata], 2);
        rig.check();
    }
}

#[test]
fn link_refusals() {
    let mut rig = Rig::new(CONFIGS[0], true);
    rig.link_to(0, M2);
    rig.map(0, 0, M2, false).unwrap();
    let (leaf, table, free) = (rig.at(0, M2), rig.at(0, G1), rig.at(2 << 20, M2));
    let found = |rig: &Rig, at| rig.table.entry(at).unwrap();

    for at in [rig.at(0, K4), GpaEntry::containing(Gpa::default(), Level::L256T)] {
        rig.refused(Error::Level { at }, |rig| rig.table.link(at, None, &mut rig.store));
    }
    let uneven = Some(Rig::hpa(4096));
    rig.refused(Error::Level { at: free }, |rig| rig.table.link(free, uneven, &mut rig.store));
    let shared = Gpa::new(1 << 47).unwrap();
    let at = GpaEntry::new(shared, M2).unwrap();
    rig.refused(Error::OutOfRange { gpa: shared }, |rig| rig.link(at, None));
    let (at, stop) = (rig.at(1 << 30, M2), rig.at(1 << 30, G1));
    rig.refused(Error::NoTable { at, stop, found: FREE }, |rig| rig.link(at, None));
    for at in [leaf, table] {
        let error = Error::State { at, found: found(&rig, at) };
        rig.refused(error, |rig| rig.link(at, None));
    }

    let (backing, need) = (Some(Rig::hpa(2 << 20)), rig.table.table_cost(free, Some(Rig::hpa(2 << 20))));
    for kind in [FrameKind::MirrorTable, FrameKind::TeeTable, FrameKind::TeeMetadata] {
        let mut short = need;
        short[kind] -= 1;
        rig.stock(short);
        rig.refused(Error::NoFrames { at: free, need }, |rig| rig.table.link(free, backing, &mut rig.store));
    }
    rig.stock(need);
    rig.tee().fail(MockOp::Link, 1, MockFault::Busy);
    rig.refused(busy(free), |rig| rig.table.link(free, backing, &mut rig.store));
    assert!(rig.scrubbed.lock().unwrap().is_empty());
    rig.tee().fail(MockOp::Link, 1, MockFault::BusyAfterWrite);
    rig.refused(busy(free), |rig| rig.table.link(free, backing, &mut rig.store));
    assert_eq!(rig.scrubbed.lock().unwrap().len(), 1);
    rig.stock(FrameNeeds::NONE);

    rig.table.block(table).unwrap();
    rig.refused(Error::Hidden { at: free, stop: table }, |rig| rig.link(free, None));
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn map_gives_the_accept_state_of_its_fill() {
    for config in CONFIGS {
        let mut rig = Rig::new(config, false);
        rig.link_to(0, K4);
        rig.map(0, 0x5000, K4, true).unwrap();
        rig.map(4096, 0x3000, K4, false).unwrap();
        rig.map(2 << 20, 4 << 20, M2, false).unwrap();
        rig.check();
        let entry = |offset, level| rig.table.entry(rig.at(offset, level)).unwrap();
        let leaf = |ram, state| Entry::Leaf { hpa: Rig::hpa(ram), state, blocked: None };
        assert_eq!(entry(0, K4), leaf(0x5000, LeafState::Mapped));
        assert_eq!(entry(4096, K4), leaf(0x3000, LeafState::Pending));
        assert_eq!(entry(2 << 20, M2), leaf(4 << 20, LeafState::Pending));
        let found = rig.table.lookup(rig.gpa((2 << 20) + 0x1234)).unwrap();
        assert_eq!((found.at, found.hidden), (rig.at(2 << 20, M2), false));
    }
}

#[test]
fn map_refusals_give_the_page_back() {
    let mut rig = rig();
    rig.link_to(0, K4);
    rig.map(0, 0, K4, true).unwrap();
    rig.map(2 << 20, 2 << 20, M2, false).unwrap();

    let at = rig.at(0, G1);
    rig.refused(Error::Level { at }, |rig| rig.map(0, 1 << 30, G1, false)); // no 1 GiB page is mapped in one piece
    let at = rig.at(4 << 20, M2);
    rig.refused(Error::Level { at }, |rig| rig.map(4 << 20, 4 << 20, M2, true)); // content comes in 4 KiB
    let page = rig.page(4 << 20, K4); // of another size than the entry
    let refused = rig.table.map(at, page, sept_core::Fill::OnAccept).unwrap_err();
    assert_eq!((refused.error, refused.held.level()), (Error::Level { at }, K4));
    rig.ram.take_back(refused.held).unwrap();

    for (offset, level) in [(0, K4), (2 << 20, M2), (0, M2)] {
        let at = rig.at(offset, level);
        let found = rig.table.entry(at).unwrap();
        rig.refused(Error::State { at, found }, |rig| rig.map(offset, 8 << 20, level, false));
    }
    for (offset, stop, level) in [((2 << 20) + 4096, 2 << 20, M2), (1 << 30, 1 << 30, G1)] {
        let (at, stop) = (rig.at(offset, K4), rig.at(stop, level));
        let found = rig.table.entry(stop).unwrap();
        rig.refused(Error::NoTable { at, stop, found }, |rig| rig.map(offset, 8 << 20, K4, false));
    }
    let at = rig.at(4096, K4);
    for (fault, error) in [(MockFault::Busy, MockRefusal::Busy), (MockFault::Fatal, MockRefusal::Fatal)] {
        rig.tee().fail(MockOp::Map, 1, fault);
        rig.refused(Error::External { at, error }, |rig| rig.map(4096, 4096, K4, false));
    }
    assert_eq!(busy(at).class(), Class::Retry);
    assert_eq!(Error::External { at, error: MockRefusal::Fatal }.class(), Class::Fatal);
    let stop = rig.at(0, M2);
    rig.table.block(stop).unwrap();
    rig.refused(Error::Hidden { at, stop }, |rig| rig.map(4096, 4096, K4, false));
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn block_hides_pages_and_tables() {
    let mut rig = rig();
    rig.map_region(0, 0);
    let (page, table) = (rig.at(0, K4), rig.at(0, M2));
    rig.tee().fail(MockOp::Block, 1, MockFault::Busy);
    rig.refused(busy(page), |rig| rig.table.block(page));
    rig.table.block(page).unwrap();
    rig.check();
    let calls = rig.tee().calls(MockOp::Block);
    rig.table.block(page).unwrap(); // stays as it is, and the TEE is not asked
    assert_eq!(rig.tee().calls(MockOp::Block), calls);
    rig.table.block(table).unwrap();
    rig.check();
    assert!(rig.table.lookup(rig.gpa(4096)).unwrap().hidden);

    let (free, nowhere) = (rig.at(2 << 20, M2), rig.at(2 << 20, K4));
    let hidden = rig.at(4096, K4);
    rig.refused(Error::Hidden { at: hidden, stop: table }, |rig| rig.table.block(hidden));
    rig.refused(Error::State { at: free, found: FREE }, |rig| rig.table.block(free));
    rig.refused(Error::NoTable { at: nowhere, stop: free, found: FREE }, |rig| rig.table.block(nowhere));

    let fence = rig.fence();
    rig.tee().fail(MockOp::Unblock, 1, MockFault::Busy);
    rig.refused(busy(table), |rig| rig.table.unblock(table, &fence));
    rig.table.unblock(table, &fence).unwrap();
    rig.table.unblock(page, &fence).unwrap();
    rig.check();
    assert!(!rig.table.lookup(rig.gpa(0)).unwrap().hidden);
    rig.refused(Error::NotFenced { at: page }, |rig| rig.table.unblock(page, &fence)); // not blocked any more
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn probe_learns_what_the_guest_accepted() {
    let mut rig = rig();
    rig.link_to(0, K4);
    rig.map(0, 0, K4, false).unwrap();
    let (at, table) = (rig.at(0, K4), rig.at(0, M2));
    let state = |rig: &Rig| match rig.table.entry(at) {
        Ok(Entry::Leaf { state, .. }) => state,
        other => panic!("{other:?}"),
    };
    assert_eq!(rig.table.probe(at), Ok(Observed::Leaf(LeafState::Pending)));
    assert_eq!(state(&rig), LeafState::Pending);
    assert!(rig.tee().accept(rig.gpa(0)));
    rig.tee().fail(MockOp::Probe, 1, MockFault::Busy);
    rig.refused(busy(at), |rig| rig.table.probe(at).map(|_| ()));
    assert_eq!(state(&rig), LeafState::Pending); // the guest does not tell the host
    assert_eq!(rig.table.probe(at), Ok(Observed::Leaf(LeafState::Mapped)));
    assert_eq!(state(&rig), LeafState::Mapped);
    assert_eq!(rig.table.probe(table), Ok(Observed::Table));
    assert_eq!(rig.table.probe(rig.at(4096, K4)), Ok(Observed::Free));
    rig.check();
    rig.table.block(table).unwrap();
    rig.refused(Error::Hidden { at, stop: table }, |rig| rig.table.probe(at).map(|_| ()));
}

#[test]
fn a_removed_page_is_tainted_until_reclaimed() {
    let mut rig = rig();
    rig.link_to(0, K4);
    rig.map(0, 0x7000, K4, true).unwrap();
    let at = rig.at(0, K4);
    let fence = rig.block_and_fence(at);
    rig.tee().fail(MockOp::Unmap, 1, MockFault::Fatal);
    let fatal = Error::External { at, error: MockRefusal::Fatal };
    rig.refused(fatal, |rig| rig.table.remove(at, &fence).map(|_| ()));

    let page = rig.table.remove(at, &fence).unwrap();
    assert_eq!((page.hpa(), page.level()), (Rig::hpa(0x7000), K4));
    rig.held_pages = 1;
    rig.check();
    rig.tee().fail(MockOp::WriteBack, 1, MockFault::Busy);
    let refused = rig.table.reclaim(page).unwrap_err();
    assert_eq!(refused.error, MockRefusal::Busy);
    assert!(rig.scrubbed.lock().unwrap().is_empty());
    let page = rig.table.reclaim(refused.held).unwrap();
    assert_eq!(rig.tee().written_back(), [(Rig::hpa(0x7000), K4, CacheKey::Guest)]);
    assert_eq!(*rig.scrubbed.lock().unwrap(), [(Rig::hpa(0x7000), K4)]);
    rig.ram.take_back(page).unwrap();
    rig.held_pages = 0;
    rig.refused(Error::State { at, found: FREE }, |rig| rig.remove(at, &fence));
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn remove_and_unlink_refuse_each_others_entries() {
    let mut rig = rig();
    rig.link_to(0, K4);
    rig.map(0, 0, K4, true).unwrap();
    let (page, table) = (rig.at(0, K4), rig.at(0, M2));
    rig.table.block(page).unwrap();
    let fence = rig.block_and_fence(table);
    let found = rig.table.entry(table).unwrap();
    rig.refused(Error::State { at: table, found }, |rig| rig.remove(table, &fence));
    rig.refused(Error::Hidden { at: page, stop: table }, |rig| rig.remove(page, &fence));
    rig.refused(Error::NotEmpty { at: table, live: 1 }, |rig| rig.unlink(table, &fence));
    rig.table.unblock(table, &fence).unwrap();
    let found = rig.table.entry(page).unwrap();
    rig.refused(Error::State { at: page, found }, |rig| rig.unlink(page, &fence));
    rig.remove(page, &fence).unwrap();

    let fence = rig.block_and_fence(table);
    rig.tee().fail(MockOp::Unlink, 1, MockFault::Busy);
    rig.refused(busy(table), |rig| rig.unlink(table, &fence));
    rig.unlink(table, &fence).unwrap();
    rig.check();
    assert_eq!(rig.table.entry(table), Ok(FREE));
    rig.refused(Error::State { at: table, found: FREE }, |rig| rig.unlink(table, &fence));
    rig.settle();
    rig.check();
    assert_eq!(rig.tee().refused(), []);
}
