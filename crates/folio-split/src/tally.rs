//! Counting touched blocks of all orders in one pass.
//!
//! Let a run begin at page `a`, and `p` be the last page of the run before it. Blocks of order o that hold `a` are
//! new unless they hold `p` too, that is for `o < bits(p ^ a)`: one number per run says it for all orders. The run
//! itself goes on into further blocks for `o < bits(a ^ b)`, where `b` is its last page: a short run costs little.
//!
//! Where runs are many, the set is read in lines of 64 words instead: blocks of order 1 to 11 are counted by folding the
//! words of a line over each other, and from order 12 on a line is what a page was above.

use crate::{
    Order, OrderSet, PageSet,
    pages::{edge_from, run_from},
};

/// Pages in a word, as a power of two.
const WORD: u8 = 6;

/// Pages in a line of words, as a power of two.
const LINE: u8 = 12;

/// Words in a line.
const WORDS: usize = 1 << (LINE - WORD);

/// Runs that are read one by one before lines are.
const FEW: u32 = 24;

/// Runs that are counted without a table of orders.
const HANDFUL: usize = 4;

/// Counts a set of a handful of runs into `touched`, which is all 0. False, and nothing is counted, for more.
pub(crate) fn handful<S: PageSet + ?Sized>(
    order: Order,
    orders: OrderSet,
    small: &S,
    first: u64,
    touched: &mut [u64; Order::COUNT],
) -> bool {
    let Some(smallest) = orders.smallest_large() else { return true };
    let end = first.saturating_add(order.pages());
    // Each run is new in blocks of the orders below its byte, which is at most 64.
    let mut new = [0_u8; HANDFUL];
    let (mut at, mut previous) = (first, None);
    let mut slots = new.iter_mut();
    while let Some(run) = run_from(small, at).filter(|run| run.start < end) {
        let Some(slot) = slots.next() else {
            *touched = [0; Order::COUNT];
            return false;
        };
        let last = run.end.min(end).saturating_sub(1);
        [*slot, ..] = previous.map_or(64, |previous| bits(previous ^ run.start)).to_le_bytes();
        // The blocks that it goes on into.
        for order in orders.iter().skip(1) {
            let further = (last >> order.raw()).wrapping_sub(run.start >> order.raw());
            match touched.get_mut(order.index()) {
                Some(touched) if further > 0 => *touched = touched.wrapping_add(further),
                _ => break,
            }
        }
        previous = Some(last);
        at = (last | smallest.mask()).saturating_add(1);
    }
    const EACH: u32 = 0x0101_0101;
    let new = u32::from_le_bytes(new) | EACH << 7;
    for order in orders.iter().skip(1) {
        if let Some(touched) = touched.get_mut(order.index()) {
            // The top bit of a byte stays if the byte is above the order; then the bits are added up.
            let above =
                new.wrapping_sub(EACH.wrapping_mul(u32::from(order.raw()).wrapping_add(1))) >> 7 & EACH;
            *touched = touched.wrapping_add(u64::from(above.wrapping_mul(EACH) >> 24));
        }
    }
    true
}

/// Blocks touched so far.
pub(crate) struct Tally<'a> {
    order: Order,
    /// The smallest order that matters: after a run, the rest of its block of this order adds nothing.
    smallest: Order,
    /// Blocks of order o that runs go on into.
    touched: &'a mut [u64; Order::COUNT],
    /// `fresh[k]`: how many runs (or lines) begin in a new block of each order below k.
    fresh: [u64; FRESH],
    /// How many of those were lines, which say nothing about orders below theirs.
    lines: u64,
}

/// One more than there are orders: a first run is new in a block of every order.
const FRESH: usize = Order::COUNT + 1;

impl<'a> Tally<'a> {
    /// Counts into `touched`, which is all 0.
    pub(crate) const fn new(order: Order, smallest: Order, touched: &'a mut [u64; Order::COUNT]) -> Self {
        Self { order, smallest, touched, fresh: [0; FRESH], lines: 0 }
    }

    /// m_o of the block that begins at page `first`, for every order from the smallest that matters.
    pub(crate) fn count<S: PageSet + ?Sized>(mut self, small: &S, first: u64) {
        let end = first.saturating_add(self.order.pages());
        let (mut at, mut previous) = (first, None);
        let dense =
            self.smallest.raw() < WORD && self.order.raw() >= LINE && small.word(first >> WORD).is_some();
        let mut few = FEW;
        while let Some(run) = run_from(small, at).filter(|run| run.start < end) {
            few = few.saturating_sub(1);
            if few == 0 && dense {
                // From the start, as if no run had been read.
                *self.touched = [0; Order::COUNT];
                self.fresh = [0; FRESH];
                self.count_lines(small, first >> LINE, end >> LINE);
                break;
            }
            let last = run.end.min(end).saturating_sub(1);
            self.add(run.start, last, previous, 0);
            previous = Some(last);
            at = (last | self.smallest.mask()).saturating_add(1);
        }
        self.finish();
    }

    /// Reads lines `at..end`.
    fn count_lines<S: PageSet + ?Sized>(&mut self, small: &S, at: u64, end: u64) {
        let (mut at, mut previous) = (at, None);
        // Ends with the lines: `at` grows each time round.
        while at < end {
            let mut line = [0; WORDS];
            for (index, word) in (at << (LINE - WORD)..).zip(&mut line) {
                *word = small.word(index).unwrap_or(0);
            }
            let (some, all) = line.iter().fold((0, u64::MAX), |(some, all), &word| (some | word, all & word));
            let mut last = at;
            if some == 0 {
                // On to the next member; nothing but a broken set has it in this line.
                let Some(run) = run_from(small, at << LINE) else { break };
                at = (run.start >> LINE).max(at.saturating_add(1));
                continue;
            }
            if all == u64::MAX {
                let full = run_from(small, at << LINE).map_or(0, |run| run.end >> LINE).min(end);
                last = full.saturating_sub(1).max(at);
                let count = last.saturating_sub(at).saturating_add(1);
                for (order, touched) in (0..LINE).zip(self.touched.iter_mut()) {
                    *touched = touched.saturating_add(count << LINE.saturating_sub(order));
                }
            } else {
                fold(&line, self.touched);
            }
            self.add(at, last, previous, LINE);
            self.lines = self.lines.saturating_add(1);
            previous = Some(last);
            at = last.saturating_add(1);
        }
    }

    /// Adds the blocks of order `unit` and above that units `first..=last` touch and unit `previous` does not.
    #[inline]
    fn add(&mut self, first: u64, last: u64, previous: Option<u64>, unit: u8) {
        let new = previous.map_or(64, |previous| bits(previous ^ first)).saturating_add(usize::from(unit));
        if let Some(fresh) = self.fresh.get_mut(new.min(FRESH - 1)) {
            *fresh = fresh.saturating_add(1);
        }
        let (mut low, mut high) = (first, last);
        for touched in self.touched.iter_mut().skip(usize::from(unit)) {
            if low == high {
                break;
            }
            *touched = touched.saturating_add(high.saturating_sub(low));
            (low, high) = (low >> 1, high >> 1);
        }
    }

    fn finish(self) {
        let count = self.order.index().saturating_add(1);
        // Those that are new in blocks of every order come first.
        let mut new = self.fresh.iter().skip(count).fold(0, |sum: u64, fresh| sum.saturating_add(*fresh));
        for (order, (touched, fresh)) in
            self.touched.iter_mut().zip(&self.fresh).enumerate().take(count).rev()
        {
            let lines = if order < usize::from(LINE) { self.lines } else { 0 };
            *touched = touched.saturating_add(new.saturating_sub(lines));
            new = new.saturating_add(*fresh);
        }
        // Members of blocks that are skipped were not counted, and nobody asks.
        let [pages, ..] = self.touched;
        *pages = 0;
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

/// Adds the blocks of order 1 to 11 that the members of a line touch.
///
/// The order-1 blocks of a word are in every other bit of it, so those of two words fit into one; of four words the
/// order-2 blocks, and so on: a line has 32 words of order-1 blocks, 16 of order-2 blocks, and at last one word, in
/// which bit i says whether word i of the line has members. That one is folded over itself.
fn fold(line: &[u64; WORDS], touched: &mut [u64; Order::COUNT]) {
    let one: [u64; 32] = halved(line, 1, 0x5555_5555_5555_5555);
    let two: [u64; 16] = halved(&one, 2, 0x3333_3333_3333_3333);
    let three: [u64; 8] = halved(&two, 4, 0x0f0f_0f0f_0f0f_0f0f);
    let four: [u64; 4] = halved(&three, 8, 0x00ff_00ff_00ff_00ff);
    let five: [u64; 2] = halved(&four, 16, 0x0000_ffff_0000_ffff);
    let [six]: [u64; 1] = halved(&five, 32, 0x0000_0000_ffff_ffff);
    let seven = (six | six >> 1) & 0x5555_5555_5555_5555;
    let eight = (seven | seven >> 2) & 0x1111_1111_1111_1111;
    let nine = (eight | eight >> 4) & 0x0101_0101_0101_0101;
    let ten = (nine | nine >> 8) & 0x0001_0001_0001_0001;
    let eleven = (ten | ten >> 16) & 0x0000_0001_0000_0001;
    let blocks = [
        ones(&one),
        ones(&two),
        ones(&three),
        ones(&four),
        ones(&five),
        ones(&[six]),
        ones(&[seven]),
        ones(&[eight]),
        ones(&[nine]),
        ones(&[ten]),
        ones(&[eleven]),
    ];
    for (touched, blocks) in touched.iter_mut().skip(1).zip(blocks) {
        *touched = touched.saturating_add(blocks);
    }
}

/// Number of bits that are set.
#[inline]
fn ones<const N: usize>(words: &[u64; N]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from(word.count_ones())))
}

/// The blocks of the next order, from two words each: those of the first in the bits of `keep`, those of the second
/// between them.
#[inline]
fn halved<const N: usize, const M: usize>(words: &[u64; N], shift: u32, keep: u64) -> [u64; M] {
    let mut out = [0; M];
    for (out, [first, second]) in out.iter_mut().zip(words.as_chunks().0) {
        *out = (first | first >> shift) & keep | ((second | second >> shift) & keep) << shift;
    }
    out
}
