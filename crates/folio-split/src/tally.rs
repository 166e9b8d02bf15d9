//! Counting touched blocks of all orders in one pass.
//!
//! Let a run begin at page `a`, and `p` be the last page of the run before it. Blocks of order o that hold `a` are
//! new unless they hold `p` too, that is for `o < bits(p ^ a)`: one number per run says it for all orders. The run
//! itself goes on into further blocks for `o < bits(a ^ b)`, where `b` is its last page: a short run costs little.
//!
//! An edge at page `e` touches the blocks that begin before it: those of orders above its alignment. The others begin with
//! it, so what comes next is new in them.
//!
//! Where runs are many, the set is read in lines instead: see [`lines`](crate::lines).

use crate::{
    Order, OrderSet, PageSet,
    lines::{self, LINE},
    pages::run_from,
};
use core::ops::Range;

/// Runs that are read one by one before lines are.
pub(crate) const FEW: u32 = 24;

/// Counts the blocks of `order` and below that `small` touches from page `first` on, or an edge that `edges` finds in a range,
/// into `touched`, which is all 0.
///
/// What it counts for orders that are no members is of no use.
pub(crate) fn count<S: PageSet + ?Sized>(
    order: Order,
    orders: OrderSet,
    small: &S,
    mut edges: impl FnMut(Range<u64>) -> Option<u64>,
    first: u64,
    touched: &mut [u64; Order::COUNT],
) {
    let Some(smallest) = orders.smallest_large() else { return };
    let end = first.saturating_add(order.pages());
    let mut edge_from = |at: u64| edges(at..end).unwrap_or(end);
    let mut edge = edge_from(first.saturating_add(1));
    let in_lines = edge == end && order.raw() >= LINE && smallest.raw() < LINE;
    // Blocks of the smallest order are what is counted: nothing depends on where in one of them a page is.
    let Some(above) = touched.get_mut(smallest.index()..=order.index()) else { return };
    let mut tally = Tally::new(above);
    let (mut at, mut runs) = (first, 0_u32);
    // Ends with the runs and edges: `at` and `edge` grow each time round.
    loop {
        let run = run_from(small, at).filter(|run| run.start < end);
        let next = run.as_ref().map_or(end, |run| run.start);
        while edge < next {
            let block = edge >> smallest.raw();
            if edge & smallest.mask() == 0 {
                tally.add_edge(block);
            } else {
                tally.add(block, block);
            }
            edge = edge_from(edge.saturating_add(1));
        }
        let Some(run) = run else { return };
        if runs == FEW && in_lines && lines::possible(small, first) {
            // From the start, as if no run had been read.
            *touched = [0; Order::COUNT];
            return lines::count(order, orders, small, first, touched);
        }
        runs = runs.saturating_add(1);
        let last = run.end.min(end).saturating_sub(1);
        tally.add(run.start >> smallest.raw(), last >> smallest.raw());
        // The rest of the block adds nothing.
        at = (last | smallest.mask()).saturating_add(1);
        if edge < at {
            edge = edge_from(at);
        }
    }
}

/// Blocks touched so far, by order.
pub(crate) struct Tally<'a> {
    touched: &'a mut [u64],
    /// The last block (or edge) of the smallest order.
    last: u64,
    /// In how many orders a block is new at least: all, before the first; those whose blocks begin with an edge, after it.
    new: usize,
}

impl<'a> Tally<'a> {
    /// Counts blocks of so many orders as there are counters. They are 0.
    #[inline]
    pub(crate) const fn new(touched: &'a mut [u64]) -> Self {
        let new = touched.len();
        Self { touched, last: 0, new }
    }

    /// Adds the blocks from `first` to `last`, which come after those before.
    #[inline]
    pub(crate) fn add(&mut self, first: u64, last: u64) {
        let new = self.new.max(bits(self.last ^ first));
        self.touched.iter_mut().take(new).for_each(|touched| *touched = touched.wrapping_add(1));
        let (mut low, mut high) = (first, last);
        for touched in self.touched.iter_mut() {
            if low == high {
                break;
            }
            *touched = touched.wrapping_add(high.wrapping_sub(low));
            (low, high) = (low >> 1, high >> 1);
        }
        (self.last, self.new) = (last, 0);
    }

    /// Adds an edge between two blocks, which comes after all that was added before. It touches the blocks of the orders
    /// above its alignment.
    fn add_edge(&mut self, edge: u64) {
        let new = self.new.max(bits(self.last ^ edge));
        let aligned = (edge.trailing_zeros() as usize).saturating_add(1);
        let crossed = self.touched.iter_mut().take(new).skip(aligned);
        crossed.for_each(|touched| *touched = touched.wrapping_add(1));
        (self.last, self.new) = (edge, aligned);
    }
}

/// Number of bits up to the highest that is set.
#[inline]
fn bits(value: u64) -> usize {
    64_usize.saturating_sub(value.leading_zeros() as usize)
}
