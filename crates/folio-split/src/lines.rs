//! Counting touched blocks where runs are many: 64 words at a time.
//!
//! The order-1 blocks of a word are in every other bit of it, so those of two words fit into one; of four words the
//! order-2 blocks, and so on: a line has 32 words of order-1 blocks, 16 of order-2 blocks, and at last one word with
//! a bit for each word of the line, which goes on in the same way. A word is folded over the one half of the rest away, so
//! that bit i stands for the word whose number is i with its bits reversed. From order 12 on a line is what a page was in
//! [`tally`](crate::tally).

use crate::{Line, Order, OrderSet, PageSet, pages::run_from, tally::Tally};

/// Pages in a line, as a power of two.
pub(crate) const LINE: u8 = 12;

/// Whether a set can be read in lines; page `first` is in one of them.
pub(crate) fn possible<S: PageSet + ?Sized>(small: &S, first: u64) -> bool {
    small.line(first >> LINE, &mut [0; 64])
}

/// Counts like [`tally::count`](crate::tally::count) a block of `order`, at least that of a line.
pub(crate) fn count<S: PageSet + ?Sized>(
    order: Order,
    orders: OrderSet,
    small: &S,
    first: u64,
    touched: &mut [u64; Order::COUNT],
) {
    let Some((below, above)) = touched.split_at_mut_checked(LINE.into()) else { return };
    let Some(above) = above.get_mut(..=order.index().saturating_sub(LINE.into())) else { return };
    let mut lines = Lines { orders, touched: below, full: [0; LINE as usize] };
    let mut tally = Tally::new(above);
    let (mut at, end) = (first >> LINE, first.saturating_add(order.pages()) >> LINE);
    let mut line = [0; 64];
    // Ends with the lines: `at` grows each time round.
    while at < end {
        // A set that has told one line tells them all.
        let _ = small.line(at, &mut line);
        let mut last = at;
        let [head, ..] = line;
        if head == 0 && line.iter().fold(0, |some, word| some | word) == 0 {
            // On to the next member; nothing but a broken set has it in this line.
            let Some(run) = run_from(small, at << LINE) else { break };
            at = (run.start >> LINE).max(at.saturating_add(1));
            continue;
        }
        if head == u64::MAX && line.iter().fold(head, |all, word| all & word) == u64::MAX {
            let full = run_from(small, at << LINE).map_or(0, |run| run.end >> LINE).min(end);
            last = full.saturating_sub(1).max(at);
            lines.add_full(0, last.saturating_sub(at).saturating_add(1));
        } else {
            lines.fold(&line);
        }
        tally.add(at, last);
        at = last.saturating_add(1);
    }
    lines.finish();
}

/// Blocks of order 0 to 11 so far.
struct Lines<'a> {
    orders: OrderSet,
    touched: &'a mut [u64],
    /// Lines in which all blocks of an order and above are touched, by the order.
    full: [u64; LINE as usize],
}

impl Lines<'_> {
    fn add(&mut self, order: u8, blocks: u64) {
        if let Some(touched) = self.touched.get_mut(usize::from(order)) {
            *touched = touched.wrapping_add(blocks);
        }
    }

    /// Adds lines in which all blocks of `order` and above are touched.
    fn add_full(&mut self, order: u8, lines: u64) {
        if let Some(full) = self.full.get_mut(usize::from(order)) {
            *full = full.wrapping_add(lines);
        }
    }

    fn finish(self) {
        let mut lines = 0_u64;
        for ((order, touched), full) in (0..LINE).zip(self.touched.iter_mut()).zip(self.full) {
            lines = lines.wrapping_add(full);
            *touched = touched.wrapping_add(lines << LINE.saturating_sub(order));
        }
    }

    /// Adds the blocks of order 1 to 11 that the members of a line touch.
    fn fold(&mut self, line: &Line) {
        let Some(one) = self.halve::<64, 32>(line, 1, 0x5555_5555_5555_5555) else { return };
        let Some(two) = self.halve::<32, 16>(&one, 2, 0x3333_3333_3333_3333) else { return };
        let Some(three) = self.halve::<16, 8>(&two, 3, 0x0f0f_0f0f_0f0f_0f0f) else { return };
        let Some(four) = self.halve::<8, 4>(&three, 4, 0x00ff_00ff_00ff_00ff) else { return };
        let Some(five) = self.halve::<4, 2>(&four, 5, 0x0000_ffff_0000_ffff) else { return };
        let Some([six]) = self.halve::<2, 1>(&five, 6, 0x0000_0000_ffff_ffff) else { return };
        self.fold_bits(six, 7);
    }

    /// Adds the blocks of `order` and above, from a word with a bit for each of the order below.
    fn fold_bits(&mut self, word: u64, order: u8) {
        let mut word = word;
        for order in order..LINE {
            let half = 1_u32 << LINE.saturating_sub(order);
            word = (word | word >> half) & (1_u64 << half).wrapping_sub(1);
            self.add(order, word.count_ones().into());
        }
    }

    /// The blocks of `order` from those of the order below, two words in one. Adds them; `None` if all are touched, and
    /// those of larger orders are added too then.
    #[inline]
    fn halve<const N: usize, const M: usize>(
        &mut self,
        words: &[u64; N],
        order: u8,
        keep: u64,
    ) -> Option<[u64; M]> {
        let shift = 1_u32 << order.saturating_sub(1);
        let mut out = [0; M];
        let (first, second) = words.split_at_checked(M)?;
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = (first | first >> shift) & keep | (second | second << shift) & !keep;
        }
        if out.iter().fold(u64::MAX, |all, word| all & word) == u64::MAX {
            self.add_full(order, 1);
            return None;
        }
        if self.orders.bits() >> order & 1 != 0 {
            let ones = out.iter().fold(0, |sum: u64, word| sum.wrapping_add(word.count_ones().into()));
            self.add(order, ones);
        }
        Some(out)
    }
}
