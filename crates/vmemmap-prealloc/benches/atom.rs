//! What a commit costs on the model host. Run with `cargo bench -p vmemmap-prealloc`; nothing is asserted.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::single_range_in_vec_init,
    clippy::unwrap_used,
    reason = "a program of its own"
)]

use folio_split::{Empty, FolioBackend, Order, OrderSet, Pfn, PfnBlock, Transition};
use sept_core::{
    Hpa,
    test_util::{FramePool, VecStore},
};
use std::time::Instant;
use vmemmap_prealloc::{
    Atom, Commit, Geometry, Reservation, VmemmapNeeds, install_templates, model::HostModel,
};

fn main() {
    let block = PfnBlock::new(Pfn::new(1 << 18).unwrap(), Order::HUGE_1G).unwrap();
    let crowded: Vec<_> = (0..512).map(|i| i * 512..i * 512 + 1).collect();
    for orders in [OrderSet::HUGETLB, OrderSet::ALL] {
        for (name, runs) in [("one page", [1000..1001].as_slice()), ("one page in every 2 MiB", &crowded)] {
            let pool = FramePool::new(Hpa::new(1 << 40).unwrap(), 1 << 20);
            let host = HostModel::new(Geometry::LINUX_X86_64, orders);
            install_templates(&host, block, orders, &pool).unwrap();
            host.add_block(block, &pool).unwrap();
            let t = Transition::new(block, orders, Empty, runs);
            let back = t.reversed();
            let mut best = [u128::MAX; 3];
            for _ in 0..10 {
                let counts = t.counts();
                let needs = VmemmapNeeds::plan(&host, &t, &counts);
                let mut held = Reservation::new(block, needs.node, VecStore::default());
                held.fill(&host, &needs, counts.delta(host.index()).needed, &pool).unwrap();
                let start = Instant::now();
                let mut atoms = [Atom::split(t.by_ref(), block)];
                let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap();
                let _ = commit.remap().unwrap().finish().release(&pool);
                let split = start.elapsed();
                let start = Instant::now();
                host.check(&t.to_layout()).unwrap();
                let check = start.elapsed();
                let start = Instant::now();
                let mut atoms = [Atom::merge(back.by_ref(), block)];
                let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 1).unwrap();
                let _ = commit.remap().unwrap().finish().release(&pool);
                let merge = start.elapsed();
                let _ = held.release(&host, &pool);
                for (best, now) in best.iter_mut().zip([split, merge, check]) {
                    *best = now.as_nanos().min(*best);
                }
            }
            let [split, merge, check] = best.map(|nanos| nanos / 1000);
            println!("{orders:?} 1 GiB, {name}: split {split} us, merge {merge} us, check {check} us");
        }
    }
}
