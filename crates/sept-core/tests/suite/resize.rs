//! Split and merge: every translation stays, and what cannot be merged is refused by name.

use crate::rig::{CONFIGS, Error, G1, K4, M2, Rig};
use sept_core::test_util::{MockFault, MockOp, MockRefusal};
use sept_core::{CacheKey, Entry, FrameKind, FrameNeeds, FrameStore, Gpa, GpaEntry, Hpa, LeafState, Level};

const REGION: u64 = 2 << 20;

/// Where the first byte of each `step` in the first `len` bytes of the window is on the host, and its accept state.
fn translations(rig: &Rig, len: u64, step: usize) -> Vec<(Hpa, LeafState)> {
    (0..len)
        .step_by(step)
        .map(|offset| {
            let gpa = rig.gpa(offset);
            let found = rig.table.lookup(gpa).unwrap();
            let Entry::Leaf { hpa, state, .. } = found.entry else { panic!("{gpa:#x}: {}", found.entry) };
            (hpa.checked_add(gpa.raw() - found.at.gpa().raw()).unwrap(), state)
        })
        .collect()
}

/// The same, computed: RAM from `ram` on, in order.
fn straight(ram: u64, len: u64, step: usize, state: LeafState) -> Vec<(Hpa, LeafState)> {
    (0..len).step_by(step).map(|offset| (Rig::hpa(ram + offset), state)).collect()
}

#[test]
fn a_2m_page_is_split_and_merged_back() {
    for config in CONFIGS {
        for accepted in [false, true] {
            let mut rig = Rig::new(config, true);
            rig.link_to(0, M2);
            rig.map(0, 6 * REGION, M2, false).unwrap();
            let at = rig.at(0, M2);
            let state = if accepted { LeafState::Mapped } else { LeafState::Pending };
            if accepted {
                assert!(rig.tee().accept(rig.gpa(0)));
                rig.table.probe(at).unwrap();
            }
            let expect = straight(6 * REGION, REGION, 4096, state);
            assert_eq!(translations(&rig, REGION, 4096), expect);
            let before = rig.pool.outstanding();

            let fence = rig.block_and_fence(at);
            rig.split(at, &fence).unwrap();
            rig.check();
            assert_eq!(translations(&rig, REGION, 4096), expect);
            assert!(!rig.table.lookup(rig.gpa(0)).unwrap().hidden, "the guest may go on at once");
            assert!(rig.tee().leaves().iter().all(|leaf| leaf.at.level() == K4 && !leaf.blocked));
            let cost = FrameNeeds::of(FrameKind::MirrorTable, 1)
                .plus(FrameNeeds::of(FrameKind::TeeTable, 1))
                .plus(FrameNeeds::of(FrameKind::TeeMetadata, 2));
            assert_eq!(rig.pool.outstanding(), before.plus(cost));

            assert_eq!(rig.table.mergeable(at), Ok(()));
            let fence = rig.block_and_fence(at);
            rig.merge(at, &fence).unwrap();
            rig.check();
            assert_eq!(translations(&rig, REGION, 4096), expect);
            assert_eq!(rig.tee().leaves().len(), 1);
            assert_eq!(rig.settle(), cost);
            assert_eq!(rig.pool.outstanding(), before);
            rig.check();
            assert_eq!(rig.tee().refused(), []);
        }
    }
}

/// A 1 GiB page comes only out of a merge: 512 pages of 2 MiB, one of them split and merged on the way.
#[test]
fn a_1g_page_is_made_split_and_made_again() {
    let mut rig = Rig::new(CONFIGS[2], true);
    rig.link_to(0, M2);
    let len = 1 << 30;
    for offset in (0..len).step_by(2 << 20) {
        rig.map(offset, len + offset, M2, false).unwrap();
    }
    let expect = straight(len, len, 1 << 16, LeafState::Pending);
    let at = rig.at(0, G1);
    let before = rig.pool.outstanding();
    let one = |metadata| {
        FrameNeeds::of(FrameKind::MirrorTable, 1)
            .plus(FrameNeeds::of(FrameKind::TeeTable, 1))
            .plus(FrameNeeds::of(FrameKind::TeeMetadata, metadata))
    };
    for _ in 0..2 {
        let fence = rig.block_and_fence(at);
        rig.merge(at, &fence).unwrap();
        assert_eq!(translations(&rig, len, 1 << 16), expect);
        assert_eq!(rig.settle(), one(0));
        assert_eq!(rig.tee().leaves().len(), 1);

        let fence = rig.block_and_fence(at);
        rig.split(at, &fence).unwrap();
        assert_eq!(rig.tee().leaves().len(), 512);
        let inner = rig.at(300 * REGION, M2);
        let fence = rig.block_and_fence(inner);
        rig.split(inner, &fence).unwrap();
        rig.check();
        assert_eq!(translations(&rig, len, 1 << 16), expect);

        let found = rig.table.entry(inner).unwrap();
        let odd = Error::NotUniform { at, child: inner, found };
        assert_eq!(rig.table.mergeable(at), Err(odd));
        let fence = rig.block_and_fence(at);
        rig.refused(odd, |rig| rig.merge(at, &fence));
        rig.table.unblock(at, &fence).unwrap();

        let fence = rig.block_and_fence(inner);
        rig.merge(inner, &fence).unwrap();
        assert_eq!(rig.settle(), one(2));
        assert_eq!(rig.pool.outstanding(), before);
        rig.check();
    }
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn split_refusals() {
    let mut rig = Rig::new(CONFIGS[0], true);
    rig.link_to(0, K4);
    rig.map(0, 0, K4, true).unwrap();
    rig.map(REGION, REGION, M2, false).unwrap();
    let (small, table, at, free) = (rig.at(0, K4), rig.at(0, M2), rig.at(REGION, M2), rig.at(2 * REGION, M2));
    rig.table.block(small).unwrap();
    let fence = rig.fence();
    rig.refused(Error::Level { at: small }, |rig| rig.split(small, &fence));
    rig.refused(Error::NotFenced { at }, |rig| rig.split(at, &fence));
    rig.refused(Error::State { at: free, found: Entry::Free }, |rig| rig.split(free, &fence));
    rig.table.block(table).unwrap();
    rig.table.block(at).unwrap();
    rig.refused(Error::NotFenced { at }, |rig| rig.split(at, &fence)); // blocked after that fence
    let fence = rig.fence();
    let found = rig.table.entry(table).unwrap();
    rig.refused(Error::State { at: table, found }, |rig| rig.split(table, &fence));

    let need = rig.table.table_cost(at, Some(Rig::hpa(REGION)));
    for kind in [FrameKind::MirrorTable, FrameKind::TeeTable, FrameKind::TeeMetadata] {
        let mut short = need;
        short[kind] -= 1;
        rig.stock(short);
        rig.refused(Error::NoFrames { at, need }, |rig| rig.table.split(at, &fence, &mut rig.store));
    }
    rig.stock(need);
    let busy = Error::External { at, error: MockRefusal::Busy };
    rig.tee().fail(MockOp::Split, 1, MockFault::Busy);
    rig.refused(busy, |rig| rig.table.split(at, &fence, &mut rig.store));
    assert!(rig.scrubbed.lock().unwrap().is_empty());

    // The TEE wrote the donated page before it gave up: back to the store only after a write-back and a scrub.
    rig.tee().fail(MockOp::Split, 1, MockFault::BusyAfterWrite);
    rig.refused(busy, |rig| rig.table.split(at, &fence, &mut rig.store));
    let page = rig.store.get(FrameKind::TeeTable).unwrap();
    assert_eq!(*rig.scrubbed.lock().unwrap(), [(page.hpa(), K4)]);
    assert_eq!(rig.tee().written_back(), [(page.hpa(), K4, CacheKey::Guest)]);
    rig.store.put(FrameKind::TeeTable, page).unwrap();

    let above = rig.at(REGION, G1);
    rig.table.block(above).unwrap();
    rig.refused(Error::Hidden { at, stop: above }, |rig| rig.table.split(at, &fence, &mut rig.store));
    assert_eq!(rig.tee().refused(), []);
}

/// Blocks the table at `at`, tries to merge it, and shows it again.
fn not_uniform(rig: &mut Rig, at: GpaEntry, index: u16) {
    let child = at.child(index).unwrap();
    let found = rig.table.entry(child).unwrap();
    let odd = Error::NotUniform { at, child, found };
    assert_eq!(rig.table.mergeable(at), Err(odd));
    let fence = rig.block_and_fence(at);
    rig.refused(odd, |rig| rig.merge(at, &fence));
    rig.table.unblock(at, &fence).unwrap();
}

#[test]
fn merge_names_the_first_child_that_does_not_fit() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.map_region(0, 0);
    let at = rig.at(0, M2);
    let page = |index: u16| u64::from(index) << 12;

    for index in [0, 1, 255, 511] {
        let child = rig.at(page(index), K4);
        let fence = rig.block_and_fence(child);
        not_uniform(&mut rig, at, index); // blocked
        rig.remove(child, &fence).unwrap();
        not_uniform(&mut rig, at, index); // free
        if index != 0 {
            rig.map(page(index), 3 * REGION, K4, true).unwrap();
            not_uniform(&mut rig, at, index); // of other memory
            let fence = rig.block_and_fence(child);
            rig.remove(child, &fence).unwrap();
        }
        rig.map(page(index), page(index), K4, false).unwrap();
        not_uniform(&mut rig, at, index.max(1)); // not known to be accepted, unlike the others
        assert!(rig.tee().accept(rig.gpa(page(index))));
        rig.table.probe(child).unwrap();
        assert_eq!(rig.table.mergeable(at), Ok(()));
    }
    assert_eq!(rig.tee().calls(MockOp::Merge), 0);
    let fence = rig.block_and_fence(at);
    rig.tee().fail(MockOp::Merge, 1, MockFault::Busy);
    rig.refused(Error::External { at, error: MockRefusal::Busy }, |rig| rig.merge(at, &fence));
    rig.merge(at, &fence).unwrap();
    rig.check();
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn merge_needs_aligned_memory() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.map_region(0, 4096); // contiguous, but shifted by a page
    let at = rig.at(0, M2);
    not_uniform(&mut rig, at, 0);
}

/// The metadata pages behind a table describe one piece of memory; the TEE would return those of another.
#[test]
fn merge_needs_the_memory_that_the_metadata_describes() {
    let mut rig = Rig::new(CONFIGS[0], true);
    rig.link_to(0, M2);
    let at = rig.at(0, M2);
    rig.link(at, Some(Rig::hpa(REGION))).unwrap();
    rig.map_region(0, 2 * REGION);
    not_uniform(&mut rig, at, 0);
    assert_eq!(rig.tee().calls(MockOp::Merge), 0);
}

/// The host does not know that the guest accepted some of the pages; the TEE does, and refuses.
#[test]
fn merge_that_only_the_tee_can_refuse_changes_nothing() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, K4);
    for page in 0..512 {
        rig.map(page << 12, page << 12, K4, false).unwrap();
    }
    let at = rig.at(0, M2);
    assert!(rig.tee().accept(rig.gpa(77 << 12)));
    assert_eq!(rig.table.mergeable(at), Ok(()));
    let fence = rig.block_and_fence(at);
    rig.refused(Error::External { at, error: MockRefusal::NotUniform }, |rig| rig.merge(at, &fence));
    rig.table.unblock(at, &fence).unwrap();
    rig.check();
}

#[test]
fn merge_refuses_what_is_no_table_or_too_large() {
    let mut rig = Rig::new(CONFIGS[1], false);
    rig.link_to(0, M2);
    rig.map(0, 0, M2, false).unwrap();
    let (page, free) = (rig.at(0, M2), rig.at(REGION, M2));
    let fence = rig.block_and_fence(page);
    let found = rig.table.entry(page).unwrap();
    rig.refused(Error::State { at: page, found }, |rig| rig.merge(page, &fence));
    rig.refused(Error::State { at: free, found: Entry::Free }, |rig| rig.merge(free, &fence));
    for level in [Level::L512G, Level::L256T] {
        let at = rig.at(0, level);
        let fence = rig.block_and_fence(at);
        rig.refused(Error::Level { at }, |rig| rig.merge(at, &fence));
        assert_eq!(rig.table.mergeable(at), Err(Error::Level { at }));
        rig.table.unblock(at, &fence).unwrap();
    }
    let outside = GpaEntry::containing(Gpa::new(1 << 47).unwrap(), M2);
    let error = Error::OutOfRange { gpa: outside.gpa() };
    rig.refused(error, |rig| rig.table.merge(outside, &fence, &mut rig.owed));
    assert!(rig.owed.is_empty());
}

/// A pass of one call each comes to the end all the same, and asks about every page once.
#[test]
fn a_probing_pass_with_the_smallest_budget_comes_further() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, K4);
    for page in (0..2 << 20).step_by(4096) {
        rig.map(page, page, K4, false).unwrap();
        assert!(rig.tee().accept(rig.gpa(page)));
    }
    let (mut next, mut asked, mut ready) = (Some(rig.gpa(0)), 0, 0);
    for _ in 0..2 * 512 {
        let Some(from) = next else { break };
        let pass = rig.table.probe_candidates(rig.window(), M2, from, 1).unwrap();
        assert!(pass.asked <= 1);
        (next, asked, ready) = (pass.next, asked + pass.asked, ready + pass.ready);
    }
    assert_eq!((next, asked, ready), (None, 512, 1));
    // Nothing may be asked for nothing.
    let pass = rig.table.probe_candidates(rig.window(), M2, rig.gpa(0), 0).unwrap();
    assert_eq!((pass.next, pass.asked), (Some(rig.gpa(0)), 0));
}
