//! The table that only the TEE writes, behind the host's mirror.
//!
//! [`SecurePageTable`](crate::SecurePageTable) decides and records; an [`External`] makes the same change in the
//! real table (TDX: through SEAMCALLs). Each method is one change of one entry and either happens completely or not
//! at all. The table calls them with the mirror entry frozen, so two calls never concern the same entry at once;
//! [`External::probe`] alone may meet another call. A call may come while a table above its entry is being blocked:
//! if the TEE finds the way closed, that is contention too.
//!
//! Contention is the implementor's first to handle (retry in a bounded way); what it cannot resolve comes out as an
//! error of class [`Retry`](crate::Class::Retry) or [`Quiesce`](crate::Class::Quiesce) and nothing has changed.

use crate::{
    Classify, Frame, FrameNeeds, FrameStore, GpaEntry, Hpa, LeafState, Level, Permissions, Returned, Tainted,
};
use core::fmt::Debug;

/// How a page gets its first content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fill {
    /// The guest will accept it and finds zeroes (TDX: PAGE.AUG).
    OnAccept,
    /// Copied and measured while the guest is built, from this 4 KiB page of host memory (TDX: PAGE.ADD).
    Copy(Hpa),
}

/// The key under which a page's cache lines were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CacheKey {
    /// The guest's: data and table pages.
    Guest,
    /// The TEE's own: metadata pages.
    Module,
}

/// Addresses of the pages that stand behind a table: the TEE's table page and up to two metadata pages.
///
/// Addresses only: the table checks them against its side words and mints the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "implementors of External build it")]
pub struct Donated {
    /// The page that holds the external table, if the TEE has one.
    pub table: Option<Hpa>,
    /// The metadata pages that came with it.
    pub metadata: [Option<Hpa>; 2],
}

/// What the TEE says about one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Observed {
    /// Maps nothing.
    Free,
    /// Points to a table.
    Table,
    /// Maps a page.
    Leaf(LeafState),
    /// The walk stopped above, at an entry that is blocked or missing.
    Hidden,
}

/// The TEE's side of a secure page table.
///
/// # What the table relies on
///
/// * [`External::addresses`] names the pages that [`External::link`] and [`External::split`] consume.
/// * [`External::fenced`] says `true` only when the guest can no longer reach what was blocked, *and* every software
///   walk ([`TableMemory::Pin`](crate::TableMemory::Pin)) that began before the ticket has ended; see
///   [`Shootdown`](crate::Shootdown).
/// * A change that returns `Ok` was made, one that returns an error was not.
///
/// Memory is reused on these promises. Every method is called under a pin but `fence`, `grace`, `fenced` and
/// `write_back`; none may wait for a fence.
pub trait External {
    /// Whether a TEE keeps a table of its own behind this one. Where it does not, an entry is changed in one step
    /// instead of being frozen for the length of a call.
    const TEE: bool = true;

    /// Why a change was refused.
    type Error: Classify + 'static;

    /// Pages on their way into the TEE, for one table.
    type Pages: Debug;

    /// Names one fence.
    type Ticket: Copy + Debug;

    /// Largest page that [`External::map`] can map.
    fn max_map(&self) -> Level;

    /// Largest page that [`External::merge`] can make; equal to `max_map` where merging is not possible.
    fn max_leaf(&self) -> Level;

    /// 4 KiB frames to donate for a table below `at`, the mirror page not counted. Exact, and the same for the same
    /// arguments for as long as the table lives.
    ///
    /// `backing` is the aligned host memory of `at`'s size that the table's leaves map, if it is one piece.
    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds;

    /// Takes exactly [`External::table_cost`] out of `from`; `None` (and nothing taken) if it is not there.
    fn gather(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Option<Self::Pages>;

    /// Which pages these are.
    fn addresses(&self, pages: &Self::Pages) -> Donated;

    /// Puts pages that were not consumed back into `to`.
    ///
    /// A page that a failed call may have written is first written back by the implementor, under the key that wrote
    /// it, then overwritten by `scrub`. Pages that nothing touched need neither. A page that cannot be written back
    /// must be kept from the host: drop it, which leaks it.
    fn scatter(
        &self,
        pages: Self::Pages,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    );

    /// Hangs an empty table into the free entry `at`.
    ///
    /// # Errors
    ///
    /// Nothing changed; the pages come back.
    fn link(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        pages: Self::Pages,
    ) -> Result<(), Returned<Self::Error, Self::Pages>>;

    /// Takes the empty, blocked and fenced table out of `at`. `backing` is the memory that the table's metadata pages
    /// describe, `None` if it came without any.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn unlink(&self, at: GpaEntry, backing: Option<Hpa>) -> Result<Donated, Self::Error>;

    /// Maps `page` (of `at`'s size, at most [`External::max_map`], 4 KiB with [`Fill::Copy`]) at the free entry `at`.
    ///
    /// # Errors
    ///
    /// Nothing changed; the page comes back.
    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<Self::Error, Frame>>;

    /// Removes the blocked and fenced page at `at`; its content is lost. `expect` is the page the mirror names.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn unmap(&self, at: GpaEntry, expect: Hpa) -> Result<(), Self::Error>;

    /// Hides `at` (a page or a table) from the guest; reversible.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn block(&self, at: GpaEntry) -> Result<(), Self::Error>;

    /// Shows `at` again, after a fence.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn unblock(&self, at: GpaEntry) -> Result<(), Self::Error>;

    /// Starts a fence: makes everything blocked so far unreachable once [`External::fenced`] says so.
    ///
    /// # Errors
    ///
    /// No fence was started.
    fn fence(&self) -> Result<Self::Ticket, Self::Error>;

    /// Starts a grace period for software walks only; no entry needs to be blocked for it.
    fn grace(&self) -> Self::Ticket;

    /// Whether the fence or grace period has ended. Never waits; once `true` it stays so.
    fn fenced(&self, ticket: Self::Ticket) -> bool;

    /// Splits the blocked and fenced page at `at` into 512 of the next lower level, content kept.
    ///
    /// # Errors
    ///
    /// Nothing changed but, possibly, the content of the pages that come back.
    fn split(&self, at: GpaEntry, pages: Self::Pages) -> Result<(), Returned<Self::Error, Self::Pages>>;

    /// Merges the blocked and fenced table at `at` into one page, content kept. `backing` is the merged page.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn merge(&self, at: GpaEntry, backing: Hpa) -> Result<Donated, Self::Error>;

    /// Gives the page at `at` other permissions; `false`, and nothing changed, where the TEE cannot.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn protect(&self, at: GpaEntry, permissions: Permissions) -> Result<bool, Self::Error> {
        let _ = (at, permissions);
        Ok(false)
    }

    /// Reads one entry. Also the way to give up after contention: a call that was refused may have left a mark that
    /// keeps the guest out of the entry until a host call on it succeeds (TDX: the host-priority flag).
    ///
    /// # Errors
    ///
    /// The entry could not be read.
    fn probe(&self, at: GpaEntry) -> Result<Observed, Self::Error>;

    /// Writes back and invalidates the cache lines of a page that left the TEE, under the key that wrote them.
    ///
    /// # Errors
    ///
    /// The page must not be touched by the host yet.
    fn write_back(&self, page: &Frame<Tainted>, key: CacheKey) -> Result<(), Self::Error>;
}
