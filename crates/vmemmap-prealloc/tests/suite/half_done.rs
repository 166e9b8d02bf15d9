//! Merges whose second round never comes.

use crate::{
    commits::state,
    common::{Host, Rng, Store, block, geometry},
};
use folio_split::{Empty, OrderSet, PageSet, Transition};
use sept_core::FrameStore;
use vmemmap_prealloc::{Atom, Commit, Round, TailScheme, VmemmapNeeds, optimize, restore};

/// The second round never comes: the next split finds pages of its own where it brings some, and where its first piece
/// has tails. It gives them all up, also if it is cancelled.
#[test]
fn a_merge_left_half_done() {
    let name = block(12);
    for (at, reserved) in [(700, 1), (3000, 1), (100, 1), (700, 2), (3000, 2)] {
        for cancelled in [false, true] {
            let host = Host::new(geometry(TailScheme::SharedWithHead, reserved), OrderSet::ALL, &[name]);
            let Host { model, pool } = &host;
            let start = state(&host);
            host.carry_out(&Transition::new(name, OrderSet::ALL, Empty, 700..703));
            let merge = Transition::new(name, OrderSet::ALL, 700..703, Empty);
            let mut held = host.reserve(&merge).2;
            let mut atoms = [Atom::merge(merge.by_ref(), name)];
            let thawed = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
            assert_eq!(thawed.finish().keep(pool).released, 0);
            let _ = held.release(model, pool);
            let left = model.counters().vmemmap_pages - start.0.vmemmap_pages;
            let again = Transition::new(name, OrderSet::ALL, Empty, at..at + 3);
            let (_, needs, mut held) = host.reserve(&again);
            let mut atoms = [Atom::split(again.by_ref(), name)];
            let remapped = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
            let thawed = if cancelled { remapped.cancel() } else { remapped.finish() };
            let mut released = thawed.release(pool).released;
            if cancelled {
                assert_eq!(atoms[0].round(), Round::Second);
                let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
                released += commit.cancel().release(pool).released;
            }
            let _ = held.release(model, pool);
            if cancelled {
                assert_eq!(released, needs.fresh + left);
                host.check(&again.from_layout());
            } else {
                assert_eq!(released, left);
                host.check(&again.to_layout());
                host.carry_out(&again.reversed());
            }
            assert_eq!(state(&host), start, "{at} {reserved} {cancelled}");
        }
    }
}

/// The whole vmemmap comes back from what was planned, and what the merge has left is given up beside it.
#[test]
fn half_done_and_restored() {
    let name = block(12);
    let host = Host::new(geometry(TailScheme::SharedWithHead, 1), OrderSet::ALL, &[name]);
    let Host { model, pool } = &host;
    let start = state(&host);
    host.carry_out(&Transition::new(name, OrderSet::ALL, Empty, 700..703));
    let merge = Transition::new(name, OrderSet::ALL, 700..703, Empty);
    assert_eq!(commit(&host, &merge, false), 1);
    let left = model.counters().vmemmap_pages - start.0.vmemmap_pages;
    let whole = merge.to_layout();
    let needs = VmemmapNeeds::to_restore(model, &whole);
    let mut store = Store::default();
    store.fill(&needs.frames(), name.base().hpa(), pool).unwrap();
    assert_eq!(restore(model, model, &whole, 1, &mut store).unwrap().vmemmap.fresh, needs.fresh);
    host.check(&whole);
    assert_eq!((left, host.collect(name)), (6, 6));
    assert_eq!(optimize(model, model, &whole, 1, pool).unwrap().released, needs.fresh);
    host.check(&whole);
    assert_eq!(state(&host), start);
}

/// One commit for all, and a second one if it is to be completed.
fn commit<A: PageSet, B: PageSet>(host: &Host, t: &Transition<A, B>, complete: bool) -> usize {
    let Host { model, pool } = host;
    let mut held = host.reserve(t).2;
    let mut atoms: Vec<_> = t.changes(0..u64::MAX).map(|change| Atom::new(t.by_ref(), change)).collect();
    for _ in 0..if complete { 2 } else { 1 } {
        let remapped = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap().remap().unwrap();
        let _ = remapped.finish().release(pool);
        model.check_readers(t.block()).unwrap();
        model.check_host().unwrap();
    }
    let _ = held.release(model, pool);
    atoms.iter().filter(|atom| atom.round() == Round::Second).count()
}

/// Any number of them, in any layout, with other transitions between: every page that they left comes back at the latest when
/// the block was split and merged once more.
#[test]
fn half_done_again_and_again() {
    let mut left = 0;
    for seed in 1..60 {
        let (mut rng, name) = (Rng(seed), block(11));
        let orders = [OrderSet::ALL, OrderSet::from_bits(0b1011_1000_1001).unwrap()][rng.next(2) as usize];
        let host = Host::new(geometry(TailScheme::SharedWithHead, 1 + rng.next(2)), orders, &[name]);
        let start = state(&host);
        let mut now = Vec::new();
        for _ in 0..8 {
            let next = rng.runs(3, 1 << 11, 100);
            let t = Transition::new(name, orders, now.as_slice(), next.as_slice());
            left += commit(&host, &t, rng.next(2) == 0);
            now = next;
        }
        for (from, to) in [(now.as_slice(), &[][..]), (&[], &[0..1, 1100..1101]), (&[0..1, 1100..1101], &[])]
        {
            commit(&host, &Transition::new(name, orders, from, to), true);
        }
        host.check(&Transition::new(name, orders, Empty, Empty).to_layout());
        assert_eq!(state(&host), start, "seed {seed}");
        assert!(host.pool.faults().is_empty());
    }
    assert!(left > 100);
}
