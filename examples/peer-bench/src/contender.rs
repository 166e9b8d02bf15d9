//! What a competitor can do, and the guest memory that it does it with.

use rustix::time::{ClockId, clock_gettime};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// First guest address of the region.
pub(crate) const VA: u64 = 0x40_0000_0000;
/// What it maps to. No such memory exists; nobody reads it.
pub(crate) const PA: u64 = 0x80_0000_0000;
/// Bytes of the region.
pub(crate) const REGION: u64 = G1;
/// Pages of 4 KiB in the region.
pub(crate) const PAGES: u64 = REGION / K4;
/// Blocks of 2 MiB in the region.
pub(crate) const BLOCKS: u64 = REGION / M2;

/// 4 KiB.
pub(crate) const K4: u64 = 1 << 12;
/// 2 MiB.
pub(crate) const M2: u64 = 1 << 21;
/// 1 GiB.
pub(crate) const G1: u64 = 1 << 30;

/// Guest addresses of the region's pages of `size` bytes, ascending.
pub(crate) fn pages(size: u64) -> impl Iterator<Item = u64> + Clone {
    (0..REGION / size).map(move |index| VA + index * size)
}

/// What the page at a guest address of the region maps to.
#[inline]
pub(crate) const fn target(va: u64) -> u64 {
    va - VA + PA
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Where 2^20 random addresses of a region mapped with 4 KiB pages lead; all are known before the first.
    Translate,
    /// Map the region with 4 KiB pages, one call a page.
    Map4k,
    /// The same, one call.
    Map4kRange,
    /// Map the region with 2 MiB pages, one call a page.
    Map2m,
    /// Split every 2 MiB page, one call a page; what can be prepared, is.
    SplitCommit,
    /// Split every 2 MiB page, one call a page; the preparations count.
    SplitAll,
    /// Make 2 MiB pages of 4 KiB pages, one call a page, and give the tables back.
    Merge,
    /// Unmap every 4 KiB page, one call a page, and give empty tables back.
    Unmap4k,
    /// The same, one call; each leaf is looked at.
    UnmapRange,
    /// Drop everything below the 1 GiB entry, whose 4 KiB leaves nobody asks for.
    Remove1g,
}

impl Work {
    pub(crate) const ALL: [Self; 10] = [
        Self::Translate,
        Self::Map4k,
        Self::Map4kRange,
        Self::Map2m,
        Self::SplitCommit,
        Self::SplitAll,
        Self::Merge,
        Self::Unmap4k,
        Self::UnmapRange,
        Self::Remove1g,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Translate => "translate",
            Self::Map4k => "map_4k",
            Self::Map4kRange => "map_4k_range",
            Self::Map2m => "map_2m",
            Self::SplitCommit => "split_commit",
            Self::SplitAll => "split_all",
            Self::Merge => "merge",
            Self::Unmap4k => "unmap_4k",
            Self::UnmapRange => "unmap_range",
            Self::Remove1g => "remove_1g",
        }
    }

    /// How often one run does it.
    pub(crate) const fn operations(self) -> u64 {
        match self {
            Self::Translate => 1 << 20,
            Self::Map4k | Self::Map4kRange | Self::Unmap4k | Self::UnmapRange => PAGES,
            Self::Map2m | Self::SplitCommit | Self::SplitAll | Self::Merge => BLOCKS,
            Self::Remove1g => 1,
        }
    }

    /// What the region holds before.
    pub(crate) const fn before(self) -> Mapped {
        match self {
            Self::Map4k | Self::Map4kRange | Self::Map2m => Mapped::Nothing,
            Self::SplitCommit | Self::SplitAll => Mapped::With2m,
            Self::Translate | Self::Merge | Self::Unmap4k | Self::UnmapRange | Self::Remove1g => {
                Mapped::With4k
            }
        }
    }

    /// What the region holds afterwards.
    pub(crate) const fn after(self) -> Mapped {
        match self {
            Self::Translate | Self::Map4k | Self::Map4kRange | Self::SplitCommit | Self::SplitAll => {
                Mapped::With4k
            }
            Self::Map2m | Self::Merge => Mapped::With2m,
            Self::Unmap4k | Self::UnmapRange | Self::Remove1g => Mapped::Nothing,
        }
    }
}

/// What the region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    Nothing,
    With4k,
    With2m,
}

/// How a competitor does a work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// With an operation made for it.
    Native,
    /// With other operations; the region is unmapped in between.
    Emulated,
    /// Without looking at the leaves.
    Subtree,
}

/// A page table with four levels and 512 entries each, which maps the region.
///
/// A work does what it must unseen, times the rest with [`timed`], and panics if a call is refused. `None`: cannot.
pub(crate) trait Contender: Sized {
    /// Name of the crate.
    const NAME: &'static str;

    /// How it does `work`, if it does.
    fn how(_work: Work) -> How {
        How::Native
    }

    /// A table that maps nothing.
    fn new() -> Self;

    /// Maps the region of an empty table, in whatever way.
    fn fill(&mut self, with: Mapped);

    /// Where `va` leads, and the size of its page.
    fn lookup(&self, va: u64) -> Option<(u64, u64)>;

    /// Gives all frames back.
    fn dispose(self);

    /// Sum of where the addresses lead, wrapping.
    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)>;

    fn map_4k(&mut self) -> Option<Duration>;

    fn map_4k_range(&mut self) -> Option<Duration> {
        None
    }

    fn map_2m(&mut self) -> Option<Duration>;

    fn split_commit(&mut self) -> Option<Duration> {
        None
    }

    fn split_all(&mut self) -> Option<Duration>;

    fn merge(&mut self) -> Option<Duration> {
        None
    }

    fn unmap_4k(&mut self) -> Option<Duration>;

    fn unmap_range(&mut self) -> Option<Duration> {
        None
    }

    fn remove_1g(&mut self) -> Option<Duration> {
        None
    }
}

/// How long `work` takes. Its result is used, whatever becomes of it.
///
/// The thread's own time is read outside the clock's, so it is the longer of the two unless the thread had to wait for
/// a CPU; then it is what counts.
pub(crate) fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let before = thread_time();
    let start = Instant::now();
    let result = black_box(alone(work));
    let time = start.elapsed();
    (time.min(thread_time().saturating_sub(before)), result)
}

/// A function of its own for each timed part, so that the code around it cannot take its registers.
#[inline(never)]
fn alone<R>(work: impl FnOnce() -> R) -> R {
    work()
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}
