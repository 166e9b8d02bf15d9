//! Runs a scenario.

pub use crate::options::Options;
pub use crate::outcome::{RunOutcome, UniformCost, UnmetExpect};
use crate::report::OpReport;
use crate::scenario::{Op, Scenario};

/// Work that takes long enough to show how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest accepts memory.
    Accept,
    /// Contents are compared.
    Verify,
}

/// Who watches a run.
pub trait Observer {
    /// The run begins.
    fn started(&mut self, _scenario: &Scenario, _options: &Options) {}
    /// Long work is `done_pages` of `total_pages` far.
    fn progress(&mut self, _phase: Phase, _done_pages: u64, _total_pages: u64) {}
    /// An operation is over.
    fn op(&mut self, _op: &Op, _report: &OpReport) {}
    /// An invariant does not hold after the operation on `line`.
    fn violation(&mut self, _line: usize, _text: &str) {}
    /// An operation did not report what the scenario expects.
    fn unmet(&mut self, _unmet: &UnmetExpect) {}
}

/// Runs `scenario` to its end.
pub fn run(scenario: &Scenario, options: &Options, observer: &mut dyn Observer) -> RunOutcome {
    observer.started(scenario, options);
    let violation = "engine not linked";
    observer.violation(0, violation);
    RunOutcome { violations: vec![violation.to_owned()], ..RunOutcome::default() }
}
