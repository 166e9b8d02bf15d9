//! The command runs, every page table holds what it must, and the rows are complete. No timing is looked at.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use serde_json::Value;
use std::{fs, process::Command};

/// The works, and whether another crate does the same with an operation of its own.
const WORKS: [(&str, bool); 10] = [
    ("translate", true),
    ("map_4k", true),
    ("map_4k_range", true),
    ("map_2m", true),
    ("split_commit", true),
    ("split_all", true),
    ("merge", false),
    ("unmap_4k", true),
    ("unmap_range", true),
    ("remove_1g", true),
];

#[test]
fn rows_are_complete() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("rows.json");
    let run = Command::new(env!("CARGO_BIN_EXE_peer-bench")).args(["--quick", "--json"]).arg(&file).output();
    let run = run.expect("the command starts");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let rows: Value =
        serde_json::from_slice(&fs::read(&file).expect("the file is there")).expect("it is JSON");
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.len(), WORKS.len());
    let text = String::from_utf8_lossy(&run.stdout);
    for (row, (work, peer)) in rows.iter().zip(WORKS) {
        assert_eq!(row["work"], work);
        assert!(text.lines().any(|line| line.split_whitespace().next() == Some(work)), "{text}");
        let fields: Vec<_> = row.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields.len(), 7, "{fields:?}");
        let ours = number(&row["ours_ns"]).expect("sept-core does everything");
        let floor = number(&row["floor_ns"]).expect("everything has a floor");
        close(number(&row["ours_over_floor"]), ours / floor);
        assert_eq!(row["best_peer"].is_string(), peer, "{row}");
        match number(&row["best_peer_ns"]) {
            Some(best) => close(number(&row["ours_over_peer"]), ours / best),
            None => assert!(!peer && row["ours_over_peer"].is_null(), "{row}"),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64();
    assert!(number.is_none_or(|number| number > 0.0), "{value}");
    number
}

/// Equal but for the rounding of small numbers.
#[track_caller]
fn close(got: Option<f64>, want: f64) {
    let got = got.expect("a ratio");
    assert!((got - want).abs() <= 0.001 + want * 0.05, "{got} is not {want}");
}
