//! Replays traces of SEAMCALLs on the model: `replay [--allow-skips] [-v] [--audit] FILE...`.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::process::ExitCode;

use flate2::read::MultiGzDecoder;
use tdx_model::replay::{Event, Tally, run};

const USAGE: &str = "usage: replay [--allow-skips] [-v] [--audit] FILE...
  FILE           a .jsonl or .jsonl.gz trace
  --allow-skips  sequences with leaves the model does not know are no failure
  --audit        check every invariant after every call
  -v             name every sequence";

/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1F, 0x8B];

#[derive(Default)]
struct Options {
    allow_skips: bool,
    verbose: bool,
    audit: bool,
    help: bool,
    files: Vec<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--allow-skips" => options.allow_skips = true,
            "-v" => options.verbose = true,
            "--audit" => options.audit = true,
            "-h" | "--help" => options.help = true,
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ => options.files.push(argument),
        }
    }
    if options.files.is_empty() && !options.help { Err("no trace given".to_owned()) } else { Ok(options) }
}

fn open(path: &str) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let start = file.fill_buf()?;
    Ok(if start.starts_with(&GZIP) {
        Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)))
    } else {
        Box::new(file)
    })
}

/// How the sequences of a file went, and whether it could be read to its end.
fn replay(path: &str, options: &Options) -> (Tally, bool) {
    let reader = match open(path) {
        Ok(reader) => reader,
        Err(error) => {
            println!("{path}: {error}");
            return (Tally::default(), false);
        }
    };
    let tell = |event: Event<'_>| match event {
        Event::Mismatch(mismatch) => println!("{path}: {mismatch}"),
        Event::Done { sequence, name, unknown: Some(leaf), .. }
            if options.verbose || !options.allow_skips =>
        {
            println!("{path}: sequence {sequence} ({name}): unknown leaf {leaf}");
        }
        Event::Done { sequence, name, passed, .. } if options.verbose => {
            println!("{path}: sequence {sequence} ({name}): {}", if passed { "passed" } else { "FAILED" });
        }
        Event::Done { .. } => {}
    };
    match run(reader, options.audit, tell) {
        Ok(tally) => (tally, true),
        Err(bad) => {
            println!("{path}: {bad}");
            (bad.tally, false)
        }
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.help {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let mut total = Tally::default();
    let mut all_read = true;
    for path in &options.files {
        let (tally, to_the_end) = replay(path, &options);
        total.add(tally);
        all_read &= to_the_end;
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    let skips_fail = total.skipped > 0 && !options.allow_skips;
    if total.failed > 0 || !all_read || skips_fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
