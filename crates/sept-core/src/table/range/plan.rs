//! Plans of range operations, and the frames reserved for them.

use crate::{FrameNeeds, FrameSource, FrameStore, Hpa, Returned, Short};

/// What a range operation will need: a small value that can be copied, printed and compared.
pub trait Plan: Copy {
    /// Frames that it takes, exactly.
    fn needs(&self) -> FrameNeeds;

    /// Memory that the frames should be near to.
    fn near(&self) -> Hpa;

    /// Takes those frames from `from` into `store`. The only step that allocates.
    ///
    /// # Errors
    ///
    /// The source or the storage ran short; nothing was taken and the storage comes back.
    fn reserve<S: FrameStore>(
        self,
        from: &dyn FrameSource,
        mut store: S,
    ) -> Result<Reserved<Self, S>, Returned<Short, S>> {
        match store.fill(&self.needs(), self.near(), from) {
            Ok(()) => Ok(Reserved { plan: self, store }),
            Err(error) => Err(Returned { error, held: store }),
        }
    }
}

/// A plan and the frames that it needs.
///
/// ```compile_fail,E0382
/// use sept_core::{FrameSource, FrameStore, MapPlan, Reserved};
/// fn spend_twice<S: FrameStore>(reserved: Reserved<MapPlan, S>, source: &dyn FrameSource) {
///     reserved.release(source);
///     reserved.release(source); // its frames are gone
/// }
/// ```
#[derive(Debug)]
#[must_use = "dropping a reservation leaks its frames"]
pub struct Reserved<P, S> {
    pub(super) plan: P,
    pub(super) store: S,
}

impl<P: Plan, S: FrameStore> Reserved<P, S> {
    /// The plan.
    pub const fn plan(&self) -> P {
        self.plan
    }

    /// Fits the reservation to another plan: takes what is missing, gives back what is too much.
    ///
    /// # Errors
    ///
    /// The source or the storage ran short; the reservation comes back as it was.
    pub fn refit<Q: Plan>(
        mut self,
        plan: Q,
        from: &dyn FrameSource,
    ) -> Result<Reserved<Q, S>, Returned<Short, Self>> {
        if let Err(error) = self.store.fill(&plan.needs(), plan.near(), from) {
            return Err(Returned { error, held: self });
        }
        let spare = self.store.kept().saturating_sub(&plan.needs());
        self.store.drain(&spare, from);
        Ok(Reserved { plan, store: self.store })
    }

    /// Gives all frames back and returns the storage.
    pub fn release(mut self, to: &dyn FrameSource) -> S {
        let kept = self.store.kept();
        self.store.drain(&kept, to);
        self.store
    }
}

/// A range operation that is done.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the storage may still hold frames"]
pub struct Committed<S> {
    /// Frames that the operation took. What was planned, unless somebody else made part of the tables meanwhile.
    pub used: FrameNeeds,
    /// The storage, with frames that turned out not to be needed.
    pub rest: S,
}
