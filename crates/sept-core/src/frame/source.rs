//! Where frames come from, and where they wait.

use super::{Frame, FrameKind, FrameNeeds};
use crate::{Class, Classify, Hpa};

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

    /// Takes frames from `from` until at least `need` is kept.
    ///
    /// # Errors
    ///
    /// The source or the storage ran short. What this call took went back; the storage holds what it held.
    fn fill(&mut self, need: &FrameNeeds, near: Hpa, from: &dyn FrameSource) -> Result<(), Short> {
        let mut taken = FrameNeeds::NONE;
        for kind in FrameKind::ALL {
            for _ in self.count(kind)..need[kind] {
                let full = match from.take(kind, near).map(|frame| self.put(kind, frame)) {
                    Some(Ok(())) => {
                        taken[kind] = taken[kind].saturating_add(1);
                        continue;
                    }
                    Some(Err(frame)) => {
                        from.give(kind, frame);
                        true
                    }
                    None => false,
                };
                let short = Short { kind, got: self.count(kind), need: need[kind], full };
                self.drain(&taken, from);
                return Err(short);
            }
        }
        Ok(())
    }

    /// Gives up to `many` of each kind to `to`.
    fn drain(&mut self, many: &FrameNeeds, to: &dyn FrameSource) {
        for kind in FrameKind::ALL {
            for _ in 0..many[kind] {
                let Some(frame) = self.get(kind) else { break };
                to.give(kind, frame);
            }
        }
    }

    /// How many of each kind are kept.
    fn kept(&self) -> FrameNeeds {
        let mut kept = FrameNeeds::NONE;
        for kind in FrameKind::ALL {
            kept[kind] = self.count(kind);
        }
        kept
    }
}

/// Frames could not be reserved: the source has none left, or the storage is full. Nothing was reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{got} of {need} frames for a {kind} (storage full: {full})")]
#[expect(clippy::exhaustive_structs, reason = "all there is to say")]
pub struct Short {
    /// What the frame was for.
    pub kind: FrameKind,
    /// How many there were.
    pub got: u32,
    /// How many there must be.
    pub need: u32,
    /// Whether it was the storage that had no room.
    pub full: bool,
}

impl Classify for Short {
    fn class(&self) -> Class {
        if self.full { Class::Caller } else { Class::Retry }
    }
}
