//! What the page index costs.
//!
//! A multi-order index keeps one entry per folio. Splitting an entry takes nodes, merging entries gives them back;
//! both are known from the layout alone.

use crate::{LayoutCounts, Order};
use core::fmt::Debug;

/// A page index whose nodes can be counted ahead.
pub trait IndexModel: Debug {
    /// Nodes that exist because the block is not one entry: none for a block that is one folio.
    ///
    /// A finer layout never has fewer nodes than a coarser one.
    fn nodes(&self, layout: &LayoutCounts) -> u64;
}

/// An index with a fixed slot per page: no nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct FlatArray;

impl FlatArray {
    /// The model.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl IndexModel for FlatArray {
    fn nodes(&self, _layout: &LayoutCounts) -> u64 {
        0
    }
}

/// A radix tree with multi-order entries.
///
/// With 2^s slots to a node, an entry of order o lies in the node of shift `s * (o / s)` and takes `2^(o % s)` slots
/// of it. A node of shift `s * (k - 1)` exists for an aligned block of order `s * k` exactly if a folio smaller than
/// that block lies in it (Linux lib/xarray.c: a node covers one chunk, an entry as large as the chunk replaces it).
///
/// ```
/// use folio_split::{FolioLayout, IndexModel, Order, OrderSet, Pfn, PfnBlock, XArray};
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let nodes = |orders, small| XArray::LINUX.nodes(&FolioLayout::new(block, orders, small).counts());
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

    /// How many nodes are below the slots of an entry of `order` at most.
    const fn level(&self, order: Order) -> u8 {
        match order.raw().checked_div(self.chunk.raw()) {
            Some(level) => level,
            None => 0,
        }
    }
}

impl IndexModel for XArray {
    fn nodes(&self, layout: &LayoutCounts) -> u64 {
        let (mut raw, mut sum) = (self.chunk.raw(), 0_u64);
        // Ends with the orders: a chunk is at least 1.
        while let Some(order) = Order::new(raw).filter(|&order| order <= layout.order()) {
            sum = sum.saturating_add(layout.fragmented(order));
            raw = raw.saturating_add(self.chunk.raw().max(1));
        }
        sum
    }
}

/// Index nodes that a transition takes and gives back.
///
/// A transition that first splits and then merges has `needed` more nodes at its peak, and `needed - freed` in the
/// end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct IndexDelta {
    /// Nodes to reserve for the splits.
    pub needed: u64,
    /// Nodes that the merges give back.
    pub freed: u64,
}
