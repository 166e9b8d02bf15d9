//! What a plan and an atom cost on the model host. Run with `cargo bench -p vmemmap-prealloc`; nothing is asserted.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::single_range_in_vec_init,
    clippy::unwrap_used,
    reason = "a program of its own"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Source, Store};
use core::hint::black_box;
use folio_split::{Empty, FolioBackend, Order, OrderSet, Pfn, PfnBlock, Transition};
use std::time::Instant;
use vmemmap_prealloc::{
    BlockState, Geometry, VmemmapNeeds, install_templates, merge_atom, model::HostModel, reserve, split_atom,
};

fn main() {
    let block = PfnBlock::new(Pfn::new(1 << 18).unwrap(), Order::HUGE_1G).unwrap();
    let crowded: Vec<_> = (0..512).map(|i| i * 512..i * 512 + 1).collect();
    for orders in [OrderSet::HUGETLB, OrderSet::ALL] {
        for (name, runs) in [("one page", [1000..1001].as_slice()), ("one page in every 2 MiB", &crowded)] {
            let source = Source::new();
            let host = HostModel::new(Geometry::LINUX_X86_64, orders);
            install_templates(&host, block, orders, &source).unwrap();
            host.add_block(block, &source).unwrap();
            let t = Transition::new(block, orders, Empty, runs);
            let rounds = 1000;
            let start = Instant::now();
            for _ in 0..rounds {
                black_box(VmemmapNeeds::of(black_box(&t), &Geometry::LINUX_X86_64, BlockState::Optimized));
            }
            let plan = start.elapsed() / rounds;
            let mut best = [u128::MAX; 3];
            for _ in 0..10 {
                let mut store = Store::default();
                let needs = VmemmapNeeds::plan(&host, &t, &t.counts());
                reserve(&needs.frames(), block.base().hpa(), &source, &mut store).unwrap();
                let mut nodes = Default::default();
                host.reserve_nodes(&mut nodes, block, t.index_delta(host.index()).needed).unwrap();
                let start = Instant::now();
                let _ = split_atom(&host, &host, &t, block, 1, &mut nodes, &mut store).unwrap();
                let split = start.elapsed();
                let start = Instant::now();
                host.check(&t.to_layout()).unwrap();
                let check = start.elapsed();
                let start = Instant::now();
                let _ = merge_atom(&host, &host, &t.reversed(), block, 1, &source).unwrap();
                let merge = start.elapsed();
                host.release_nodes(nodes);
                for (best, now) in best.iter_mut().zip([split, merge, check]) {
                    *best = now.as_nanos().min(*best);
                }
            }
            let [split, merge, check] = best.map(|nanos| nanos / 1000);
            println!(
                "{orders:?} 1 GiB, {name}: plan {plan:?}, split {split} us, merge {merge} us, check {check} us"
            );
        }
    }
}
