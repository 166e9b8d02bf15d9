//! What a plan costs. Run with `cargo bench -p folio-split`; nothing is asserted.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "a program of its own"
)]

use core::{hint::black_box, ops::Range};
use folio_split::{Empty, FolioLayout, Minus, Order, OrderSet, Pfn, PfnBlock, Transition, XArray};
use std::time::Instant;

/// The best of a few rounds, in nanoseconds per call.
fn time(mut call: impl FnMut() -> u64) -> f64 {
    let mut best = f64::MAX;
    let mut rounds = 16_u32;
    for _ in 0..12 {
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(call());
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(rounds);
        best = best.min(each);
        if each * f64::from(rounds) < 4e6 {
            rounds = rounds.saturating_mul(4).min(1 << 16);
        }
    }
    best
}

fn main() {
    let block = |order| PfnBlock::new(Pfn::new(0).unwrap(), Order::new(order).unwrap()).unwrap();
    let sets = [("18,9,0", OrderSet::HUGETLB), ("all", OrderSet::ALL)];
    let runs: [Range<u64>; 4] = [1000..1001, 70_000..70_512, 100_000..100_001, 200_000..200_700];
    for (name, orders) in sets {
        for count in 1..=4 {
            let small = black_box(runs.get(..count).unwrap());
            let plan = time(|| {
                let t = Transition::new(block(18), orders, Empty, small);
                let counts = t.counts();
                counts.to.folios() + counts.index_delta(&XArray::LINUX).needed
            });
            let counts = time(|| FolioLayout::new(block(18), orders, small).counts().folios());
            println!("{name:7} 1 GiB, {count} runs: counts {counts:6.1} ns, plan with index {plan:6.1} ns");
        }
        let one = time(|| FolioLayout::new(block(27), orders, black_box(&runs[..1])).counts().folios());
        println!("{name:7} 512 GiB, 1 run: counts {one:6.1} ns");
        let walk = time(|| {
            FolioLayout::new(block(18), orders, black_box(&runs[..1])).folios(0).map(|f| f.pages()).sum()
        });
        println!("{name:7} 1 GiB, 1 run: list of folios {walk:8.1} ns");
        for (what, word) in
            [("every other page", 0x5555_5555_5555_5555_u64), ("no page", 0), ("one page in 64", 1)]
        {
            let bitmap = vec![word; 4096];
            let bitmap = black_box(bitmap.as_slice());
            let pass = time(|| bitmap.iter().fold(0, |sum, word| sum ^ black_box(*word)));
            let ones = time(|| bitmap.iter().map(|word| u64::from(word.count_ones())).sum());
            let counts = time(|| FolioLayout::new(block(18), orders, bitmap).counts().folios());
            println!(
                "{name:7} 1 GiB, {what:16}: counts {counts:8.0} ns; a pass {pass:6.0} ns, a pass counting bits {ones:6.0} ns ({:.1} x)",
                counts / ones
            );
            let minus = time(|| FolioLayout::new(block(18), orders, Minus(bitmap, 5..6)).counts().folios());
            println!("{name:7} 1 GiB, {what:16} minus one: counts {minus:8.0} ns");
        }
    }
}
