//! Counting touched blocks of all orders in one pass.
//!
//! Let a run begin at page `a`, and `p` be the last page of the run before it. Blocks of order o that hold `a` are
//! new unless they hold `p` too, that is for `o < bits(p ^ a)`: one number per run says it for all orders. The run
//! itself goes on into further blocks for `o < bits(a ^ b)`, where `b` is its last page: a short run costs little.
//!
//! Where runs are many, the set is read in lines instead: see [`lines`](crate::lines).

use crate::{
    Order, OrderSet, PageSet,
    lines::{self, LINE},
    pages::{edge_from, run_from},
};

/// Runs that are read one by one before lines are.
const FEW: u32 = 24;

/// Counts the blocks of `order` and below that `small` touches from page `first` on, into `touched`, which is all 0.
///
/// What it counts for orders that are no members is of no use.
pub(crate) fn count<S: PageSet + ?Sized>(
    order: Order,
    orders: OrderSet,
    small: &S,
    first: u64,
    touched: &mut [u64; Order::COUNT],
) {
    let Some(smallest) = orders.smallest_large() else { return };
    let end = first.saturating_add(order.pages());
    let mut tally = Tally::new(order.index(), touched);
    let (mut at, mut runs) = (first, 0_u32);
    // Ends with the runs: `at` grows each time round.
    while let Some(run) = run_from(small, at).filter(|run| run.start < end) {
        if runs == FEW && order.raw() >= LINE && smallest.raw() < LINE && lines::possible(small, first) {
            // From the start, as if no run had been read.
            *touched = [0; Order::COUNT];
            lines::count(order, orders, small, first, touched);
            return;
        }
        runs = runs.saturating_add(1);
        let last = run.end.min(end).saturating_sub(1);
        tally.add(run.start, last);
        // The rest of the block of the smallest order adds nothing.
        at = (last | smallest.mask()).saturating_add(1);
    }
}

/// Blocks touched so far, by order: orders of pages, or of lines of them.
pub(crate) struct Tally<'a> {
    touched: &'a mut [u64],
    /// The last page (or line), and how many orders its successor is new in: all, before the first.
    last: u64,
    all: Option<usize>,
}

impl<'a> Tally<'a> {
    /// Counts blocks of the orders up to `largest`.
    #[inline]
    pub(crate) const fn new(largest: usize, touched: &'a mut [u64]) -> Self {
        Self { touched, last: 0, all: Some(largest.saturating_add(1)) }
    }

    /// Adds the pages from `first` to `last`, which come after those before.
    #[inline]
    pub(crate) fn add(&mut self, first: u64, last: u64) {
        let new = self.all.take().unwrap_or_else(|| bits(self.last ^ first));
        self.touched.iter_mut().take(new).for_each(|touched| *touched = touched.wrapping_add(1));
        let (mut low, mut high) = (first, last);
        for touched in self.touched.iter_mut() {
            if low == high {
                break;
            }
            *touched = touched.wrapping_add(high.wrapping_sub(low));
            (low, high) = (low >> 1, high >> 1);
        }
        self.last = last;
    }
}

/// The number of aligned blocks of `order` in pages `first..end` that hold a member or are crossed by an edge.
///
/// For sets with edges, which are few: one look-up per block that counts.
pub(crate) fn mixed<S: PageSet + ?Sized>(order: Order, small: &S, first: u64, end: u64) -> u64 {
    let (mut at, mut blocks) = (first, 0_u64);
    // Ends with the blocks: `at` grows each time round.
    while at < end {
        let run = run_from(small, at).filter(|run| run.start < end);
        let edge = crossing(order, small, at).filter(|&edge| edge < end);
        let (start, last) = match (run, edge) {
            (Some(run), edge) if edge.is_none_or(|edge| run.start <= edge | order.mask()) => {
                (run.start, run.end.min(end).saturating_sub(1))
            }
            (_, Some(edge)) => (edge, edge),
            (_, None) => break,
        };
        let further = (last >> order.raw()).saturating_sub(start >> order.raw());
        blocks = blocks.saturating_add(further).saturating_add(1);
        at = (last | order.mask()).saturating_add(1);
    }
    blocks
}

/// The first edge at or after `at` that lies inside a block of `order`.
fn crossing<S: PageSet + ?Sized>(order: Order, set: &S, at: u64) -> Option<u64> {
    let mut at = at;
    // Ends with the edges: `at` grows each time round.
    loop {
        let edge = edge_from(set, at)?;
        if edge & order.mask() != 0 {
            return Some(edge);
        }
        at = edge.saturating_add(1);
    }
}

/// Number of bits up to the highest that is set.
#[inline]
fn bits(value: u64) -> usize {
    64_usize.saturating_sub(value.leading_zeros() as usize)
}
