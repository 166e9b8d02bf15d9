//! Counting touched blocks of all orders in one pass.
//!
//! Let a run begin at page `a`, and `p` be the last page of the run before it. Blocks of order o that hold `a` are
//! new unless they hold `p` too, that is for `o < bits(p ^ a)`: one number per run says it for all orders. The run
//! itself goes on into further blocks for `o < bits(a ^ b)`, where `b` is its last page: a short run costs little.
//!
//! Where runs are many, the set is read in lines of eight words instead: within a word, blocks of order 1 to 5 are
//! counted by folding the word over itself, order 6 to 8 likewise from the words that are not empty, and from order 9
//! on a line is what a page was above.

use crate::{
    Order, PageSet,
    pages::{edge_from, run_from},
};

/// Pages in a word, as a power of two.
const WORD: u8 = 6;

/// Pages in a line of words, as a power of two.
const LINE: u8 = 9;

/// Words in a line.
const WORDS: usize = 1 << (LINE - WORD);

/// Runs that are read one by one before lines are.
const FEW: u32 = 24;

/// Blocks touched so far.
pub(crate) struct Tally<'a> {
    order: Order,
    /// The smallest order that matters: after a run, the rest of its block of this order adds nothing.
    smallest: Order,
    /// Blocks of order o that runs go on into.
    touched: &'a mut [u64; Order::COUNT],
    /// `fresh[k]`: how many runs (or lines) begin in a new block of each order below k.
    fresh: [u64; FRESH],
    /// How many of those were lines, which say nothing about orders below 9.
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
            let line = run.start >> LINE;
            let previous_line = previous.map(|page| page >> LINE);
            if few == 0 && dense && previous_line != Some(line) {
                self.count_lines(small, line, end >> LINE, previous_line);
                break;
            }
            let last = run.end.min(end).saturating_sub(1);
            self.add(run.start, last, previous, 0);
            previous = Some(last);
            at = (last | self.smallest.mask()).saturating_add(1);
        }
        self.finish();
    }

    /// Reads lines `at..end`; `previous` is the last line that holds a member.
    fn count_lines<S: PageSet + ?Sized>(&mut self, small: &S, at: u64, end: u64, previous: Option<u64>) {
        let (mut at, mut previous) = (at, previous);
        let mut fold = Fold::default();
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
                fold.add(&line, self.touched);
            }
            self.add(at, last, previous, LINE);
            self.lines = self.lines.saturating_add(1);
            previous = Some(last);
            at = last.saturating_add(1);
        }
        fold.flush(self.touched);
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

/// Blocks of order 1 to 8 touched by lines; those of order 1 to 5 in bytes, until one could overflow.
#[derive(Default)]
struct Fold {
    sums: [u64; 5],
    lines: u32,
}

impl Fold {
    #[inline]
    fn add(&mut self, line: &[u64; WORDS], touched: &mut [u64; Order::COUNT]) {
        let mut sums = [0_u64; 5];
        for &word in line {
            for (sum, blocks) in sums.iter_mut().zip(folded(word)) {
                *sum = sum.wrapping_add(blocks);
            }
        }
        for (sum, blocks) in self.sums.iter_mut().zip(sums) {
            *sum = sum.wrapping_add(blocks);
        }
        let mut words = line.iter().rev().fold(0_u32, |words, &word| words << 1 | u32::from(word != 0));
        for (touched, (shift, keep)) in
            touched.iter_mut().skip(usize::from(WORD)).zip([(0, 0xff), (1, 0x55), (2, 0x11)])
        {
            words = (words | words >> shift) & keep;
            *touched = touched.saturating_add(u64::from(words.count_ones()));
        }
        self.lines = self.lines.saturating_add(1);
        // A line adds at most 4 * 8 to a byte.
        if self.lines == 7 {
            self.flush(touched);
        }
    }

    fn flush(&mut self, touched: &mut [u64; Order::COUNT]) {
        for (sum, touched) in self.sums.iter_mut().zip(touched.iter_mut().skip(1)) {
            let bytes =
                sum.to_le_bytes().iter().fold(0, |all: u64, &byte| all.saturating_add(u64::from(byte)));
            *touched = touched.saturating_add(bytes);
            *sum = 0;
        }
        self.lines = 0;
    }
}

/// Blocks of order 1 to 5 that the members of a word touch, as bytes to be added up.
#[inline]
fn folded(word: u64) -> [u64; 5] {
    const BYTES: u64 = 0x0101_0101_0101_0101;
    let one = (word | word >> 1) & 0x5555_5555_5555_5555;
    let two = (one | one >> 2) & 0x1111_1111_1111_1111;
    let three = (two | two >> 4) & BYTES;
    let four = (three | three >> 8) & 0x0001_0001_0001_0001;
    let five = (four | four >> 16) & 0x0000_0001_0000_0001;
    // One bit in two, up to 32 of them: at most 2 in a nibble, then 4 in a byte.
    let nibbles = (one & 0x3333_3333_3333_3333).wrapping_add(one >> 2 & 0x3333_3333_3333_3333);
    let bytes = (nibbles & (BYTES * 15)).wrapping_add(nibbles >> 4 & (BYTES * 15));
    [bytes, (two & BYTES).wrapping_add(two >> 4 & BYTES), three, four, five]
}
