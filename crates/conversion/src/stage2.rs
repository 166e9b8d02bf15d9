//! What an operation does to the secure table: which leaves are split, which tables appear and vanish.
//!
//! Plan and commit both read the answers here, so they cannot differ. Nothing is stored: each question is a walk.

use crate::{Block, Operation, Pages, Platform, Request, Tee, TeeError, layout::Target, platform::SetOf};
use folio_split::{FolioLayout, Order};
use sept_core::{Entry, Found, FrameNeeds, Gpa, GpaEntry, GpaRange, Hpa, LeafState, Level};

/// Why a look at the secure table gave no answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop<E> {
    /// It could not be read.
    Tee { at: GpaEntry, error: E },
    /// Somebody is changing the entry at this moment.
    Contended { at: GpaEntry },
}

/// Where the walk for `gpa` ends; an entry that is being changed is no answer.
pub(crate) fn look<T: Tee>(tee: &T, gpa: Gpa) -> Result<Found, Stop<T::Error>> {
    let at = GpaEntry::containing(gpa, Level::L4K);
    match tee.lookup(gpa) {
        Ok(Found { at, entry: Entry::Frozen, .. }) => Err(Stop::Contended { at }),
        Ok(found) => Ok(found),
        Err(error) => Err(Stop::Tee { at, error }),
    }
}

/// The entries of `level` at both ends of a request that are split before part of them is taken.
///
/// Usually one at each end: the entry that the range begins or ends in. Where the host has no folio order between
/// the level and the one it splits from, a whole block around each end falls to smaller folios, and every leaf in it
/// must be split before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    range: GpaRange,
    /// The same range, widened to where folios become smaller than the level.
    wide: GpaRange,
    level: Level,
}

impl Ends {
    /// The ends of `request` at `level`.
    pub(crate) fn of<P: Platform>(platform: &P, request: &Request, level: Level) -> Self {
        let range = request.range;
        let divides = matches!(request.operation, Operation::Share | Operation::Isolate);
        let wide = if divides { widened(platform, range, level) } else { range };
        Self { range, wide, level }
    }

    /// The first entry at or after `next` that may have to be split.
    fn entry(&self, next: u64) -> Option<GpaEntry> {
        let wide = self.wide.align_out(self.level);
        let at = GpaEntry::containing(Gpa::new(next.max(wide.start().raw()))?, self.level);
        // The middle is taken whole: on to the entry that the range ends in, or the first one after it.
        let after = if self.range.covers(at) { self.range.end() } else { at.gpa().raw() };
        let at = GpaEntry::containing(Gpa::new(after)?, self.level);
        wide.covers(at).then_some(at)
    }

    /// The first leaf of the level or above, at or after `next`, that is split. Above: it is split on the way.
    pub(crate) fn next_leaf<T: Tee>(
        &self,
        tee: &T,
        next: u64,
    ) -> Result<Option<(GpaEntry, Found)>, Stop<T::Error>> {
        let mut next = next;
        while let Some(at) = self.entry(next) {
            let found = look(tee, at.gpa())?;
            if matches!(found.entry, Entry::Leaf { .. }) && found.at.level() >= self.level {
                return Ok(Some((at, found)));
            }
            next = at.end();
        }
        Ok(None)
    }
}

/// `range` and whatever of its blocks falls to folios smaller than `level` when the range becomes small pages.
pub(crate) fn widened<P: Platform>(platform: &P, range: GpaRange, level: Level) -> GpaRange {
    let last = Gpa::truncate(range.end().saturating_sub(Level::L4K.size()));
    let Some(order) = Order::new(level.order()) else { return range };
    let end_of = |gpa: Gpa, end: bool| {
        let block = platform.block_of(gpa)?;
        let top = block.pfn().order();
        let unit = platform.orders().clipped(top).smallest_from(order).unwrap_or(top);
        let first = block.page(gpa) & !unit.pages().saturating_sub(1);
        let page = if end { first.saturating_add(unit.pages()) } else { first };
        Some(block.gpa().raw().saturating_add(page << Level::L4K.shift()))
    };
    let start = end_of(range.start(), false).unwrap_or(range.start().raw()).min(range.start().raw());
    let end = end_of(last, true).unwrap_or(range.end()).max(range.end());
    Gpa::new(start).and_then(|gpa| GpaRange::new(gpa, end.saturating_sub(start))).unwrap_or(range)
}

/// Where leaves may stand that `request` blocks.
///
/// A 1 GiB leaf at an end is met from inside the range; others fall only where a block is larger than 1 GiB.
pub(crate) fn undo_range<P: Platform>(platform: &P, request: &Request) -> GpaRange {
    let wide = widened(platform, request.range, Level::L1G);
    if wide.len() > request.range.align_out(Level::L1G).len() {
        wide
    } else {
        widened(platform, request.range, Level::L2M)
    }
}

/// Frames for all splits that a request needs before its range is taken.
pub(crate) fn boundary_cost<P: Platform>(
    platform: &P,
    request: &Request,
) -> Result<FrameNeeds, Stop<TeeError<P>>> {
    let tee = platform.tee();
    let mut needs = FrameNeeds::NONE;
    for level in [Level::L1G, Level::L2M] {
        let ends = Ends::of(platform, request, level);
        let mut next = 0;
        while let Some((at, found)) = ends.next_leaf(tee, next)? {
            next = at.end();
            let Entry::Leaf { hpa, .. } = found.entry else { continue };
            let offset = at.gpa().raw().saturating_sub(found.at.gpa().raw());
            needs = needs.plus(tee.table_cost(at, Some(Hpa::truncate(hpa.raw().saturating_add(offset)))));
        }
    }
    Ok(needs)
}

/// One 2 MiB slot of the guest and the part of the request in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) slot: GpaEntry,
    pub(crate) part: GpaRange,
}

/// The 2 MiB slot at or after `next`, or `None` past the range.
pub(crate) fn region(range: GpaRange, next: u64) -> Option<Region> {
    let gpa = Gpa::new(next.max(range.start().raw())).filter(|gpa| range.contains(*gpa))?;
    let slot = GpaEntry::containing(gpa, Level::L2M);
    Some(Region { slot, part: slot.range().intersect(range)? })
}

/// What mapping a region needs first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    /// Nothing: map 4 KiB pages where entries are free, or leave a larger leaf alone.
    Ready,
    /// One 2 MiB leaf fits into the free slot.
    MapLarge,
    /// A table is missing at this entry.
    Link { at: GpaEntry, backing: Option<Hpa> },
    /// An empty table stands where a 2 MiB leaf fits: take it out.
    Unlink,
    /// One 2 MiB leaf was to fit, but its folio could not be merged: leave it to a fault.
    Skip,
    /// A leaf that the guest has not accepted is too large: split it.
    Split { hpa: Hpa },
}

/// How a request maps memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) range: GpaRange,
    pub(crate) largest: Level,
    pub(crate) around: bool,
    /// Whether pages not accepted may be split to fit.
    pub(crate) split: bool,
    /// Whether pages are mapped, or only the tables made.
    pub(crate) pages: bool,
}

impl Mapping {
    /// The mapping part of `request`, if it has one.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let range = request.range;
        match request.operation {
            Operation::Unshare { .. } => {
                Some(Self { range, largest: Level::L2M, around: false, split: true, pages: true })
            }
            Operation::Populate { largest, around } => {
                Some(Self { range, largest, around, split: !around, pages: true })
            }
            Operation::Prepare => {
                Some(Self { range, largest: Level::L4K, around: false, split: false, pages: false })
            }
            _ => None,
        }
    }

    /// What region `region` of `block` needs next, with the folio layout that `target` will give it.
    pub(crate) fn slot<P: Platform>(
        &self,
        platform: &P,
        block: &Block,
        region: Region,
        target: &Target<'_, P>,
    ) -> Result<Slot, Stop<TeeError<P>>> {
        let tee = platform.tee();
        let found = look(tee, region.part.start())?;
        let level = found.at.level();
        Ok(match found.entry {
            Entry::Leaf { hpa, state: LeafState::Pending, .. }
                if self.split && level == Level::L2M && !self.fits(found.at) =>
            {
                Slot::Split { hpa }
            }
            Entry::Free if level > Level::L2M => {
                Slot::Link { at: found.at, backing: backing(block, found.at) }
            }
            Entry::Free if level == Level::L2M && self.large(platform, block, region.slot, target) => {
                Slot::MapLarge
            }
            Entry::Free if level == Level::L2M => {
                Slot::Link { at: region.slot, backing: backing(block, region.slot) }
            }
            Entry::Free if self.large(platform, block, region.slot, target) => match tee.live(region.slot) {
                Ok(Some(0)) => Slot::Unlink,
                Ok(_) => Slot::Ready,
                Err(error) => return Err(Stop::Tee { at: region.slot, error }),
            },
            _ => Slot::Ready,
        })
    }

    /// Frames to map the whole range, and frames that may come back from empty tables.
    ///
    /// `None` in place of an error means memory without a block.
    pub(crate) fn cost<P: Platform>(
        &self,
        platform: &P,
        request: &Request,
    ) -> Result<Option<(FrameNeeds, FrameNeeds)>, Stop<TeeError<P>>> {
        let tee = platform.tee();
        let (mut needs, mut releasable) = (FrameNeeds::NONE, FrameNeeds::NONE);
        // Last entry of each level for which a missing table was counted; regions come in order.
        let mut counted: [Option<GpaEntry>; Level::ALL.len()] = [None; Level::ALL.len()];
        let mut next = 0;
        let mut block: Option<Block> = None;
        while let Some(region) = region(self.range, next) {
            let gpa = region.part.start();
            next = region.slot.end();
            block = block.filter(|block| gpa.raw() < block.end()).or_else(|| platform.block_of(gpa));
            let Some(block) = &block else { return Ok(None) };
            let target = Target::new(platform, *block, request);
            let missing = match self.slot(platform, block, region, &target)? {
                Slot::Ready | Slot::MapLarge | Slot::Skip => continue,
                Slot::Unlink => {
                    releasable = releasable.plus(tee.table_cost(region.slot, backing(block, region.slot)));
                    continue;
                }
                Slot::Split { hpa } => {
                    needs = needs.plus(tee.table_cost(region.slot, Some(hpa)));
                    continue;
                }
                Slot::Link { at, .. } => at.level(),
            };
            let large = self.large(platform, block, region.slot, &target);
            for (level, counted) in Level::ALL.into_iter().zip(&mut counted) {
                let entry = GpaEntry::containing(gpa, level);
                let fresh = level > Level::L4K && level <= missing && *counted != Some(entry);
                if fresh && !(large && level == Level::L2M) {
                    needs = needs.plus(tee.table_cost(entry, backing(block, entry)));
                    *counted = Some(entry);
                }
            }
        }
        Ok(Some((needs, releasable)))
    }

    fn fits(&self, leaf: GpaEntry) -> bool {
        leaf.level() <= self.largest && (self.around || self.range.covers(leaf))
    }

    /// Whether a 2 MiB leaf may stand in `slot`: the request, the TEE, the guest, the memory and the folio all allow it.
    fn large<P: Platform>(
        &self,
        platform: &P,
        block: &Block,
        slot: GpaEntry,
        target: &Target<'_, P>,
    ) -> bool {
        self.fits(slot)
            && platform.tee().max_map() >= slot.level()
            && !platform.tee().inhibited(slot)
            && block.backs(slot)
            && FolioLayout::new(block.pfn(), platform.orders(), target)
                .folio_at(block.page(slot.gpa()))
                .order()
                .raw()
                >= slot.level().order()
    }
}

/// The memory that a table at `at` will map, if the block holds all of it.
pub(crate) fn backing(block: &Block, at: GpaEntry) -> Option<Hpa> {
    block.backs(at).then(|| block.hpa(at.gpa()))
}

/// Whether the provider guarantees one folio at least as large as `at`.
pub(crate) fn declared<P: Platform>(platform: &P, at: GpaEntry) -> bool {
    platform.block_of(at.gpa()).is_some_and(|block| {
        let small = SetOf { platform, block, set: Pages::Small };
        let layout = FolioLayout::new(block.pfn(), platform.orders(), small);
        block.backs(at) && layout.folio_at(block.page(at.gpa())).order().raw() >= at.level().order()
    })
}
