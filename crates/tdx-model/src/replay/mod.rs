//! Replaying recorded call sequences: every output register and the end state must match.
//!
//! A trace is one JSON object per line: a header (the machine every sequence starts from), and for each sequence its
//! name, its calls with the registers that went in and came out, and a dump of the state at its end. A register that
//! is absent from an output must be unchanged.

mod end;
mod format;
mod header;
mod ops;
mod write;

pub use write::{Platform, TraceWriter};

use std::io::BufRead;

use crate::machine::Machine;
use crate::session::Contention;

/// A difference between the trace and the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Number of the sequence.
    pub sequence: u64,
    /// Its name.
    pub name: String,
    /// The step, or `None` for the end state.
    pub step: Option<u64>,
    /// The leaf or pseudo-operation.
    pub leaf: String,
    /// Register or part of the end state.
    pub what: String,
    /// What the trace says.
    pub expected: String,
    /// What the model did.
    pub got: String,
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let step = self.step.map_or_else(|| "end".to_owned(), |step| step.to_string());
        write!(
            f,
            "sequence {} ({}) step {step} {}: {}: expected {}, got {}",
            self.sequence, self.name, self.leaf, self.what, self.expected, self.got
        )
    }
}

/// How the sequences of a trace went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Everything matched.
    pub passed: u64,
    /// Something did not.
    pub failed: u64,
    /// A leaf the model does not know was in it; nothing before that differed.
    pub skipped: u64,
    /// Steps executed.
    pub steps: u64,
}

impl Tally {
    /// Adds another tally.
    pub const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.steps += other.steps;
    }
}

/// What is told while a trace runs.
#[derive(Debug)]
pub enum Event<'e> {
    /// Something differs.
    Mismatch(&'e Mismatch),
    /// A sequence ended.
    Done {
        /// Its number.
        sequence: u64,
        /// Its name.
        name: &'e str,
        /// The leaf that made it a skip.
        unknown: Option<&'e str>,
        /// Whether everything matched.
        passed: bool,
    },
}

/// A trace that cannot be read.
#[derive(Debug)]
pub struct BadTrace {
    /// Line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl core::fmt::Display for BadTrace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for BadTrace {}

/// One sequence under way.
struct Sequence {
    number: u64,
    name: String,
    machine: Machine,
    holds: ops::Holds,
    unknown: Option<String>,
    mismatches: u64,
}

/// Runs every sequence of `trace` on a fresh model.
///
/// # Errors
///
/// A line is not part of a trace.
pub fn run(trace: impl BufRead, audit: bool, mut tell: impl FnMut(Event<'_>)) -> Result<Tally, BadTrace> {
    let mut tally = Tally::default();
    let mut machine: Option<header::Start> = None;
    let mut current: Option<Sequence> = None;
    for (number, line) in (1..).zip(trace.lines()) {
        let bad = |reason: String| BadTrace { line: number, reason };
        let line = line.map_err(|error| bad(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: format::Line = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        if let Some(header) = line.header {
            machine = Some(header::Start::new(&header, audit).map_err(bad)?);
            continue;
        }
        let start = machine.as_ref().ok_or_else(|| bad("no header before this line".to_owned()))?;
        if let Some(name) = line.name {
            let machine = Machine::new(start.state.clone(), Contention::None);
            current = Some(Sequence {
                number: line.seq,
                name,
                machine,
                holds: ops::Holds::default(),
                unknown: None,
                mismatches: 0,
            });
            continue;
        }
        let sequence = current.as_mut().filter(|sequence| sequence.number == line.seq);
        let sequence = sequence.ok_or_else(|| bad("a step outside of its sequence".to_owned()))?;
        if let Some(end) = line.end {
            sequence.finish(&end, &mut tally, &mut tell);
            current = None;
        } else if sequence.unknown.is_none() {
            let step = format::Step::from_line(line).map_err(bad)?;
            tally.steps += 1;
            sequence.step(start, &step, &mut tell);
        }
    }
    if current.is_some() {
        tally.failed += 1;
    }
    Ok(tally)
}

impl Sequence {
    fn report(&mut self, mismatch: &Mismatch, tell: &mut impl FnMut(Event<'_>)) {
        self.mismatches += 1;
        tell(Event::Mismatch(mismatch));
    }

    fn step(&mut self, start: &header::Start, step: &format::Step, tell: &mut impl FnMut(Event<'_>)) {
        let differences = match ops::perform(&mut self.machine.session(), &mut self.holds, start, step) {
            Ok(ops::Outcome::Unknown) => {
                self.unknown = Some(step.leaf.clone());
                return;
            }
            Ok(ops::Outcome::Differences(differences)) => differences,
            Err(reason) => vec![("step", "possible".to_owned(), reason)],
        };
        for (what, expected, got) in differences {
            let mismatch = Mismatch {
                sequence: self.number,
                name: self.name.clone(),
                step: Some(step.number),
                leaf: step.leaf.clone(),
                what: what.to_owned(),
                expected,
                got,
            };
            self.report(&mismatch, tell);
        }
    }

    fn finish(&mut self, end: &format::End, tally: &mut Tally, tell: &mut impl FnMut(Event<'_>)) {
        if self.unknown.is_none() {
            let differences = end::compare(&self.machine.session(), end);
            for (what, expected, got) in differences {
                let mismatch = Mismatch {
                    sequence: self.number,
                    name: self.name.clone(),
                    step: None,
                    leaf: "end state".to_owned(),
                    what,
                    expected,
                    got,
                };
                self.report(&mismatch, tell);
            }
        }
        match (self.mismatches, &self.unknown) {
            (0, None) => tally.passed += 1,
            (0, Some(_)) => tally.skipped += 1,
            _ => tally.failed += 1,
        }
        tell(Event::Done {
            sequence: self.number,
            name: &self.name,
            unknown: self.unknown.as_deref(),
            passed: self.mismatches == 0 && self.unknown.is_none(),
        });
    }
}
