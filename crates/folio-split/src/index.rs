//! What Linux's page index costs, and which splits it allows.
//!
//! A multi-order index keeps one entry per folio. Splitting an entry takes nodes, merging entries gives them back;
//! both are known from the layout alone.

use crate::{CostModel, LayoutCounts, Order};

/// A radix tree with multi-order entries.
///
/// With 2^s slots to a node, an entry of order o lies in the node of shift `s * (o / s)` and takes `2^(o % s)` slots
/// of it. A node of shift `s * (k - 1)` exists for an aligned block of order `s * k` exactly if a folio smaller than
/// that block lies in it (Linux lib/xarray.c: a node covers one chunk, an entry as large as the chunk replaces it).
///
/// ```
/// use folio_split::{CostModel, FolioLayout, Order, OrderSet, Pfn, PfnBlock, XArray};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let nodes = |orders, small| XArray::LINUX.units(&FolioLayout::new(block, orders, small).counts());
/// assert_eq!(nodes(OrderSet::HUGETLB, 0..1), 73);
/// assert_eq!(nodes(OrderSet::ALL, 0..1), 3);
/// assert_eq!(nodes(OrderSet::PAGES, 0..0), 4161);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XArray {
    chunk: Order,
}

impl XArray {
    /// 64 slots to a node (XA_CHUNK_SHIFT 6).
    pub const LINUX: Self = Self {
        chunk: match Order::new(6) {
            Some(chunk) => chunk,
            None => Order::MAX,
        },
    };

    /// Bytes of a node with 64 slots on a 64-bit machine (Linux struct xa_node).
    pub const LINUX_NODE_BYTES: u64 = 576;

    /// A tree with `2^chunk_shift` slots to a node; `None` for a shift of 0 or above 40.
    #[must_use]
    pub const fn new(chunk_shift: u8) -> Option<Self> {
        match Order::new(chunk_shift) {
            Some(chunk) if chunk_shift > 0 => Some(Self { chunk }),
            _ => None,
        }
    }
}

impl XArray {
    /// The largest order that Linux splits evenly into entries of `to` in one call: 11 for pages, 17 for order 9. A larger
    /// entry goes by way of others, and takes no more nodes for it.
    #[must_use]
    pub const fn largest_split(&self, to: Order) -> Order {
        let level = self.level(to).saturating_add(2);
        match Order::new(level.saturating_mul(self.chunk.raw()).saturating_sub(1)) {
            Some(order) => order,
            None => Order::MAX,
        }
    }

    /// Slots that an entry of `order` takes in its node, the first of them with the entry itself.
    #[must_use]
    pub const fn slots(&self, order: Order) -> u64 {
        match order.raw().checked_rem(self.chunk.raw()) {
            Some(rest) => 1 << rest,
            None => 1,
        }
    }

    /// Nodes that Linux `xas_split_alloc` takes to split an entry of `from` evenly into entries of `to`; `None` where
    /// it refuses: it expands each slot of an entry by one node at most, so 18 to 0 and 18 to 9 are refused, 18 to 12
    /// is not.
    #[must_use]
    pub const fn split_nodes(&self, from: Order, to: Order) -> Option<u64> {
        if to.raw() >= from.raw() {
            return None;
        }
        let (from_level, to_level) = (self.level(from), self.level(to));
        match from_level.saturating_sub(to_level) {
            0 => Some(0),
            1 => Some(self.slots(from)),
            _ => None,
        }
    }

    /// The smallest order that Linux `xas_try_split` reaches in one step from `from`, with one node at most; the
    /// steps from 18 are 17, 12, 11, 6, 5, 0. `None` for order 0.
    #[must_use]
    pub const fn next_step(&self, from: Order) -> Option<Order> {
        match (from.raw().checked_sub(1), from.raw().checked_rem(self.chunk.raw())) {
            (Some(below), None | Some(0)) => Order::new(below),
            (Some(_), Some(rest)) => Order::new(from.raw().saturating_sub(rest)),
            (None, _) => None,
        }
    }

    /// Nodes of the way from one entry of `from` to the one of `to` around a single page, step by step.
    #[must_use]
    pub const fn chain_nodes(&self, from: Order, to: Order) -> u64 {
        self.level(from).saturating_sub(self.level(to)) as u64
    }

    /// How many levels of nodes an entry of `order` stands for.
    const fn level(&self, order: Order) -> u8 {
        match order.raw().checked_div(self.chunk.raw()) {
            Some(level) => level,
            None => 0,
        }
    }
}

impl CostModel for XArray {
    /// Nodes that exist because the block is not one entry: none for a block that is one folio.
    fn units(&self, layout: &LayoutCounts) -> u64 {
        let (mut raw, mut sum) = (self.chunk.raw(), 0_u64);
        // Ends with the orders: a chunk is at least 1.
        while let Some(order) = Order::new(raw).filter(|&order| order <= layout.order()) {
            sum = sum.saturating_add(layout.fragmented(order));
            raw = raw.saturating_add(self.chunk.raw().max(1));
        }
        sum
    }
}
