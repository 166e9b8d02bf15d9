//! A set of pages as a map of runs: start to end.

use core::ops::Range;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub(crate) fn set(&mut self, range: Range<u64>, member: bool) {
        if range.is_empty() {
            return;
        }
        let touching: Vec<(u64, u64)> = self
            .0
            .range(..=range.end)
            .rev()
            .take_while(|&(_, &end)| end >= range.start)
            .map(|(&start, &end)| (start, end))
            .collect();
        let (mut first, mut last) = (range.start, range.end);
        for (start, end) in touching {
            self.0.remove(&start);
            if member {
                (first, last) = (first.min(start), last.max(end));
            } else {
                if start < range.start {
                    self.0.insert(start, range.start);
                }
                if range.end < end {
                    self.0.insert(range.end, end);
                }
            }
        }
        if member {
            self.0.insert(first, last);
        }
    }

    /// The first run at or after `from`, cut to begin there.
    pub(crate) fn next(&self, from: u64) -> Option<Range<u64>> {
        let at = self.0.range(..=from).next_back().filter(|&(_, &end)| end > from);
        let (&start, &end) = at.or_else(|| self.0.range(from..).next())?;
        Some(start.max(from)..end)
    }

    pub(crate) fn has(&self, page: u64) -> bool {
        self.next(page).is_some_and(|run| run.start == page)
    }

    pub(crate) fn meets(&self, range: Range<u64>) -> bool {
        self.next(range.start).is_some_and(|run| run.start < range.end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}
