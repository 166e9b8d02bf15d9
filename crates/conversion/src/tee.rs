//! The stage-2 half of a host, as the orchestrator sees it: addresses and levels, never folios or attributes.
//!
//! Any [`SecurePageTable`] is a [`Tee`]; a TD comes in as the table's `External`. Other platforms (SEV-SNP's RMP, Arm
//! CCA's RTT) implement it themselves.

use core::fmt::Debug;
use sept_core::{
    Classify, Entry, External, FenceTicket, Fenced, Fill, Format, Found, Frame, FrameNeeds, FrameSource,
    FrameStore, Gpa, GpaEntry, Hpa, Level, Obligation, Observed, Quiet, Returned, SecurePageTable,
    TableError, TableMemory, Tainted, Unsettled,
};

/// A secure second-stage table: what conversion, population and promotion need of it.
///
/// Every method is one bounded call that takes `&self`; several threads may call at once. Each changes one entry
/// completely or not at all. An implementation that is not a [`SecurePageTable`] keeps the contract of the method of the
/// same name there.
pub trait Tee {
    /// Why a call was refused; its [`Class`](sept_core::Class) decides what the caller does.
    type Error: Classify + 'static;
    /// Names a fence or grace period under way.
    type Ticket: Copy + Debug;
    /// Proof that what was blocked before a fence is out of the guest's reach.
    type Fenced: Copy + Debug;
    /// Proof that software walks which began before are over.
    type Quiet: Copy + Debug;
    /// Tables that were taken out and are not frames yet. Dropping it leaks them.
    type Obligation: Debug;

    /// Largest page that can be mapped at once.
    fn max_map(&self) -> Level;

    /// Largest page that merging can make.
    fn max_leaf(&self) -> Level;

    /// Whether the guest accepts `at` in smaller pieces, so that no page of its size may be mapped there.
    fn inhibited(&self, at: GpaEntry) -> bool {
        let _ = at;
        false
    }

    /// Where the walk for `gpa` ends. At most one read per level.
    ///
    /// # Errors
    ///
    /// `gpa` is not private memory of this guest.
    fn lookup(&self, gpa: Gpa) -> Result<Found, Self::Error>;

    /// The entry exactly at `at`, below blocked tables too.
    ///
    /// # Errors
    ///
    /// No table leads there (class *caller*), or an entry above is being changed (*retry*).
    fn entry(&self, at: GpaEntry) -> Result<Entry, Self::Error>;

    /// Entries in use in the table at `at`, 0 to 512; `None` if there is no table.
    ///
    /// # Errors
    ///
    /// As [`Tee::entry`].
    fn live(&self, at: GpaEntry) -> Result<Option<u64>, Self::Error>;

    /// Frames that a table below `at` takes, exactly; `backing` is the memory of `at`'s size behind it, if it is one
    /// piece. The same answer for as long as the table lives.
    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds;

    /// Hangs an empty table into the free entry `at` with [`Tee::table_cost`] frames of `from`.
    ///
    /// # Errors
    ///
    /// Nothing changed, and `from` holds what it held.
    fn link(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Result<(), Self::Error>;

    /// Maps `page`, of `at`'s size, at the free entry `at`.
    ///
    /// # Errors
    ///
    /// Nothing changed; the page comes back.
    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<Self::Error, Frame>>;

    /// Hides a page or table from the guest. One that is hidden already stays so.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn block(&self, at: GpaEntry) -> Result<(), Self::Error>;

    /// Shows an entry that was blocked before `fence` again.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn unblock(&self, at: GpaEntry, fence: &Self::Fenced) -> Result<(), Self::Error>;

    /// Starts a fence for everything blocked so far.
    ///
    /// # Errors
    ///
    /// None was started.
    fn fence(&self) -> Result<Self::Ticket, Self::Error>;

    /// Starts a grace period for software walks only.
    fn grace(&self) -> Self::Ticket;

    /// The proof, once the fence has ended. Never waits; `None` for a grace period.
    fn fenced(&self, ticket: Self::Ticket) -> Option<Self::Fenced>;

    /// The proof, once the fence or grace period has ended. Never waits.
    fn quiet(&self, ticket: Self::Ticket) -> Option<Self::Quiet>;

    /// Splits the page at `at`, blocked before `fence`, into 512, content kept, with [`Tee::table_cost`] frames of `from`.
    ///
    /// # Errors
    ///
    /// Nothing changed, and `from` holds what it held.
    fn split(&self, at: GpaEntry, fence: &Self::Fenced, from: &mut dyn FrameStore)
    -> Result<(), Self::Error>;

    /// Merges the table at `at`, blocked before `fence`, into one page, content kept; the table goes to `into`.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn merge(
        &self,
        at: GpaEntry,
        fence: &Self::Fenced,
        into: &mut Self::Obligation,
    ) -> Result<(), Self::Error>;

    /// Whether the table at `at` could be merged as far as the host knows.
    ///
    /// # Errors
    ///
    /// The first obstacle.
    fn mergeable(&self, at: GpaEntry) -> Result<(), Self::Error>;

    /// Asks the TEE what `at` holds and notes an acceptance. Also the way to give up after contention.
    ///
    /// # Errors
    ///
    /// Nothing was noted.
    fn probe(&self, at: GpaEntry) -> Result<Observed, Self::Error>;

    /// Takes the page at `at`, blocked before `fence`, out of the guest; its content is lost.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn remove(&self, at: GpaEntry, fence: &Self::Fenced) -> Result<Frame<Tainted>, Self::Error>;

    /// Takes the empty table at `at`, blocked before `fence`, out and adds it to `into`.
    ///
    /// # Errors
    ///
    /// Nothing changed.
    fn unlink(
        &self,
        at: GpaEntry,
        fence: &Self::Fenced,
        into: &mut Self::Obligation,
    ) -> Result<(), Self::Error>;

    /// Writes a removed page back and overwrites it.
    ///
    /// # Errors
    ///
    /// The page comes back, still tainted.
    fn reclaim(&self, page: Frame<Tainted>) -> Result<Frame, Returned<Self::Error, Frame<Tainted>>>;

    /// An empty obligation.
    fn obligation(&self) -> Self::Obligation;

    /// Whether anything waits in `owed`.
    fn owes(&self, owed: &Self::Obligation) -> bool;

    /// Settles what it can; the rest stays in `owed`. Says what was given to `to`, and why it stopped: an error, or
    /// `None` if `quiet` does not cover all of it.
    fn settle(
        &self,
        owed: &mut Self::Obligation,
        quiet: &Self::Quiet,
        to: &dyn FrameSource,
    ) -> (FrameNeeds, Result<(), Option<Self::Error>>);
}

impl<F: Format, M: TableMemory, X: External> Tee for SecurePageTable<F, M, X>
where
    X::Error: 'static,
{
    type Error = TableError<X::Error>;
    type Ticket = FenceTicket<X::Ticket>;
    type Fenced = Fenced;
    type Quiet = Quiet;
    type Obligation = Obligation;

    fn max_map(&self) -> Level {
        self.external().max_map()
    }
    fn max_leaf(&self) -> Level {
        self.max_leaf()
    }
    fn inhibited(&self, at: GpaEntry) -> bool {
        self.inhibited(at).unwrap_or(false)
    }
    fn lookup(&self, gpa: Gpa) -> Result<Found, Self::Error> {
        self.lookup(gpa)
    }
    fn entry(&self, at: GpaEntry) -> Result<Entry, Self::Error> {
        self.entry(at)
    }
    fn live(&self, at: GpaEntry) -> Result<Option<u64>, Self::Error> {
        self.live(at)
    }
    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds {
        self.table_cost(at, backing)
    }
    fn link(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Result<(), Self::Error> {
        self.link(at, backing, from)
    }
    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<Self::Error, Frame>> {
        self.map(at, page, fill)
    }
    fn block(&self, at: GpaEntry) -> Result<(), Self::Error> {
        self.block(at)
    }
    fn unblock(&self, at: GpaEntry, fence: &Fenced) -> Result<(), Self::Error> {
        self.unblock(at, fence)
    }
    fn fence(&self) -> Result<Self::Ticket, Self::Error> {
        self.fence()
    }
    fn grace(&self) -> Self::Ticket {
        self.grace()
    }
    fn fenced(&self, ticket: Self::Ticket) -> Option<Fenced> {
        self.fenced(&ticket)
    }
    fn quiet(&self, ticket: Self::Ticket) -> Option<Quiet> {
        self.quiet(&ticket)
    }
    fn split(&self, at: GpaEntry, fence: &Fenced, from: &mut dyn FrameStore) -> Result<(), Self::Error> {
        self.split(at, fence, from)
    }
    fn merge(&self, at: GpaEntry, fence: &Fenced, into: &mut Obligation) -> Result<(), Self::Error> {
        self.merge(at, fence, into)
    }
    fn mergeable(&self, at: GpaEntry) -> Result<(), Self::Error> {
        self.mergeable(at)
    }
    fn probe(&self, at: GpaEntry) -> Result<Observed, Self::Error> {
        self.probe(at)
    }
    fn remove(&self, at: GpaEntry, fence: &Fenced) -> Result<Frame<Tainted>, Self::Error> {
        self.remove(at, fence)
    }
    fn unlink(&self, at: GpaEntry, fence: &Fenced, into: &mut Obligation) -> Result<(), Self::Error> {
        self.unlink(at, fence, into)
    }
    fn reclaim(&self, page: Frame<Tainted>) -> Result<Frame, Returned<Self::Error, Frame<Tainted>>> {
        self.reclaim(page).map_err(|refused| {
            let at = GpaEntry::containing(Gpa::default(), Level::L4K);
            refused.map_error(|error| TableError::External { at, error })
        })
    }
    fn obligation(&self) -> Obligation {
        self.obligation()
    }
    fn owes(&self, owed: &Obligation) -> bool {
        !owed.is_empty()
    }
    fn settle(
        &self,
        owed: &mut Obligation,
        quiet: &Quiet,
        to: &dyn FrameSource,
    ) -> (FrameNeeds, Result<(), Option<Self::Error>>) {
        let all = core::mem::replace(owed, self.obligation());
        match self.settle(all, quiet, to) {
            Ok(settled) => (settled, Ok(())),
            Err(Unsettled { settled, rest, error, .. }) => {
                *owed = rest;
                let at = GpaEntry::containing(Gpa::default(), Level::L4K);
                (settled, Err(error.map(|error| TableError::External { at, error })))
            }
        }
    }
}
