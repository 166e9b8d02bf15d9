//! The engine against the model.

use std::collections::BTreeMap;
use std::fmt::Debug;

use convert::engine;
use convert::options::{Merge, Options};
use convert::outcome::RunOutcome;
use convert::report::{LeafRun, LeafState, OpReport, Outcome, Resources};
use convert::scenario::{Op, Scenario};

use crate::model::{Expected, Model, Verdict};

struct Silent;

impl engine::Observer for Silent {}

/// Runs the engine.
pub(crate) fn run(scenario: &Scenario, options: &Options) -> RunOutcome {
    engine::run(scenario, options, &mut Silent)
}

/// Reads a scenario that must be well formed.
pub(crate) fn read(text: &str) -> Scenario {
    Scenario::parse("judge", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Everything in which the engine and the model disagree about `scenario`.
pub(crate) fn disagreements(scenario: &Scenario, options: &Options) -> Vec<String> {
    let eager = Options { merge: Merge::Eager, ..*options };
    let (outcome, verdict) = (run(scenario, options), Model::run(scenario, &eager));
    let mut wrong = Wrong::default();
    wrong.violations(&outcome);
    wrong.equal("number of operations", outcome.report.ops.len(), verdict.ops.len());
    let texts: BTreeMap<usize, &Op> = scenario.ops.iter().map(|op| (op.line, op)).collect();
    for (came, expected) in outcome.report.ops.iter().zip(&verdict.ops) {
        let text = texts.get(&expected.line).map_or("", |op| op.text.as_str());
        wrong.operation(&format!("{}: {text}", expected.line), came, expected, options);
    }
    let totals = &outcome.report.totals;
    // The engine may look more often than a scenario asks it to.
    let looked = totals.pages_verified.min(verdict.pages_verified);
    wrong.equal("pages verified, at least", looked, verdict.pages_verified);
    wrong.equal("pages poisoned", totals.pages_poisoned, verdict.pages_poisoned);
    let fatal = scenario
        .ops
        .iter()
        .any(|op| matches!(op.verb, convert::scenario::Verb::Poison { consumed: true, .. }));
    wrong.end(&outcome, &verdict, options, fatal);
    wrong.0
}

#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn equal<T: PartialEq + Debug>(&mut self, what: impl AsRef<str>, came: T, expected: T) {
        if came != expected {
            self.0.push(format!("{}: came {came:?}, expected {expected:?}", what.as_ref()));
        }
    }

    fn violations(&mut self, outcome: &RunOutcome) {
        self.0.extend(outcome.violations.iter().take(5).cloned());
        self.equal("violations", outcome.report.totals.invariant_violations, 0);
        self.equal("pages lost", outcome.report.totals.pages_lost, 0);
        for unmet in &outcome.unmet {
            self.0.push(format!("unmet: {unmet}"));
        }
    }

    fn operation(&mut self, op: &str, came: &OpReport, expected: &Expected, options: &Options) {
        let reason = came.reason.as_deref().unwrap_or_default();
        self.equal(format!("{op}: result ({reason})"), came.result, expected.result);
        if expected.result == Outcome::Again {
            self.equal(format!("{op}: at"), came.at, expected.at);
        }
        if let Some(skipped) = &expected.skipped {
            let came = came.skipped.iter().map(|skipped| (skipped.start, skipped.len)).collect();
            self.equal(format!("{op}: skipped"), came, skipped.clone());
        }
        if came.result == Outcome::Ok {
            self.equal(format!("{op}: used and planned"), came.used, came.planned);
        }
        let over = came.releasable - came.released;
        self.equal(format!("{op}: released more than releasable ({over:?})"), lowest(over) < 0, false);
        if options.merge == Merge::Lazy || came.result != Outcome::Ok {
            return;
        }
        self.equal(format!("{op}: used"), came.used, expected.account.used);
        self.equal(format!("{op}: released"), came.released, expected.account.released);
        self.equal(format!("{op}: demotes"), came.demotes, expected.account.demotes);
        self.equal(format!("{op}: promotes"), came.promotes, expected.account.promotes);
        self.equal(format!("{op}: retained"), came.retained, Resources::default());
    }

    fn end(&mut self, outcome: &RunOutcome, verdict: &Verdict, options: &Options, fatal: bool) {
        let report = &outcome.report;
        // A lazy run ends like an eager one if its last operation is `merge`, but for what waits to be accepted.
        let merged = report.ops.last().is_some_and(|op| op.op == "merge");
        if options.merge == Merge::Eager || merged && !fatal {
            self.equal("layout", &report.layout, &verdict.layout);
        }
        if fatal {
            return;
        }
        if options.merge == Merge::Eager {
            self.equal("leaves", &report.leaves, &verdict.leaves);
            self.equal("balance", report.totals.pool_balance, verdict.balance);
        } else if merged {
            self.equal("mapped leaves", accepted(&report.leaves), accepted(&verdict.leaves));
        }
    }
}

fn accepted(leaves: &[LeafRun]) -> Vec<LeafRun> {
    leaves.iter().copied().filter(|run| run.state == LeafState::Mapped).collect()
}

fn lowest(of: Resources) -> i64 {
    [of.vmemmap_pages, of.vmemmap_tables, of.index_nodes, of.sept_pages, of.mirror_pages, of.dpamt_pages]
        .into_iter()
        .min()
        .unwrap_or(0)
}
