//! What an operation does to the secure table: which leaves are split, which tables appear and vanish.
//!
//! Plan and commit both read the answers here, so they cannot differ. Nothing is stored: each question is a walk.

use crate::{Block, Operation, Platform, Request, Tee, layout::Target};
use folio_split::FolioLayout;
use sept_core::{Entry, FrameNeeds, Gpa, GpaEntry, GpaRange, Hpa, LeafState, Level};

/// The pages of `range` at the first and last address: the only places where a leaf can reach beyond it.
fn edges(range: GpaRange) -> [Gpa; 2] {
    [range.start(), Gpa::truncate(range.end().saturating_sub(Level::L4K.size()))]
}

/// Leaves of `level` that reach beyond `range` and must be split before part of them is taken: at most two.
pub(crate) fn boundary<T: Tee>(
    tee: &T,
    range: GpaRange,
    level: Level,
) -> Result<[Option<GpaEntry>; 2], T::Error> {
    let mut found = [None; 2];
    for (slot, gpa) in found.iter_mut().zip(edges(range)) {
        let at = tee.lookup(gpa)?;
        let reaches = matches!(at.entry, Entry::Leaf { .. }) && !range.covers(at.at);
        *slot = (reaches && at.at.level() == level).then_some(at.at);
    }
    if found[0] == found[1] {
        found[1] = None;
    }
    Ok(found)
}

/// Frames for all splits that taking exactly `range` needs: at most two for each level.
pub(crate) fn boundary_cost<T: Tee>(tee: &T, range: GpaRange) -> Result<FrameNeeds, T::Error> {
    let mut needs = FrameNeeds::NONE;
    let mut counted: [Option<GpaEntry>; 3] = [None; 3];
    for gpa in edges(range) {
        let found = tee.lookup(gpa)?;
        let Entry::Leaf { hpa, .. } = found.entry else { continue };
        for (level, seen) in [Level::L1G, Level::L2M].into_iter().zip(&mut counted) {
            let piece = GpaEntry::containing(gpa, level);
            if level > found.at.level() || range.covers(piece) || *seen == Some(piece) {
                continue;
            }
            let offset = piece.gpa().raw().saturating_sub(found.at.gpa().raw());
            let backing = Hpa::truncate(hpa.raw().saturating_add(offset));
            needs = needs.plus(tee.table_cost(piece, Some(backing)));
            *seen = Some(piece);
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
                Some(Self { range, largest: Level::L2M, around: false, split: false, pages: true })
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
    ) -> Result<Slot, <P::Tee as Tee>::Error> {
        let tee = platform.tee();
        let found = tee.lookup(region.part.start())?;
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
            Entry::Free if self.large(platform, block, region.slot, target) => match tee.live(region.slot)? {
                Some(0) => Slot::Unlink,
                _ => Slot::Ready,
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
    ) -> Result<Option<(FrameNeeds, FrameNeeds)>, <P::Tee as Tee>::Error> {
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
                Slot::Ready | Slot::MapLarge => continue,
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

    /// Whether a 2 MiB leaf may stand in `slot`: the request, the TEE, the memory and the folio all allow it.
    fn large<P: Platform>(
        &self,
        platform: &P,
        block: &Block,
        slot: GpaEntry,
        target: &Target<'_, P>,
    ) -> bool {
        self.fits(slot)
            && platform.tee().max_map() >= slot.level()
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
