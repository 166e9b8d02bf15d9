//! A wrapper is register moves around one instruction: the optimized assembly of `examples/assembly.rs` against bounds
//! and against the listing in `docs/assembly.md`, and that of `examples/code_size.rs` for what must not be in it.
//!
//! `BLESS=1 cargo test --test assembly` writes the listing anew.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use core::fmt::Write as _;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

/// Compiles the example to assembly. The library is built in a directory of its own and without what tests depend on.
fn assembly(example: &str) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assembly");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--lib", "--package", "seamcall", "--message-format=json"])
        .args(["--config", "profile.release.lto='off'", "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .current_dir(here)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(built.status.success());
    let messages = String::from_utf8(built.stdout).unwrap();
    let library = |name: &str| {
        let artifact = messages
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .find(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == name)
            .unwrap();
        let files = artifact["filenames"].as_array().unwrap();
        let file = files.iter().map(|file| file.as_str().unwrap()).find(|file| file.ends_with(".rlib"));
        format!("{name}={}", file.unwrap())
    };
    let output = target.join(example).with_extension("s");
    let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=bin", "--emit=asm", "-Copt-level=3", "-Ccodegen-units=1"])
        .args(["-Cllvm-args=-x86-asm-syntax=intel", "--cap-lints=allow", "--crate-name", example])
        .args(["--extern", &library("seamcall"), "--extern", &library("sept_core")])
        .arg(format!("-Ldependency={}", target.join("release/deps").display()))
        .arg("-o")
        .arg(&output)
        .arg(here.join("examples").join(example).with_extension("rs"))
        .status()
        .unwrap();
    assert!(status.success());
    fs::read_to_string(output).unwrap()
}

/// All functions: symbol, then labels and instructions. SEAMCALL, four bytes to the compiler, is one instruction.
fn functions(assembly: &str) -> BTreeMap<String, Vec<String>> {
    let mut functions = BTreeMap::new();
    let mut lines = assembly.lines();
    while let Some(name) =
        lines.by_ref().find_map(|line| line.strip_prefix("\t.type\t")?.strip_suffix(",@function"))
    {
        let mut body = Vec::new();
        for line in lines.by_ref().skip_while(|line| !line.starts_with(name)).skip(1) {
            if line.starts_with(".Lfunc_end") {
                break;
            }
            let line = line.split('#').next().unwrap().trim().replace('\t', " ");
            if line == ".byte 207" {
                body.push("seamcall".to_owned());
            } else if line.ends_with(':') || !line.is_empty() && !line.starts_with('.') {
                body.push(line);
            }
        }
        functions.insert(name.to_owned(), body);
    }
    functions
}

fn is_instruction(line: &&String) -> bool {
    !line.ends_with(':')
}

/// Labels by number: what does not depend on the build.
fn listing(body: &[String]) -> String {
    let mut text = String::new();
    let labels: Vec<&str> = body.iter().filter_map(|line| line.strip_suffix(':')).collect();
    let used =
        |label: &str| body.iter().any(|line| line.starts_with('j') && line.ends_with(&format!(" {label}")));
    let number = |label: &str| {
        labels.iter().filter(|other| used(other)).position(|other| *other == label).map(|index| index + 1)
    };
    for line in body {
        if let Some(label) = line.strip_suffix(':') {
            if let Some(number) = number(label) {
                let _ = writeln!(text, "{number}:");
            }
            continue;
        }
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = match verb {
            _ if verb.starts_with('j') => number(rest).map_or(rest.to_owned(), |number| number.to_string()),
            _ => rest.to_owned(),
        };
        let _ = writeln!(text, "    {}", format!("{verb:<6} {rest}").trim_end());
    }
    text
}

const WRAPPERS: [(&str, &str, usize); 4] = [
    ("TDH.MEM.TRACK", "example_track", 40),
    ("TDH.MEM.PAGE.AUG", "example_aug", 60),
    ("TDH.MEM.PAGE.DEMOTE", "example_demote", 180),
    ("TDH.VP.ENTER", "example_enter", 100),
];

#[test]
fn wrappers_are_register_moves() {
    let functions = functions(&assembly("assembly"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/assembly.md");
    let mut docs = fs::read_to_string(&path).unwrap();
    for (leaf, name, bound) in WRAPPERS {
        let body = functions.iter().find(|(symbol, _)| symbol.contains(name)).unwrap().1;
        let count = body.iter().filter(is_instruction).count();
        assert!(count <= bound, "{name}: {count} instructions");
        // One SEAMCALL, and no call of anything else, on no way through.
        assert_eq!(body.iter().filter(|line| *line == "seamcall").count(), 1, "{name}");
        for line in body {
            let verb = line.split_whitespace().next().unwrap();
            assert!(!verb.starts_with("call") && verb != "ud2" && !line.contains('@'), "{name}: {line}");
            let leaves = verb.starts_with('j')
                && !body.contains(&format!("{}:", line.split_whitespace().last().unwrap()));
            assert!(!leaves, "{name}: {line}");
        }

        // The listing is of this code: compilers and small changes may move a few instructions.
        let start = format!("## {leaf}\n\n```asm\n");
        let from = docs.find(&start).unwrap() + start.len();
        let to = from + docs[from..].find("```").unwrap();
        if env::var_os("BLESS").is_some() {
            docs.replace_range(from..to, &listing(body));
            continue;
        }
        let listed = docs[from..to].lines().filter(|line| line.starts_with(' ')).count();
        assert!(
            count.abs_diff(listed) * 8 <= listed,
            "{leaf}: {count} instructions, {listed} in docs/assembly.md"
        );
    }
    if env::var_os("BLESS").is_some() {
        fs::write(path, docs).unwrap();
    }

    // A module clears the vector registers after some leaves: what a caller has in one waits in memory.
    let body = functions.iter().find(|(symbol, _)| symbol.contains("example_product")).unwrap().1;
    let call = body.iter().position(|line| line == "seamcall").unwrap();
    let in_memory = |line: &&String| line.contains("xmm") && line.contains("ptr [");
    let (before, after) = body.split_at(call);
    assert!(
        before.iter().any(|line| in_memory(&line)) && after.iter().any(|line| in_memory(&line)),
        "{body:#?}"
    );
}

/// Every leaf, and neither formatting nor panics nor an allocation in one of them.
#[test]
fn no_wrapper_formats() {
    let functions = functions(&assembly("code_size"));
    let wrappers: Vec<_> = functions
        .iter()
        .filter(|(_, body)| body.iter().any(|line| line == "seamcall"))
        .filter(|(symbol, _)| symbol.contains("seamcall") || symbol.contains("code_size"))
        .collect();
    assert!(wrappers.len() >= 59, "{} wrappers", wrappers.len());
    for (symbol, body) in wrappers {
        for line in body {
            for forbidden in ["3fmt", "fmt..", "panic", "__rust_alloc", "unwind"] {
                assert!(!line.contains(forbidden), "{symbol}: {line}");
            }
        }
    }
}
