//! Reserve: all allocation happens here, and only here.
//!
//! A reservation is a plan, frames in storage of the caller's choice and index nodes. What a call takes is all or nothing;
//! a call that fails gives its owned arguments back, and what they held before is in them again.

use crate::{Needs, Plan, PlanError, Platform, Request, TeeError};
use core::fmt;
use folio_split::FolioBackend;
use sept_core::{Class, Classify, FrameSource, FrameStore, Returned, Short};

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
        let before = store.kept();
        if let Err(error) = store.fill(&self.needs().frames, near, source) {
            return Err(Returned { error: error.into(), held: store });
        }
        let mut nodes = Default::default();
        match platform.folios().reserve_nodes(&mut nodes, block.pfn(), self.needs().index_nodes) {
            Ok(()) => Ok(Reservation { plan: self, store, nodes }),
            Err(short) => {
                store.drain(&store.kept().saturating_sub(&before), source);
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
        Needs { frames: self.store.kept(), index_nodes: platform.folios().nodes_left(&self.nodes) }
    }

    /// Gives everything back to `source`, and the emptied storage to the caller.
    pub fn release(mut self, platform: &P, source: &dyn FrameSource) -> P::Store {
        self.store.drain(&self.store.kept(), source);
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
        if let Err(error) = self.store.fill(&need.frames, near, source) {
            return Err(Returned { error: RefitError::Reserve(error.into()), held: self });
        }
        self.store.drain(&self.store.kept().saturating_sub(&need.frames), source);
        Ok(Self { plan, ..self })
    }
}

impl<P: Platform> fmt::Debug for Reservation<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("plan", &self.plan)
            .field("frames", &self.store.kept())
            .finish_non_exhaustive()
    }
}

/// Why a reservation failed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The page source ran dry, or the caller's storage is full.
    #[error(transparent)]
    Frames(#[from] Short),
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
            Self::Frames(error) => error.class(),
            Self::NotRam { .. } => Class::Caller,
            Self::IndexNodes { .. } => Class::Retry,
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
