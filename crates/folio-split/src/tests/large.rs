//! Runs whose blocks may keep their order.

use super::{Rng, STRIDE, block, check_counts, order_sets, orders_of, reference_changes};
use crate::*;
use std::vec::Vec;

/// Layouts where runs may stay large, by the definition: a folio holds no small page, and all or nothing of a run.
pub(super) fn mixed_reference(order: u8, orders: OrderSet, small: u64, large: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < 1 << order {
        let at = out.len() as u64;
        let clean = |o: Order| {
            let pages = (u64::MAX >> (64 - o.pages().min(64))) << (at & !(o.pages() - 1));
            o == Order::PAGE
                || o.raw() <= order && small & pages == 0 && (large & pages == 0 || large & pages == pages)
        };
        let folio = orders.iter().rev().find(|&o| clean(o)).unwrap();
        out.extend((0..folio.pages()).map(|_| folio.raw()));
    }
    out
}

#[test]
fn runs_that_stay_large() {
    for orders in order_sets(3) {
        for (small, large) in (0..256).flat_map(|small| (0..256_u64).map(move |large| (small, large))) {
            if !(small * 31 + large).is_multiple_of(STRIDE) {
                continue;
            }
            let (s, l) = ([small], [large]);
            let set = Union(s.as_slice(), Large(l.as_slice()));
            let layout = FolioLayout::new(block(3), orders, set);
            let want = mixed_reference(3, orders, small, large);
            assert_eq!(orders_of(&layout), want, "{orders} {small:#x} {large:#x}");
            for (page, &order) in (0..8).zip(&want) {
                assert_eq!(layout.folio_at(page).order().raw(), order);
            }
            check_counts(3, &want, &layout.counts());
        }
    }
    let mut rng = Rng(77);
    for _ in 0..6000 {
        let orders = OrderSet::from_bits(rng.next(16) << 1 | 1).unwrap();
        let mut draw = || (rng.next(1 << 16) & rng.next(1 << 16) & rng.next(1 << 16), rng.next(1 << 16));
        let ((sa, la), (sb, lb)) = (draw(), draw());
        let seam = rng.next(17);
        let words = [[sa], [la], [sb], [lb]];
        let [a, b] = [(0, 1), (2, 3)]
            .map(|(s, l): (usize, usize)| Union(words[s].as_slice(), Large(words[l].as_slice())));
        let t = Transition::new(block(4), orders, a, b);
        let (from, to) = (mixed_reference(4, orders, sa, la), mixed_reference(4, orders, sb, lb));
        let want = reference_changes(block(4), &from, &to);
        assert_eq!(t.changes(0..16).collect::<Vec<_>>(), want, "{orders} {words:x?}");
        let counts = t.counts();
        check_counts(4, &from, counts.from());
        check_counts(4, &to, counts.to());
        let between: Vec<_> = from.iter().zip(&to).map(|(a, b)| *a.min(b)).collect();
        check_counts(4, &between, counts.between());
        let low = (1 << seam) - 1;
        let step = t.step(0, seam);
        let spliced = mixed_reference(4, orders, sb & low | sa & !low, lb & low | la & !low);
        assert_eq!(orders_of(&step.to_layout()), spliced);
        let less = FolioLayout::new(block(4), orders, Minus(a, 0..seam));
        assert_eq!(orders_of(&less), mixed_reference(4, orders, sa & !low, la & !low));
        // Two sets of pages that may stay large are one, wherever the runs of one end inside those of the other.
        let both = Union(a, b);
        assert_eq!(
            orders_of(&FolioLayout::new(block(4), orders, both)),
            mixed_reference(4, orders, sa | sb, la | lb)
        );
        let counts = FolioLayout::new(block(4), orders, both).counts();
        check_counts(4, &mixed_reference(4, orders, sa | sb, la | lb), &counts);
    }
}

/// The policies together: shared runs keep their order, a broken page is alone, private pieces are not below 2 MiB but where
/// they have to be.
#[test]
fn policies_combine() {
    let block = block(18);
    let (broken, shared) = (200_000..200_001, [512..1536, 5000..5600]);
    let set = Union(broken, Large(shared.as_slice()));
    let at = |orders: OrderSet, page| FolioLayout::new(block, orders, &set).folio_at(page).order().raw();
    let pages = [0, 512, 1100, 1536, 5000, 5120, 5600, 200_000, 200_001, 250_000];
    assert_eq!(pages.map(|page| at(OrderSet::ALL, page)), [9, 9, 9, 9, 3, 8, 5, 0, 0, 15]);
    let least = OrderSet::ALL.at_least(Order::HUGE_2M);
    assert_eq!(pages.map(|page| at(least, page)), [9, 9, 9, 9, 0, 0, 0, 0, 0, 15]);
    // Without the policy for runs, every shared page is a folio of its own.
    let each = FolioLayout::new(block, OrderSet::ALL, shared.as_slice());
    assert_eq!([511, 512, 1535, 5300].map(|page| each.folio_at(page).order().raw()), [9, 0, 0, 0]);
}
