//! `peer-bench`: sept-core beside other page tables.

use clap::Parser;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Measures sept-core's page table beside other crates' and beside raw loops
///
/// Ends with 0 when every page table held what it must after every work, whatever the numbers are.
#[derive(Debug, Parser)]
#[command(name = "peer-bench", version)]
struct Args {
    /// Three rounds: shows that everything works, its numbers are rough
    #[arg(long)]
    quick: bool,
    /// Write the rows as JSON, `-` for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let outcome = peer_bench::run(args.quick)?;
    match &args.json {
        Some(path) if path.as_os_str() == "-" => print!("{}", outcome.json),
        Some(path) => {
            std::fs::write(path, outcome.json).map_err(|error| format!("{}: {error}", path.display()))?;
            print!("{}", outcome.text);
        }
        None => print!("{}", outcome.text),
    }
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn run(_: &Args) -> Result<(), Box<dyn Error>> {
    Err("runs on x86-64 Linux only".into())
}
