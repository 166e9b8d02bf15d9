//! The opening, a line for each operation, and the closing table.

use std::io::{self, Write};
use std::time::Duration;

use super::style::{self, BAD, FAINT, GOOD, HEAD};
use crate::options::Options;
use crate::outcome::RunOutcome;
use crate::report::{OpReport, Resources};
use crate::scenario::{Op, PAGE, Scenario, Size};

/// RAM regions that the opening lists.
const LISTED: usize = 4;

/// One kind of resource: its name and where it is counted.
type Kind = (&'static str, fn(&Resources) -> i64);

const KINDS: [Kind; 6] = [
    ("vmemmap pages", |r| r.vmemmap_pages),
    ("vmemmap tables", |r| r.vmemmap_tables),
    ("index nodes", |r| r.index_nodes),
    ("S-EPT pages", |r| r.sept_pages),
    ("mirror pages", |r| r.mirror_pages),
    ("Dynamic PAMT pages", |r| r.dpamt_pages),
];

/// What the TD looks like, and the head of the table of operations.
pub(super) fn opening(out: &mut dyn Write, scenario: &Scenario, options: &Options) -> io::Result<()> {
    let Scenario { name, td, backing, ram, .. } = scenario;
    writeln!(out, "{HEAD}{name}{HEAD:#}")?;
    writeln!(
        out,
        "  TD       gpaw {}, {} levels, {} vCPU{}, TDX module {}",
        td.gpaw,
        td.levels,
        td.vcpus,
        plural(u64::from(td.vcpus)),
        options.module
    )?;
    let regions: Vec<_> =
        ram.iter().take(LISTED).map(|r| format!("{} at {:#x}", Size(r.len), r.start)).collect();
    let others = ram.len().saturating_sub(LISTED);
    let more = if others > 0 { format!(" and {others} more") } else { String::new() };
    let colon = if ram.is_empty() { "" } else { ": " };
    writeln!(out, "  RAM      {}{colon}{}{more}", binary(scenario.ram_bytes()), regions.join(", "))?;
    let hvo = if backing.hvo { "on" } else { "off" };
    writeln!(out, "  backing  {} folios, vmemmap optimization {hvo}", Size(backing.size))?;
    writeln!(out, "  orders   {}, {} merge", options.orders, options.merge)?;
    writeln!(out)?;
    writeln!(
        out,
        "{HEAD} line  {:<30} {:<7} {:>9} {:>9} {:>4} {:>4} {:>4}{HEAD:#}",
        "operation", "result", "planned", "used", "D", "P", "F"
    )?;
    writeln!(out, "{FAINT}       pages+index nodes; D demotes, P promotes, F fences{FAINT:#}")
}

/// One operation.
pub(super) fn operation(out: &mut dyn Write, op: &Op, report: &OpReport) -> io::Result<()> {
    let color = style::of(report.result);
    writeln!(
        out,
        "{:>5}  {:<30} {color}{:<7}{color:#} {:>9} {:>9} {:>4} {:>4} {:>4}",
        op.line,
        op.text,
        report.result,
        amount(report.planned),
        amount(report.used),
        count(report.demotes),
        count(report.promotes),
        count(report.fences)
    )?;
    match (report.at, &report.reason) {
        (Some(at), Some(reason)) => writeln!(out, "       at {at:#x}: {reason}")?,
        (Some(at), None) => writeln!(out, "       at {at:#x}")?,
        (None, Some(reason)) => writeln!(out, "       {reason}")?,
        (None, None) => {}
    }
    for part in &report.skipped {
        writeln!(out, "       skipped {:#x} {}: {}", part.start, Size(part.len), part.reason)?;
    }
    Ok(())
}

/// What all of it took, next to what Linux's uniform path would have taken.
pub(super) fn closing(out: &mut dyn Write, outcome: &RunOutcome) -> io::Result<()> {
    let ops = &outcome.report.ops;
    let used: Resources = ops.iter().map(|op| op.used).sum();
    let released: Resources = ops.iter().map(|op| op.released).sum();
    writeln!(out)?;
    writeln!(
        out,
        "{HEAD}{:<20} {:>12} {:>12} {:>12} {:>18}{HEAD:#}",
        "sum of all", "reserved", "used", "released", "Linux, uniform"
    )?;
    for (name, of) in KINDS {
        let [reserved, used, released, uniform] =
            [&outcome.reserved, &used, &released, &outcome.uniform.resources].map(of);
        writeln!(out, "{name:<20} {reserved:>12} {used:>12} {released:>12} {uniform:>18}")?;
    }
    let demotes: u64 = ops.iter().map(|op| op.demotes).sum();
    writeln!(out, "{:<20} {:>12} {demotes:>12} {:>12} {:>18}", "demotes", "", "", outcome.uniform.demotes)?;

    let totals = &outcome.report.totals;
    let saved = outcome.saved_vmemmap_pages;
    writeln!(out)?;
    writeln!(
        out,
        "vmemmap saved now    {saved} page{} ({})",
        plural(saved),
        binary(saved.saturating_mul(PAGE))
    )?;
    let balance = if totals.pool_balance.is_zero() {
        "as before the first conversion".to_owned()
    } else {
        format!("{} (pages+nodes) against before the first conversion", amount(totals.pool_balance))
    };
    writeln!(out, "pools                {balance}")?;
    writeln!(
        out,
        "pages                {} verified, {} lost, {} poisoned",
        totals.pages_verified, totals.pages_lost, totals.pages_poisoned
    )?;
    writeln!(
        out,
        "invariants           checked {} time{}, broken {}",
        totals.invariant_checks,
        plural(totals.invariant_checks),
        totals.invariant_violations
    )?;
    writeln!(out)
}

/// How it went, in one line.
pub(super) fn verdict(out: &mut dyn Write, name: &str, outcome: &RunOutcome) -> io::Result<()> {
    let totals = &outcome.report.totals;
    let seconds = Duration::from_nanos(totals.elapsed_ns).as_secs_f64();
    if outcome.held() {
        let pages = totals.pages_verified;
        let ops = outcome.report.ops.len() as u64;
        return writeln!(
            out,
            "{GOOD}{name}: all held{GOOD:#}, {ops} operation{}, {pages} page{} verified, none lost, {seconds:.2} s",
            plural(ops),
            plural(pages)
        );
    }
    let violations = totals.invariant_violations.max(outcome.violations.len() as u64);
    let failures = [
        (totals.pages_lost, "page", "lost"),
        (violations, "invariant", "broken"),
        (outcome.errors() as u64, "operation", "in error"),
        (outcome.unmet.len() as u64, "expectation", "unmet"),
    ];
    let said = failures
        .iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, what, how)| format!("{n} {what}{} {how}", plural(*n)));
    writeln!(out, "{BAD}{name}: FAILED{BAD:#}: {}, {seconds:.2} s", said.collect::<Vec<_>>().join(", "))
}

/// Pages, and index nodes behind a plus.
fn amount(resources: Resources) -> String {
    match (resources.pages(), resources.index_nodes) {
        (0, 0) => "-".to_owned(),
        (pages, 0) => pages.to_string(),
        (pages, nodes) => format!("{pages}{nodes:+}"),
    }
}

fn count(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Bytes in the largest binary unit that leaves at least one.
fn binary(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    let tenths = (bytes >> (shift - 10)) * 10 / 1024;
    if tenths.is_multiple_of(10) {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}
