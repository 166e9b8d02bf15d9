//! Every layout and every transition of small blocks.

use super::{STRIDE, block, check_counts, order_sets, orders_of, reference, reference_changes};
use crate::*;
use std::{collections::BTreeSet, vec::Vec};

/// The orders of sixteen pages, four bits each: the reference, small enough to be compared a million times.
fn packed_reference(orders: OrderSet, bits: u64) -> u64 {
    let mut out = 0;
    let mut at = 0;
    while at < 16 {
        let clean = |order: Order| {
            let pages = (1_u64 << order.pages()).wrapping_sub(1) << (at & !(order.pages() - 1));
            order == Order::PAGE || order.raw() <= 4 && bits & pages == 0
        };
        let order = orders.iter().rev().find(|&order| clean(order)).unwrap();
        for page in at..at + order.pages() {
            out |= u64::from(order.raw()) << (page * 4);
        }
        at += order.pages();
    }
    out
}

fn packed<S: PageSet>(layout: &FolioLayout<S>) -> u64 {
    let mut out = 0;
    for folio in layout.folios(0) {
        let at = layout.block().offset_of(folio.base()).unwrap();
        out |= (0x1111_1111_1111_1111_u64 & !((u64::MAX << (folio.pages() * 4 - 1)) << 1))
            .wrapping_mul(u64::from(folio.order().raw()))
            << (at * 4);
    }
    out
}

#[test]
fn every_layout_of_sixteen_pages() {
    for orders in order_sets(4) {
        for bits in 0..1_u64 << 16 {
            let words = [bits];
            let layout = FolioLayout::new(block(4), orders, words.as_slice());
            let want = packed_reference(orders, bits);
            assert_eq!(packed(&layout), want, "{orders} {bits:#x}");
            if bits % STRIDE != 0 {
                continue;
            }
            let listed = reference(4, orders, &|page| bits >> page & 1 != 0);
            check_counts(4, &listed, &layout.counts());
            for (page, order) in (0..16).zip(listed) {
                let folio = layout.folio_at(page);
                assert_eq!(folio.order().raw(), order);
                assert_eq!(u64::from(order), want >> (page * 4) & 15);
                assert!(folio.contains_pfn(Pfn::new(block(4).base().raw() + page).unwrap()));
                assert_eq!(layout.folios(page).next(), Some(folio));
            }
        }
    }
}

fn check_transition(order: u8, orders: OrderSet, a: u64, b: u64) {
    let block = block(order);
    let (wa, wb) = ([a], [b]);
    let t = Transition::new(block, orders, wa.as_slice(), wb.as_slice());
    let (from, to) = (orders_of(&t.from_layout()), orders_of(&t.to_layout()));
    let want = reference_changes(block, &from, &to);
    let got: Vec<_> = t.changes(0..u64::MAX).collect();
    assert_eq!(got, want, "{orders} {a:#x} -> {b:#x}");
    let back: Vec<_> = t.reversed().changes(0..u64::MAX).map(Change::reversed).collect();
    assert_eq!(back, want);
    // Nodes, summed over the changes one by one.
    let index = XArray::new(2).unwrap();
    let mut sum = CostDelta::default();
    for &change in &want {
        let whole = change.whole();
        let fine: Vec<_> = match change {
            Change::Split(_) => t.split_pieces(whole).collect(),
            Change::Merge(_) => t.merge_pieces(whole).collect(),
        };
        assert_eq!(
            (t.splits(whole), t.merges(whole)),
            match change {
                Change::Split(_) => (true, false),
                Change::Merge(_) => (false, true),
            }
        );
        let one = t.delta_of(change, &index);
        assert_eq!(t.delta_of(change.reversed(), &index), CostDelta::default());
        assert_eq!(t.reversed().delta_of(change.reversed(), &index), one.reversed());
        sum.needed += one.needed;
        sum.freed += one.freed;
        assert!(fine.len() > 1 && fine.iter().all(|&piece| whole.contains(piece)));
        assert_eq!(fine.iter().map(|piece| piece.pages()).sum::<u64>(), whole.pages());
    }
    assert_eq!(t.delta(&index), sum);
}

#[test]
fn every_transition_of_eight_pages() {
    for orders in order_sets(3) {
        for a in 0..256 {
            for b in (0..256_u64).filter(|b| (a * 31 + b).is_multiple_of(STRIDE)) {
                check_transition(3, orders, a, b);
            }
        }
    }
}

#[test]
fn every_pair_of_layouts_of_sixteen_pages() {
    for orders in order_sets(4) {
        let mut seen = BTreeSet::new();
        let mut sets = Vec::new();
        for bits in 0..1_u64 << 16 {
            // In no particular order, so that the sets that stand for a layout are of all kinds.
            let bits = bits.wrapping_mul(0x9e37) & 0xffff;
            let listed = packed_reference(orders, bits);
            if seen.insert(listed) {
                sets.push(([bits], listed));
            }
        }
        for (i, (a, from)) in sets.iter().enumerate() {
            for (j, (b, to)) in sets.iter().enumerate() {
                let t = Transition::new(block(4), orders, a.as_slice(), b.as_slice());
                let mut changes = t.changes(0..16);
                let mut at = 0;
                while at < 16 {
                    let (old, new) = (from >> (at * 4) & 15, to >> (at * 4) & 15);
                    if old != new {
                        let whole = block(4).part(at, Order::new(old.max(new) as u8).unwrap()).unwrap();
                        let change = if old > new { Change::Split(whole) } else { Change::Merge(whole) };
                        assert_eq!(changes.next(), Some(change), "{orders} {a:x?} -> {b:x?}");
                    }
                    at += 1 << old.max(new);
                }
                assert_eq!(changes.next(), None, "{orders} {a:x?} -> {b:x?}");
                if (i as u64 * 31 + j as u64).is_multiple_of(STRIDE) {
                    check_transition(4, orders, a[0], b[0]);
                }
            }
        }
    }
}

#[test]
fn windows_show_what_touches_them() {
    let block = block(4);
    for (a, b) in
        (0..400_u64).map(|seed| (seed.wrapping_mul(0x5deb) & 0xffff, seed.wrapping_mul(0x3a91) & 0xffff))
    {
        let (wa, wb) = ([a], [b]);
        let t = Transition::new(block, OrderSet::ALL, wa.as_slice(), wb.as_slice());
        for (start, end) in (0..18).flat_map(|start| (start..18).map(move |end| (start, end))) {
            let touches = |change: &Change| {
                let range = change.whole().range();
                let base = block.base().raw();
                range.start < base + end && base + start < range.end && start < end
            };
            let want: Vec<_> = t.changes(0..16).filter(touches).collect();
            assert_eq!(t.changes(start..end).collect::<Vec<_>>(), want, "{a:#x} {b:#x} {start}..{end}");
        }
    }
}

#[test]
fn steps_add_up() {
    for (a, b) in
        (0..300_u64).map(|seed| (seed.wrapping_mul(0x5deb) & 0xffff, seed.wrapping_mul(0x3a91) & 0xffff))
    {
        let (wa, wb) = ([a], [b]);
        let t = Transition::new(block(4), OrderSet::ALL, wa.as_slice(), wb.as_slice());
        let mut now = orders_of(&t.from_layout());
        for (done, until) in [(0, 3), (3, 4), (4, 4), (4, 11), (11, 16)] {
            let step = t.step(done, until);
            assert_eq!(orders_of(&step.from_layout()), now);
            now = orders_of(&step.to_layout());
        }
        assert_eq!(now, orders_of(&t.to_layout()));
    }
}
