//! No TEE: the host's own table, walked by an MMU.

use crate::{
    CacheKey, Donated, External, Fill, Format, Frame, FrameNeeds, FrameStore, GpaEntry, Hpa, LeafState,
    Level, Observed, Permissions, Returned, Shootdown, Tainted,
};
use core::convert::Infallible;

mod sealed {
    pub trait Sealed {}
}

/// An [`External`] without a TEE: whatever the table says is so, and it cannot fail. Sealed.
pub trait HostOwned: External<Error = Infallible, Pages = ()> + sealed::Sealed {}

/// A format whose entries may change under a running guest, the fence coming after the change. Sealed.
pub trait HardwareWalked: Format {}

impl HardwareWalked for crate::Ept {}
impl HardwareWalked for crate::X86 {}

/// The side of a table that no TEE keeps: only the fence is real, and it is the host's [`Shootdown`].
///
/// The shootdown flushes what an MMU may have cached of this table (INVEPT, a new ASID, INVLPG and an IPI) and waits for
/// software walks. Tables cost their own page and nothing else.
///
/// ```
/// use sept_core::{Direct, External, Level, Shootdown};
/// struct OneCpu; // interrupts off, one CPU: flushing at once is all there is to do
/// // SAFETY: the only CPU flushed before the ticket exists, and nobody else walks.
/// unsafe impl Shootdown for OneCpu {
///     type Ticket = ();
///     fn start(&self) { /* INVEPT */ }
///     fn done(&self, (): ()) -> bool { true }
/// }
/// let external = Direct::new(OneCpu);
/// assert_eq!(external.max_map(), Level::L1G);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Direct<S> {
    shootdown: S,
    largest: Level,
}

impl<S: Shootdown> Direct<S> {
    /// Over `shootdown`, mapping pages up to 1 GiB as far as the format can.
    pub const fn new(shootdown: S) -> Self {
        Self { shootdown, largest: Level::L1G }
    }

    /// The same with pages of at most `largest` (an MMU without 1 GiB pages).
    #[must_use]
    pub fn with_largest(self, largest: Level) -> Self {
        Self { largest, ..self }
    }

    /// The host's shootdown.
    pub const fn shootdown(&self) -> &S {
        &self.shootdown
    }
}

impl<S> sealed::Sealed for Direct<S> {}
impl<S: Shootdown> HostOwned for Direct<S> {}

impl<S: Shootdown> External for Direct<S> {
    const TEE: bool = false;

    type Error = Infallible;
    type Pages = ();
    type Ticket = S::Ticket;

    #[inline]
    fn max_map(&self) -> Level {
        self.largest
    }

    #[inline]
    fn max_leaf(&self) -> Level {
        self.largest
    }

    #[inline]
    fn table_cost(&self, _: GpaEntry, _: Option<Hpa>) -> FrameNeeds {
        FrameNeeds::NONE
    }

    #[inline]
    fn gather(&self, _: GpaEntry, _: Option<Hpa>, _: &mut dyn FrameStore) -> Option<()> {
        Some(())
    }

    #[inline]
    fn addresses(&self, (): &()) -> Donated {
        Donated::default()
    }

    #[inline]
    fn scatter(&self, (): (), _: &mut dyn FnMut(Frame<Tainted>) -> Frame, _: &mut dyn FrameStore) {}

    #[inline]
    fn link(&self, _: GpaEntry, _: Option<Hpa>, (): ()) -> Result<(), Returned<Infallible, ()>> {
        Ok(())
    }

    #[inline]
    fn unlink(&self, _: GpaEntry, _: Option<Hpa>) -> Result<Donated, Infallible> {
        Ok(Donated::default())
    }

    #[inline]
    fn map(&self, _: GpaEntry, _: Frame, _: Fill) -> Result<(), Returned<Infallible, Frame>> {
        Ok(())
    }

    #[inline]
    fn unmap(&self, _: GpaEntry, _: Hpa) -> Result<(), Infallible> {
        Ok(())
    }

    #[inline]
    fn block(&self, _: GpaEntry) -> Result<(), Infallible> {
        Ok(())
    }

    #[inline]
    fn unblock(&self, _: GpaEntry) -> Result<(), Infallible> {
        Ok(())
    }

    #[inline]
    fn fence(&self) -> Result<S::Ticket, Infallible> {
        Ok(self.shootdown.start())
    }

    #[inline]
    fn grace(&self) -> S::Ticket {
        self.shootdown.start()
    }

    #[inline]
    fn fenced(&self, ticket: S::Ticket) -> bool {
        self.shootdown.done(ticket)
    }

    #[inline]
    fn split(&self, _: GpaEntry, (): ()) -> Result<(), Returned<Infallible, ()>> {
        Ok(())
    }

    #[inline]
    fn merge(&self, _: GpaEntry, _: Hpa) -> Result<Donated, Infallible> {
        Ok(Donated::default())
    }

    #[inline]
    fn protect(&self, _: GpaEntry, _: Permissions) -> Result<bool, Infallible> {
        Ok(true)
    }

    #[inline]
    fn probe(&self, _: GpaEntry) -> Result<Observed, Infallible> {
        Ok(Observed::Leaf(LeafState::Mapped))
    }

    #[inline]
    fn write_back(&self, _: &Frame<Tainted>, _: CacheKey) -> Result<(), Infallible> {
        Ok(())
    }
}
