//! An independent judge of the engine: what a scenario must give is worked out from the rules of the scenario format and the
//! counting formulas, naively, and compared with what the engine reports.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod compare;
mod generate;
mod layout;
mod model;
mod rules;
mod sept;

use convert::options::{Merge, Module, Options, OrderChoice};
use convert::scenario::Scenario;

use compare::disagreements;

fn shipped(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    Scenario::read(path.as_ref()).unwrap()
}

fn options(orders: &str, merge: Merge, module: Module) -> Options {
    Options { orders: orders.parse::<OrderChoice>().unwrap(), merge, module }
}

fn judge(scenario: &Scenario, options: &Options) {
    let wrong = disagreements(scenario, options);
    assert!(wrong.is_empty(), "{} {options:?}:\n{}", scenario.name, wrong.join("\n"));
}

fn judge_shipped(name: &str) {
    let scenario = shipped(name);
    for (orders, module) in [("18,9,0", Module::V1_5_28), ("all", Module::V2_0_08)] {
        judge(&scenario, &options(orders, Merge::Eager, module));
    }
    judge(&scenario, &options("18,9,0", Merge::Lazy, Module::V1_5_01));
    judge(&scenario, &options("16,10,5,0", Merge::Eager, Module::V1_5_28));
}

#[test]
fn one_page() {
    judge_shipped("one-page-1g");
}

#[test]
fn edges() {
    judge_shipped("edges-1g");
}

#[test]
fn obstacles() {
    judge_shipped("pins-poison-punch");
}

#[test]
fn accepted_and_pending() {
    judge_shipped("pending-mix-1g");
}

#[test]
fn short_of_memory() {
    judge_shipped("short-of-memory");
}

#[test]
fn selftest() {
    judge_shipped("selftest-explicit");
}

/// The longest: with few options.
#[test]
fn boot() {
    let scenario = shipped("td-boot-4g");
    judge(&scenario, &Options::default());
    judge(&scenario, &options("all", Merge::Lazy, Module::V2_0_08));
}

/// Seeds `from..from + count`, each judged; the first that fails is shown as short as it can be.
fn judge_random(from: u64, count: u64) {
    for seed in from..from + count {
        let (text, options) = (generate::scenario(seed, 24), generate::options(seed));
        let scenario = compare::read(&text);
        if disagreements(&scenario, &options).is_empty() {
            continue;
        }
        let text = generate::shrink(&text, |scenario| !disagreements(scenario, &options).is_empty());
        let wrong = disagreements(&compare::read(&text), &options);
        panic!("seed {seed}, {options:?}\n{text}\n{}", wrong.join("\n"));
    }
}

#[test]
fn random_scenarios() {
    judge_random(0, 80);
}

/// For hunting: `SEEDS=from,count` judges more of them, and shows every failure.
#[test]
#[ignore = "a hunt takes as long as it is told to"]
fn hunt() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "1000,1000".to_owned());
    let (from, count) = seeds.split_once(',').unwrap();
    let (from, count): (u64, u64) = (from.parse().unwrap(), count.parse().unwrap());
    let failures = (from..from + count).filter(|seed| {
        let judged = std::panic::catch_unwind(|| judge_random(*seed, 1));
        judged.is_err()
    });
    assert_eq!(failures.count(), 0);
}
