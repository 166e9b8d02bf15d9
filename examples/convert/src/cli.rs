//! The command line, and what becomes of it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::engine;
use crate::options::{Merge, Module, Options, OrderChoice};
use crate::report::Report;
use crate::scenario::{Scenario, ScenarioError, Size, Verb};
use crate::view::View;

/// Runs a conversion scenario of a confidential VM on a software TDX module and checks every page.
///
/// Ends with 0 when all held, 1 when a page, an invariant or an expectation did not, 2 for a bad scenario or option.
#[derive(Debug, Parser)]
#[command(name = "convert", version)]
pub struct Args {
    /// The scenario file, `-` for standard input [default: a 4 GiB Linux TD from boot to kexec]
    pub scenario: Option<PathBuf>,
    /// Orders that a folio may have: a list that contains 0, or `all` up to 1 GiB
    #[arg(long, value_name = "ORDERS", default_value = "18,9,0")]
    pub orders: OrderChoice,
    /// When pieces become one again
    #[arg(long, value_name = "WHEN", default_value = "eager")]
    pub merge: Merge,
    /// The TDX module to behave like
    #[arg(long, value_name = "VERSION", default_value = "1.5.28")]
    pub module: Module,
    /// Write the report as JSON, `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Show the block layout at the end
    #[arg(long)]
    pub map: bool,
    /// Show only errors and the verdict
    #[arg(long)]
    pub quiet: bool,
}

/// Why a run did not begin, or its result could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The scenario is bad.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// An output cannot be written.
    #[error("{file}: {source}")]
    Output {
        /// Which one.
        file: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The program: reads the arguments, runs, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell when this fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match args.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(anstream::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

impl Args {
    /// Runs the scenario; whether all held.
    ///
    /// # Errors
    ///
    /// The scenario is bad, or an output cannot be written.
    pub fn run(&self) -> Result<bool, CliError> {
        let scenario = self.scenario.as_deref().map_or_else(Scenario::default_boot, Scenario::read)?;
        Self::fits(&scenario)?;
        let options = Options { orders: self.orders, merge: self.merge, module: self.module };
        // Before the run, so that a bad path is not found after it.
        let json = self.json.as_deref().map(JsonFile::open).transpose()?;
        let to_stdout = !json.as_ref().is_some_and(JsonFile::is_stdout);

        let (mut stdout, mut stderr) = (anstream::stdout(), anstream::stderr());
        let mut second = anstream::stderr();
        let out: &mut dyn Write = if to_stdout { &mut stdout } else { &mut second };
        let mut view = View::new(out, &mut stderr, &scenario, self.quiet);
        let outcome = engine::run(&scenario, &options, &mut view);
        if self.map && !self.quiet {
            view.map(&outcome.report);
        }
        view.finish(&outcome);
        let shown = view.into_result();
        if let Some(json) = json {
            json.write(&outcome.report)?;
        }
        forgive_closed_pipe("output", shown)?;
        Ok(outcome.held())
    }

    /// A scenario may be well formed and too large for the modelled machine.
    fn fits(scenario: &Scenario) -> Result<(), ScenarioError> {
        let mut sum = 0;
        for op in &scenario.ops {
            if let Verb::Ram { len, .. } = op.verb {
                sum += len;
            }
            if sum > MOST_RAM {
                let reason = format!("more than {} of RAM is more than can be modelled", Size(MOST_RAM));
                return Err(ScenarioError::Malformed { file: scenario.file.clone(), line: op.line, reason });
            }
        }
        Ok(())
    }
}

/// The most RAM that the modelled machine has room for.
const MOST_RAM: u64 = 4 << 40;

/// Where the report goes.
struct JsonFile {
    name: String,
    /// `None` is standard output.
    file: Option<File>,
}

impl JsonFile {
    fn open(path: &Path) -> Result<Self, CliError> {
        let name = path.display().to_string();
        if path == Path::new("-") {
            return Ok(Self { name: "standard output".to_owned(), file: None });
        }
        match File::create(path) {
            Ok(file) => Ok(Self { name, file: Some(file) }),
            Err(source) => Err(CliError::Output { file: name, source }),
        }
    }

    fn is_stdout(&self) -> bool {
        self.file.is_none()
    }

    fn write(self, report: &Report) -> Result<(), CliError> {
        let written = match self.file {
            Some(file) => write_json(BufWriter::new(file), report),
            None => write_json(BufWriter::new(io::stdout().lock()), report),
        };
        forgive_closed_pipe(&self.name, written)
    }
}

fn write_json(mut out: impl Write, report: &Report) -> io::Result<()> {
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    out.flush()
}

/// A reader that has seen enough is no failure of the run.
fn forgive_closed_pipe(name: &str, result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::Output { file: name.to_owned(), source })
        }
        _ => Ok(()),
    }
}
