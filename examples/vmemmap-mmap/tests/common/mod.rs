//! Blocks that are optimized, and transitions carried out with retries.
#![allow(dead_code, reason = "not every test file uses all of it")]

use folio_split::{Empty, FolioLayout, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition};
use sept_core::test_util::VecStore;
use vmemmap_mmap::{Frozen, MmapHost};
use vmemmap_prealloc::{
    Atom, AtomDone, AtomError, Commit, Reservation, Round, TailScheme, VmemmapNeeds, install_templates,
    optimize,
};

pub(crate) type Held = Reservation<VecStore, ()>;

pub(crate) const SCHEMES: [TailScheme; 2] = [TailScheme::PerOrder, TailScheme::SharedWithHead];

pub(crate) fn block(order: u8, number: u64) -> PfnBlock {
    PfnBlock::new(Pfn::new((8 + number) << order).unwrap(), Order::new(order).unwrap()).unwrap()
}

/// A host with `blocks` optimized blocks of `order`.
pub(crate) fn host(order: u8, blocks: u64, orders: OrderSet, tails: TailScheme) -> MmapHost {
    let spare = 64 + blocks * (1 << (order - 6));
    let host = MmapHost::new(block(order, 0), blocks, spare, tails).unwrap();
    install_templates(&host, block(order, 0), orders, &host).unwrap();
    for block in (0..blocks).map(|number| block(order, number)) {
        let layout = FolioLayout::new(block, orders, Empty);
        optimize(&host, &host, &layout, 1, &host).unwrap();
        host.check(&layout).unwrap();
    }
    host
}

/// A reservation for one transition.
pub(crate) fn reserve<A: PageSet, B: PageSet>(host: &MmapHost, t: &Transition<A, B>) -> (VmemmapNeeds, Held) {
    let needs = VmemmapNeeds::plan(host, t, &t.counts());
    let mut held = Held::new(t.block(), needs.node, VecStore::default());
    held.fill(host, &needs, 0, host).unwrap();
    (needs, held)
}

/// Carries out some atoms in one commit, or two with a grace period between them; what merges give up stays in the
/// reservation. `pinned` is told of each time that
/// somebody's reference was in the way, and it is tried again.
pub(crate) fn commit<A: PageSet, B: PageSet>(
    host: &MmapHost,
    atoms: &mut [Atom<A, B, Frozen>],
    held: &mut Held,
    pinned: &mut dyn FnMut(),
) -> AtomDone {
    let mut sum = AtomDone::default();
    while atoms.iter().any(|atom| atom.round() != Round::Done) {
        let done = match Commit::freeze(host, host, atoms, held.lend(), 4) {
            Ok(commit) => commit.remap().unwrap().finish().keep(host),
            Err(refused) => {
                assert!(matches!(refused.error, AtomError::Pinned(_)), "{refused}");
                pinned();
                continue;
            }
        };
        host.grace_period();
        sum.vmemmap.fresh += done.vmemmap.fresh;
        sum.vmemmap.rewrites += done.vmemmap.rewrites;
        sum.released += done.released;
        sum.flushes += done.flushes;
    }
    sum
}

/// Plans, reserves and carries out, each change by itself.
pub(crate) fn carry_out<A: PageSet, B: PageSet>(
    host: &MmapHost,
    t: &Transition<A, B>,
    mut pinned: impl FnMut(),
) -> VmemmapNeeds {
    let (needs, mut held) = reserve(host, t);
    let mut sum = [0; 3];
    for change in t.changes(0..t.block().pages()) {
        let done = commit(host, &mut [Atom::new(t.by_ref(), change)], &mut held, &mut pinned);
        let each = [done.vmemmap.fresh, done.vmemmap.rewrites, done.released];
        sum.iter_mut().zip(each).for_each(|(sum, each)| *sum += each);
    }
    assert_eq!(held.pages_left(), needs.released, "pages planned and not used");
    let _ = held.release(host, host);
    assert_eq!(sum, [needs.fresh, needs.rewrites, needs.released]);
    needs
}
