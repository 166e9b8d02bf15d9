//! Closed forms and brute force for what operations need, written from the literature and not from the crates.

use core::ops::Range;
use std::collections::BTreeSet;

/// Number of aligned blocks of `order` that hold a page of `set`.
pub(crate) fn m(set: &[Range<u64>], order: u8) -> u64 {
    set.iter()
        .filter(|run| !run.is_empty())
        .flat_map(|run| run.start >> order..=(run.end - 1) >> order)
        .collect::<BTreeSet<_>>()
        .len() as u64
}

/// Leaves of `size` pages that are split so that exactly `range` can be taken, when such leaves are everywhere.
pub(crate) fn sigma(range: &Range<u64>, size: u64) -> u64 {
    let (head, tail) = (range.start / size * size, range.end / size * size);
    u64::from(head != range.start) + u64::from(tail != range.end && (head != tail || head == range.start))
}

/// The folios of a block of `order` in which every page of `set` is alone and the rest is as large as `orders`, which
/// descend, allow: (first page, order).
pub(crate) fn folios(order: u8, orders: &[u8], set: &[Range<u64>]) -> Vec<(u64, u8)> {
    let mut done = Vec::new();
    let orders: Vec<u8> = orders.iter().copied().filter(|&member| member <= order).collect();
    let mut left: Vec<(u64, usize)> = (0..1 << (order - orders[0])).map(|n| (n << orders[0], 0)).collect();
    while let Some((first, level)) = left.pop() {
        let pages = first..first + (1 << orders[level]);
        let meets = set.iter().any(|run| run.start < pages.end && pages.start < run.end);
        if orders[level] == 0 || !meets {
            done.push((first, orders[level]));
        } else {
            let next = orders[level + 1];
            left.extend((0..1 << (orders[level] - next)).map(|n| (first + (n << next), level + 1)));
        }
    }
    done.sort_unstable();
    done
}

/// Vmemmap pages that a layout keeps: those that hold a head, 64 `struct page`s to a page.
pub(crate) fn own_pages(folios: &[(u64, u8)]) -> u64 {
    folios.iter().map(|(first, _)| first >> 6).collect::<BTreeSet<_>>().len() as u64
}

/// Index nodes with 64 slots below a block of `order`: one for each aligned piece of 2^6, 2^12, ... that is not whole.
pub(crate) fn nodes(order: u8, folios: &[(u64, u8)]) -> u64 {
    let pieces = |size: u8| {
        let small = folios.iter().filter(|&&(_, folio)| folio < size);
        small.map(|(first, _)| first >> size).collect::<BTreeSet<_>>().len() as u64
    };
    (1..).map(|chunk| chunk * 6).take_while(|&size| size <= order).map(pieces).sum()
}

/// What changing a block's layout from that of `from` to that of `to`, a superset, takes: vmemmap pages and nodes.
pub(crate) fn relayout(order: u8, orders: &[u8], from: &[Range<u64>], to: &[Range<u64>]) -> (u64, u64) {
    let (from, to) = (folios(order, orders, from), folios(order, orders, to));
    (own_pages(&to) - own_pages(&from), nodes(order, &to) - nodes(order, &from))
}
