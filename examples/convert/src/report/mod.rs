//! The report of a run, as `--json` writes it.
//!
//! Field names, their order and the spelling of values are stable. Addresses are `"0x…"` strings, lengths and counts are
//! numbers.

mod resources;
#[cfg(test)]
mod tests;

use std::fmt;

pub use resources::Resources;
use serde::{Serialize, Serializer};

use crate::scenario::{Op, Region};

/// What an operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Done.
    Ok,
    /// There was nothing to do.
    Noop,
    /// Nothing changed; the same request may succeed later.
    Again,
    /// Nothing changed; the request does not fit this state.
    Refused,
    /// It failed in a way that no request may.
    Error,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Noop => "noop",
            Self::Again => "again",
            Self::Refused => "refused",
            Self::Error => "error",
        })
    }
}

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: String,
    /// Orders a folio may have, descending.
    pub orders: Vec<u32>,
    /// Version of the TDX module.
    pub module: String,
    /// Every operation, in order.
    pub ops: Vec<OpReport>,
    /// The folios at the end.
    pub layout: Vec<LayoutRun>,
    /// The entries of the Secure EPT at the end.
    pub leaves: Vec<LeafRun>,
    /// The sums.
    #[serde(rename = "final")]
    pub totals: Final,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpReport {
    /// Its line in the scenario.
    pub line: usize,
    /// Its verb.
    pub op: &'static str,
    /// First address; 0 when the operation names no range.
    #[serde(serialize_with = "hex")]
    pub start: u64,
    /// Bytes; 0 when the operation names no range.
    pub len: u64,
    /// What it came to.
    pub result: Outcome,
    /// The first obstacle.
    #[serde(serialize_with = "hex_or_null")]
    pub at: Option<u64>,
    /// Why it was not granted, for people only.
    #[serde(skip)]
    pub reason: Option<String>,
    /// Parts of the range that were left out.
    pub skipped: Vec<Skipped>,
    /// What the plan asked for.
    pub planned: Resources,
    /// What was consumed.
    pub used: Resources,
    /// What the plan said may come back.
    pub releasable: Resources,
    /// What came back.
    pub released: Resources,
    /// What is kept, and not in use.
    pub retained: Resources,
    /// Leaves split by the module.
    pub demotes: u64,
    /// Leaves merged by the module.
    pub promotes: u64,
    /// Calls of the module.
    pub seamcalls: u64,
    /// Rounds in which every vCPU left the guest.
    pub fences: u64,
    /// Leaves that were blocked for a while.
    pub blocked_windows: u64,
}

impl OpReport {
    /// The report of `op` before anything is counted.
    #[must_use]
    pub fn new(op: &Op, result: Outcome) -> Self {
        let region = op.verb.region().unwrap_or(Region { start: 0, len: 0 });
        Self {
            line: op.line,
            op: op.verb.name(),
            start: region.start,
            len: region.len,
            result,
            at: None,
            reason: None,
            skipped: Vec::new(),
            planned: Resources::default(),
            used: Resources::default(),
            releasable: Resources::default(),
            released: Resources::default(),
            retained: Resources::default(),
            demotes: 0,
            promotes: 0,
            seamcalls: 0,
            fences: 0,
            blocked_windows: 0,
        }
    }

    /// The same, stopped by `reason` at the first obstacle `at`.
    #[must_use]
    pub fn because(mut self, at: Option<u64>, reason: impl Into<String>) -> Self {
        self.at = at;
        self.reason = Some(reason.into());
        self
    }
}

/// A part of a range that an operation left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// First address.
    #[serde(serialize_with = "hex")]
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Why, in one word: `poisoned`.
    pub reason: &'static str,
}

/// Consecutive folios of one order and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayoutRun {
    /// First address.
    #[serde(serialize_with = "hex")]
    pub start: u64,
    /// Order of each.
    pub order: u32,
    /// How many.
    pub count: u64,
    /// What their pages are.
    pub state: FolioState,
}

/// What the pages of a folio are: a folio is never in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FolioState {
    /// Private to the guest.
    Private,
    /// Shared with the host.
    Shared,
    /// Lost to a memory error.
    Poisoned,
}

/// Consecutive entries of the Secure EPT of one level and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeafRun {
    /// First address.
    #[serde(serialize_with = "hex")]
    pub start: u64,
    /// Level of each.
    pub level: LeafLevel,
    /// How many.
    pub count: u64,
    /// Their state.
    pub state: LeafState,
}

/// The size of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum LeafLevel {
    /// 4 KiB.
    #[serde(rename = "4K")]
    Page4K,
    /// 2 MiB.
    #[serde(rename = "2M")]
    Block2M,
    /// 1 GiB.
    #[serde(rename = "1G")]
    Block1G,
}

impl LeafLevel {
    /// Bytes of one leaf.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Page4K => 4 << 10,
            Self::Block2M => 2 << 20,
            Self::Block1G => 1 << 30,
        }
    }
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LeafState {
    /// Accepted by the guest.
    Mapped,
    /// Waits to be accepted.
    Pending,
    /// Blocked.
    Blocked,
    /// Maps nothing.
    Free,
}

/// The sums at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Final {
    /// Pages whose content was compared, over all checks.
    pub pages_verified: u64,
    /// Pages that did not hold what they must.
    pub pages_lost: u64,
    /// Pages with a memory error.
    pub pages_poisoned: u64,
    /// Times that all invariants were checked.
    pub invariant_checks: u64,
    /// Times that one was broken.
    pub invariant_violations: u64,
    /// What is in use now, minus what was in use before the first conversion.
    pub pool_balance: Resources,
    /// Tail templates in place.
    pub installed_templates: u64,
    /// Writable vmemmap pages of the TD's memory.
    pub vmemmap_pages_in_use: u64,
    /// Time of the whole run.
    pub elapsed_ns: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn hex<S: Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

fn hex_or_null<S: Serializer>(address: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => hex(address, serializer),
        None => serializer.serialize_none(),
    }
}
