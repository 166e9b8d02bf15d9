//! What a run comes to, beyond its report.

use std::fmt;

use crate::report::{OpReport, Outcome, Report, Resources};
use crate::scenario::{Expect, Op};

/// The end of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOutcome {
    /// What `--json` writes.
    pub report: Report,
    /// What Linux's uniform path would have needed for the same conversions.
    pub uniform: UniformCost,
    /// vmemmap pages that the optimization saves at the end.
    pub saved_vmemmap_pages: u64,
    /// Everything that was reserved, over all operations.
    pub reserved: Resources,
    /// Expectations that were not met.
    pub unmet: Vec<UnmetExpect>,
    /// Broken invariants.
    pub violations: Vec<String>,
}

impl RunOutcome {
    /// Operations that ended in `error`.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.report.ops.iter().filter(|op| op.result == Outcome::Error).count()
    }

    /// Whether all held: no page lost, no invariant broken, no error, every expectation met.
    #[must_use]
    pub fn held(&self) -> bool {
        let totals = &self.report.totals;
        let counted = totals.pages_lost == 0 && totals.invariant_violations == 0 && self.errors() == 0;
        counted && self.unmet.is_empty() && self.violations.is_empty()
    }
}

/// An operation that did not report what the scenario expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmetExpect {
    /// The operation as written.
    pub op: String,
    /// Its line.
    pub op_line: usize,
    /// What was expected, and on which line.
    pub expected: Expect,
    /// The result that came.
    pub result: Outcome,
    /// The obstacle that came.
    pub at: Option<u64>,
}

impl UnmetExpect {
    /// Compares the report of `op` with its expectation. An `at` is compared only if one was named.
    #[must_use]
    pub fn of(op: &Op, came: &OpReport) -> Option<Self> {
        let expected = op.expect?;
        let met = expected.result == came.result && (expected.at.is_none() || expected.at == came.at);
        (!met).then(|| Self {
            op: op.text.clone(),
            op_line: op.line,
            expected,
            result: came.result,
            at: came.at,
        })
    }
}

impl fmt::Display for UnmetExpect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected.result)?;
        if let Some(at) = self.expected.at {
            write!(f, " at {at:#x}")?;
        }
        write!(f, ", came {}", self.result)?;
        if let Some(at) = self.at {
            write!(f, " at {at:#x}")?;
        }
        write!(f, " (line {}: {})", self.op_line, self.op)
    }
}

/// What the uniform path of Linux needs: a block in which a page is to be shared is split into 4 KiB pages throughout, its
/// whole vmemmap is restored first, and every 2 MiB leaf over it is demoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UniformCost {
    /// Pages and nodes.
    pub resources: Resources,
    /// Leaves demoted.
    pub demotes: u64,
}

impl UniformCost {
    /// The cost of one private block of `order`, mapped at 2 MiB where that fits: 4095 vmemmap pages, 4161 index nodes and
    /// 512 demotes for order 18.
    ///
    /// Each demote takes a Secure EPT page, a mirror page, and a pair of Dynamic PAMT pages if the module has that.
    #[must_use]
    pub fn of_block(order: u32, hvo: bool, dynamic_pamt: bool) -> Self {
        let order = order.min(30);
        let restored = if hvo && order > 6 { (1 << (order - 6)) - 1 } else { 0 };
        let nodes = (0..order / 6).map(|level| 1 << (order % 6 + 6 * level)).sum();
        let leaves = if order >= 9 { 1 << (order - 9) } else { 0 };
        Self {
            resources: Resources {
                vmemmap_pages: restored,
                vmemmap_tables: 0,
                index_nodes: nodes,
                sept_pages: leaves,
                mirror_pages: leaves,
                dpamt_pages: if dynamic_pamt { 2 * leaves } else { 0 },
            },
            demotes: leaves.unsigned_abs(),
        }
    }
}

impl std::ops::AddAssign for UniformCost {
    fn add_assign(&mut self, more: Self) {
        self.resources += more.resources;
        self.demotes += more.demotes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_blocks() {
        let gib = UniformCost::of_block(18, true, true);
        let Resources { vmemmap_pages, index_nodes, sept_pages, mirror_pages, dpamt_pages, .. } =
            gib.resources;
        assert_eq!((vmemmap_pages, index_nodes), (4095, 4161));
        assert_eq!((sept_pages, mirror_pages, dpamt_pages, gib.demotes), (512, 512, 1024, 512));
        let two_mib = UniformCost::of_block(9, true, false);
        assert_eq!(
            (two_mib.resources.vmemmap_pages, two_mib.resources.index_nodes, two_mib.demotes),
            (7, 8, 1)
        );
        assert_eq!(two_mib.resources.dpamt_pages, 0);
        assert_eq!(UniformCost::of_block(18, false, true).resources.vmemmap_pages, 0);
        assert_eq!(UniformCost::of_block(0, true, true), UniformCost::default());
    }

    #[test]
    fn an_obstacle_is_compared_only_if_named() {
        let op = |at| Op {
            line: 2,
            text: "merge".to_owned(),
            verb: crate::scenario::Verb::Merge,
            expect: Some(Expect { line: 3, result: Outcome::Again, at }),
        };
        let came = OpReport::new(&op(None), Outcome::Again).because(Some(0x1000), "pinned");
        assert_eq!(UnmetExpect::of(&op(None), &came), None);
        assert_eq!(UnmetExpect::of(&op(Some(0x1000)), &came), None);
        let unmet = UnmetExpect::of(&op(Some(0x2000)), &came).map(|unmet| unmet.to_string());
        let said = "expected again at 0x2000, came again at 0x1000 (line 2: merge)";
        assert_eq!(unmet.as_deref(), Some(said));
        assert_eq!(UnmetExpect::of(&Op { expect: None, ..op(None) }, &came), None);
    }
}
