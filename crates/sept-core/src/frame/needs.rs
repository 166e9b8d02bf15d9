//! What frames are needed for, and how many.

use core::{fmt, ops};

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
