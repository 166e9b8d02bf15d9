//! The page table of sept-core beside other crates' and beside raw loops, on the same memory in one process.
//!
//! `docs/peer-bench.md` says what is measured and what came out.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod arena;
mod contender;
mod ours;
mod peers;
mod raw;
mod report;
mod rounds;

use rounds::{Competitor, Plan};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use std::{error::Error, fmt::Write as _};

/// What came out of a run.
#[derive(Debug)]
pub struct Outcome {
    /// For people.
    pub text: String,
    /// For programs: an array with one object for each work.
    pub json: String,
}

/// Runs all rounds; `quick` few of them: it shows that everything works.
///
/// # Errors
///
/// The memory cannot be mapped, or a page table does not hold what it must.
pub fn run(quick: bool) -> Result<Outcome, Box<dyn Error>> {
    let huge = arena::map()?;
    let cpu = sched_getcpu();
    let mut set = CpuSet::new();
    set.set(cpu);
    let pinned = sched_setaffinity(None, &set).is_ok();
    let plan = if quick { Plan::new(3, 1, 16) } else { Plan::new(31, 2, 16) };
    let mut all = Competitor::all();
    plan.carry_out(&mut all)?;
    let rows = report::rows(&all);
    let mut text = report::table(&all, &rows);
    write!(
        text,
        "\nmedian of {} rounds; e: emulated, s: drops the subtree, both not compared with\n\
         {} MiB of {} MiB on 2 MiB pages, {} CPU {cpu}\n",
        plan.rounds,
        huge >> 20,
        arena::FRAMES >> 8,
        if pinned { "pinned to" } else { "not pinned, began on" },
    )?;
    Ok(Outcome { text, json: serde_json::to_string_pretty(&rows)? + "\n" })
}
