//! What can be asked for, and what it takes. Plain values.

use crate::Platform;
use core::fmt;
use sept_core::{FrameKind, FrameNeeds, Gpa, GpaRange, Level};

/// An operation on a range of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Private to shared: the guest's content is given up, the pages read zero on both sides.
    Share,
    /// Shared to private: mapped, and the guest may accept it. With `merge` the folios grow back together at once.
    Unshare {
        /// Whether to merge folios now or leave that to [`Operation::Coalesce`].
        merge: bool,
    },
    /// Takes private pages out of the guest; attribute and folios stay. The guest must accept again.
    Punch,
    /// Isolates one private page with a memory error as a folio of its own, out of the guest for good.
    Isolate,
    /// Maps private pages that are not mapped, none larger than `largest`.
    Populate {
        /// Largest leaf.
        largest: Level,
        /// Whether a leaf may reach beyond the range. If not, pages not known to be accepted that do are split.
        around: bool,
    },
    /// Hangs the tables that 4 KiB pages of the range need and maps nothing: before pages are added at build time.
    Prepare,
    /// Merges folios that an earlier unshare left small.
    Coalesce,
}

/// A range and what to do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The range.
    pub range: GpaRange,
    /// The operation.
    pub operation: Operation,
}

impl Request {
    /// `operation` on `range`.
    #[must_use]
    pub const fn new(range: GpaRange, operation: Operation) -> Self {
        Self { range, operation }
    }

    /// Whether it only maps what is private already, as a fault does.
    pub(crate) const fn is_fault(&self) -> bool {
        matches!(self.operation, Operation::Populate { .. } | Operation::Prepare)
    }

    /// The first part of this request, of at most `blocks` blocks (0 counts as 1), and the rest. Each part is a complete
    /// operation by itself: carried out one after the other, the start of the rest says how far they came.
    ///
    /// Memory without a block is not cut. One look-up for each block.
    pub fn cut<P: Platform>(self, platform: &P, blocks: u32) -> (Self, Option<Self>) {
        let range = self.range;
        let mut next = range.start().raw();
        for _ in 0..blocks.max(1) {
            let block =
                Gpa::new(next).filter(|gpa| range.contains(*gpa)).and_then(|gpa| platform.block_of(gpa));
            match block {
                Some(block) => next = block.end(),
                None => break,
            }
        }
        let part = |start: Gpa, end: u64| GpaRange::new(start, end.checked_sub(start.raw())?);
        let rest = Gpa::new(next).and_then(|gpa| part(gpa, range.end()));
        match (part(range.start(), next.min(range.end())), rest) {
            (Some(first), Some(rest)) => (Self { range: first, ..self }, Some(Self { range: rest, ..self })),
            _ => (self, None),
        }
    }

    /// Whether pages are taken out of the guest.
    pub(crate) const fn removes(&self) -> bool {
        matches!(self.operation, Operation::Share | Operation::Punch | Operation::Isolate)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.operation {
            Operation::Share => "share",
            Operation::Unshare { .. } => "unshare",
            Operation::Punch => "punch",
            Operation::Isolate => "isolate",
            Operation::Populate { .. } => "populate",
            Operation::Prepare => "prepare",
            Operation::Coalesce => "coalesce",
        })?;
        write!(f, " {}", self.range)
    }
}

/// Memory of every kind: page frames, and index nodes, which are smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Needs {
    /// Page frames by kind.
    pub frames: FrameNeeds,
    /// Nodes of the folio index.
    pub index_nodes: u64,
}

impl Needs {
    /// Only frames.
    #[must_use]
    pub const fn frames(frames: FrameNeeds) -> Self {
        Self { frames, index_nodes: 0 }
    }

    /// Both together, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames.plus(other.frames),
            index_nodes: self.index_nodes.saturating_add(other.index_nodes),
        }
    }

    /// What is left after taking `other`, never below zero.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        Self {
            frames: self.frames.saturating_sub(&other.frames),
            index_nodes: self.index_nodes.saturating_sub(other.index_nodes),
        }
    }

    /// Whether `other` fits into this.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.frames.covers(&other.frames) && self.index_nodes >= other.index_nodes
    }

    /// Whether nothing is needed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for kind in FrameKind::ALL {
            if self.frames[kind] != 0 {
                let s = if self.frames[kind] == 1 { "" } else { "s" };
                write!(f, "{separator}{} {kind}{s}", self.frames[kind])?;
                separator = ", ";
            }
        }
        if self.index_nodes != 0 {
            let s = if self.index_nodes == 1 { "" } else { "s" };
            write!(f, "{separator}{} index node{s}", self.index_nodes)?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}
