//! The program as a shell sees it: arguments, streams and exit statuses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn convert(args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_convert"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program need not read it all.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// A run that must end with 2, and what it says.
fn refused(args: &[&str], stdin: &[u8]) -> String {
    let output = convert(args, stdin);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn bad_options_are_refused_by_name() {
    assert!(refused(&["--orders", "18,9"], b"").contains("order set 18,9 does not contain order 0"));
    for orders in ["31,0", "", "0,", "-1", "x,0", "4294967296,0"] {
        let said = refused(&[&format!("--orders={orders}")], b"");
        assert!(said.contains("is not an order from 0 to 30"), "{said}");
    }
    assert!(refused(&["--module", "1.5.99"], b"").contains("1.5.99"));
    assert!(refused(&["--merge", "never"], b"").contains("never"));
    assert!(refused(&["--colour"], b"").contains("--colour"));
    assert!(refused(&["a.txt", "b.txt"], b"").contains("b.txt"));
}

#[test]
fn bad_scenarios_are_refused_before_anything_runs() {
    assert_eq!(refused(&["-"], b"ram 0 1G\nshare 0 0\n"), "error: stdin:2: LEN is zero\n");
    assert!(refused(&["-"], b"ram 0 1G\nram 1T 127T\n").contains("stdin:2: "));
    assert!(refused(&["-"], b"ram 0 127T\n").contains("more than 4T of RAM"));
    assert!(refused(&["/no/such/file"], b"").starts_with("error: /no/such/file: "));
    assert!(refused(&["/"], b"").starts_with("error: /: "));
}

#[test]
fn an_unwritable_report_is_found_before_the_run() {
    assert!(
        refused(&["--json", "/no/such/directory/report"], b"")
            .starts_with("error: /no/such/directory/report: ")
    );
}

#[test]
fn a_report_on_standard_output_is_alone_there() {
    let output = convert(&["-", "--json", "-", "--map"], b"");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["final"]["pool_balance"].is_object());
    assert!(String::from_utf8(output.stderr).unwrap().contains("block layout"));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_convert"))
        .args(["-", "--json", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(matches!(child.wait().unwrap().code(), Some(0 | 1)));
}

#[test]
fn help_and_version_succeed() {
    assert!(convert(&["--help"], b"").status.success());
    assert!(convert(&["--version"], b"").status.success());
}
