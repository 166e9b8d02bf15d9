//! Table pages that are ready to be donated.

use super::{MachineLock, PamtRegions, RegionError, UnusedPair};
use crate::{RetryBudget, Transport};
use core::{hint, sync::atomic::AtomicU16};
use sept_core::{Frame, FrameKind, FrameSource, Hpa};

/// A frame source whose table pages lie in regions that have a page pair, so that donating them cannot fail for one.
///
/// Takes pages and pairs from an ordinary source while the caller reserves, and gives them back to it. A pair that
/// the module gave back has to be written back, overwritten and minted by `recycle`. That is also told what went
/// wrong: a region could not be held, so its page went back and nothing was taken; or one could not be let go, so it
/// keeps its pair and counts one user for ever.
#[derive(Debug)]
pub struct ReadySource<'a, T: ?Sized, C, K, F, R> {
    transport: &'a T,
    regions: &'a PamtRegions<C, K>,
    frames: F,
    recycle: R,
}

impl<'a, T, C, K, F, R> ReadySource<'a, T, C, K, F, R>
where
    T: Transport + ?Sized,
    C: AsRef<[AtomicU16]>,
    K: MachineLock,
    F: FrameSource,
    R: Fn(Result<[Hpa; 2], RegionError>),
{
    /// Makes the table pages of `frames` ready.
    pub const fn new(transport: &'a T, regions: &'a PamtRegions<C, K>, frames: F, recycle: R) -> Self {
        Self { transport, regions, frames, recycle }
    }

    fn take_pair(&self, near: Hpa) -> UnusedPair {
        let first = self.frames.take(FrameKind::TeeMetadata, near)?;
        match self.frames.take(FrameKind::TeeMetadata, near) {
            Some(second) => Some([first, second]),
            None => {
                self.frames.give(FrameKind::TeeMetadata, first);
                None
            }
        }
    }

    fn give_pair(&self, pair: UnusedPair) {
        for frame in pair.into_iter().flatten() {
            self.frames.give(FrameKind::TeeMetadata, frame);
        }
    }

    /// Holds the region of `page`, with a new pair if it needs one.
    fn hold(&self, page: Hpa) -> Result<(), RegionError> {
        let mut budget = RetryBudget::DEFAULT;
        let mut pair = match self.regions.hold(self.transport, page, None) {
            Err(back) if matches!(back.error, RegionError::NeedsPair { .. }) => self.take_pair(page),
            result => return result.map(drop).map_err(|back| back.error),
        };
        loop {
            match self.regions.hold(self.transport, page, pair) {
                Ok(unused) => {
                    self.give_pair(unused);
                    return Ok(());
                }
                Err(back) if may_repeat(&mut budget, &back.error) => pair = back.held,
                Err(back) => {
                    self.give_pair(back.held);
                    return Err(back.error);
                }
            }
        }
    }

    fn release(&self, page: Hpa) -> Result<Option<[Hpa; 2]>, RegionError> {
        let mut budget = RetryBudget::DEFAULT;
        loop {
            match self.regions.release(self.transport, page) {
                Err(error) if may_repeat(&mut budget, &error) => {}
                result => return result,
            }
        }
    }
}

/// Whether the region was busy, and there is patience left.
fn may_repeat(budget: &mut RetryBudget, error: &RegionError) -> bool {
    let repeats = matches!(error, RegionError::Seamcall(error) if budget.spend(error));
    if repeats {
        hint::spin_loop();
    }
    repeats
}

impl<T, C, K, F, R> FrameSource for ReadySource<'_, T, C, K, F, R>
where
    T: Transport + ?Sized,
    C: AsRef<[AtomicU16]>,
    K: MachineLock,
    F: FrameSource,
    R: Fn(Result<[Hpa; 2], RegionError>),
{
    fn take(&self, kind: FrameKind, near: Hpa) -> Option<Frame> {
        let frame = self.frames.take(kind, near)?;
        if kind != FrameKind::TeeTable {
            return Some(frame);
        }
        match self.hold(frame.hpa()) {
            Ok(()) => Some(frame),
            Err(error) => {
                self.frames.give(kind, frame);
                (self.recycle)(Err(error));
                None
            }
        }
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        if kind == FrameKind::TeeTable
            && let Some(outcome) = self.release(frame.hpa()).transpose()
        {
            (self.recycle)(outcome);
        }
        self.frames.give(kind, frame);
    }
}
