//! The form of traces: every field a header can have, every kind of step, skips, failures, and the program's answers.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::GzEncoder;
use tdx_model::replay::{Event, Tally, run};

/// One TD (number 1) that is initialised, with a vCPU, in a machine with 1 GiB; GPA width 52, five levels.
const HEADER: &str = r#"{"header":{"format":1,"module":"TDX module 1.5.01","max_pa_bits":52,
"hkid":{"start_bit":46,"bits":6,"private_min":32,"private_max":63,"global_private":32},
"seamrr":{"base":"0x80000000","size":"0x2000000"},"sys_state":"READY",
"tdmrs":[{"base":"0x100000000","size":"0x80000000","usable_end":"0x140000000",
"reserved":[{"offset":"0x600000","size":"0x1000"}]}],
"tds":[{"td":1,"tdr":"0x101000000","hkid":33,"lifecycle":"KEYS_CONFIGURED","num_tdcx":6,
"tdcx":["0x101001000","0x101002000","0x101003000","0x101004000","0x101005000","0x101006000"],
"chldcnt":12,"op_state":"INITIALIZED","gpaw":null,"shared_bit":51,"sept_levels":5,"sept_root_page":"0x101004000",
"debug":false,"td_epoch":1,"epoch_refcount":["0x0",0],"num_l2_vms":0,"num_vcpus":1,
"vcpus":[{"vcpu":0,"tdvpr":"0x101007000","tdcx":["0x101008000","0x101009000","0x10100a000","0x10100b000",
"0x10100c000"],"state":"READY","vcpu_epoch":0,"lp":1}]},
{"td":0,"tdr":"0x101100000","hkid":40,"lifecycle":"HKID_ASSIGNED","fatal":false,"tdcx":[],"chldcnt":0}],
"pamt_initial":[{"pa":"0x101000000","lvl":0,"pt":"TDR","owner":"0x0"},
{"pa":"0x101001000","lvl":0,"pt":"TDCX","owner":"0x101000000","n":6},
{"pa":"0x101007000","lvl":0,"pt":"TDVPR","owner":"0x101000000"},
{"pa":"0x101008000","lvl":0,"pt":"TDCX","owner":"0x101000000","n":5},
{"pa":"0x101100000","lvl":0,"pt":"TDR","owner":"0x0"}]}}"#;

/// Tables for the first GiB.
const TABLES: [&str; 4] = [
    r#"{"seq":0,"leaf":"TDH.MEM.SEPT.ADD","ver":0,"in":{"rcx":"0x4","rdx":"0x101000000","r8":"0x102000000"},"out":{"rax":"0x0","rcx":"0x0","rdx":"0x0"}}"#,
    r#"{"seq":0,"leaf":"TDH.MEM.SEPT.ADD","in":{"rcx":"0x3","rdx":"0x101000000","r8":"0x102001000"},"out":{"rax":"0x0","rcx":"0x0","rdx":"0x0"}}"#,
    r#"{"seq":0,"leaf":"TDH.MEM.SEPT.ADD","in":{"rcx":2,"rdx":"0x101000000","r8":"0x102002000"},"out":{"rax":0,"rcx":"0x0","rdx":"0x0"}}"#,
    r#"{"seq":0,"leaf":"RAW","in":{"rax":"0x3","rcx":"0x1","rdx":"0x101000000","r8":"0x102003000"},"out":{"rax":"0x0","rcx":"0x0","rdx":"0x0"}}"#,
];

/// A file with one sequence of these steps.
fn trace(steps: &[&str]) -> String {
    let header = HEADER.replace('\n', "");
    let mut lines = vec![header.as_str(), r#"{"seq":0,"name":"test"}"#];
    lines.extend(steps);
    lines.join("\n")
}

fn replay(text: &str) -> (Tally, Vec<String>) {
    let mut told = Vec::new();
    let tally = run(text.as_bytes(), true, |event| {
        if let Event::Mismatch(mismatch) = event {
            told.push(mismatch.to_string());
        }
    });
    (tally.unwrap(), told)
}

/// Passed, failed, skipped; and the lines about differences.
fn outcome(steps: &[&str]) -> ((u64, u64, u64), Vec<String>) {
    let (tally, told) = replay(&trace(steps));
    ((tally.passed, tally.failed, tally.skipped), told)
}

const END: &str = r#"{"seq":0,"end":{}}"#;

#[test]
fn the_header_is_what_the_sequence_starts_from() {
    let end = r#"{"seq":0,"end":{"tds":[
{"td":0,"lifecycle":0,"fatal":false,"chldcnt":0},
{"td":1,"lifecycle":"KEYS_CONFIGURED","fatal":0,"chldcnt":"0x10","op_state":1,"td_epoch":1,"refcount":[0,"0x0"],
"vcpu_epoch":["0x0"],"sept":[
{"gpa":"0x0","lvl":4,"st":"NL_MAPPED","hpa":"0x102000000","raw":"0x8000000102000007"},
{"gpa":"0x0","lvl":3,"st":"NL_MAPPED","hpa":"0x102001000"},
{"gpa":"0x0","lvl":2,"st":"NL_MAPPED","hpa":"0x102002000"},
{"gpa":"0x0","lvl":1,"st":"SEPT_STATE_NL_MAPPED","hpa":"0x102003000","n":1}]}]}}"#
        .replace('\n', "");
    let steps = [
        // A page behind the usable end, a reserved one, the TD without a key.
        r#"{"seq":0,"leaf":"TDH.PHYMEM.PAGE.RDMD","in":{"rcx":"0x140000000"},"out":{"rax":"0xc000010100000001","rcx":"0x0"}}"#,
        r#"{"seq":0,"leaf":"TDH.PHYMEM.PAGE.RDMD","in":{"rcx":"0x100600000"},"out":{"rax":"0x0","rcx":"0x1"}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x8000081000000000"}}"#,
        // A private address of 52 bits.
        r#"{"seq":0,"leaf":"TDH.MEM.SEPT.RD","in":{"rcx":"0x7000000000004","rdx":"0x101000000"},"out":{"rax":"0x0","rcx":"0x8000000000000000","rdx":"0x4"}}"#,
    ];
    let mut lines = TABLES.to_vec();
    lines.extend(steps);
    lines.push(&end);
    assert_eq!(outcome(&lines), ((1, 0, 0), vec![]));
    let other = end.replace("0x8000000102000007", "0x8000000102000003");
    *lines.last_mut().unwrap() = &other;
    let (counts, told) = outcome(&lines);
    assert_eq!((counts, told.len()), ((0, 1, 0), 1), "{told:#?}");
    let broken = trace(&[END]).replace("\"sept_levels\":5", "\"sept_levels\":6");
    assert!(run(broken.as_bytes(), false, |_| ()).is_err());
}

#[test]
fn a_module_that_is_down_says_so() {
    let step =
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0xc000050600000000"}}"#;
    for state in ["SHUTDOWN", "SYS_SHUTDOWN"] {
        let text = trace(&[step, END]).replace("\"READY\",\"tdmrs", &format!("\"{state}\",\"tdmrs"));
        let (tally, told) = replay(&text);
        assert_eq!((tally.passed, told), (1, vec![]));
    }
    let text = trace(&[&step.replace("c0000506", "c0000505"), END]);
    let (tally, told) = replay(&text.replace("\"READY\",\"tdmrs", "\"SYSINIT_DONE\",\"tdmrs"));
    assert_eq!((tally.passed, told), (1, vec![]));
}

#[test]
fn a_lock_is_given_back_by_name() {
    let busy = r#"{"seq":0,"leaf":"TDH.MEM.SEPT.RD","in":{"rcx":"0x1","rdx":"0x101000000"},"out":{"rax":"0x8000020000000001","rcx":"0x7","rdx":"0x8401"}}"#;
    let free = r#"{"seq":0,"leaf":"TDH.MEM.SEPT.RD","in":{"rcx":"0x1","rdx":"0x101000000"},"out":{"rax":"0x0","rcx":"0x7","rdx":"0x8401"}}"#;
    let tree = r#"{"seq":0,"leaf":"TDH.MEM.SEPT.RD","in":{"rcx":"0x1","rdx":"0x101000000"},"out":{"rax":"0x8000020000000092","rcx":"0x0","rdx":"0x0"}}"#;
    let mut lines =
        vec![r#"{"seq":0,"leaf":"SIM.SET_OP_STATE","in":{"td":1,"op_state":"RUNNABLE"},"out":{}}"#];
    lines.extend(TABLES.map(|line| line));
    lines.extend([
        r#"{"seq":0,"leaf":"SIM.LOCK","in":{"td":1,"what":"SEPT_ENTRY","mode":"ex","gpa":"0x0","level":1},"out":{"ok":true}}"#,
        r#"{"seq":0,"leaf":"SIM.LOCK","in":{"td":1,"what":"SEPT_ENTRY","mode":"ex","gpa":"0x0","level":1},"out":{"ok":false}}"#,
        busy,
        r#"{"seq":0,"leaf":"SIM.UNLOCK","in":{"td":1,"what":"SEPT_ENTRY","gpa":"0x0","level":1},"out":{}}"#,
        free,
        r#"{"seq":0,"leaf":"SIM.LOCK","td":1,"in":{"what":"SEPT_TREE","mode":"ex"},"out":{"ok":true}}"#,
        tree,
        r#"{"seq":0,"leaf":"SIM.UNLOCK","td":1,"in":{"what":"SEPT_TREE","mode":"ex"},"out":{}}"#,
        r#"{"seq":0,"leaf":"SIM.UNLOCK","td":1,"in":{"what":"SEPT_TREE","mode":"ex"},"out":{}}"#,
        free,
        r#"{"seq":0,"leaf":"SIM.HOLD_HPA","in":{"hold":"0x7","pa":"0x101000000","level":0,"mode":"ex"},"out":{"ok":true,"level":0}}"#,
        r#"{"seq":0,"leaf":"SIM.HOLD_HPA","in":{"hold":8,"pa":"0x101000000","level":0,"mode":"sh"},"out":{"ok":false}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0x8000020000000001"}}"#,
        r#"{"seq":0,"leaf":"SIM.DROP_HPA","in":{"hold":8},"out":{}}"#,
        r#"{"seq":0,"leaf":"SIM.DROP_HPA","in":{"hold":7},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0x0"}}"#,
        END,
    ]);
    assert_eq!(outcome(&lines), ((1, 0, 0), vec![]));
}

#[test]
fn a_guest_enters_accepts_and_leaves() {
    let mut lines = TABLES.to_vec();
    lines.extend([
        r#"{"seq":0,"leaf":"SIM.VCPU_ENTER","in":{"td":1,"vcpu":0},"out":{"entered":false,"rax":"0xc000060800000000"}}"#,
        r#"{"seq":0,"leaf":"TDH.MR.FINALIZE","in":{"rcx":"0x101000000"},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"SIM.VCPU_ENTER","in":{"td":1,"vcpu":0},"out":{"entered":true}}"#,
        r#"{"seq":0,"leaf":"TDG.MEM.PAGE.ACCEPT","td":1,"vcpu":0,"in":{"rcx":"0x5000"},"out":{"kind":"tdexit","rax":"0x30","rcx":"0x2","rdx":"0x1","r8":"0x5000","r9":"0x0"}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.PAGE.AUG","in":{"rcx":"0x200001","rdx":"0x101000000","r8":"0x110000000"},"out":{"rax":"0x0","rcx":"0x0","rdx":"0x0"}}"#,
        r#"{"seq":0,"leaf":"SIM.VCPU_ENTER","in":{"td":1,"vcpu":0},"out":{"entered":true}}"#,
        r#"{"seq":0,"leaf":"SIM.SET_INTERRUPT_PENDING","in":{"after":2,"value":1,"host_if":0},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDG.MEM.PAGE.ACCEPT","in":{"td":1,"vcpu":0,"rcx":"0x200001"},"out":{"kind":"interrupted"}}"#,
        r#"{"seq":0,"leaf":"SIM.CLEAR_INTERRUPT","in":{},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDG.MEM.PAGE.ACCEPT","td":1,"vcpu":0,"in":{"rcx":"0x200001"},"out":{"kind":"ret","rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"SIM.VCPU_EXIT","in":{"td":1,"vcpu":0}}"#,
        r#"{"seq":0,"leaf":"SIM.SET_FATAL","in":{"td":1,"fatal":1},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0xe000060400000000"}}"#,
        r#"{"seq":0,"leaf":"SIM.SET_FATAL","in":{"td":1,"fatal":false},"out":{}}"#,
        r#"{"seq":0,"leaf":"SIM.SET_LIFECYCLE","in":{"td":1,"lifecycle":3},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDH.PHYMEM.PAGE.RECLAIM","in":{"rcx":"0x102003000"},"out":{"rax":"0x0","rcx":"0x8","rdx":"0x101000000"}}"#,
        r#"{"seq":0,"end":{"nda_stale_owner":[{"pa":"0x102003000","owner":"0x101000000"}],"tds":[{"td":1,"lifecycle":3,"chldcnt":527}]}}"#,
    ]);
    let (counts, told) = outcome(&lines);
    assert_eq!((counts, told), ((1, 0, 0), vec![]));
}

/// PAGE.ADD has the TD for itself. An entry that is locked nevertheless is the end of the module.
#[test]
fn what_must_not_be_halts_the_module() {
    let mut lines = TABLES.to_vec();
    lines.extend([
        r#"{"seq":0,"leaf":"SIM.LOCK","in":{"td":1,"what":"SEPT_ENTRY","mode":"ex","gpa":"0x1000","level":0},"out":{"ok":true}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.PAGE.ADD","in":{"rcx":"0x1000","rdx":"0x101000000","r8":"0x103000000","r9":"0x40000000"},"out":{"kind":"fatal"}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0x8000ff00ffff0000"}}"#,
        END,
    ]);
    let (tally, told) = {
        let mut told = Vec::new();
        let tally = run(trace(&lines).as_bytes(), false, |event| {
            if let Event::Mismatch(mismatch) = event {
                told.push(mismatch.to_string());
            }
        });
        (tally.unwrap(), told)
    };
    assert_eq!((tally.passed, told), (1, vec![]));
    let (counts, told) = outcome(&[
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"kind":"fatal"}}"#,
        END,
    ]);
    assert_eq!((counts, told.len()), ((0, 1, 0), 1));
}

#[test]
fn an_unknown_leaf_is_a_skip_and_the_rest_is_not_judged() {
    let wrong = r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101000000"},"out":{"rax":"0x1"}}"#;
    for unknown in [
        r#"{"seq":0,"leaf":"TDH.EXPORT.MEM","in":{"rcx":"0x1"},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"TDG.VP.INFO","td":1,"vcpu":0,"in":{},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"SIM.SOMETHING","in":{},"out":{}}"#,
        r#"{"seq":0,"leaf":"RAW","in":{"rax":"0x44"},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"TDH.EXPORT.MEM","in":{"list":["0x1"]},"out":{"rax":"0x0","count":3}}"#,
        r#"{"seq":0,"leaf":"TDX.SOMETHING"}"#,
    ] {
        assert_eq!(outcome(&[unknown, wrong, END]).0, (0, 0, 1), "{unknown}");
        assert_eq!(outcome(&[wrong, unknown, END]).0, (0, 1, 0), "{unknown}");
        let strange = [r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":7}"#, r#"{"seq":0,"end":{"tds":3}}"#];
        assert_eq!(outcome(&[unknown, strange[0], strange[1]]).0, (0, 0, 1), "{unknown}");
        assert_eq!(outcome(&[unknown, "nonsense", END]).0, (0, 1, 0), "{unknown}");
    }
    // No leaf of the module at all, and one with bits that must be zero.
    for rax in ["0x2a", "0xc8", "0x1000044", "0x10044"] {
        let step = format!(
            r#"{{"seq":0,"leaf":"RAW","in":{{"rax":"{rax}"}},"out":{{"rax":"0xc000010000000000"}}}}"#
        );
        assert_eq!(outcome(&[&step, END]), ((1, 0, 0), vec![]), "{rax}");
    }
}

#[test]
fn what_cannot_be_read_fails_its_sequence_only() {
    let good =
        r#"{"seq":1,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x8000081000000000"}}"#;
    let after = ["{\"seq\":1,\"name\":\"after\"}", good, "{\"seq\":1,\"end\":{}}"];
    for bad in [
        "nonsense",
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rbx":"0x1"},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"i":3,"in":{},"out":{}}"#,
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x1"}}"#,
        r#"{"seq":9,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x0"}}"#,
        r#"{"seq":0,"leaf":"SIM.VCPU_ENTER","in":{"td":5,"vcpu":0},"out":{"entered":true}}"#,
    ] {
        for end in [Some(END), None] {
            let mut lines = vec![bad];
            lines.extend(end);
            lines.extend(after);
            let (counts, told) = outcome(&lines);
            assert_eq!(counts, (1, 1, 0), "{bad}: {told:#?}");
        }
    }
    let (counts, _) = outcome(&[
        r#"{"seq":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x8000081000000000"}}"#,
    ]);
    assert_eq!(counts, (0, 1, 0), "no end");
}

/// A file for the program.
fn file(name: &str, text: &str, compressed: bool) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let out = fs::File::create(&path).unwrap();
    if compressed {
        let mut encoder = GzEncoder::new(out, Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
    } else {
        fs::write(&path, text).unwrap();
    }
    path
}

fn program(arguments: &[&str], files: &[&PathBuf]) -> (Option<i32>, Vec<String>) {
    let Output { status, stdout, .. } =
        Command::new(env!("CARGO_BIN_EXE_replay")).args(arguments).args(files).output().unwrap();
    let lines = String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect();
    (status.code(), lines)
}

#[test]
fn the_program_counts_sequences_and_exits_accordingly() {
    let good = r#"{"seq":0,"i":0,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x8000081000000000"}}"#;
    let bad = r#"{"seq":0,"i":7,"leaf":"TDH.MEM.TRACK","in":{"rcx":"0x101100000"},"out":{"rax":"0x0"}}"#;
    let unknown = r#"{"seq":0,"i":0,"leaf":"TDH.EXPORT.MEM","in":{},"out":{"rax":"0x0"}}"#;
    let passes = file("passes.jsonl.gz", &trace(&[good, END]), true);
    let fails = file("fails.jsonl", &trace(&[bad, END]), false);
    let skips = file("skips.jsonl", &trace(&[unknown, END]), false);
    let closing = |lines: &[String]| lines.last().cloned().unwrap_or_default();

    let (code, lines) = program(&[], &[&passes]);
    assert_eq!((code, lines), (Some(0), vec!["1 passed, 0 failed, 0 skipped".to_owned()]));
    let (code, lines) = program(&["-v"], &[&passes, &fails]);
    assert_eq!((code, closing(&lines)), (Some(1), "1 passed, 1 failed, 0 skipped".to_owned()));
    let told = lines.iter().find(|line| line.contains("fails.jsonl: sequence 0 (test) step 7 ")).unwrap();
    assert!(told.ends_with("TDH.MEM.TRACK: rax: expected 0x0, got 0x8000081000000000"), "{told}");
    let (code, lines) = program(&[], &[&passes, &skips]);
    assert_eq!((code, closing(&lines)), (Some(1), "1 passed, 0 failed, 1 skipped".to_owned()));
    let skip = lines.iter().find(|line| line.contains("skips.jsonl: sequence 0 (test)")).unwrap();
    assert!(skip.ends_with("unknown leaf TDH.EXPORT.MEM"), "a skip that fails says why: {skip}");
    let (code, lines) = program(&["--allow-skips"], &[&passes, &skips]);
    assert_eq!((code, closing(&lines)), (Some(0), "1 passed, 0 failed, 1 skipped".to_owned()));
    // A file that breaks off: what came before it counts, and the sequence that is cut.
    let text = format!("{}\n{{\"seq\":1,\"name\":\"cut\"}}\n", trace(&[good, END]));
    let cut = file("cut.jsonl.gz", &text, true);
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 8]).unwrap();
    let (code, lines) = program(&[], &[&cut]);
    assert_eq!((code, closing(&lines)), (Some(1), "1 passed, 1 failed, 0 skipped".to_owned()), "{lines:#?}");
    // A trace may have no sequence, but a file without a header is none.
    for (text, expected) in [(String::new(), 1), (HEADER.replace('\n', ""), 0)] {
        let (code, lines) = program(&[], &[&file("nothing.jsonl", &text, false)]);
        assert_eq!((code, closing(&lines)), (Some(expected), "0 passed, 0 failed, 0 skipped".to_owned()));
    }
    let missing = PathBuf::from("no-such-trace.jsonl");
    let (code, lines) = program(&["--allow-skips"], &[&missing, &passes]);
    assert_eq!((code, closing(&lines)), (Some(1), "1 passed, 0 failed, 0 skipped".to_owned()));
    assert_eq!(program(&[], &[]).0, Some(2));
    assert_eq!(program(&["--what"], &[&passes]).0, Some(2));
}
