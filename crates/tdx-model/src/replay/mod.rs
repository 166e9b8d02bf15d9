//! Replaying recorded call sequences: every output register and the end state must match.
//!
//! A trace is one JSON object per line: a header (the machine every sequence starts from), and for each sequence its
//! name, its calls with the registers that went in and came out, and a dump of the state at its end. A register that
//! is absent from an output must be unchanged.

mod end;
mod format;
mod header;
mod number;
mod ops;
mod platform;
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

/// A trace that cannot be read, or not to its end.
#[derive(Debug)]
pub struct BadTrace {
    /// Line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
    /// How the sequences before that line went; one that it cut off has failed.
    pub tally: Tally,
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
    /// A line of it could not be read: what follows would run on a wrong state.
    unreadable: bool,
    mismatches: u64,
}

/// Runs every sequence of `trace` on a fresh model. A sequence with a line that cannot be read, or without an end, has
/// failed.
///
/// # Errors
///
/// A line outside of a sequence is not part of a trace, the reader failed, or there was no header.
pub fn run(trace: impl BufRead, audit: bool, mut tell: impl FnMut(Event<'_>)) -> Result<Tally, BadTrace> {
    let mut replay = Replay { audit, start: None, current: None, tally: Tally::default() };
    let mut line = 0;
    let mut outcome = Ok(());
    for text in trace.lines() {
        line += 1;
        outcome = match text {
            Ok(text) if text.trim().is_empty() => Ok(()),
            Ok(text) => replay.line(line, &text, &mut tell),
            Err(error) => Err(error.to_string()),
        };
        if outcome.is_err() {
            break;
        }
    }
    if let Some(mut unfinished) = replay.current.take() {
        unfinished.abandon(line, &mut replay.tally, &mut tell);
    }
    if outcome.is_ok() && replay.start.is_none() {
        outcome = Err("the trace has no header".to_owned());
    }
    let tally = replay.tally;
    outcome.map(|()| tally).map_err(|reason| BadTrace { line, reason, tally })
}

/// A trace under way.
struct Replay {
    audit: bool,
    /// The machine of the header.
    start: Option<header::Start>,
    current: Option<Sequence>,
    tally: Tally,
}

impl Replay {
    /// One line that is not empty.
    fn line(&mut self, number: u64, text: &str, tell: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        let mut line: format::Line = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(error) => return self.strange_line(number, text, error.to_string(), tell),
        };
        let begins = line.header.is_some() || line.name.is_some();
        if let Some(mut unfinished) = self.current.take_if(|_| begins) {
            unfinished.abandon(number, &mut self.tally, tell);
        }
        if let Some(header) = line.header {
            self.start = Some(header::Start::new(&header, self.audit)?);
            return Ok(());
        }
        let start = self.start.as_ref().ok_or("no header before this line")?;
        if let Some(name) = line.name {
            let machine = Machine::new(start.state.clone(), Contention::None);
            self.current = Some(Sequence {
                number: line.seq.unwrap_or(0),
                name,
                machine,
                holds: ops::Holds::default(),
                unknown: None,
                unreadable: false,
                mismatches: 0,
            });
            return Ok(());
        }
        let sequence = self.current.as_mut().ok_or("a step outside of its sequence")?;
        if line.seq.is_some_and(|seq| seq != sequence.number) {
            sequence.unreadable(number, "a step of another sequence", tell);
        } else if let Some(end) = line.end.take() {
            sequence.finish(&end, &mut self.tally, tell);
            self.current = None;
        } else {
            match format::Step::from_line(line) {
                Ok(step) if sequence.unknown.is_none() && !sequence.unreadable => {
                    self.tally.steps += 1;
                    sequence.step(start, &step, tell);
                }
                Ok(_) => {}
                Err(reason) => return self.strange_line(number, text, reason, tell),
            }
        }
        Ok(())
    }

    /// A line that says something else than the lines of a sequence do. A leaf that the model does not know may have
    /// operands that it does not know; what comes after such a leaf is not judged.
    fn strange_line(
        &mut self,
        number: u64,
        text: &str,
        reason: String,
        tell: &mut impl FnMut(Event<'_>),
    ) -> Result<(), String> {
        let Some(sequence) = &mut self.current else { return Err(reason) };
        match serde_json::from_str::<format::Outline>(text) {
            Ok(format::Outline { leaf: Some(leaf), .. }) if !ops::knows(&leaf) => {
                sequence.unknown.get_or_insert(leaf);
            }
            Ok(outline) if sequence.unknown.is_some() => {
                if outline.end.is_some() {
                    sequence.count(&mut self.tally, tell);
                    self.current = None;
                }
            }
            _ => sequence.unreadable(number, &reason, tell),
        }
        Ok(())
    }
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

    /// A line of the sequence says nothing that can be done.
    fn unreadable(&mut self, line: u64, reason: &str, tell: &mut impl FnMut(Event<'_>)) {
        self.unreadable = true;
        let mismatch = Mismatch {
            sequence: self.number,
            name: self.name.clone(),
            step: None,
            leaf: format!("line {line}"),
            what: "form".to_owned(),
            expected: "a step".to_owned(),
            got: reason.to_owned(),
        };
        self.report(&mismatch, tell);
    }

    /// The sequence has no end.
    fn abandon(&mut self, line: u64, tally: &mut Tally, tell: &mut impl FnMut(Event<'_>)) {
        self.unreadable(line, "the sequence has no end", tell);
        self.count(tally, tell);
    }

    fn finish(&mut self, end: &format::End, tally: &mut Tally, tell: &mut impl FnMut(Event<'_>)) {
        if self.unknown.is_none() && !self.unreadable {
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
        self.count(tally, tell);
    }

    fn count(&self, tally: &mut Tally, tell: &mut impl FnMut(Event<'_>)) {
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
