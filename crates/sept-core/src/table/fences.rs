//! Fences: one proof for everything that was blocked before.

use super::{SecurePageTable, TableError};
use crate::{External, Format, GpaEntry, Hpa, Stamp, TableMemory};
use core::sync::atomic::Ordering;

/// A fence or grace period under way. Poll it; it holds nothing.
#[derive(Clone, Copy, Debug)]
#[must_use = "an unpolled fence proves nothing"]
pub struct FenceTicket<T> {
    root: Hpa,
    stamp: u64,
    tee: bool,
    ticket: T,
}

/// Proof that everything blocked in this table before the fence began is out of reach of the guest.
///
/// Good for any number of entries until 2^11 more fences and grace periods were started; then it covers nothing.
#[derive(Clone, Copy, Debug)]
pub struct Fenced {
    root: Hpa,
    stamp: u64,
}

/// Proof that every software walk that began before is over.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    pub(super) root: Hpa,
    pub(super) stamp: u64,
    /// Whether the guest's cached translations are gone too.
    pub(super) tlb: bool,
}

impl Fenced {
    /// A fence waits for software walks too.
    #[must_use]
    pub const fn quiet(&self) -> Quiet {
        Quiet { root: self.root, stamp: self.stamp, tlb: true }
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Starts a fence for everything blocked so far.
    ///
    /// # Errors
    ///
    /// [`TableError::External`] if the TEE cannot start one now; nothing is fenced then.
    pub fn fence(&self) -> Result<FenceTicket<X::Ticket>, TableError<X::Error>> {
        // The number is drawn before the TEE's fence begins: what is blocked from here on carries a later stamp.
        let stamp = self.epoch.fetch_add(1, Ordering::AcqRel);
        match self.external.fence() {
            Ok(ticket) => Ok(FenceTicket { root: self.root, stamp, tee: true, ticket }),
            Err(error) => {
                let at = GpaEntry::containing(crate::Gpa::default(), F::top(self.config));
                Err(TableError::External { at, error })
            }
        }
    }

    /// Starts a grace period for software walks only.
    pub fn grace(&self) -> FenceTicket<X::Ticket> {
        let stamp = self.epoch.fetch_add(1, Ordering::AcqRel);
        FenceTicket { root: self.root, stamp, tee: false, ticket: self.external.grace() }
    }

    /// The proof, once the fence has ended. Never waits. Always `None` for the ticket of a grace period or of another
    /// table: do not wait for those.
    #[must_use]
    pub fn fenced(&self, ticket: &FenceTicket<X::Ticket>) -> Option<Fenced> {
        let ended = ticket.tee && ticket.root == self.root && self.external.fenced(ticket.ticket);
        ended.then_some(Fenced { root: self.root, stamp: ticket.stamp })
    }

    /// The proof, once the grace period (or fence) has ended. Never waits. Always `None` for another table's ticket.
    #[must_use]
    pub fn quiet(&self, ticket: &FenceTicket<X::Ticket>) -> Option<Quiet> {
        let ended = ticket.root == self.root && self.external.fenced(ticket.ticket);
        ended.then_some(Quiet { root: self.root, stamp: ticket.stamp, tlb: ticket.tee })
    }

    /// The number for what this thread has just done: fences with this number or a later one began after it.
    ///
    /// Read by an atomic update, so that the fence which takes this number also sees what came before; a plain load
    /// may run ahead of this thread's earlier stores.
    #[inline]
    pub(super) fn stamp(&self) -> u64 {
        self.epoch.fetch_add(0, Ordering::AcqRel)
    }

    /// A number that only what is blocked from here on carries, besides later ones.
    pub(super) fn draw_number(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// Whether an entry was blocked under the number `since` or a later one. What was blocked 2^11 numbers ago may look
    /// as if it had been.
    pub(super) fn is_since(&self, blocked: Stamp, since: u64) -> bool {
        let now = self.epoch.load(Ordering::Acquire);
        now.wrapping_sub(blocked.raw()) & (Stamp::MODULUS - 1) <= now.wrapping_sub(since)
    }

    /// Fences and grace periods started, for whoever predicts the numbers.
    #[cfg(feature = "test-util")]
    pub(crate) fn last_number(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether what `proof` stands for began after the entry was blocked.
    ///
    /// With `now` the present number, an entry blocked under number `b` is covered iff `b <= proof.stamp`, that is
    /// `now - b >= now - proof.stamp`. Only `b` modulo 2^11 is known, and so `now - b` modulo 2^11, which is never more
    /// than the true age: an entry blocked long ago may look younger and be refused (the next fence, or the one after
    /// it, covers it), but never the other way round. A proof expires after 2^11 fences, because no entry looks as old.
    #[inline]
    pub(super) fn covered(&self, blocked: Option<Stamp>, proof: &Quiet) -> bool {
        let Some(blocked) = blocked else { return false };
        let now = self.epoch.load(Ordering::Acquire);
        let proof_age = now.wrapping_sub(proof.stamp);
        let entry_age = now.wrapping_sub(blocked.raw()) & (Stamp::MODULUS - 1);
        proof.root == self.root && entry_age >= proof_age
    }
}
