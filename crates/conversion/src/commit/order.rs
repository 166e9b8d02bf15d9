//! The order of phases.

use super::{Outcome, cursor::Cursor};
use crate::{Operation, Request, Tee};
use sept_core::Level;

/// Where a commit stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    UnmapHost,
    FlushHost,
    StorePrivate,
    SplitBlock(Level),
    SplitFence(Level),
    Split(Level),
    HideBlock,
    HideFence,
    Layout,
    Remove,
    StoreShared,
    EmptyBlock,
    EmptyFence,
    EmptyUnlink,
    Map,
    Grace,
    Settle,
    /// Cancelled: reads the entry that was refused last.
    Yield,
    UndoLayout,
    UndoFence,
    Undo,
    Ended(Outcome),
}

impl Phase {
    pub(super) const fn first(request: &Request) -> Self {
        match request.operation {
            Operation::Share | Operation::Isolate | Operation::Punch => Self::SplitBlock(Level::L1G),
            Operation::Unshare { .. } => Self::UnmapHost,
            Operation::Populate { .. } => Self::SplitBlock(Level::L2M),
            Operation::Prepare => Self::Map,
            Operation::Coalesce => Self::Layout,
        }
    }

    /// Where the phase begins to look. Some look at leaves around the range too.
    pub(super) const fn first_address(self, request: &Request) -> u64 {
        match self {
            Self::SplitBlock(_) | Self::Split(_) | Self::Undo => 0,
            _ => request.range.start().raw(),
        }
    }

    /// Whether nothing of the present round is blocked when this phase begins.
    pub(super) const fn begins_round(self) -> bool {
        matches!(
            self,
            Self::SplitBlock(_)
                | Self::HideBlock
                | Self::EmptyBlock
                | Self::Map
                | Self::StoreShared
                | Self::Grace
                | Self::Ended(_)
        )
    }
}

impl<T: Tee> Cursor<T> {
    /// What comes after the present phase. Rounds that blocked nothing need no fence.
    pub(super) fn next_phase(&self, request: &Request) -> Phase {
        let operation = request.operation;
        let maps = matches!(operation, Operation::Unshare { .. } | Operation::Populate { .. });
        let after_split = |level| match (level, maps) {
            (Level::L1G, _) => Phase::SplitBlock(Level::L2M),
            (_, true) => Phase::EmptyBlock,
            (_, false) => Phase::HideBlock,
        };
        match self.phase {
            Phase::UnmapHost => Phase::FlushHost,
            Phase::FlushHost => Phase::StorePrivate,
            Phase::StorePrivate => Phase::Layout,
            Phase::SplitBlock(level) if self.blocked => Phase::SplitFence(level),
            Phase::SplitFence(level) => Phase::Split(level),
            Phase::SplitBlock(level) | Phase::Split(level) => after_split(level),
            Phase::HideBlock if self.blocked => Phase::HideFence,
            Phase::HideBlock | Phase::HideFence if operation == Operation::Punch => Phase::Remove,
            Phase::HideBlock | Phase::HideFence => Phase::Layout,
            Phase::Layout if operation == Operation::Coalesce => Phase::Grace,
            Phase::Layout if maps => Phase::SplitBlock(Level::L2M),
            Phase::Layout => Phase::Remove,
            Phase::Remove if operation == Operation::Share => Phase::StoreShared,
            Phase::EmptyBlock if self.blocked => Phase::EmptyFence,
            Phase::EmptyFence => Phase::EmptyUnlink,
            Phase::EmptyBlock | Phase::EmptyUnlink => Phase::Map,
            Phase::Yield if self.relaid && !self.changed => Phase::UndoLayout,
            Phase::Yield | Phase::UndoLayout if self.blocked => Phase::UndoFence,
            Phase::UndoFence => Phase::Undo,
            Phase::Remove
            | Phase::StoreShared
            | Phase::Map
            | Phase::Yield
            | Phase::UndoLayout
            | Phase::Undo => Phase::Grace,
            Phase::Grace => Phase::Settle,
            Phase::Settle => Phase::Ended(self.ending),
            Phase::Ended(outcome) => Phase::Ended(outcome),
        }
    }
}
