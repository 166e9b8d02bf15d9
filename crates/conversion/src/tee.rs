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
/// The contract of each method is that of the method of the same name of [`SecurePageTable`].
#[expect(missing_docs, reason = "documented by the trait's contract")]
#[expect(clippy::missing_errors_doc, reason = "documented by the trait's contract")]
pub trait Tee {
    type Error: Classify;
    type Ticket: Copy + Debug;
    type Fenced: Copy + Debug;
    type Quiet: Copy + Debug;
    type Obligation: Debug;

    /// Largest page that can be mapped at once.
    fn max_map(&self) -> Level;
    /// Largest page that merging can make.
    fn max_leaf(&self) -> Level;

    fn lookup(&self, gpa: Gpa) -> Result<Found, Self::Error>;
    fn entry(&self, at: GpaEntry) -> Result<Entry, Self::Error>;
    fn live(&self, at: GpaEntry) -> Result<Option<u64>, Self::Error>;
    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds;
    fn link(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Result<(), Self::Error>;
    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<Self::Error, Frame>>;
    fn block(&self, at: GpaEntry) -> Result<(), Self::Error>;
    fn unblock(&self, at: GpaEntry, fence: &Self::Fenced) -> Result<(), Self::Error>;
    fn fence(&self) -> Result<Self::Ticket, Self::Error>;
    fn grace(&self) -> Self::Ticket;
    fn fenced(&self, ticket: Self::Ticket) -> Option<Self::Fenced>;
    fn quiet(&self, ticket: Self::Ticket) -> Option<Self::Quiet>;
    fn split(&self, at: GpaEntry, fence: &Self::Fenced, from: &mut dyn FrameStore)
    -> Result<(), Self::Error>;
    fn merge(
        &self,
        at: GpaEntry,
        fence: &Self::Fenced,
        into: &mut Self::Obligation,
    ) -> Result<(), Self::Error>;
    fn mergeable(&self, at: GpaEntry) -> Result<(), Self::Error>;
    fn probe(&self, at: GpaEntry) -> Result<Observed, Self::Error>;
    fn remove(&self, at: GpaEntry, fence: &Self::Fenced) -> Result<Frame<Tainted>, Self::Error>;
    fn unlink(
        &self,
        at: GpaEntry,
        fence: &Self::Fenced,
        into: &mut Self::Obligation,
    ) -> Result<(), Self::Error>;
    fn reclaim(&self, page: Frame<Tainted>) -> Result<Frame, Returned<Self::Error, Frame<Tainted>>>;

    fn obligation(&self) -> Self::Obligation;
    fn owes(&self, owed: &Self::Obligation) -> bool;
    /// Settles what it can; the rest stays in `owed`. Says what was given to `to`.
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
        self.external().max_leaf()
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
