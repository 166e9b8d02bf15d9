//! What a table maps, as runs: for printing and for comparing.

use super::{Entries, Found, SecurePageTable};
use crate::{Entry, External, Format, Gpa, GpaEntry, GpaRange, Hpa, LeafState, TableMemory};
use core::fmt;

/// Pages of one size and state whose guest and host addresses both go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Run {
    /// The first page.
    pub at: GpaEntry,
    /// What it maps to.
    pub hpa: Hpa,
    /// Number of pages.
    pub count: u64,
    /// Acceptance.
    pub state: LeafState,
    /// Whether the guest reaches none of them: they are blocked, or a table above is.
    pub hidden: bool,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, hpa, count, state, hidden } = self;
        let state = match state {
            LeafState::Mapped => "",
            LeafState::Pending => " pending",
            LeafState::Destroyed => " destroyed",
        };
        let hidden = if *hidden { " hidden" } else { "" };
        write!(f, "{:#x} -> {hpa:#x} {count} x {}{state}{hidden}", at.gpa(), at.level())
    }
}

/// Iterator over the [`Run`]s of a range, in address order. Made by [`SecurePageTable::runs`].
pub struct Runs<'a, F: Format, M: TableMemory + 'a, X: External> {
    entries: Entries<'a, F, M, X>,
    /// An entry that was looked at and does not belong to the run before it.
    ahead: Option<Found>,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// What `range` maps, as runs. Allocation-free; as long as [`SecurePageTable::entries`].
    pub fn runs(&self, range: GpaRange) -> Runs<'_, F, M, X> {
        Runs { entries: self.entries(range), ahead: None }
    }
}

fn run_of(found: &Found) -> Option<Run> {
    let Entry::Leaf { hpa, state, blocked } = found.entry else { return None };
    Some(Run { at: found.at, hpa, count: 1, state, hidden: found.hidden || blocked.is_some() })
}

impl<F: Format, M: TableMemory, X: External> Iterator for Runs<'_, F, M, X> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let ahead = self.ahead.take().and_then(|found| run_of(&found));
        let mut run = ahead.or_else(|| self.entries.find_map(|found| run_of(&found)))?;
        let goes_on = |run: &Run, found: &Found| {
            let bytes = run.count << run.at.level().shift();
            run_of(found).is_some_and(|next| {
                next.at.level() == run.at.level()
                    && (next.state, next.hidden) == (run.state, run.hidden)
                    && next.at.gpa().raw() == run.at.gpa().raw().wrapping_add(bytes)
                    && next.hpa.raw() == run.hpa.raw().wrapping_add(bytes)
            })
        };
        for found in &mut self.entries {
            if !goes_on(&run, &found) {
                self.ahead = Some(found);
                break;
            }
            run.count = run.count.saturating_add(1);
        }
        Some(run)
    }
}

impl<F: Format, M: TableMemory, X: External> fmt::Debug for Runs<'_, F, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runs")
    }
}

/// The whole table as runs: `{:?}` on one line, `{:#?}` with a line for each.
impl<F: Format, M: TableMemory, X: External> fmt::Debug for SecurePageTable<F, M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        let top = F::top(self.config);
        let whole = GpaRange::new(Gpa::default(), (top.size() << 9).min(1 << crate::ADDRESS_BITS));
        for run in whole.into_iter().flat_map(|range| self.runs(range)) {
            list.entry(&format_args!("{run}"));
        }
        list.finish()
    }
}
