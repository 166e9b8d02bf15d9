//! What a person sees.

mod map;
mod style;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::engine::{Observer, Phase};
use crate::options::Options;
use crate::outcome::{RunOutcome, UnmetExpect};
use crate::report::{OpReport, Report};
use crate::scenario::{Op, Scenario};

/// Shows a run while it happens. Failures go to a stream of their own.
pub struct View<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    scenario: &'a Scenario,
    quiet: bool,
    bar: Option<(Phase, ProgressBar)>,
    /// The first line that could not be written; after it none is tried.
    written: io::Result<()>,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("quiet", &self.quiet)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    /// A view of a run of `scenario`; a quiet one shows failures and the verdict only.
    pub fn new(out: &'a mut dyn Write, err: &'a mut dyn Write, scenario: &'a Scenario, quiet: bool) -> Self {
        Self { out, err, scenario, quiet, bar: None, written: Ok(()) }
    }

    /// Shows the block layout of `report`.
    pub fn map(&mut self, report: &Report) {
        let block = self.scenario.backing.size;
        self.show(|out| map::draw(out, report, block));
    }

    /// Shows the closing table and the verdict.
    pub fn finish(&mut self, outcome: &RunOutcome) {
        if !self.quiet {
            self.show(|out| text::closing(out, outcome));
        }
        let name = &self.scenario.name;
        self.show(|out| text::verdict(out, name, outcome));
    }

    /// Whether every line was written.
    ///
    /// # Errors
    ///
    /// Why the first one was not that could not be written.
    pub fn into_result(self) -> io::Result<()> {
        self.written?;
        self.out.flush()
    }

    fn show(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        self.clear_bar();
        if self.written.is_ok() {
            self.written = write(self.out);
        }
    }

    /// A failure; when nobody reads these, the exit status still tells.
    fn complain(&mut self, line: usize, text: &dyn fmt::Display) {
        self.clear_bar();
        let (bad, file) = (style::BAD, &self.scenario.file);
        let _ = writeln!(self.err, "{bad}{file}:{line}: {text}{bad:#}");
    }

    fn clear_bar(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for View<'_> {
    fn started(&mut self, scenario: &Scenario, options: &Options) {
        if !self.quiet {
            self.show(|out| text::opening(out, scenario, options));
        }
    }

    fn progress(&mut self, phase: Phase, done_pages: u64, total_pages: u64) {
        if self.quiet {
            return;
        }
        let current = self.bar.take_if(|(shown, _)| *shown == phase);
        self.clear_bar();
        let (_, bar) = current.unwrap_or_else(|| (phase, new_bar(phase)));
        bar.set_length(total_pages);
        bar.set_position(done_pages);
        self.bar = Some((phase, bar));
    }

    fn op(&mut self, op: &Op, report: &OpReport) {
        if !self.quiet {
            self.show(|out| text::operation(out, op, report));
        }
    }

    fn violation(&mut self, line: usize, text: &str) {
        self.complain(line, &format_args!("invariant broken: {text}"));
    }

    fn unmet(&mut self, unmet: &UnmetExpect) {
        self.complain(unmet.expected.line, unmet);
    }
}

/// A bar on standard error; it hides itself when that is no terminal.
fn new_bar(phase: Phase) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>9} {bar:40} {human_pos}/{human_len} pages");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(
        match phase {
            Phase::Accept => "accepting",
            Phase::Verify => "verifying",
        },
    )
}
