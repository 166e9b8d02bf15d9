//! The host's half: folios, vmemmap, attributes, claims.
//!
//! Everything here is a short call. Long-lived things are values ([`Platform::Claim`]) so that a commit can be
//! parked; a lock that an implementor takes inside a method is released before the method returns.

use crate::Tee;
use core::{fmt::Debug, ops::Range};
use folio_split::{FolioBackend, OrderSet, PageSet, PfnBlock};
use sept_core::{Frame, FrameStore, Gpa, GpaEntry, GpaRange, Hpa, Level, Tainted};
use vmemmap_prealloc::VmemmapBackend;

/// Who may use a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "memory is one or the other")]
pub enum Visibility {
    /// The guest alone.
    Private,
    /// Guest and host.
    Shared,
}

/// A set of pages that the platform keeps for a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a platform keeps exactly these three")]
pub enum Pages {
    /// Pages that the present folio layout keeps at order 0: the layout is the coarsest one for this set.
    Small,
    /// Pages whose attribute is shared.
    Shared,
    /// Pages with a memory error, isolated: never mapped, never merged.
    Poisoned,
}

/// What a claim keeps others out of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a platform distinguishes exactly these two")]
pub enum Scope {
    /// A conversion: alone in every block of the range, and no fault is served in the range itself.
    Blocks,
    /// A fault: nobody converts or serves a fault in the range. Elsewhere in the block a conversion may go on.
    Range,
}

/// A physically contiguous block of the provider, and where the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    pfn: PfnBlock,
    gpa: Gpa,
}

impl Block {
    /// `pfn` seen by the guest from `gpa` up; `None` if `gpa` is not a multiple of 4 KiB or the block leaves the
    /// address space.
    #[must_use]
    pub fn new(pfn: PfnBlock, gpa: Gpa) -> Option<Self> {
        let bytes = pfn.pages().checked_mul(Level::L4K.size())?;
        GpaRange::new(gpa, bytes)?;
        Hpa::new(pfn.base().raw().checked_mul(Level::L4K.size())?.checked_add(bytes)?.checked_sub(1)?)?;
        Some(Self { pfn, gpa })
    }

    /// The block itself.
    #[must_use]
    pub const fn pfn(&self) -> PfnBlock {
        self.pfn
    }

    /// Where the guest sees its first page.
    #[must_use]
    pub const fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// First guest address after the block, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.gpa.raw().saturating_add(self.pfn.pages().saturating_mul(Level::L4K.size()))
    }

    /// Offset of `gpa` in pages.
    #[must_use]
    pub const fn page(&self, gpa: Gpa) -> u64 {
        gpa.raw().saturating_sub(self.gpa.raw()) >> Level::L4K.shift()
    }

    /// The part of `range` in this block, in pages from its base.
    #[must_use]
    pub fn window(&self, range: GpaRange) -> Range<u64> {
        let end = range.end().min(self.end()).saturating_sub(self.gpa.raw()) >> Level::L4K.shift();
        self.page(range.start()).min(end)..end
    }

    /// Host address of the page that the guest sees at `gpa`.
    #[must_use]
    pub const fn hpa(&self, gpa: Gpa) -> Hpa {
        let base = self.pfn.base().raw() << Level::L4K.shift();
        Hpa::truncate(base.wrapping_add(gpa.raw().wrapping_sub(self.gpa.raw())))
    }

    /// Whether the whole of `at` lies in this block and its memory is aligned like a page of that level.
    #[must_use]
    pub fn backs(&self, at: GpaEntry) -> bool {
        at.gpa() >= self.gpa && at.end() <= self.end() && self.hpa(at.gpa()).is_aligned(at.level())
    }
}

/// The host's half of a conversion: the one type parameter that a hypervisor implements.
///
/// All methods take `&self` and are called from [`Plan`](crate::Plan) at any time, and from
/// [`Commit`](crate::Commit) and [`Promotion`](crate::Promotion) inside their steps; none may wait. A host without
/// folios or without the vmemmap optimization uses [`NoFolios`](folio_split::NoFolios) and
/// [`NoVmemmap`](vmemmap_prealloc::NoVmemmap).
///
/// The smallest host that works:
///
/// ```
#[doc = include_str!("../examples/toy.rs")]
/// ```
pub trait Platform {
    /// The stage-2 half.
    type Tee: Tee;
    /// Folios and their index.
    type Folios: FolioBackend;
    /// The vmemmap that describes them.
    type Vmemmap: VmemmapBackend;
    /// The right to convert a range: one at a time for each block.
    type Claim;
    /// Where reserved frames are kept.
    type Store: FrameStore;
    /// Names one flush of host mappings.
    type Flush: Copy + Debug;

    /// The stage-2 half.
    fn tee(&self) -> &Self::Tee;
    /// Folios and their index.
    fn folios(&self) -> &Self::Folios;
    /// The vmemmap.
    fn vmemmap(&self) -> &Self::Vmemmap;
    /// Orders that folios may have.
    fn orders(&self) -> OrderSet;

    /// The block that backs `gpa`; `None` if there is no memory. The same answer for every address of a block.
    fn block_of(&self, gpa: Gpa) -> Option<Block>;

    /// First run of a page set at or after page `from` of `block`, in pages from its base. Stateless.
    fn next_run(&self, block: &Block, set: Pages, from: u64) -> Option<Range<u64>>;

    /// Records whether the folio layout keeps the pages of `window`, numbered from the block's base, at order 0. Comes right
    /// after the folios were changed; faults read the largest leaf they may map from it. Cannot fail.
    fn set_small(&self, block: &Block, window: Range<u64>, small: bool);

    /// Stores the attribute of `range`, poisoned pages left as they are. From here on faults follow it. Cannot fail:
    /// whatever it needs was set aside when the range was claimed.
    fn set_visibility(&self, range: GpaRange, to: Visibility);

    /// Whether `gpa` is shared.
    fn visibility(&self, gpa: Gpa) -> Visibility;

    /// First page of `range` that the host holds a reference on. Asked in plans as advice, and once more when
    /// [`Platform::host_flushed`] has said yes: then the answer decides, because nobody can take a reference any more.
    fn next_pinned(&self, range: GpaRange) -> Option<Gpa>;

    /// Marks or unmarks a range as converting. From the return of this call until it is unmarked,
    ///
    /// * a fault inside the range waits, and one that began earlier looks at the mark and the attribute again before it
    ///   maps (one whose call into the TEE is under way may end);
    /// * no fault beside it maps a leaf that reaches into the range, or one larger than the folios will be: with folio
    ///   orders between 2 MiB and 4 KiB missing or far apart, that is 4 KiB within the folio around either end;
    /// * no host mapping of the range is made.
    fn set_converting(&self, range: GpaRange, converting: bool);

    /// Drops host mappings of `range` (user, shared second stage, IOMMU) and starts their flush.
    fn unmap_host(&self, range: GpaRange) -> Self::Flush;

    /// Whether the flush has ended everywhere. Never waits.
    fn host_flushed(&self, flush: Self::Flush) -> bool;

    /// The guest page at `at`, of its size, clean and unmapped, to be given to the TEE. `None` if part of it is not to
    /// be mapped: poisoned, or not there.
    fn lend(&self, at: GpaEntry) -> Option<Frame>;

    /// A page that came back from the TEE, overwritten, or one that was lent and refused.
    fn take_back(&self, at: GpaEntry, page: Frame);

    /// The page at `gpa` has a memory error, owns its `struct page` and is out of the TEE: mark it, never use it.
    ///
    /// `page` is the frame, if the TEE held it.
    fn poison(&self, gpa: Gpa, page: Option<Frame<Tainted>>);

    /// Claims `range`, made of whole 2 MiB; `None` while a claim of somebody else is in the way.
    ///
    /// Two claims are in each other's way if their ranges overlap, or if both are for [`Scope::Blocks`] and touch the
    /// same block. So a fault outside the range of a conversion never waits for it.
    fn claim(&self, range: GpaRange, scope: Scope) -> Option<Self::Claim>;

    /// Ends a claim.
    fn release(&self, claim: Self::Claim);
}

/// One of a block's page sets, as folio-split reads it.
pub(crate) struct SetOf<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) block: Block,
    pub(crate) set: Pages,
}

impl<P: Platform> PageSet for SetOf<'_, P> {
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        self.platform.next_run(&self.block, self.set, from)
    }
}
