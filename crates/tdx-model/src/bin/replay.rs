//! Replays traces of SEAMCALLs on the model: `replay [--allow-skips] [-v] [--audit] FILE...`.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader};
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

fn replay(path: &str, options: &Options) -> Result<Tally, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf().map_err(|error| error.to_string())?;
    let reader: Box<dyn BufRead> = if start.starts_with(&GZIP) {
        Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)))
    } else {
        Box::new(file)
    };
    let tell = |event: Event<'_>| match event {
        Event::Mismatch(mismatch) => println!("{path}: {mismatch}"),
        Event::Done { sequence, name, unknown: Some(leaf), .. } if options.verbose => {
            println!("{path}: sequence {sequence} ({name}): unknown leaf {leaf}");
        }
        Event::Done { sequence, name, passed, .. } if options.verbose => {
            println!("{path}: sequence {sequence} ({name}): {}", if passed { "passed" } else { "FAILED" });
        }
        Event::Done { .. } => {}
    };
    run(reader, options.audit, tell).map_err(|error| error.to_string())
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
    let mut unreadable = false;
    for path in &options.files {
        match replay(path, &options) {
            Ok(tally) => total.add(tally),
            Err(reason) => {
                println!("{path}: {reason}");
                unreadable = true;
            }
        }
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    let skips_fail = total.skipped > 0 && !options.allow_skips;
    if total.failed > 0 || unreadable || skips_fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
