//! Folios of one block, from the rules alone: an explicit list, and counts read off it.
//!
//! The rules are the README's and the formula sheet's: the coarsest layout in which every small page is a folio of its own;
//! a vmemmap page of 64 `struct page`s is written to if it is the first of its folio or holds folios below order 6; an
//! entry of order o sits in an index node of shift `6 * (o / 6)`, and all nodes above it exist.

use std::collections::BTreeSet;

/// The folios of one block.
#[derive(Clone)]
pub(crate) struct Layout {
    /// Order of the folio that each page belongs to.
    pub(crate) order_at: Vec<u8>,
    /// First page and order of each folio, ascending.
    pub(crate) folios: Vec<(u64, u8)>,
    /// Writable vmemmap pages.
    pub(crate) vmemmap: i64,
    /// Index nodes below the one that an undivided block sits in.
    pub(crate) nodes: i64,
}

impl Layout {
    /// The layout of a block of `order` with folios of `orders`, in which the pages with `small` set are single.
    pub(crate) fn new(order: u32, orders: &[u32], small: &[bool]) -> Self {
        let mut before = vec![0_u32; small.len() + 1];
        for (page, small) in small.iter().enumerate() {
            before[page + 1] = before[page] + u32::from(*small);
        }
        let mut folios = Vec::new();
        divide(0, order, orders, &before, &mut folios);
        let mut order_at = vec![0_u8; small.len()];
        let mut own = vec![false; small.len().div_ceil(64)];
        let mut nodes = BTreeSet::new();
        let top = 6 * (order / 6);
        let mut last = None;
        for &(first, of) in &folios {
            for page in first..first + (1 << of) {
                order_at[usize::try_from(page).unwrap()] = of;
            }
            own[usize::try_from(first / 64).unwrap()] = true;
            // Folios follow each other: most have the nodes of the one before.
            let lowest = 6 * (u32::from(of) / 6);
            let here = (lowest, first >> (lowest + 6));
            if last != Some(here) {
                last = Some(here);
                nodes.extend((lowest..top).step_by(6).map(|shift| (shift, first >> (shift + 6))));
            }
        }
        let own = own.iter().filter(|own| **own).count();
        Self {
            order_at,
            folios,
            vmemmap: i64::try_from(own).unwrap(),
            nodes: i64::try_from(nodes.len()).unwrap(),
        }
    }
}

fn divide(first: u64, order: u32, orders: &[u32], before: &[u32], folios: &mut Vec<(u64, u8)>) {
    let (from, to) = (usize::try_from(first).unwrap(), usize::try_from(first + (1 << order)).unwrap());
    if order == 0 || orders.contains(&order) && before[from] == before[to] {
        folios.push((first, u8::try_from(order).unwrap()));
        return;
    }
    divide(first, order - 1, orders, before, folios);
    divide(first + (1 << (order - 1)), order - 1, orders, before, folios);
}

/// The examples of the formula sheet: folios, fresh vmemmap pages and index nodes, for both sets of orders.
#[test]
fn layouts_are_those_of_the_formula_sheet() {
    let all: Vec<u32> = (0..=18).collect();
    let one = 1_u64 << 18;
    let pages = |runs: &[(u64, u64)]| {
        let mut small = vec![false; 1 << 18];
        for &(from, count) in runs {
            small[usize::try_from(from).unwrap()..usize::try_from(from + count).unwrap()].fill(true);
        }
        small
    };
    let spread = |step: u64| (0..one / step).map(|n| (n * step, 1)).collect::<Vec<_>>();
    let cases = [
        (vec![(1000_u64, 1_u64)], [1023_i64, 518, 73, 19, 12, 3]),
        (vec![(5, 1), (100, 1)], [1023, 518, 73, 25, 12, 4]),
        (vec![(1024, 16)], [1023, 518, 73, 30, 12, 3]),
        (vec![(512, 512)], [1023, 518, 73, 521, 16, 10]),
        (vec![(256, 512)], [1534, 525, 81, 522, 17, 10]),
        (spread(4096), [33216, 959, 577, 832, 447, 129]),
        (spread(512), [262_144, 4095, 4161, 5120, 2047, 577]),
        (vec![], [1, 0, 0, 1, 0, 0]),
    ];
    for (runs, expected) in cases {
        let small = pages(&runs);
        let count = |orders: &[u32]| {
            let layout = Layout::new(18, orders, &small);
            [i64::try_from(layout.folios.len()).unwrap(), layout.vmemmap - 1, layout.nodes]
        };
        let ([a, b, c], [d, e, f]) = (count(&[18, 9, 0]), count(&all));
        assert_eq!([a, b, c, d, e, f], expected, "{:?}", runs.first());
    }
    let huge = Layout::new(9, &[9, 0], &{
        let mut small = vec![false; 512];
        small[7] = true;
        small
    });
    assert_eq!((huge.vmemmap - 1, huge.nodes), (7, 8));
}
