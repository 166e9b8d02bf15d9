//! How the host makes CPUs forget a translation, and the lock around one call into the TEE.

use core::fmt::Debug;

/// The host's shootdown: makes every CPU drop stale translations of one guest.
///
/// Started and polled, never waited for, so that a caller may do other work or give up its CPU in between.
///
/// # Safety
///
/// Once [`Shootdown::done`] has returned `true` for a ticket, every CPU that ran the guest when the ticket was made
/// has left it (and so dropped its cached translations), and every [`TableMemory::Pin`](crate::TableMemory::Pin)
/// taken before the ticket was made has been dropped. Frames are reused on that promise.
#[expect(unsafe_code, reason = "memory is reused on this trait's promise")]
pub unsafe trait Shootdown {
    /// Names one shootdown.
    type Ticket: Copy + Debug;

    /// Starts a shootdown: kicks every CPU that runs the guest.
    fn start(&self) -> Self::Ticket;

    /// Whether the shootdown has ended everywhere. Cheap, may be called at any time.
    fn done(&self, ticket: Self::Ticket) -> bool;
}

#[expect(unsafe_code, reason = "passes the promise on")]
// SAFETY: each method is that of `S`, which makes the promise.
unsafe impl<S: Shootdown + ?Sized> Shootdown for &S {
    type Ticket = S::Ticket;

    fn start(&self) -> Self::Ticket {
        (**self).start()
    }

    fn done(&self, ticket: Self::Ticket) -> bool {
        (**self).done(ticket)
    }
}

/// The reader/writer section of one TD, held for one call into the TEE at a time.
///
/// `()` is the section of a host with one thread or with bounded retries instead.
pub trait TreeLock {
    /// Runs `call` together with other shared holders.
    fn shared<R>(&self, call: impl FnOnce() -> R) -> R;

    /// Runs `call` alone.
    fn exclusive<R>(&self, call: impl FnOnce() -> R) -> R;
}

impl TreeLock for () {
    fn shared<R>(&self, call: impl FnOnce() -> R) -> R {
        call()
    }

    fn exclusive<R>(&self, call: impl FnOnce() -> R) -> R {
        call()
    }
}

impl<L: TreeLock> TreeLock for &L {
    fn shared<R>(&self, call: impl FnOnce() -> R) -> R {
        (**self).shared(call)
    }

    fn exclusive<R>(&self, call: impl FnOnce() -> R) -> R {
        (**self).exclusive(call)
    }
}
