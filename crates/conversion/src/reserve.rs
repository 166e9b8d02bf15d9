//! Reserve: all allocation happens here, and only here.
//!
//! A reservation is a plan, frames in storage of the caller's choice and index nodes. What a call takes is all or nothing;
//! a call that fails gives its owned arguments back, and what they held before is in them again.

use crate::{Needs, Plan, PlanError, Platform, Request, TeeError};
use core::fmt;
use folio_split::FolioBackend;
use sept_core::{Class, Classify, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa, Returned};

/// Everything that a plan needs, set aside. Give it to [`Reservation::commit`] or [`Reservation::release`].
#[must_use = "dropping a reservation leaks what it holds"]
pub struct Reservation<P: Platform> {
    pub(crate) plan: Plan,
    pub(crate) store: P::Store,
    pub(crate) nodes: <P::Folios as FolioBackend>::Nodes,
}

impl Plan {
    /// Takes exactly what the plan needs from `source` into `store`; frames already in `store` count.
    ///
    /// # Errors
    ///
    /// Nothing happened: what was taken has been given back, and `store` holds what it held.
    pub fn reserve<P: Platform>(
        self,
        platform: &P,
        source: &dyn FrameSource,
        mut store: P::Store,
    ) -> Result<Reservation<P>, Returned<ReserveError, P::Store>> {
        let Some(block) = platform.block_of(self.request().range.start()) else {
            return Err(Returned { error: ReserveError::NotRam { request: self.request() }, held: store });
        };
        let near = block.hpa(self.request().range.start());
        let before = counts(&store);
        if let Err(error) = fill(&mut store, &self.needs().frames, source, near) {
            return Err(Returned { error, held: store });
        }
        let mut nodes = Default::default();
        match platform.folios().reserve_nodes(&mut nodes, block.pfn(), self.needs().index_nodes) {
            Ok(()) => Ok(Reservation { plan: self, store, nodes }),
            Err(short) => {
                let taken = counts(&store).saturating_sub(&before);
                drain(&mut store, &taken, source);
                Err(Returned { error: ReserveError::IndexNodes { need: short.count }, held: store })
            }
        }
    }
}

impl<P: Platform> Reservation<P> {
    /// The plan it was made for.
    pub const fn plan(&self) -> Plan {
        self.plan
    }

    /// What it holds.
    #[must_use]
    pub fn holds(&self, platform: &P) -> Needs {
        Needs { frames: counts(&self.store), index_nodes: platform.folios().nodes_left(&self.nodes) }
    }

    /// Gives everything back to `source`, and the emptied storage to the caller.
    pub fn release(mut self, platform: &P, source: &dyn FrameSource) -> P::Store {
        let all = counts(&self.store);
        drain(&mut self.store, &all, source);
        platform.folios().release_nodes(self.nodes);
        self.store
    }

    /// Gives back the index nodes only: the frames stay in the storage, for a standing reservation.
    pub fn keep(self, platform: &P) -> P::Store {
        platform.folios().release_nodes(self.nodes);
        self.store
    }

    /// Plans again and takes or gives back only the difference.
    ///
    /// # Errors
    ///
    /// The reservation comes back, for the plan it was made for; it may hold more index nodes than before, and no less of
    /// anything. Index nodes that are no longer needed stay until it is released.
    pub fn refit(
        mut self,
        platform: &P,
        source: &dyn FrameSource,
    ) -> Result<Self, Returned<RefitError<TeeError<P>>, Self>> {
        let plan = match Plan::new(platform, self.plan.request()) {
            Ok(plan) => plan,
            Err(error) => return Err(Returned { error: RefitError::Plan(error), held: self }),
        };
        let need = plan.needs();
        let Some(block) = platform.block_of(plan.request().range.start()) else {
            let error = ReserveError::NotRam { request: plan.request() };
            return Err(Returned { error: RefitError::Reserve(error), held: self });
        };
        let near = block.hpa(plan.request().range.start());
        let more = need.index_nodes.saturating_sub(self.holds(platform).index_nodes);
        if let Err(short) = platform.folios().reserve_nodes(&mut self.nodes, block.pfn(), more) {
            let error = ReserveError::IndexNodes { need: short.count };
            return Err(Returned { error: RefitError::Reserve(error), held: self });
        }
        if let Err(error) = fill(&mut self.store, &need.frames, source, near) {
            return Err(Returned { error: RefitError::Reserve(error), held: self });
        }
        let surplus = counts(&self.store).saturating_sub(&need.frames);
        drain(&mut self.store, &surplus, source);
        Ok(Self { plan, ..self })
    }
}

impl<P: Platform> fmt::Debug for Reservation<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("plan", &self.plan)
            .field("frames", &counts(&self.store))
            .finish_non_exhaustive()
    }
}

/// What a store holds, by kind.
pub(crate) fn counts(store: &impl FrameStore) -> FrameNeeds {
    let mut counts = FrameNeeds::NONE;
    for kind in FrameKind::ALL {
        counts[kind] = store.count(kind);
    }
    counts
}

/// Brings `store` up to `need`, or leaves it as it was.
fn fill(
    store: &mut impl FrameStore,
    need: &FrameNeeds,
    source: &dyn FrameSource,
    near: Hpa,
) -> Result<(), ReserveError> {
    let before = counts(store);
    for kind in FrameKind::ALL {
        for _ in store.count(kind)..need[kind] {
            let error = match source.take(kind, near) {
                Some(frame) => match store.put(kind, frame) {
                    Ok(()) => continue,
                    Err(frame) => {
                        source.give(kind, frame);
                        ReserveError::Storage { kind }
                    }
                },
                None => ReserveError::Frames { kind, got: store.count(kind), need: need[kind] },
            };
            let taken = counts(store).saturating_sub(&before);
            drain(store, &taken, source);
            return Err(error);
        }
    }
    Ok(())
}

/// Gives `count` frames of each kind back.
fn drain(store: &mut impl FrameStore, count: &FrameNeeds, source: &dyn FrameSource) {
    for kind in FrameKind::ALL {
        for _ in 0..count[kind] {
            let Some(frame) = store.get(kind) else { break };
            source.give(kind, frame);
        }
    }
}

/// Why a reservation failed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The page source ran dry.
    #[error("{got} of {need} {kind}s to be had")]
    Frames {
        /// What the frames were for.
        kind: FrameKind,
        /// How many could be had.
        got: u32,
        /// How many are needed.
        need: u32,
    },
    /// The caller's storage is full.
    #[error("the storage is full, at a {kind}")]
    Storage {
        /// The kind that did not fit.
        kind: FrameKind,
    },
    /// No block backs the range.
    #[error("{request}: not memory")]
    NotRam {
        /// The request.
        request: Request,
    },
    /// No index nodes to be had.
    #[error("{need} index nodes are not to be had")]
    IndexNodes {
        /// How many are needed.
        need: u64,
    },
}

impl Classify for ReserveError {
    fn class(&self) -> Class {
        match self {
            Self::Storage { .. } | Self::NotRam { .. } => Class::Caller,
            Self::Frames { .. } | Self::IndexNodes { .. } => Class::Retry,
        }
    }
}

/// Why a reservation could not be fitted to a new plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefitError<E> {
    /// The request can no longer be planned.
    #[error(transparent)]
    Plan(PlanError<E>),
    /// The difference could not be had.
    #[error(transparent)]
    Reserve(ReserveError),
}
