//! Owned page frames, what they are needed for, and where they come from.
//!
//! A [`Frame`] is a move-only claim on physical memory that nobody else can reach: no walker, no guest, no cache.
//! What something may still reach is never a `Frame`: a blocked page stays named in its entry, an unlinked table
//! stays chained through its side words. Dropping a `Frame` leaks the memory; it never frees it.

use crate::{Hpa, Level};
use core::{fmt, marker::PhantomData, ops};

mod sealed {
    pub trait Sealed {}
}

/// What is known about a frame's contents. Sealed.
pub trait FrameState: sealed::Sealed {}

/// Ordinary host memory: clean caches, any content.
#[derive(Debug)]
#[non_exhaustive]
pub struct Free;

/// Written under another memory encryption key: write back and overwrite before the host uses it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Tainted;

impl sealed::Sealed for Free {}
impl sealed::Sealed for Tainted {}
impl FrameState for Free {}
impl FrameState for Tainted {}

/// An owned, naturally aligned page frame of one level's size.
///
/// ```compile_fail
/// fn twice(f: sept_core::Frame) -> (sept_core::Frame, sept_core::Frame) {
///     (f, f) // a frame moves: it cannot be given away twice
/// }
/// ```
#[must_use = "dropping a frame leaks its memory"]
pub struct Frame<S: FrameState = Free> {
    hpa: Hpa,
    level: Level,
    state: PhantomData<fn() -> S>,
}

impl<S: FrameState> Frame<S> {
    /// Makes the owner of `level.size()` bytes at `hpa`; `None` if `hpa` is not aligned to `level`.
    ///
    /// # Safety
    ///
    /// * No other `Frame` covers any part of that memory, and nothing else reads or writes it while this one lives.
    /// * The memory is in the state `S` promises.
    #[must_use]
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    pub const unsafe fn assume_owned(hpa: Hpa, level: Level) -> Option<Self> {
        if hpa.is_aligned(level) { Some(Self { hpa, level, state: PhantomData }) } else { None }
    }

    /// Mints inside this crate, at the places where a ledger (an entry or a side word) gave up the address.
    pub(crate) const fn from_ledger(hpa: Hpa, level: Level) -> Self {
        Self { hpa: hpa.align_down(level), level, state: PhantomData }
    }

    /// Physical address of the first byte.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Size of the frame.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl<S: FrameState> Frame<S> {
    /// The 512 frames of the next lower level that it is made of, in address order; none of a 4 KiB frame, which is
    /// then lost.
    ///
    /// ```
    /// use sept_core::{Hpa, Level, test_util::RamLedger};
    /// let ram = RamLedger::new(Hpa::new(0).unwrap(), 512);
    /// let parts = ram.lend(Hpa::new(0).unwrap(), Level::L2M).unwrap().into_parts();
    /// assert_eq!(parts.map(|part| ram.take_back(part).unwrap()).count(), 512);
    /// ```
    pub fn into_parts(self) -> impl Iterator<Item = Self> {
        let child = self.level.child();
        let base = self.hpa.raw();
        (0..512_u64).filter_map(move |index| {
            let level = child?;
            // The frame is aligned to its level, so the index falls into clear bits.
            Some(Self::from_ledger(Hpa::truncate(base | index << level.shift()), level))
        })
    }
}

impl Frame<Free> {
    /// Marks the frame as written under another key.
    pub const fn taint(self) -> Frame<Tainted> {
        Frame { hpa: self.hpa, level: self.level, state: PhantomData }
    }
}

impl Frame<Tainted> {
    /// Declares the frame clean again.
    ///
    /// # Safety
    ///
    /// Its cache lines were written back under the key that wrote them, and the whole frame was overwritten by the
    /// host since.
    #[expect(unsafe_code, reason = "the type promises clean caches")]
    pub const unsafe fn assume_scrubbed(self) -> Frame<Free> {
        Frame { hpa: self.hpa, level: self.level, state: PhantomData }
    }
}

impl<S: FrameState> fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x}/{})", self.hpa, self.level)
    }
}

/// What a 4 KiB frame is needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum FrameKind {
    /// Donated to the TEE as a table page (TDX: an S-EPT page).
    TeeTable,
    /// Donated to the TEE as metadata (TDX: one of a Dynamic PAMT page pair).
    TeeMetadata,
    /// A page of the host's own mirror of the secure table.
    MirrorTable,
    /// Holds `struct page`s.
    Vmemmap,
    /// A page table that maps the vmemmap.
    VmemmapTable,
    /// A tail template of one zone and order.
    TailTemplate,
}

impl FrameKind {
    /// Number of kinds.
    pub const COUNT: usize = 6;

    /// All kinds, in the order of [`FrameNeeds`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::TeeTable,
        Self::TeeMetadata,
        Self::MirrorTable,
        Self::Vmemmap,
        Self::VmemmapTable,
        Self::TailTemplate,
    ];

    /// Position in [`FrameKind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::TeeTable => 0,
            Self::TeeMetadata => 1,
            Self::MirrorTable => 2,
            Self::Vmemmap => 3,
            Self::VmemmapTable => 4,
            Self::TailTemplate => 5,
        }
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TeeTable => "TEE table page",
            Self::TeeMetadata => "TEE metadata page",
            Self::MirrorTable => "mirror table page",
            Self::Vmemmap => "vmemmap page",
            Self::VmemmapTable => "vmemmap page table",
            Self::TailTemplate => "tail template",
        })
    }
}

/// A number of 4 KiB frames of each kind.
///
/// ```
/// use sept_core::{FrameKind, FrameNeeds};
/// let needs = FrameNeeds::of(FrameKind::TeeTable, 1).plus(FrameNeeds::of(FrameKind::MirrorTable, 1));
/// assert_eq!(needs.total(), 2);
/// assert_eq!(needs[FrameKind::MirrorTable], 1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct FrameNeeds {
    counts: [u32; FrameKind::COUNT],
}

impl FrameNeeds {
    /// None of any kind.
    pub const NONE: Self = Self { counts: [0; FrameKind::COUNT] };

    /// `count` frames of one kind.
    #[must_use]
    pub fn of(kind: FrameKind, count: u32) -> Self {
        let mut needs = Self::NONE;
        needs[kind] = count;
        needs
    }

    /// Whether no frame is needed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Frames of all kinds together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum: u64, &count| sum.saturating_add(u64::from(count)))
    }

    /// Whether each kind of `other` is covered.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.counts.iter().zip(other.counts).all(|(&have, need)| have >= need)
    }

    /// What is left of each kind after taking `other`, never below zero.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        let mut rest = *self;
        for (have, need) in rest.counts.iter_mut().zip(other.counts) {
            *have = have.saturating_sub(need);
        }
        rest
    }

    /// Both together, saturating.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.saturating_add(count);
        }
        self
    }

    /// Each kind `times` as often, saturating.
    #[must_use]
    pub fn times(&self, times: u32) -> Self {
        let mut all = *self;
        for count in &mut all.counts {
            *count = count.saturating_mul(times);
        }
        all
    }
}

impl ops::Index<FrameKind> for FrameNeeds {
    type Output = u32;

    #[expect(clippy::indexing_slicing, reason = "FrameKind::index is below COUNT")]
    fn index(&self, kind: FrameKind) -> &u32 {
        &self.counts[kind.index()]
    }
}

impl ops::IndexMut<FrameKind> for FrameNeeds {
    #[expect(clippy::indexing_slicing, reason = "FrameKind::index is below COUNT")]
    fn index_mut(&mut self, kind: FrameKind) -> &mut u32 {
        &mut self.counts[kind.index()]
    }
}

impl fmt::Debug for FrameNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(FrameKind::ALL.iter().map(|&kind| (kind, self[kind])).filter(|e| e.1 != 0))
            .finish()
    }
}

/// The host's page allocator, as far as these crates need it.
///
/// `take` may fail and is called while reserving only. A frame for [`FrameKind::TeeTable`] or
/// [`FrameKind::TeeMetadata`] comes *ready*: its cache lines are clean and, where the TEE keeps metadata per
/// 2 MiB region (Dynamic PAMT), the source has seen to that region.
pub trait FrameSource {
    /// A 4 KiB frame for `kind`, on the NUMA node of `near`. Where that has none, the source decides: a frame of another
    /// node, or `None`.
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame>;

    /// Takes a frame back. Cannot fail.
    fn give(&self, kind: FrameKind, frame: Frame);
}

impl<T: FrameSource + ?Sized> FrameSource for &T {
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame> {
        (**self).take(kind, near)
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        (**self).give(kind, frame);
    }
}

/// Storage of the caller's choice for reserved frames: a list threaded through the free pages, a slice, a vector.
pub trait FrameStore {
    /// Keeps `frame`.
    ///
    /// # Errors
    ///
    /// The storage is full; the frame comes back.
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame>;

    /// Gives out a frame kept for `kind`.
    fn get(&mut self, kind: FrameKind) -> Option<Frame>;

    /// Number of frames kept for `kind`.
    fn count(&self, kind: FrameKind) -> u32;
}
