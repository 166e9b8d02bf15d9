//! Needs of every pair of layouts of sixteen pages, against lists of entries, with geometries that have only 2 or 4
//! `struct page`s to a page.

use folio_split::{FolioLayout, Order, OrderSet, Pfn, PfnBlock, Transition};
use std::collections::BTreeSet;
use vmemmap_prealloc::{BlockState, Geometry, Savings, Tail, TailScheme, VmemmapNeeds};

/// Without optimization one pair in so many; with it each.
const STRIDE: usize = if cfg!(debug_assertions) { 97 } else { 1 };

fn block() -> PfnBlock {
    PfnBlock::new(Pfn::new(16 * 9).unwrap(), Order::new(4).unwrap()).unwrap()
}

/// What each entry of the block maps: `None` is a page of its own.
fn entries(layout: &FolioLayout<&[u64]>, geometry: &Geometry) -> Vec<Option<Tail>> {
    let structs = geometry.structs().pages();
    (0..16 / structs)
        .map(|index| {
            let folio = layout.folio_at(index * structs);
            let first = block().offset_of(folio.base()).unwrap() / structs;
            let kept = folio.order() < geometry.structs() || index - first < geometry.reserved();
            (!kept).then(|| match geometry.tails() {
                TailScheme::PerOrder => Tail::Template(folio.order()),
                TailScheme::OrderFree => Tail::AnyTemplate,
                _ => Tail::HeadPage(first + geometry.reserved() - 1),
            })
        })
        .collect()
}

#[test]
fn every_pair_of_layouts_of_sixteen_pages() {
    let schemes = [TailScheme::PerOrder, TailScheme::OrderFree, TailScheme::SharedWithHead];
    let geometries: Vec<_> = schemes
        .into_iter()
        .flat_map(|tails| {
            [(32, 1), (16, 1), (32, 2), (32, 3)]
                .map(|(size, reserved)| Geometry::new(size, 64, reserved, tails).unwrap())
        })
        .collect();
    for orders in (0..16).map(|high| OrderSet::from_bits(high << 1 | 1).unwrap()) {
        let mut seen = BTreeSet::new();
        let mut sets = Vec::new();
        for bits in (0..1_u64 << 16).map(|bits| bits.wrapping_mul(0x9e37) & 0xffff) {
            let words = [bits];
            let layout = FolioLayout::new(block(), orders, words.as_slice());
            let folios: Vec<_> = layout.folios(0).collect();
            if seen.insert(folios) {
                sets.push(words);
            }
        }
        for (turn, geometry) in geometries.iter().enumerate() {
            let listed: Vec<_> = sets
                .iter()
                .map(|set| entries(&FolioLayout::new(block(), orders, set.as_slice()), geometry))
                .collect();
            for (i, (a, from)) in sets.iter().zip(&listed).enumerate() {
                for (j, (b, to)) in sets.iter().zip(&listed).enumerate() {
                    if (i * 31 + j + turn) % STRIDE != 0 {
                        continue;
                    }
                    let t = Transition::new(block(), orders, a.as_slice(), b.as_slice());
                    let needs = VmemmapNeeds::of(&t, geometry, BlockState::Optimized);
                    let pairs = || from.iter().zip(to);
                    let count =
                        |of: fn(&(&Option<Tail>, &Option<Tail>)) -> bool| pairs().filter(of).count() as u64;
                    let want = (
                        count(|(from, to)| from.is_some() && to.is_none()),
                        count(|(from, to)| from.is_none() && to.is_some()),
                        count(|(from, to)| from.is_some() && to.is_some() && from != to),
                    );
                    let have = (needs.fresh, needs.released, needs.rewrites);
                    assert_eq!(have, want, "{orders} {a:x?} -> {b:x?} {geometry:?}");
                    let saved = Savings::of(geometry, &t.to_layout().counts(), 0);
                    assert_eq!(saved.gross(), to.iter().flatten().count() as u64);
                }
            }
        }
    }
}
