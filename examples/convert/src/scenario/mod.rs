//! Scenarios: what a guest and its host do, one verb a line.
//!
//! A scenario is read and checked as a whole before anything runs: a [`Scenario`] in hand is well formed.

mod error;
mod number;
mod operands;
mod parse;
mod regions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use error::ScenarioError;
pub use number::Size;
pub use regions::{Region, Regions};

use crate::report::Outcome;

/// Bytes of a 4 KiB page.
pub const PAGE: u64 = 4 << 10;

/// The longest scenario that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The scenario that runs when none is named.
const DEFAULT: (&str, &[u8]) = ("td-boot-4g.txt", include_bytes!("../../scenarios/td-boot-4g.txt"));

/// A well-formed scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Where it came from, as shown before a line number.
    pub file: String,
    /// Its name: the file's, without directory and extension.
    pub name: String,
    /// The TD.
    pub td: Td,
    /// The folios behind the TD's memory.
    pub backing: Backing,
    /// All RAM that the scenario declares, ascending, adjacent regions joined.
    pub ram: Vec<Region>,
    /// Everything that happens, in order.
    pub ops: Vec<Op>,
}

impl Scenario {
    /// The scenario that runs when none is named: a 4 GiB Linux TD from boot to kexec.
    ///
    /// # Errors
    ///
    /// Never, unless the embedded file was damaged before the build.
    pub fn default_boot() -> Result<Self, ScenarioError> {
        Self::parse(DEFAULT.0, DEFAULT.1)
    }

    /// Reads and checks the scenario at `path`; `-` is standard input.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is longer than 16 MiB, or is malformed.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        if path == Path::new("-") {
            return Self::read_from("stdin", io::stdin().lock());
        }
        let file = path.display().to_string();
        match File::open(path) {
            Ok(reader) => Self::read_from(&file, reader),
            Err(source) => Err(ScenarioError::Unreadable { file, source }),
        }
    }

    fn read_from(file: &str, reader: impl Read) -> Result<Self, ScenarioError> {
        let mut text = Vec::new();
        let longest = reader.take(MAX_BYTES + 1).read_to_end(&mut text).and_then(|_| {
            if text.len() as u64 > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
        });
        longest.map_err(|source| ScenarioError::Unreadable { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    /// Checks `text`, calling it `file` in errors.
    ///
    /// # Errors
    ///
    /// The first malformed line.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, ScenarioError> {
        parse::scenario(file, text)
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|r| r.len).sum()
    }
}

/// The shape of the TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Td {
    /// Guest physical address width, shared bit included: 48 or 52.
    pub gpaw: u32,
    /// Levels of the Secure EPT: 4 or 5.
    pub levels: u32,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u32,
}

impl Td {
    /// The first address that is not private: the shared bit.
    #[must_use]
    pub fn shared_bit(self) -> u64 {
        1 << (self.gpaw - 1)
    }
}

impl Default for Td {
    fn default() -> Self {
        Self { gpaw: 48, levels: 4, vcpus: 2 }
    }
}

/// The host's folios behind guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Bytes of one folio: 1 GiB, 2 MiB or 4 KiB.
    pub size: u64,
    /// Whether the vmemmap optimization is on.
    pub hvo: bool,
}

impl Backing {
    /// The order of one folio: 18, 9 or 0.
    #[must_use]
    pub fn order(self) -> u32 {
        (self.size / PAGE).ilog2()
    }
}

impl Default for Backing {
    fn default() -> Self {
        Self { size: 1 << 30, hvo: true }
    }
}

/// One line of a scenario, with the expectation that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its line, from 1.
    pub line: usize,
    /// The line as written, without comment and surplus blanks.
    pub text: String,
    /// What happens.
    pub verb: Verb,
    /// What it must report.
    pub expect: Option<Expect>,
}

/// What an operation must report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The line of the `expect`, from 1.
    pub line: usize,
    /// The result.
    pub result: Outcome,
    /// The first obstacle, when one was named.
    pub at: Option<u64>,
}

/// The level at which a guest accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptLevel {
    /// Page by page.
    Page4K,
    /// By 2 MiB only.
    Block2M,
}

/// What one line does. Addresses and lengths are bytes and multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "every `start`, `len` and `gpa` is a guest address range or page")]
pub enum Verb {
    /// The page source gives this many pages from here on; without a number, any.
    Memory(Option<u64>),
    /// Guest RAM appears.
    Ram { start: u64, len: u64 },
    /// Measured 4 KiB pages are added at build time.
    Image { start: u64, len: u64 },
    /// The guest accepts, at 2 MiB where it fits unless a level is given.
    Accept { start: u64, len: u64, level: Option<AcceptLevel> },
    /// The guest touches memory that it has not accepted.
    Touch { start: u64, len: u64 },
    /// The guest writes every page.
    Fill { start: u64, len: u64 },
    /// The host writes every page.
    HostFill { start: u64, len: u64 },
    /// Private to shared.
    Share { start: u64, len: u64 },
    /// Shared to private, accepted at once or not.
    Unshare { start: u64, len: u64, accept: bool },
    /// The host takes references to shared pages.
    Pin { start: u64, len: u64 },
    /// The host drops them.
    Unpin { start: u64, len: u64 },
    /// A memory error, announced or met by the guest.
    Poison { gpa: u64, consumed: bool },
    /// The host drops the content.
    Punch { start: u64, len: u64 },
    /// Everything deferred happens now.
    Merge,
    /// Every page and every invariant is verified.
    Check,
}

impl Verb {
    /// Its name in a scenario.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Ram { .. } => "ram",
            Self::Image { .. } => "image",
            Self::Accept { .. } => "accept",
            Self::Touch { .. } => "touch",
            Self::Fill { .. } => "fill",
            Self::HostFill { .. } => "hostfill",
            Self::Share { .. } => "share",
            Self::Unshare { .. } => "unshare",
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Poison { .. } => "poison",
            Self::Punch { .. } => "punch",
            Self::Merge => "merge",
            Self::Check => "check",
        }
    }

    /// The range that it names: a poisoned page is one of 4 KiB.
    #[must_use]
    pub fn region(self) -> Option<Region> {
        match self {
            Self::Memory(_) | Self::Merge | Self::Check => None,
            Self::Poison { gpa, .. } => Some(Region { start: gpa, len: PAGE }),
            Self::Ram { start, len }
            | Self::Image { start, len }
            | Self::Accept { start, len, .. }
            | Self::Touch { start, len }
            | Self::Fill { start, len }
            | Self::HostFill { start, len }
            | Self::Share { start, len }
            | Self::Unshare { start, len, .. }
            | Self::Pin { start, len }
            | Self::Unpin { start, len }
            | Self::Punch { start, len } => Some(Region { start, len }),
        }
    }

    /// Whether it is an operation: one that reports a result. The others describe the machine.
    #[must_use]
    pub fn is_operation(self) -> bool {
        !matches!(self, Self::Memory(_) | Self::Ram { .. })
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            Self::Memory(None) => f.write_str(" unlimited"),
            Self::Memory(Some(pages)) => write!(f, " {pages}"),
            Self::Poison { gpa, consumed } => {
                write!(f, " {gpa:#x}{}", if consumed { " consumed" } else { "" })
            }
            _ => self.region().map_or(Ok(()), |r| write!(f, " {:#x} {}", r.start, Size(r.len))),
        }
    }
}
