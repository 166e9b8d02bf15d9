//! What every page of the TD must hold, kept by the scenario's rules alone.
//!
//! The oracle knows nothing of tables, folios or the module: it is the independent record that contents are compared
//! with. Pages are kept by 2 MiB, uniform where all 512 agree.

use crate::scenario::{PAGE, Region};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes.
    Zero,
    /// What the `n`-th fill wrote: a pattern of the page's own address and that number.
    Filled(u32),
    /// What the image put there: a pattern of the page's own address.
    Image,
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Private, and the guest has not accepted it.
    Unaccepted,
    /// Private to the guest.
    Private(Content),
    /// Shared with the host.
    Shared(Content),
    /// Lost to a memory error, in private memory.
    Poisoned,
    /// Lost to a memory error, in shared memory.
    PoisonedShared,
}

impl Page {
    /// Whether the page is lost to a memory error.
    pub(super) const fn is_poisoned(self) -> bool {
        matches!(self, Self::Poisoned | Self::PoisonedShared)
    }

    /// Whether the page is shared, lost or not.
    pub(super) const fn is_shared(self) -> bool {
        matches!(self, Self::Shared(_) | Self::PoisonedShared)
    }
}

/// The word that stands for the content of the page at `gpa`.
pub(super) const fn pattern(gpa: u64, content: Content) -> u64 {
    let number = match content {
        Content::Zero => return 0,
        Content::Filled(number) => number as u64,
        Content::Image => 0xffff_ffff,
    };
    // An odd multiplier keeps distinct (address, number) pairs apart; bit 63 keeps every pattern from being zero.
    ((gpa >> 12) | number << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1 | 1 << 63
}

const CHUNK: u64 = 2 << 20;
const PAGES: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Uniform(Page),
    Mixed(Box<[Page; PAGES]>),
}

impl Chunk {
    fn page(&self, index: usize) -> Page {
        match self {
            Self::Uniform(page) => *page,
            Self::Mixed(pages) => pages[index],
        }
    }
}

/// A run of equal pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it is.
    pub region: Region,
    /// What its pages are.
    pub page: Page,
}

/// The record of a TD's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    /// RAM, ascending, each with its 2 MiB pieces.
    ram: Vec<(Region, Vec<Chunk>)>,
}

impl Oracle {
    /// Adds RAM, unaccepted. `start` need not be 2 MiB aligned.
    pub(super) fn add_ram(&mut self, region: Region) {
        let chunks = (region.start % CHUNK + region.len).div_ceil(CHUNK);
        let chunks = vec![Chunk::Uniform(Page::Unaccepted); usize::try_from(chunks).unwrap_or(0)];
        let at = self.ram.partition_point(|(other, _)| other.start < region.start);
        self.ram.insert(at, (region, chunks));
    }

    /// All RAM, ascending.
    pub(super) fn ram(&self) -> impl Iterator<Item = Region> {
        self.ram.iter().map(|(region, _)| *region)
    }

    /// What the page at `gpa` is; `None` outside RAM.
    pub(super) fn page(&self, gpa: u64) -> Option<Page> {
        let (region, chunks) = self.find(gpa)?;
        Some(chunks[chunk_of(region, gpa)].page(index_of(gpa)))
    }

    fn find(&self, gpa: u64) -> Option<(Region, &[Chunk])> {
        let at = self.ram.partition_point(|(region, _)| region.start <= gpa).checked_sub(1)?;
        let (region, chunks) = &self.ram[at];
        (gpa - region.start < region.len).then_some((*region, chunks))
    }

    /// Runs of equal pages in `region`, ascending. Holes in RAM are left out.
    pub(super) fn runs(&self, region: Region) -> Runs<'_> {
        Runs { oracle: self, next: region.start, end: region.start + region.len }
    }

    /// The first page of `region` for which `wanted` holds.
    pub(super) fn find_page(&self, region: Region, wanted: impl Fn(Page) -> bool) -> Option<u64> {
        self.runs(region).find(|run| wanted(run.page)).map(|run| run.region.start)
    }

    /// Replaces every page of `region` by what `change` makes of it.
    pub(super) fn update(&mut self, region: Region, change: impl Fn(Page) -> Page) {
        let end = region.start + region.len;
        for (ram, chunks) in &mut self.ram {
            let (from, to) = (region.start.max(ram.start), end.min(ram.start + ram.len));
            let mut gpa = from;
            while gpa < to {
                let base = gpa - gpa % CHUNK;
                let until = (base + CHUNK).min(to);
                let whole = gpa == base && until == base + CHUNK;
                let chunk = &mut chunks[chunk_of(*ram, gpa)];
                match chunk {
                    Chunk::Uniform(page) if whole || change(*page) == *page => *page = change(*page),
                    Chunk::Uniform(page) => *chunk = Chunk::Mixed(Box::new([*page; PAGES])),
                    Chunk::Mixed(_) => {}
                }
                if let Chunk::Mixed(pages) = chunk {
                    let first = index_of(gpa);
                    let count = usize::try_from((until - gpa) / PAGE).unwrap_or(0);
                    for page in &mut pages[first..first + count] {
                        *page = change(*page);
                    }
                    if pages.iter().all(|page| *page == pages[0]) {
                        *chunk = Chunk::Uniform(pages[0]);
                    }
                }
                gpa = until;
            }
        }
    }
}

fn chunk_of(ram: Region, gpa: u64) -> usize {
    usize::try_from(gpa / CHUNK - ram.start / CHUNK).unwrap_or(usize::MAX)
}

fn index_of(gpa: u64) -> usize {
    usize::try_from(gpa / PAGE).unwrap_or(0) % PAGES
}

/// Iterator over [`Run`]s.
#[derive(Clone, Debug)]
pub(super) struct Runs<'a> {
    oracle: &'a Oracle,
    next: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut run: Option<Run> = None;
        while self.next < self.end {
            let gpa = self.next;
            let Some((ram, chunks)) = self.oracle.find(gpa) else {
                if run.is_some() {
                    break;
                }
                // On to the next RAM, if there is any.
                let after = self.oracle.ram().map(|ram| ram.start).find(|start| *start > gpa);
                self.next = after.unwrap_or(self.end).min(self.end);
                continue;
            };
            let limit = self.end.min(ram.start + ram.len);
            let (page, until) = match &chunks[chunk_of(ram, gpa)] {
                Chunk::Uniform(page) => (*page, gpa - gpa % CHUNK + CHUNK),
                Chunk::Mixed(pages) => {
                    let first = index_of(gpa);
                    let same = pages[first..].iter().take_while(|page| **page == pages[first]).count();
                    (pages[first], gpa + same as u64 * PAGE)
                }
            };
            let until = until.min(limit);
            match &mut run {
                Some(run) if run.page == page && run.region.start + run.region.len == gpa => {
                    run.region.len += until - gpa;
                }
                Some(_) => break,
                None => run = Some(Run { region: Region { start: gpa, len: until - gpa }, page }),
            }
            self.next = until;
        }
        run
    }
}
