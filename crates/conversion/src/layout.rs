//! What an operation does to the folio layout of a block.
//!
//! The layout of a block is always the coarsest one for some set of small pages, so a change of layout is a change
//! of that set. [`Target`] is the set that an operation leads to; it is computed from the platform's sets each time
//! it is asked, never stored.
//!
//! A change is carried out in atoms of at most 2 MiB of the request each, in address order: the first one that
//! touches a 1 GiB folio splits it to 2 MiB, each splits at most one 2 MiB folio to pages. After each atom the
//! platform's set says how far it came, so that a change can stop between any two and go on later.

use crate::{Block, Needs, Operation, Pages, PlanError, Platform, Request, Tee, TeeError, platform::SetOf};
use core::ops::Range;
use folio_split::{
    Change, FolioBackend, FolioLayout, Minus, Order, PageSet, Pfn, PfnBlock, Transition, Union,
};
use sept_core::{Entry, FrameKind, FrameNeeds, FrameSource, Gpa, GpaEntry, Level};
use vmemmap_prealloc::{AtomDone, AtomError, VmemmapNeeds, merge_atom, split_atom};

/// Attempts to freeze one folio before its reference counts as a pin.
const FREEZE_TRIES: u32 = 16;

/// The set of small pages that an operation on `window` leads to in one block.
pub(crate) struct Target<'a, P: Platform> {
    platform: &'a P,
    block: Block,
    window: Range<u64>,
    operation: Operation,
}

impl<'a, P: Platform> Target<'a, P> {
    pub(crate) fn new(platform: &'a P, block: Block, request: &Request) -> Self {
        let window = block.window(request.range);
        Self { platform, block, window, operation: request.operation }
    }

    fn set(&self, set: Pages) -> SetOf<'a, P> {
        SetOf { platform: self.platform, block: self.block, set }
    }

    fn transition(&self) -> Transition<SetOf<'a, P>, &Self> {
        Transition::new(self.block.pfn(), self.platform.orders(), self.set(Pages::Small), self)
    }
}

impl<P: Platform> PageSet for Target<'_, P> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let small = self.set(Pages::Small);
        let poisoned = self.set(Pages::Poisoned);
        let window = self.window.clone();
        match self.operation {
            Operation::Share | Operation::Isolate => Union(small, window).next_run(from),
            Operation::Unshare { merge: true } => Union(poisoned, Minus(small, window)).next_run(from),
            Operation::Coalesce => {
                let kept = Union(poisoned, self.set(Pages::Shared));
                Union(kept, Minus(small, window)).next_run(from)
            }
            Operation::Unshare { merge: false }
            | Operation::Punch
            | Operation::Populate { .. }
            | Operation::Prepare => small.next_run(from),
        }
    }
}

/// The blocks of a request, in address order; the error is an address without one.
fn each_block<P: Platform>(platform: &P, request: &Request, mut visit: impl FnMut(Block)) -> Result<(), Gpa> {
    let mut next = request.range.start();
    loop {
        let block = platform.block_of(next).ok_or(next)?;
        visit(block);
        match Gpa::new(block.end()).filter(|gpa| request.range.contains(*gpa) && *gpa > next) {
            Some(gpa) => next = gpa,
            None => return Ok(()),
        }
    }
}

/// What changing the layouts takes, and what it may release.
pub(crate) fn layout_cost<P: Platform>(
    platform: &P,
    request: &Request,
) -> Result<(Needs, Needs), PlanError<TeeError<P>>> {
    let (mut needs, mut releasable) = (Needs::default(), Needs::default());
    let keeps = matches!(
        request.operation,
        Operation::Unshare { merge: false }
            | Operation::Punch
            | Operation::Populate { .. }
            | Operation::Prepare
    );
    each_block(platform, request, |block| {
        if keeps {
            return;
        }
        let target = Target::new(platform, block, request);
        let transition = target.transition();
        let counts = transition.counts();
        let index = counts.delta(platform.folios().index());
        let vmemmap = VmemmapNeeds::plan(platform.vmemmap(), &transition, &counts);
        needs = needs.plus(Needs { frames: vmemmap.frames(), index_nodes: index.needed });
        let released = u32::try_from(vmemmap.released).unwrap_or(u32::MAX);
        let released = FrameNeeds::of(FrameKind::Vmemmap, released);
        releasable = releasable.plus(Needs { frames: released, index_nodes: index.freed });
    })
    .map_err(|gpa| PlanError::NotRam { gpa })?;
    Ok((needs, releasable))
}

/// What changing a layout did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Relaid {
    pub(crate) released: Needs,
    pub(crate) splits: u64,
    pub(crate) merges: u64,
}

impl Relaid {
    fn add(&mut self, done: &AtomDone, change: Change) {
        let count = match change {
            Change::Split(_) => &mut self.splits,
            Change::Merge(_) => &mut self.merges,
        };
        *count = count.saturating_add(1);
        let pages = u32::try_from(done.released).unwrap_or(u32::MAX);
        let frames = FrameNeeds::of(FrameKind::Vmemmap, pages);
        self.released = self.released.plus(Needs { frames, index_nodes: done.nodes_freed });
    }
}

/// Carries out the part of a change that lies in the 2 MiB of `block` at page `at`, folio by folio.
///
/// A merge that cannot freeze its folios is left for later: the set keeps its pages small. The result may be an error
/// after some folios were changed; those are changed completely, and the platform's set says so.
pub(crate) fn relay<P: Platform>(
    platform: &P,
    block: Block,
    request: &Request,
    at: u64,
    (store, nodes): (&mut P::Store, &mut <P::Folios as FolioBackend>::Nodes),
    to: &dyn FrameSource,
) -> (Relaid, Result<(), RelayError<TeeError<P>>>) {
    let mut done = Relaid::default();
    let mut target = Target::new(platform, block, request);
    let piece = at..chunk_end(at).min(target.window.end);
    target.window = piece.clone();
    let transition = target.transition();
    let (folios, vmemmap) = (platform.folios(), platform.vmemmap());
    let mut rest = piece.start;
    for change in transition.changes(piece.clone()) {
        let whole = change.whole();
        let atom = match change {
            Change::Split(_) => match witness(platform, &block, whole, &transition.to_layout()) {
                Ok(()) => split_atom(folios, vmemmap, &transition, whole, FREEZE_TRIES, nodes, store),
                Err(error) => return (done, Err(error)),
            },
            Change::Merge(_) => merge_atom(folios, vmemmap, &transition, whole, FREEZE_TRIES, to),
        };
        let first = whole.base().raw().saturating_sub(block.pfn().base().raw());
        let within = first.max(rest)..first.saturating_add(whole.pages()).min(piece.end);
        // Between two changes pages change their set and no folio does.
        record(platform, &block, rest..within.start, &target);
        rest = within.end;
        match (atom, change) {
            (Ok(atom), _) => done.add(&atom, change),
            (Err(AtomError::Pinned(_)), Change::Merge(_)) => continue,
            (Err(error), _) => return (done, Err(RelayError::Atom(error))),
        }
        record(platform, &block, within, &target);
    }
    record(platform, &block, rest..piece.end, &target);
    (done, Ok(()))
}

/// Why a layout was not changed.
#[derive(Debug)]
pub(crate) enum RelayError<E> {
    Tee(E),
    LargerLeaf { at: GpaEntry, order: Order },
    Atom(AtomError),
}

/// I1, looked at before each split: no leaf in `whole` that the guest can reach is larger than the folio that `layout`
/// has for it. At most one walk for each 2 MiB.
fn witness<P: Platform, S: PageSet>(
    platform: &P,
    block: &Block,
    whole: PfnBlock,
    layout: &FolioLayout<S>,
) -> Result<(), RelayError<TeeError<P>>> {
    let first = whole.base().raw().saturating_sub(block.pfn().base().raw());
    let mut page = first;
    while whole.order().raw() >= Level::L2M.order() && page < first.saturating_add(whole.pages()) {
        let gpa = Gpa::truncate(block.gpa().raw().saturating_add(page << Level::L4K.shift()));
        let found = platform.tee().lookup(gpa).map_err(RelayError::Tee)?;
        if let (Entry::Leaf { blocked: None, .. }, false) = (found.entry, found.hidden) {
            let order = layout.folio_at(page).order();
            if found.at.level().order() > order.raw() {
                return Err(RelayError::LargerLeaf { at: found.at, order });
            }
        }
        page = page.saturating_add(found.at.level().max(Level::L2M).pages());
    }
    Ok(())
}

/// First page after the 2 MiB of the block that page `at` lies in.
pub(crate) const fn chunk_end(at: u64) -> u64 {
    (at | (Level::L2M.mask() >> Level::L4K.shift())).saturating_add(1)
}

/// Tells the platform which pages of `piece` are small now.
fn record<P: Platform>(platform: &P, block: &Block, piece: Range<u64>, target: &Target<'_, P>) {
    let mut at = piece.start;
    while at < piece.end {
        let run = target.next_run(at).filter(|run| run.start < piece.end);
        let (start, end) = run.map_or((piece.end, piece.end), |run| (run.start, run.end.min(piece.end)));
        if at < start {
            platform.set_small(block, at..start, false);
        }
        if start < end {
            platform.set_small(block, start..end, true);
        }
        at = end.max(start);
    }
}

/// Where the guest sees a page frame of `block`.
pub(crate) fn gpa_of(block: &Block, pfn: Pfn) -> Gpa {
    let page = pfn.raw().saturating_sub(block.pfn().base().raw());
    Gpa::truncate(block.gpa().raw().saturating_add(page << Level::L4K.shift()))
}
