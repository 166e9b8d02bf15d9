//! Filling a [`FrameStore`] from a [`FrameSource`], and emptying it again.
//!
//! This is the only way in which these crates take frames for a reservation: all of them, or none.

use crate::{Class, Classify, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa};

impl FrameNeeds {
    /// What `store` keeps.
    #[must_use]
    pub fn held_by(store: &(impl FrameStore + ?Sized)) -> Self {
        let mut held = Self::NONE;
        for kind in FrameKind::ALL {
            held[kind] = store.count(kind);
        }
        held
    }

    /// Brings `store` up to these numbers: frames that it keeps already count. One call of `source` per missing frame.
    ///
    /// ```
    /// use sept_core::{FillError, FrameKind, FrameNeeds, FrameStore, Hpa, test_util::{FramePool, VecStore}};
    /// let pool = FramePool::new(Hpa::new(0x10_0000).unwrap(), 2);
    /// let (mut store, near) = (VecStore::default(), Hpa::default());
    /// let needs = FrameNeeds::of(FrameKind::Vmemmap, 2);
    /// assert_eq!(needs.fill(&mut store, &pool, near), Ok(()));
    /// // One more is not to be had, and the two stay.
    /// let more = FrameNeeds::of(FrameKind::Vmemmap, 3);
    /// let short = FillError::Source { kind: FrameKind::Vmemmap, need: 3, got: 2 };
    /// assert_eq!(more.fill(&mut store, &pool, near), Err(short));
    /// assert_eq!(store.count(FrameKind::Vmemmap), 2);
    /// needs.drain(&mut store, &pool);
    /// assert!(pool.outstanding().is_none());
    /// ```
    ///
    /// # Errors
    ///
    /// [`FillError`]: what was taken has gone back, and `store` keeps what it kept.
    pub fn fill(
        &self,
        store: &mut (impl FrameStore + ?Sized),
        source: &dyn FrameSource,
        near: Hpa,
    ) -> Result<(), FillError> {
        let before = Self::held_by(store);
        for kind in FrameKind::ALL {
            let mut got = before[kind];
            while got < self[kind] {
                let error = match source.take(kind, near).map(|frame| store.put(kind, frame)) {
                    Some(Ok(())) => {
                        got = got.saturating_add(1);
                        continue;
                    }
                    Some(Err(frame)) => {
                        source.give(kind, frame);
                        FillError::Store { kind, need: self[kind], room: got }
                    }
                    None => FillError::Source { kind, need: self[kind], got },
                };
                Self::held_by(store).saturating_sub(&before).drain(store, source);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives that many frames of each kind, or as many as there are, from `store` back to `source`.
    pub fn drain(&self, store: &mut (impl FrameStore + ?Sized), source: &dyn FrameSource) {
        for kind in FrameKind::ALL {
            for _ in 0..self[kind] {
                let Some(frame) = store.get(kind) else { break };
                source.give(kind, frame);
            }
        }
    }
}

/// Why a store could not be filled. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError {
    /// The page source ran dry.
    #[error("{got} of {need} {kind}s to be had")]
    Source {
        /// What the frames were for.
        kind: FrameKind,
        /// How many are needed.
        need: u32,
        /// How many could be had, those that were there before among them.
        got: u32,
    },
    /// The storage is full.
    #[error("the storage has room for {room} of {need} {kind}s")]
    Store {
        /// What the frames were for.
        kind: FrameKind,
        /// How many are needed.
        need: u32,
        /// How many found room, those that were there before among them.
        room: u32,
    },
}

impl Classify for FillError {
    fn class(&self) -> Class {
        match self {
            Self::Source { .. } => Class::Retry,
            Self::Store { .. } => Class::Caller,
        }
    }
}
