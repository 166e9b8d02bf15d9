//! A wrapper is register moves around one instruction: holds the optimized assembly of `examples/assembly.rs` against
//! bounds. A listing is in `docs/assembly.md`.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::{env, fs, path::Path, process::Command};

/// Builds the example with its assembly, in a directory of its own: the build this test belongs to holds the other.
fn assembly() -> String {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assembly");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--release", "--package", "seamcall", "--example", "assembly"])
        .args(["--config", "profile.release.lto='off'", "--target-dir"])
        .arg(&target)
        .args(["--", "--emit", "asm", "-C", "debuginfo=0"])
        .env_remove("RUSTFLAGS")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success());
    let newest = fs::read_dir(target.join("release/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "s"))
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    fs::read_to_string(newest.unwrap()).unwrap()
}

/// The instructions of the function whose symbol contains `name`.
fn body<'a>(assembly: &'a str, name: &str) -> Vec<&'a str> {
    let mut lines = assembly.lines();
    let found = lines.by_ref().any(|line| line.contains(name) && line.ends_with(':'));
    assert!(found, "no function {name}");
    lines
        .take_while(|line| !line.starts_with(".Lfunc_end"))
        .map(str::trim)
        .filter(|line| {
            !line.is_empty() && !line.ends_with(':') && !line.starts_with('#') && !line.starts_with(".cfi")
        })
        .collect()
}

#[test]
fn wrappers_are_register_moves() {
    let assembly = assembly();
    for (name, bound) in [("example_track", 70), ("example_aug", 120), ("example_demote", 300)] {
        let body = body(&assembly, name);
        let instructions = body.iter().filter(|line| !line.starts_with('.')).count();
        assert!(instructions <= bound, "{name}: {instructions} instructions");
        // The last byte of 66 0f 01 cf.
        assert_eq!(body.iter().filter(|line| **line == ".byte\t207").count(), 1, "{name}");
        for line in &body {
            assert!(!line.contains("panic") && !line.contains("unwind"), "{name}: {line}");
        }
        // The only calls build errors.
        for call in body.iter().filter(|line| line.starts_with("call")) {
            assert!(call.contains("from_status") || call.contains("refused"), "{name}: {call}");
        }
    }
}
