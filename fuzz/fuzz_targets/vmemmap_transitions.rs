//! Arbitrary sequences of splits, merges, cancellations, undoings and shortages on the model host, which checks every read.
#![no_main]

use arbitrary::Arbitrary;
use folio_split::{Change, Empty, FolioBackend, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition};
use libfuzzer_sys::fuzz_target;
use sept_core::{
    FrameNeeds, Hpa,
    test_util::{FramePool, VecStore},
};
use std::ops::Range;
use vmemmap_prealloc::{
    Atom, AtomDone, AtomError, Commit, Geometry, Reservation, Round, TailScheme, VmemmapBackend,
    VmemmapNeeds, install_templates,
    model::{Frozen, HostModel, Nodes},
    optimize, restore,
};

#[derive(Arbitrary, Debug)]
struct Input {
    order: u8,
    orders: u64,
    reserved: u8,
    tails: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// To another layout, so many changes to a commit; a reader pins a page meanwhile. Some of the changes are cancelled
    /// first, some are undone and made again.
    Change { runs: Vec<(u16, u8)>, pin: Option<u16>, size: u8, cancel: u8, undo: u8 },
    /// Only so many pages are to be had.
    Short { runs: Vec<(u16, u8)>, pages: u8 },
    /// Every page of the vmemmap back, and the optimization again.
    Restore,
}

fn set(runs: &[(u16, u8)], pages: u64) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut runs: Vec<_> =
        runs.iter().take(8).map(|&(start, len)| (u64::from(start) % pages, u64::from(len))).collect();
    runs.sort_unstable();
    for (start, len) in runs {
        let end = (start + len + 1).min(pages);
        match out.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => out.push(start..end),
        }
    }
    out
}

fuzz_target!(|input: Input| {
    let order = input.order % 13;
    let pages = 1 << order;
    let orders = OrderSet::from_bits(input.orders & OrderSet::ALL.bits() | 1).unwrap();
    let tails = [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead];
    // 64 bytes, and others.
    let size = 64 << (input.tails / 3 % 4) >> (input.tails / 12 % 2);
    let geometry =
        Geometry::new(size, 4096, u64::from(input.reserved % 3) + 1, tails[usize::from(input.tails % 3)])
            .unwrap();
    let block = PfnBlock::new(Pfn::new(3 << order).unwrap(), Order::new(order).unwrap()).unwrap();
    let pool = FramePool::new(Hpa::new(1 << 30).unwrap(), 1 << 12);
    let model = HostModel::new(geometry, orders);
    install_templates(&model, block, orders, &pool).unwrap();
    model.add_block(block, &pool).unwrap();
    let host = Host { model, pool };
    let start = host.state();
    let mut now: Vec<Range<u64>> = Vec::new();
    for step in input.steps.iter().take(12) {
        match step {
            Step::Change { runs, pin, size, cancel, undo } => {
                let next = set(runs, pages);
                let pin = pin.and_then(|page| Pfn::new(block.base().raw() + u64::from(page) % pages));
                let t = Transition::new(block, orders, now.as_slice(), next.as_slice());
                host.change(&t, pin, [*size, *cancel, *undo].map(usize::from));
                now = next;
            }
            Step::Short { runs, pages: left } => {
                let next = set(runs, pages);
                host.short(
                    &Transition::new(block, orders, now.as_slice(), next.as_slice()),
                    u64::from(*left),
                );
            }
            Step::Restore => host.again(&Transition::new(block, orders, now.as_slice(), Empty)),
        }
        host.check(&Transition::new(block, orders, now.as_slice(), Empty));
    }
    host.change(&Transition::new(block, orders, now.as_slice(), Empty), None, [0; 3]);
    assert_eq!(host.state(), start);
    assert!(host.pool.faults().is_empty());
});

struct Host {
    model: HostModel,
    pool: FramePool,
}

impl Host {
    fn state(&self) -> (vmemmap_prealloc::model::Counters, FrameNeeds) {
        (self.model.counters().in_use(), self.pool.outstanding())
    }

    /// The layout before the transition.
    fn check<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>) {
        self.model.check(&t.from_layout()).unwrap();
        self.model.check_readers(t.block()).unwrap();
        self.model.check_host().unwrap();
    }

    fn dry(&self, dry: bool) {
        self.pool.limit(dry.then_some(0));
        self.model.limit_nodes(dry.then_some(0));
    }

    fn commit<A: PageSet, B: PageSet>(
        &self,
        atoms: &mut [Atom<A, B, Frozen>],
        held: &mut Reservation<VecStore, Nodes>,
        sum: &mut AtomDone,
    ) {
        while atoms.iter().any(|atom| atom.round() != Round::Done) {
            let commit = Commit::freeze(&self.model, &self.model, atoms, held.lend(), 1).unwrap();
            let remapped = commit.remap().unwrap();
            let thawed = remapped.finish();
            let done = thawed.keep(&self.pool);
            sum.vmemmap.fresh += done.vmemmap.fresh;
            sum.vmemmap.rewrites += done.vmemmap.rewrites;
            sum.released += done.released;
            sum.nodes_used += done.nodes_used;
            sum.nodes_freed += done.nodes_freed;
        }
    }

    fn change<A: PageSet, B: PageSet>(
        &self,
        t: &Transition<A, B>,
        pin: Option<Pfn>,
        [size, cancel, undo]: [usize; 3],
    ) {
        let (model, pool) = (&self.model, &self.pool);
        let counts = t.counts();
        let needs = VmemmapNeeds::plan(model, t, &counts);
        let index = counts.delta(model.index());
        let mut held = Reservation::new(t.block(), needs.node, VecStore::default());
        held.fill(model, &needs, index.needed, pool).unwrap();
        self.dry(true);
        let before = self.state();
        // Splits first, as the plan has them.
        let mut changes: Vec<_> = t.changes(0..t.block().pages()).collect();
        changes.sort_by_key(|change| matches!(change, Change::Merge(_)));

        let mut atoms: Vec<_> = changes
            .iter()
            .take(cancel % (changes.len() + 1))
            .map(|&change| Atom::new(t.by_ref(), change))
            .collect();
        for remap in [false, true] {
            let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
            let thawed = if remap { commit.remap().unwrap().cancel() } else { commit.cancel() };
            let waits = thawed.waits() > 0;
            let _ = thawed.keep(pool);
            if waits {
                let commit = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap();
                let _ = commit.cancel().keep(pool);
            }
            assert_eq!((self.state(), held.pages_left()), (before, needs.fresh));
            self.check(t);
        }
        let part = &changes[..undo % (changes.len() + 1)];
        let mut atoms: Vec<_> = part.iter().map(|&change| Atom::new(t.by_ref(), change)).collect();
        self.commit(&mut atoms, &mut held, &mut AtomDone::default());
        let back = t.reversed();
        let mut atoms: Vec<_> =
            part.iter().map(|&change| Atom::new(back.by_ref(), change.reversed())).collect();
        self.commit(&mut atoms, &mut held, &mut AtomDone::default());
        assert_eq!((self.state(), held.pages_left()), (before, needs.fresh));
        self.check(t);

        let mut sum = AtomDone::default();
        for part in changes.chunks(size + 1) {
            let mut atoms: Vec<_> = part.iter().map(|&change| Atom::new(t.by_ref(), change)).collect();
            if let Some(pin) = pin.filter(|&pin| part.iter().any(|change| change.whole().contains_pfn(pin))) {
                assert!(model.pin(pin));
                let refused = Commit::freeze(model, model, &mut atoms, held.lend(), 1).unwrap_err();
                assert!(matches!(refused.error, AtomError::Pinned(_)));
                assert!(model.unpin(pin));
            }
            self.commit(&mut atoms, &mut held, &mut sum);
        }
        assert_eq!(
            (sum.vmemmap.fresh, sum.released, sum.vmemmap.rewrites),
            (needs.fresh, needs.released, needs.rewrites)
        );
        assert_eq!((sum.nodes_used, sum.nodes_freed), (index.needed, index.freed));
        assert_eq!((held.pages_left(), held.nodes_left(model)), (needs.released, index.freed));
        self.dry(false);
        let _ = held.release(model, pool);
    }

    fn short<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>, left: u64) {
        let needs = VmemmapNeeds::plan(&self.model, t, &t.counts());
        let before = self.state();
        let mut held = Reservation::new(t.block(), needs.node, VecStore::default());
        self.pool.limit(Some(left));
        assert_eq!(held.fill(&self.model, &needs, 0, &self.pool).is_ok(), left >= needs.fresh);
        self.pool.limit(None);
        let _ = held.release(&self.model, &self.pool);
        assert_eq!(self.state(), before);
    }

    fn again<A: PageSet, B: PageSet>(&self, t: &Transition<A, B>) {
        let (model, layout) = (&self.model, t.from_layout());
        if !model.is_optimized(t.block()) {
            return;
        }
        let needs = VmemmapNeeds::to_restore(model, &layout);
        let mut held = Reservation::new(t.block(), needs.node, VecStore::default());
        held.fill(model, &needs, 0, &self.pool).unwrap();
        let done = restore(model, model, &layout, 1, held.lend().pages).unwrap();
        assert_eq!(done.vmemmap.fresh, needs.fresh);
        assert!(held.is_empty(model));
        self.check(t);
        let needs = VmemmapNeeds::to_optimize(model, &layout);
        assert_eq!(optimize(model, model, &layout, 1, &self.pool).unwrap().released, needs.released);
    }
}
