//! A map of 4 KiB pages.

use core::ops::Range;
use std::{collections::BTreeMap, vec::Vec};

/// What is known of one page, so that the page after it can be derived.
pub(super) trait Piece: Copy + PartialEq {
    /// The same of the page `pages` further on.
    #[must_use]
    fn after(self, pages: u64) -> Self;
}

impl Piece for () {
    fn after(self, _: u64) -> Self {}
}

/// A map from page numbers to values. Pages that continue one another are kept as one run, so that a 1 GiB page does not
/// take 2^18 entries; two maps of the same pages are equal, however they came about.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pages<V> {
    /// First page to the end of the run and the value of the first page.
    runs: BTreeMap<u64, (u64, V)>,
}

impl<V: Piece> Pages<V> {
    pub(super) const fn new() -> Self {
        Self { runs: BTreeMap::new() }
    }

    pub(super) fn count(&self) -> u64 {
        self.runs.iter().map(|(start, run)| run.0 - start).sum()
    }

    pub(super) fn get(&self, page: u64) -> Option<V> {
        let (&start, &(end, value)) = self.runs.range(..=page).next_back()?;
        (page < end).then(|| value.after(page - start))
    }

    /// The runs, each cut to `range`.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, V)> {
        let first = self.runs.range(..range.start).next_back().map(|(start, run)| (*start, *run));
        let first = first.filter(|(_, (end, _))| *end > range.start);
        let rest = self.runs.range(range.clone()).map(|(start, run)| (*start, *run));
        first.into_iter().chain(rest).map(move |(start, (end, value))| {
            let cut = start.max(range.start);
            (cut..end.min(range.end), value.after(cut - start))
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, V)> {
        self.runs.iter().map(|(&start, &(end, value))| (start..end, value))
    }

    pub(super) fn none_in(&self, range: Range<u64>) -> bool {
        self.within(range).next().is_none()
    }

    /// The value of the first page and the first page that does not continue it.
    pub(super) fn run_from(&self, page: u64) -> Option<(V, u64)> {
        let (&start, &(end, value)) = self.runs.range(..=page).next_back()?;
        (page < end).then(|| (value.after(page - start), end))
    }

    /// Takes a range out; says what was there.
    pub(super) fn take(&mut self, range: Range<u64>) -> Vec<(Range<u64>, V)> {
        if range.is_empty() {
            return Vec::new();
        }
        self.cut(range.start);
        self.cut(range.end);
        let taken: Vec<_> =
            self.runs.range(range).map(|(&start, &(end, value))| (start..end, value)).collect();
        for (run, _) in &taken {
            self.runs.remove(&run.start);
        }
        taken
    }

    /// Puts a run in, in place of what was there.
    pub(super) fn put(&mut self, range: Range<u64>, value: V) {
        self.take(range.clone());
        self.runs.insert(range.start, (range.end, value));
        self.join(range.end);
        self.join(range.start);
    }

    /// Puts a run in after all others.
    pub(super) fn push(&mut self, range: Range<u64>, value: V) {
        if let Some(mut last) = self.runs.last_entry() {
            let start = *last.key();
            let (end, first) = last.get_mut();
            if *end == range.start && first.after(range.start - start) == value {
                *end = range.end;
                return;
            }
        }
        self.runs.insert(range.start, (range.end, value));
    }

    pub(super) fn change(&mut self, range: Range<u64>, mut change: impl FnMut(V) -> V) {
        for (run, value) in self.take(range) {
            self.put(run, change(value));
        }
    }

    /// Makes `page` the start of a run if it lies inside one.
    fn cut(&mut self, page: u64) {
        let Some((&start, &(end, value))) = self.runs.range(..page).next_back() else { return };
        if page < end {
            self.runs.insert(start, (page, value));
            self.runs.insert(page, (end, value.after(page - start)));
        }
    }

    /// Makes one run of two if one begins at `page` that continues the one before.
    fn join(&mut self, page: u64) {
        let Some(&(end, value)) = self.runs.get(&page) else { return };
        let Some((&start, before)) = self.runs.range_mut(..page).next_back() else { return };
        if before.0 == page && before.1.after(page - start) == value {
            before.0 = end;
            self.runs.remove(&page);
        }
    }
}
