//! Runs whose blocks may keep their order.

use super::{Rng, STRIDE, block, check_counts, order_sets, orders_of, reference_changes};
use crate::*;
use std::vec::Vec;

/// Layouts where runs may stay large, by the definition: a folio holds no small page, and all or nothing of a run.
fn mixed_reference(order: u8, orders: OrderSet, small: u64, large: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < 1 << order {
        let at = out.len() as u64;
        let clean = |o: Order| {
            let pages = (1_u64 << o.pages()).wrapping_sub(1) << (at & !(o.pages() - 1));
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
        let less = FolioLayout::new(block(4), orders, Minus(a, Large(words[3].as_slice())));
        assert_eq!(orders_of(&less), mixed_reference(4, orders, sa, la & !lb));
    }
}
