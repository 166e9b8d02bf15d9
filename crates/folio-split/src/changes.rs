//! Where two layouts differ.
//!
//! The sets are read together, in one pass. Up to the first page that one layout has single, or an edge, and the other has
//! not, both have the same walls. The folio that the other has there is the largest block around the page that no
//! wall bounds: it is split, or formed, whole. What follows is known without a look: as far as the run goes on and
//! the folios are of the same order, each of them changes as well. So one step answers for any number of pages, and nothing
//! inside a folio that changes is read.

use crate::{
    FolioLayout, Order, PageSet, PfnBlock,
    layout::{Walls, order_below},
    lines::LINE,
    tally::FEW,
};

/// One difference between two layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(clippy::exhaustive_enums, reason = "of two nested blocks one is the larger")]
pub enum Change {
    /// A folio that exists now and is to be in pieces.
    Split(PfnBlock),
    /// A folio that is to be, and is in pieces now.
    Merge(PfnBlock),
}

impl Change {
    /// The folio before a split, after a merge.
    #[must_use]
    pub const fn whole(self) -> PfnBlock {
        match self {
            Self::Split(whole) | Self::Merge(whole) => whole,
        }
    }

    /// The change that undoes this one.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Split(whole) => Self::Merge(whole),
            Self::Merge(whole) => Self::Split(whole),
        }
    }

    /// The same change of another folio.
    const fn of(self, whole: PfnBlock) -> Self {
        match self {
            Self::Split(_) => Self::Split(whole),
            Self::Merge(_) => Self::Merge(whole),
        }
    }
}

/// Consecutive folios of one order that all change in the same way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub struct ChangeRun {
    /// The change of the first of them.
    pub first: Change,
    /// How many there are, 1 or more.
    pub count: u64,
    /// Order of the first piece of the first one. The others begin with a single page.
    pub first_piece: Order,
}

/// What a layout has at a page.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// The page is single.
    Single,
    /// A folio begins with it that may not hold the page before.
    Edge,
    /// Neither.
    Inside,
}

/// One of the two layouts, as far as it was read.
#[derive(Clone, Debug)]
struct Side<'a, S> {
    layout: FolioLayout<&'a S>,
    walls: Walls,
}

impl<'a, S: PageSet> Side<'a, S> {
    fn new(layout: FolioLayout<&'a S>) -> Self {
        Self { layout, walls: Walls::default() }
    }

    /// What is at `page`, the next wall of one of the sides.
    #[inline]
    fn at(&self, page: u64) -> At {
        match &self.walls {
            walls if walls.run.start <= page => At::Single,
            walls if walls.edge == page => At::Edge,
            _ => At::Inside,
        }
    }

    /// The end of the single pages from `page` on.
    #[inline]
    fn single_until(&self, page: u64) -> u64 {
        if self.walls.run.start <= page { self.walls.run.end } else { page }
    }

    /// Order of the folio that holds `page`, where pages from `gap` to `page` have no wall between them.
    #[inline]
    fn order(&mut self, page: u64, gap: u64) -> Order {
        let gap = match self.at(page) {
            At::Single => return Order::PAGE,
            At::Edge => page,
            At::Inside => gap,
        };
        self.walls.seek(&self.layout, page);
        let behind = order_below(page, self.walls.next());
        let before = if gap == 0 { Order::MAX } else { order_below(page, gap.wrapping_sub(1)) };
        self.layout.orders().largest_within(behind.min(before))
    }
}

/// The differences between two layouts, in ascending order, alike ones together.
/// See [`Transition::change_runs`](crate::Transition::change_runs).
#[derive(Clone, Debug)]
#[must_use = "iterators are lazy"]
pub struct ChangeRuns<'a, A, B> {
    from: Side<'a, A>,
    to: Side<'a, B>,
    /// How far both were read, and the page after the last wall before.
    at: u64,
    gap: u64,
    end: u64,
    /// Single pages that both have, read one run at a time.
    alike: u32,
}

impl<'a, A: PageSet, B: PageSet> ChangeRuns<'a, A, B> {
    /// The differences in pages `at..end`; a folio begins at `at` in both layouts.
    pub(crate) fn new(from: FolioLayout<&'a A>, to: FolioLayout<&'a B>, at: u64, end: u64) -> Self {
        Self { from: Side::new(from), to: Side::new(to), at, gap: at, end, alike: 0 }
    }

    /// The run of changes that begins with the folio around `page`, where the layouts differ. `None` if they have the
    /// same folios there all the same.
    #[inline]
    fn change(&mut self, page: u64) -> Option<ChangeRun> {
        let orders = self.from.layout.orders();
        let block = self.from.layout.block();
        let (old, new) = (self.from.order(page, self.gap), self.to.order(page, self.gap));
        let order = old.max(new);
        let start = page & !order.mask();
        if old == new {
            // Where both have single pages, so has the whole smallest block around.
            let same =
                if order == Order::PAGE { orders.smallest_large().unwrap_or(Order::MAX) } else { order };
            self.skip(page & !same.mask(), same, 1);
            return None;
        }
        if start >= self.end {
            self.at = start;
            return None;
        }
        let whole = block.part_at(start, order);
        let (first, wall, hit, small) = if old > new {
            (Change::Split(whole), self.from.walls.next(), self.to.single_until(page), new)
        } else {
            (Change::Merge(whole), self.to.walls.next(), self.from.single_until(page), old)
        };
        // Folios go on in this order up to a wall, or to the end of the block that could not be larger.
        let larger = orders.above(order).next().unwrap_or(block.order());
        let room = wall.min((start | larger.mask()).saturating_add(1)).saturating_sub(start) >> order.raw();
        let last = hit.min(self.end).saturating_sub(1).saturating_sub(start);
        let count = (last >> order.raw()).saturating_add(1).min(room).max(1);
        let first_piece = match page.wrapping_sub(start) {
            0 => small,
            before => orders.largest_within(order_below(before, 0)),
        };
        self.skip(start, order, count);
        Some(ChangeRun { first, count, first_piece })
    }

    /// Goes on after `count` blocks of `order`. A folio begins there in both layouts.
    #[inline]
    fn skip(&mut self, start: u64, order: Order, count: u64) {
        self.at = start.saturating_add(count << order.raw());
        self.gap = self.at;
    }

    /// Passes over lines in which both sets have the same members, and no edge.
    #[cold]
    fn skip_lines(&mut self) {
        self.alike = 0;
        let (from, to) = (self.from.layout.small(), self.to.layout.small());
        let (mut a, mut b) = ([0; 64], [0; 64]);
        let end = self.end.min(self.from.walls.edge).min(self.to.walls.edge) >> LINE;
        for line in self.at >> LINE..end {
            if !from.line(line, &mut a) || !to.line(line, &mut b) || a != b {
                return;
            }
            self.at = line.saturating_add(1) << LINE;
            // A folio that reaches back behind the line would hold all of it.
            if a != [0; 64] {
                self.gap = self.at;
            }
        }
    }
}

impl<A: PageSet, B: PageSet> Iterator for ChangeRuns<'_, A, B> {
    type Item = ChangeRun;

    fn next(&mut self) -> Option<ChangeRun> {
        // Ends with the block: `at` grows each time round. A folio that begins before the end may differ behind it.
        while self.at < self.end {
            self.from.walls.seek(&self.from.layout, self.at);
            self.to.walls.seek(&self.to.layout, self.at);
            let page = self.from.walls.next().min(self.to.walls.next()).max(self.at);
            if page >= self.from.layout.block().pages() {
                break;
            }
            match (self.from.at(page), self.to.at(page)) {
                (At::Single, At::Single) => {
                    self.at = self.from.walls.run.end.min(self.to.walls.run.end);
                    self.gap = self.at;
                    self.alike = self.alike.saturating_add(1);
                    if self.alike == FEW {
                        self.skip_lines();
                    }
                }
                _ => {
                    let change = self.change(page);
                    if change.is_some() {
                        return change;
                    }
                }
            }
        }
        self.at = self.end;
        None
    }
}

impl<A: PageSet, B: PageSet> core::iter::FusedIterator for ChangeRuns<'_, A, B> {}

/// The differences between two layouts, in ascending order. See [`Transition::changes`](crate::Transition::changes).
#[derive(Clone, Debug)]
#[must_use = "iterators are lazy"]
pub struct Changes<'a, A, B> {
    runs: ChangeRuns<'a, A, B>,
    /// What is left of a run.
    next: Option<Change>,
    count: u64,
}

impl<'a, A: PageSet, B: PageSet> Changes<'a, A, B> {
    pub(crate) const fn new(runs: ChangeRuns<'a, A, B>) -> Self {
        Self { runs, next: None, count: 0 }
    }
}

impl<A: PageSet, B: PageSet> Iterator for Changes<'_, A, B> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let change = match self.next.take() {
            Some(change) => change,
            None => {
                let run = self.runs.next()?;
                self.count = run.count;
                run.first
            }
        };
        self.count = self.count.saturating_sub(1);
        let whole = change.whole();
        let block = self.runs.from.layout.block();
        let after = whole.range().end & block.order().mask();
        self.next = (self.count > 0).then(|| change.of(block.part_at(after, whole.order())));
        Some(change)
    }
}

impl<A: PageSet, B: PageSet> core::iter::FusedIterator for Changes<'_, A, B> {}
