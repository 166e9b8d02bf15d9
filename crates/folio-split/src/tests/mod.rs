//! Every layout and every transition of small blocks against explicit lists; large ones at random.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "a test that overflows or misses an index has failed"
)]

mod blocks;
mod changes;
mod commit;
mod exhaustive;
mod large;
mod reads;
mod sets;
mod tables;

use crate::*;
use core::ops::Range;
use std::{vec, vec::Vec};

/// Without optimization, the slowest comparisons are made for one case in so many; with it, for each.
const STRIDE: u64 = if cfg!(debug_assertions) { 13 } else { 1 };

fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new((3 << order) & ((1 << 40) - 1)).unwrap(), Order::new(order).unwrap()).unwrap()
}

fn order_sets(order: u8) -> impl Iterator<Item = OrderSet> {
    (0..1_u64 << order).map(|high| OrderSet::from_bits(high << 1 | 1).unwrap())
}

/// The order of each page's folio, by the definition: divide until nothing must be divided.
fn reference(order: u8, orders: OrderSet, small: &dyn Fn(u64) -> bool) -> Vec<u8> {
    fn divide(at: u64, order: u8, orders: OrderSet, small: &dyn Fn(u64) -> bool, out: &mut Vec<u8>) {
        let pages = 1_u64 << order;
        let member = orders.contains(Order::new(order).unwrap());
        if order == 0 || member && !(at..at + pages).any(small) {
            out.extend((0..pages).map(|_| order));
        } else {
            divide(at, order - 1, orders, small, out);
            divide(at + pages / 2, order - 1, orders, small, out);
        }
    }
    let mut out = Vec::new();
    divide(0, order, orders, small, &mut out);
    out
}

fn orders_of<S: PageSet>(layout: &FolioLayout<S>) -> Vec<u8> {
    let mut out = Vec::new();
    for folio in layout.folios(0) {
        assert_eq!(layout.block().offset_of(folio.base()), Some(out.len() as u64));
        out.extend((0..folio.pages()).map(|_| folio.order().raw()));
    }
    out
}

fn check_counts(order: u8, orders: &[u8], counts: &LayoutCounts) {
    for o in 0..=order {
        let pages = orders.iter().filter(|&&of| of == o).count() as u64;
        assert_eq!(counts.folios_of(Order::new(o).unwrap()), pages >> o);
        let broken = orders.chunks(1 << o).filter(|chunk| chunk.iter().any(|&of| of < o)).count() as u64;
        assert_eq!(counts.fragmented(Order::new(o).unwrap()), broken, "order {o} in {orders:?}");
    }
    let folios: u64 = (0..=order).map(|o| counts.folios_of(Order::new(o).unwrap())).sum();
    assert_eq!(counts.folios(), folios);
    for unit in 0..=order + 1 {
        // What begins at a multiple of the unit, or would if nothing smaller existed.
        let (mut parts, mut at) = (0, 0);
        while at < orders.len() && unit <= order {
            at += 1 << orders[at].max(unit);
            parts += 1;
        }
        assert_eq!(counts.parts(Order::new(unit).unwrap()), parts, "unit {unit} in {orders:?}");
    }
}

/// The differences of two lists of orders, by the definition.
fn reference_changes(block: PfnBlock, from: &[u8], to: &[u8]) -> Vec<Change> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < from.len() {
        let whole = from[at].max(to[at]);
        let folio = block.part(at as u64, Order::new(whole).unwrap()).unwrap();
        match from[at].cmp(&to[at]) {
            core::cmp::Ordering::Greater => out.push(Change::Split(folio)),
            core::cmp::Ordering::Less => out.push(Change::Merge(folio)),
            core::cmp::Ordering::Equal => {}
        }
        at += 1 << whole;
    }
    out
}

/// A small generator of numbers (xorshift64*), so that a failing seed can be named.
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// Up to `most` runs in `pages` pages, ascending and apart.
    fn runs(&mut self, most: u64, pages: u64, longest: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut starts: Vec<_> = (0..self.next(most + 1)).map(|_| self.next(pages)).collect();
        starts.sort_unstable();
        for start in starts {
            let end = (start + 1 + self.next(longest)).min(pages);
            match runs.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

fn bitmap(runs: &[Range<u64>], pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    for page in runs.iter().cloned().flatten() {
        words[page as usize / 64] |= 1 << (page % 64);
    }
    words
}
