//! Several atoms under one freeze; cancelling and undoing, whatever was done.

use crate::common::{Held, Host, Rng, SCHEMES, Store, block, geometry};
use core::ops::Range;
use folio_split::{
    Change, CommitError, Empty, FolioBackend, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition,
};
use sept_core::{Class, Classify, FrameKind, FrameNeeds, FrameStore};
use vmemmap_prealloc::{
    ApplyError, Atom, AtomDone, AtomError, Commit, Geometry, NumaNode, Reserved, Round, TailScheme,
    VmemmapBackend, VmemmapNeeds,
    model::{Counters, Frozen},
};

type Runs = Vec<Range<u64>>;

/// Numbers that must be the same before and after something that was undone.
pub(crate) fn state(host: &Host) -> (Counters, FrameNeeds) {
    (host.model.counters().in_use(), host.pool.outstanding())
}

fn atoms<A: PageSet, B: PageSet>(t: &Transition<A, B>) -> Vec<Atom<&A, &B, Frozen>> {
    t.changes(0..u64::MAX).map(|change| Atom::new(t.by_ref(), change)).collect()
}

/// Blocks that are split and blocks that are merged, one plan, one reservation, one flush.
#[test]
fn one_flush_for_several_blocks() {
    let blocks: Vec<_> = (0..6)
        .map(|i| PfnBlock::new(Pfn::new((8 + i) << 12).unwrap(), Order::new(12).unwrap()).unwrap())
        .collect();
    for tails in SCHEMES {
        let host = Host::new(geometry(tails, 1), OrderSet::ALL, &blocks);
        let Host { model, pool } = &host;
        let sets: Vec<Runs> = (0..6).map(|i| vec![i * 500..i * 500 + 3]).collect();
        for (&block, set) in blocks.iter().zip(&sets).skip(3) {
            host.carry_out(&Transition::new(block, OrderSet::ALL, Empty, set.as_slice()));
        }
        let none: Runs = Vec::new();
        let way = |i: usize| if i < 3 { (&none, &sets[i]) } else { (&sets[i], &none) };
        let ts: Vec<_> = (0..6)
            .map(|i| Transition::new(blocks[i], OrderSet::ALL, way(i).0.as_slice(), way(i).1.as_slice()))
            .collect();
        let (mut needs, mut nodes) = (VmemmapNeeds::default(), 0);
        for t in &ts {
            let counts = t.counts();
            needs = needs.plus(VmemmapNeeds::plan(model, t, &counts)).unwrap();
            nodes += counts.delta(model.index()).needed;
        }
        assert_eq!(needs.flushes, 6);
        let mut held = Held::new(blocks[0], needs.node, Store::default());
        held.fill(model, &needs, nodes, pool).unwrap();
        host.dry(true);
        let mut atoms: Vec<_> = ts.iter().flat_map(atoms).collect();
        assert_eq!(atoms.len(), 6);
        // Somebody holds a page of one of the blocks: none of them changes.
        let same = || ts.iter().for_each(|t| host.check(&t.from_layout()));
        for (position, (block, set)) in blocks.iter().zip(&sets).enumerate() {
            let page = Pfn::new(block.base().raw() + set[0].start + 1).unwrap();
            assert!(model.pin(page));
            let before = model.counters();
            let refused = Commit::freeze(model, model, &mut atoms, held.lend(), 3).unwrap_err();
            assert_eq!(refused.position, position);
            assert!(matches!(refused.error, AtomError::Pinned(_)), "{refused}");
            assert_eq!(model.counters(), before);
            assert!(model.unpin(page));
            same();
        }
        // The reservation has fewer pages than it says: those that were mapped come back by block, and the nodes stay.
        let before = (state(&host), held.nodes_left(model));
        for have in 0..needs.fresh {
            let mut store = Store { lies: (needs.fresh - have) as u32, ..Store::default() };
            for _ in 0..have {
                let frame = held.lend().pages.get(FrameKind::Vmemmap).unwrap();
                store.put(FrameKind::Vmemmap, frame).unwrap();
            }
            let reserved = Reserved { pages: &mut store, nodes: held.lend().nodes };
            let commit = Commit::freeze(model, model, &mut atoms, reserved, 1).unwrap();
            let refused = commit.remap().map(drop).unwrap_err();
            assert!(matches!(refused.error, AtomError::Vmemmap(ApplyError::BrokenStore { .. })), "{refused}");
            if atoms.iter().any(|atom| atom.round() == Round::Second) {
                host.cancel(&mut atoms, &mut held, false, &mut AtomDone::default());
            }
            let flushed = model.flush();
            for frame in blocks.iter().flat_map(|&block| {
                core::iter::from_fn(|| model.take_replaced(block, &flushed)).collect::<Vec<_>>()
            }) {
                held.lend().pages.put(FrameKind::Vmemmap, frame).unwrap();
            }
            assert_eq!((state(&host), held.nodes_left(model)), before);
            assert_eq!(held.pages_left(), needs.fresh);
            same();
        }
        let mut done = AtomDone::default();
        host.commit(&mut atoms, &mut held, &mut done);
        host.dry(false);
        // One for each round.
        assert_eq!(done.flushes, 1 + u32::from(needs.grace_period));
        assert_eq!((done.vmemmap.fresh, done.released), (needs.fresh, needs.released));
        assert_eq!(done.vmemmap.rewrites, needs.rewrites);
        let _ = held.release(model, pool);
        ts.iter().for_each(|t| host.check(&t.to_layout()));
    }
}

/// A few splits and merges at once, for each scheme.
fn mixtures(mut each: impl FnMut(&Host, &Runs, &Runs)) {
    let some = OrderSet::from_bits(0b101_1000_1001).unwrap();
    for (seed, (tails, orders)) in
        (1..).zip(SCHEMES.into_iter().flat_map(|tails| [(tails, OrderSet::ALL), (tails, some)]))
    {
        let mut rng = Rng(seed);
        for reserved in 1..3 {
            let host = Host::new(geometry(tails, reserved), orders, &[block(11)]);
            let mut now = Vec::new();
            for _ in 0..5 {
                let next = rng.runs(4, 1 << 11, 150);
                each(&host, &now, &next);
                host.carry_out_together(&Transition::new(block(11), orders, now.as_slice(), next.as_slice()));
                now = next;
            }
        }
    }
}

/// After the freeze, and after the entries were written: as before, and everything is in the reservation again.
#[test]
fn a_commit_is_cancelled_at_every_point() {
    let mut cancelled = 0;
    mixtures(|host, now, next| {
        let t = Transition::new(block(11), host.model.orders(), now.as_slice(), next.as_slice());
        let (_, needs, mut held) = host.reserve(&t);
        host.dry(true);
        let (before, nodes) = (state(host), held.nodes_left(&host.model));
        let mut atoms = atoms(&t);
        for remap in [false, true, true] {
            let mut done = AtomDone::default();
            let waited = host.cancel(&mut atoms, &mut held, remap, &mut done);
            let shared = host.model.geometry().tails() == TailScheme::SharedWithHead;
            assert_eq!(waited, remap && shared && needs.fresh > 0);
            assert_eq!(done.released, if remap { needs.fresh } else { 0 });
            assert_eq!(done.vmemmap.fresh, done.vmemmap.replaced);
            assert_eq!(done.nodes_used, done.nodes_freed);
            assert!(atoms.iter().all(|atom| atom.round() == Round::First));
            assert_eq!((state(host), held.nodes_left(&host.model)), (before, nodes));
            assert_eq!(held.pages_left(), needs.fresh);
            host.check(&t.from_layout());
            cancelled += u64::from(!atoms.is_empty());
        }
        // And the same atoms can still be carried out, and undone.
        host.commit(&mut atoms, &mut held, &mut AtomDone::default());
        host.check(&t.to_layout());
        let back = t.reversed();
        let mut undo: Vec<_> =
            back.changes(0..u64::MAX).map(|change| Atom::new(back.by_ref(), change)).collect();
        host.commit(&mut undo, &mut held, &mut AtomDone::default());
        assert_eq!((state(host), held.nodes_left(&host.model)), (before, nodes));
        host.dry(false);
        let _ = held.release(&host.model, &host.pool);
        host.check(&t.from_layout());
    });
    assert!(cancelled > 50);
}

/// However many changes of a plan were made, and in whatever order: they can be unmade when there is no memory at all.
#[test]
fn every_part_of_a_plan_is_undone_without_memory() {
    let mut merges = 0;
    mixtures(|host, now, next| {
        let t = Transition::new(block(11), host.model.orders(), now.as_slice(), next.as_slice());
        let back = t.reversed();
        // Splits first; then the first merge, the second, and so on.
        let mut changes: Vec<_> = t.changes(0..u64::MAX).collect();
        changes.sort_by_key(|change| matches!(change, Change::Merge(_)));
        merges += changes.iter().filter(|change| matches!(change, Change::Merge(_))).count();
        let (_, needs, mut held) = host.reserve(&t);
        host.dry(true);
        let (before, nodes) = (state(host), held.nodes_left(&host.model));
        for done in 0..=changes.len() {
            let part = &changes[..done];
            for &change in part {
                host.commit(&mut [Atom::new(t.by_ref(), change)], &mut held, &mut AtomDone::default());
            }
            for change in part.iter().map(|change| change.reversed()).rev() {
                host.commit(&mut [Atom::new(back.by_ref(), change)], &mut held, &mut AtomDone::default());
            }
            assert_eq!((state(host), held.nodes_left(&host.model)), (before, nodes));
            assert_eq!(held.pages_left(), needs.fresh);
            host.check(&t.from_layout());
        }
        host.dry(false);
        let _ = held.release(&host.model, &host.pool);
    });
    assert!(merges > 20);
}

/// Where tails are shared with the head, the folios become one first, and their pages are shared after a grace period.
#[test]
fn a_merge_in_two_rounds() {
    let split = |name| {
        let host = Host::new(geometry(TailScheme::SharedWithHead, 1), OrderSet::ALL, &[name]);
        host.carry_out(&Transition::new(name, OrderSet::ALL, Empty, 700..703));
        host
    };
    let name = block(12);
    let merge = Transition::new(name, OrderSet::ALL, 700..703, Empty);
    let first = |host: &Host, held: &mut Held, atoms: &mut [Atom<_, _, _>]| {
        let (model, before) = (&host.model, host.model.counters());
        let thawed = Commit::freeze(model, model, atoms, held.lend(), 1).unwrap().remap().unwrap().finish();
        assert_eq!(thawed.waits(), 1);
        assert_eq!(thawed.keep(&host.pool).vmemmap.entry_writes(), 0);
        // One folio, for the index and for readers; every page of the vmemmap is still there.
        assert_eq!(model.index_entry(Pfn::new(name.base().raw() + 701).unwrap()), Some(name));
        assert_eq!(model.head_of(Pfn::new(name.base().raw() + 701).unwrap()), Some(name.base()));
        model.check_readers(name).unwrap();
        let after = model.counters();
        assert_eq!((after.vmemmap_pages, after.flushes), (before.vmemmap_pages, before.flushes));
    };
    let second = |host: &Host, held: &mut Held, atoms: &mut [Atom<_, _, _>]| {
        let mut done = AtomDone::default();
        host.commit(atoms, held, &mut done);
        assert_eq!((done.flushes, done.released, done.nodes_freed), (1, 6, 0));
        host.check(&merge.to_layout());
    };

    let host = split(name);
    let Host { model, pool } = &host;
    let (_, needs, mut held) = host.reserve(&merge);
    assert!(needs.grace_period);
    let mut atoms = [Atom::merge(merge.by_ref(), name)];
    let before = state(&host);
    // Cancelled before, in, and after the first round; and in the second.
    for stage in 0..4 {
        if stage >= 2 {
            first(&host, &mut held, &mut atoms);
        }
        let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
        let thawed = if stage % 2 == 0 { commit.cancel() } else { commit.remap().unwrap().cancel() };
        let _ = thawed.keep(pool);
        assert_eq!(atoms[0].round(), Round::First, "{stage}");
        assert_eq!(held.nodes_left(model), 0, "{stage}");
        assert_eq!(state(&host), before, "{stage}");
        host.check(&merge.from_layout());
    }
    // The nodes of the first round have to be there, or the second could not be undone.
    first(&host, &mut held, &mut atoms);
    let mut other = Held::new(name, held.node(), Store::default());
    let refused = Commit::freeze(model, model, &mut atoms, other.lend(), 1).unwrap_err();
    let nodes = CommitError::Nodes { whole: name, need: held.nodes_left(model), have: 0 };
    assert_eq!(refused.error, AtomError::Index(nodes));
    let _ = other.release(model, pool);
    // A reader takes the folio between the rounds: later, then.
    let page = Pfn::new(name.base().raw() + 3000).unwrap();
    assert!(model.pin(page));
    let refused = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap_err();
    assert!(matches!(refused.error, AtomError::Pinned(_)));
    assert!(model.unpin(page));
    second(&host, &mut held, &mut atoms);
    let _ = held.release(model, pool);
}

/// Where tails are shared with the head, a split that was cancelled keeps its pages for a grace period. Whatever comes then,
/// another cancel or a commit, ends that and no more; the split itself can be made afterwards.
#[test]
fn the_cancel_of_a_split_in_two_rounds() {
    let name = block(12);
    let t = Transition::new(name, OrderSet::ALL, Empty, 700..703);
    for end in 0..3 {
        let host = Host::new(geometry(TailScheme::SharedWithHead, 1), OrderSet::ALL, &[name]);
        let Host { model, pool } = &host;
        let (_, needs, mut held) = host.reserve(&t);
        let (before, nodes) = (state(&host), held.nodes_left(model));
        let mut atoms = [Atom::split(t.by_ref(), name)];
        let remapped = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
        let thawed = remapped.cancel();
        assert_eq!(thawed.waits(), 1);
        assert_eq!(thawed.keep(pool).released, 0);
        // One folio, for the index and for readers; every page that was mapped is still there.
        let page = Pfn::new(name.base().raw() + 3000).unwrap();
        assert_eq!((model.index_entry(page), model.head_of(page)), (Some(name), Some(name.base())));
        model.check_readers(name).unwrap();
        assert_eq!(model.counters().vmemmap_pages - before.0.vmemmap_pages, needs.fresh);
        assert_eq!((held.pages_left(), held.nodes_left(model)), (0, nodes));
        // A reader has the folio: later, then.
        assert!(model.pin(page));
        assert!(Commit::freeze(model, model, &mut atoms, held.lend(), 1).is_err());
        assert!(model.unpin(page));
        assert_eq!(atoms[0].round(), Round::Second);
        let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
        let thawed = match end {
            0 => commit.cancel(),
            1 => commit.remap().unwrap().cancel(),
            _ => commit.remap().unwrap().finish(),
        };
        assert_eq!(thawed.waits(), 0);
        let done = thawed.keep(pool);
        assert_eq!((done.flushes, done.released, done.vmemmap.replaced), (1, needs.fresh, needs.fresh));
        assert_eq!(atoms[0].round(), Round::First);
        assert_eq!((state(&host), held.pages_left(), held.nodes_left(model)), (before, needs.fresh, nodes));
        host.check(&t.from_layout());
        host.commit(&mut atoms, &mut held, &mut AtomDone::default());
        host.check(&t.to_layout());
        let _ = held.release(model, pool);
    }
}

/// Two blocks between their rounds, and a reader that holds the second of them.
#[test]
fn a_refused_second_round_changes_nothing() {
    let blocks = [5, 6].map(|i| PfnBlock::new(Pfn::new(i << 12).unwrap(), Order::new(12).unwrap()).unwrap());
    let host = Host::new(geometry(TailScheme::SharedWithHead, 1), OrderSet::ALL, &blocks);
    let Host { model, pool } = &host;
    let ts = blocks.map(|block| Transition::new(block, OrderSet::ALL, 700..703, Empty));
    let mut held = Held::new(blocks[0], NumaNode::default(), Store::default());
    for t in &ts {
        host.carry_out(&t.reversed());
    }
    let mut atoms = ts.each_ref().map(|t| Atom::merge(t.by_ref(), t.block()));
    let thawed = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap().remap().unwrap().finish();
    assert_eq!(thawed.waits(), 2);
    let _ = thawed.keep(pool);
    let page = Pfn::new(blocks[1].base().raw() + 9).unwrap();
    assert!(model.pin(page));
    let before = (state(&host), held.nodes_left(model));
    let refused = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap_err();
    assert_eq!(refused.position, 1);
    assert_eq!((state(&host), held.nodes_left(model)), before);
    assert!(atoms.iter().all(|atom| atom.round() == Round::Second));
    assert_eq!(model.index_entry(blocks[0].base()), Some(blocks[0]));
    assert!(model.unpin(page));
    host.commit(&mut atoms, &mut held, &mut AtomDone::default());
    ts.iter().for_each(|t| host.check(&t.to_layout()));
    let _ = held.release(model, pool);
}

/// Atoms that are done are passed over, and a dropped batch has changed nothing.
#[test]
fn atoms_are_carried_out_once() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(10)]);
    let t = Transition::new(block(10), OrderSet::ALL, Empty, 3..4);
    let (_, _, mut held) = host.reserve(&t);
    let mut atoms = atoms(&t);
    host.commit(&mut atoms, &mut held, &mut AtomDone::default());
    let before = host.model.counters();
    let again = Commit::freeze(&host.model, &host.model, &mut atoms, held.lend(), 1).unwrap();
    let done = again.remap().unwrap().finish().release(&host.pool);
    assert_eq!((done, host.model.counters()), (AtomDone::default(), before));
    let _ = held.release(&host.model, &host.pool);
    host.check(&t.to_layout());
    // A plain block takes part without vmemmap.
    host.model.add_plain_block(block(9));
    let t = Transition::new(block(9), OrderSet::ALL, Empty, 3..4);
    assert_eq!(host.carry_out_together(&t).flushes, 0);
    assert_eq!(host.model.nodes_left(&Default::default()), 0);
}

/// What a dropped commit has frozen stays frozen, and its atoms are refused: nobody can tell what they were about to undo.
#[test]
fn a_dropped_commit_is_not_gone_on_with() {
    for remap in [false, true] {
        let host = Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(10), block(11)]);
        let Host { model, pool } = &host;
        let t = Transition::new(block(10), OrderSet::ALL, Empty, 3..4);
        let other = Transition::new(block(11), OrderSet::ALL, Empty, 9..10);
        let mut held = host.reserve(&t).2;
        let mut atoms = [Atom::split(t.by_ref(), block(10))];
        let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
        if remap {
            drop(commit.remap().unwrap());
        } else {
            drop(commit);
        }
        assert!(!model.pin(block(10).base()));
        let before = (state(&host), held.pages_left());
        let refused = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap_err();
        assert_eq!(refused.error, AtomError::Dropped { whole: block(10) });
        assert_eq!(refused.class(), Class::Fatal);
        assert_eq!((state(&host), held.pages_left()), before);
        assert!(!model.pin(block(10).base()));
        model.check_readers(block(10)).unwrap();
        // Other blocks go on.
        let (_, _, mut held_there) = host.reserve(&other);
        host.commit(&mut [Atom::split(other.by_ref(), block(11))], &mut held_there, &mut AtomDone::default());
        let _ = held_there.release(model, pool);
        host.check(&other.to_layout());
        let _ = held.release(model, pool);
    }
}
