//! A page source that knows what is outstanding, and storage for reservations.

use crate::{Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa, Level};
use core::fmt;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    vec::Vec,
};

/// A pool of 4 KiB frames of modelled memory that knows every frame it gave out, and for what.
///
/// ```
/// use sept_core::{FrameKind, FrameSource, Hpa, test_util::FramePool};
/// let pool = FramePool::new(Hpa::new(0x10_0000).unwrap(), 16);
/// let frame = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
/// assert_eq!(pool.outstanding()[FrameKind::MirrorTable], 1);
/// pool.give(FrameKind::MirrorTable, frame);
/// assert!(pool.outstanding().is_none() && pool.faults().is_empty());
/// ```
pub struct FramePool {
    base: Hpa,
    frames: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    untouched: u64,
    returned: Vec<Hpa>,
    out: BTreeMap<u64, FrameKind>,
    outstanding: FrameNeeds,
    limit: Option<u64>,
    fail_after: Option<u64>,
    faults: Vec<(Hpa, FrameKind)>,
}

impl FramePool {
    /// A pool of `frames` frames from `base` up.
    #[must_use]
    pub fn new(base: Hpa, frames: u64) -> Self {
        Self { base, frames, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on gives out at most `frames` more than it gets back; `None` lifts the limit.
    pub fn limit(&self, frames: Option<u64>) {
        self.state().limit = frames;
    }

    /// Refuses every `take` after the next `successes` ones; `None` stops refusing.
    pub fn fail_after(&self, successes: Option<u64>) {
        self.state().fail_after = successes;
    }

    /// Frames given out and not returned, by kind.
    #[must_use]
    pub fn outstanding(&self) -> FrameNeeds {
        self.state().outstanding
    }

    /// Every frame given out and not returned, and what it was given out for, in address order.
    #[must_use]
    pub fn outstanding_frames(&self) -> Vec<(Hpa, FrameKind)> {
        self.state().out.iter().map(|(&hpa, &kind)| (Hpa::truncate(hpa), kind)).collect()
    }

    /// Frames that were returned without being out, or as another kind.
    #[must_use]
    pub fn faults(&self) -> Vec<(Hpa, FrameKind)> {
        self.state().faults.clone()
    }
}

impl FrameSource for FramePool {
    fn take(&self, kind: FrameKind, _near: Hpa) -> Option<Frame> {
        let mut state = self.state();
        if state.limit == Some(0) || state.fail_after == Some(0) {
            return None;
        }
        let hpa = match state.returned.pop() {
            Some(hpa) => hpa,
            None if state.untouched < self.frames => {
                let hpa = self.base.checked_add(state.untouched << 12)?;
                state.untouched = state.untouched.wrapping_add(1);
                hpa
            }
            None => return None,
        };
        state.limit = state.limit.map(|left| left.saturating_sub(1));
        state.fail_after = state.fail_after.map(|left| left.saturating_sub(1));
        state.out.insert(hpa.raw(), kind);
        let count = &mut state.outstanding[kind];
        *count = count.saturating_add(1);
        Some(Frame::from_ledger(hpa, Level::L4K))
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        let hpa = frame.hpa();
        let mut state = self.state();
        if frame.level() != Level::L4K || state.out.get(&hpa.raw()) != Some(&kind) {
            state.faults.push((hpa, kind));
            return;
        }
        state.out.remove(&hpa.raw());
        let count = &mut state.outstanding[kind];
        *count = count.saturating_sub(1);
        state.limit = state.limit.map(|left| left.saturating_add(1));
        state.returned.push(hpa);
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePool")
            .field("base", &self.base)
            .field("outstanding", &self.outstanding())
            .finish()
    }
}

/// Reserved frames in vectors, one for each kind.
#[derive(Debug, Default)]
pub struct VecStore {
    frames: [Vec<Frame>; FrameKind::COUNT],
}

impl FrameStore for VecStore {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        match self.frames.get_mut(kind.index()) {
            Some(frames) => frames.push(frame),
            None => return Err(frame),
        }
        Ok(())
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        self.frames.get_mut(kind.index())?.pop()
    }

    fn count(&self, kind: FrameKind) -> u32 {
        self.frames.get(kind.index()).map_or(0, |frames| u32::try_from(frames.len()).unwrap_or(u32::MAX))
    }
}
