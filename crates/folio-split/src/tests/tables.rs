//! Published numbers, and what Linux's index allows.

use super::block;
use crate::*;
use core::ops::Range;
use std::{vec, vec::Vec};

/// The small pages, then folios and index nodes with `{18,9,0}`, then with all orders.
type Row = (Vec<Range<u64>>, u64, u64, u64, u64);

#[test]
fn the_published_table() {
    let spread = |step: u64, count: u64| (0..count).map(move |i| i * step..i * step + 1).collect::<Vec<_>>();
    let rows: [Row; 8] = [
        (vec![1000..1001], 1023, 73, 19, 3),
        (vec![5..6, 100..101], 1023, 73, 25, 4),
        (vec![5..6, 200_000..200_001], 1534, 81, 36, 5),
        (vec![16..32], 1023, 73, 30, 3),
        (vec![512..1024], 1023, 73, 521, 10),
        (vec![256..768], 1534, 81, 522, 10),
        (spread(4096, 64), 33_216, 577, 832, 129),
        (spread(512, 512), 262_144, 4161, 5120, 577),
    ];
    for (runs, hugetlb, hugetlb_nodes, all, all_nodes) in rows {
        for (orders, folios, nodes) in
            [(OrderSet::HUGETLB, hugetlb, hugetlb_nodes), (OrderSet::ALL, all, all_nodes)]
        {
            let counts = FolioLayout::new(block(18), orders, runs.as_slice()).counts();
            assert_eq!((counts.folios(), XArray::LINUX.units(&counts)), (folios, nodes), "{runs:?} {orders}");
        }
    }
}

/// What lib/xarray.c allows in one call.
#[test]
fn legal_steps_of_the_index() {
    let order = |raw| Order::new(raw).unwrap();
    let index = XArray::LINUX;
    let mut steps = vec![18];
    while let Some(next) = index.next_step(order(*steps.last().unwrap())) {
        steps.push(next.raw());
    }
    assert_eq!(steps, [18, 17, 12, 11, 6, 5, 0]);
    assert_eq!([0, 5, 6, 9, 17, 18].map(|o| index.slots(order(o))), [1, 32, 1, 8, 32, 1]);
    assert_eq!(index.split_nodes(order(18), order(0)), None);
    assert_eq!(index.split_nodes(order(18), order(9)), None);
    assert_eq!(index.split_nodes(order(18), order(12)), Some(1));
    assert_eq!(index.split_nodes(order(11), order(0)), Some(32));
    assert_eq!(index.split_nodes(order(9), order(0)), Some(8));
    assert_eq!(index.split_nodes(order(9), order(9)), None);
    // The largest order that a page, a 2 MiB folio or one of order 12 can be split from in one call.
    for (to, most) in [(0, 11), (9, 17), (12, 23)] {
        assert_eq!(index.largest_split(order(to)), order(most));
        assert!(index.split_nodes(order(most), order(to)).is_some());
        assert_eq!(index.split_nodes(order(most + 1), order(to)), None);
    }
    // 1 GiB to pages by way of orders 12 and 6: 1, 64 and 4,096 nodes of 576 bytes.
    let steps = [(18, 12, 1), (12, 6, 64), (6, 0, 4096)];
    let nodes = steps.map(|(from, to, entries)| entries * index.split_nodes(order(from), order(to)).unwrap());
    let pages = FolioLayout::new(block(18), OrderSet::PAGES, Empty).counts();
    assert_eq!((nodes, index.units(&pages)), ([1, 64, 4096], 4161));
    assert_eq!(nodes.iter().sum::<u64>() * XArray::LINUX_NODE_BYTES, 2_396_736);
    assert_eq!(index.chain_nodes(order(9), order(0)), 1);
    assert_eq!(index.chain_nodes(order(18), order(0)), 3);
}

#[test]
fn orders_are_read_and_shown() {
    assert_eq!("all".parse(), Ok(OrderSet::ALL));
    assert_eq!("0, 18,9".parse::<OrderSet>().map(|set| std::format!("{set}")), Ok("18,9,0".into()));
    assert_eq!("18,x".parse::<OrderSet>(), Err(OrderSetError::NotANumber { position: 1 }));
    assert_eq!("0,63".parse::<OrderSet>(), Err(OrderSetError::TooLarge { order: 63 }));
    assert_eq!(OrderSet::from_bits(1 << 41 | 1), Err(OrderSetError::TooLarge { order: 41 }));
    assert_eq!(OrderSet::HUGETLB.iter().rev().map(Order::raw).collect::<Vec<_>>(), [18, 9, 0]);
    assert_eq!(
        OrderSet::ALL.at_least(Order::HUGE_2M).clipped(Order::new(10).unwrap()).bits(),
        0b110_0000_0001
    );
}
