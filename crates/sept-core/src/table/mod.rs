//! The secure page table. [`SecurePageTable`] states the protocol: who may write an entry, where the fence stands, when a
//! frame may be reused.
//!
//! | file | what is in it |
//! |---|---|
//! | `walk`, `translate`, `entries`, `runs` | reading |
//! | `change`, `link`, `resize`, `inhibit` | changes of one entry, beside other threads |
//! | `in_place`, `exclusive` | changes where no TEE is, or nobody else |
//! | `range` | plans and operations on ranges |
//! | `fences`, `obligation`, `teardown` | what must happen before memory is reused |
//! | `audit` | the invariants |

mod audit;
mod change;
mod entries;
mod exclusive;
mod fences;
mod in_place;
mod inhibit;
mod link;
mod obligation;
mod range;
mod resize;
mod runs;
mod shed;
mod teardown;
mod translate;
mod walk;

pub use audit::{Broken, Census, Flaw};
pub use entries::Entries;
pub use exclusive::Exclusive;
pub use fences::{FenceTicket, Fenced, Quiet};
pub use obligation::{Obligation, Unsettled};
pub use range::{
    Blocked, Committed, MapPlan, MapRefused, Plan, Probed, RangeError, Reserved, Resize, Resized, Scope,
    SplitPlan, SplitRefused, Turn,
};
pub use runs::{Run, Runs};
pub use shed::Unmapped;
pub use teardown::{Teardown, Torn};
pub use translate::{ExclusiveWalker, Translation, Walker};
pub use walk::Found;

use crate::{
    Class, Classify, Entry, External, Format, Frame, FrameNeeds, Gpa, GpaEntry, Hpa, Level, Permissions,
    SideWord, TableMemory, Word,
};
use core::sync::atomic::Ordering;
use sync::AtomicU64;

/// The atomics of the table itself: those of its models under `--cfg loom`.
mod sync {
    #[cfg(not(loom))]
    pub(super) use core::sync::atomic::{AtomicU64, fence};
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicU64, fence};
}

/// A secure page table: format `F` in memory `M`, in front of the TEE's table `X`.
///
/// Shared by reference between threads. Dropping it frees nothing. `{:?}` prints what it maps as [`Run`]s.
///
/// # Protocol
///
/// *Who may write an entry.* Whoever turned it into *being changed* by compare-exchange. That thread makes the call
/// into the TEE and then publishes the outcome with one release store. Anybody else who meets such an entry gets
/// [`TableError::Contended`] and tries again; readers never wait. So two calls into the TEE never concern one entry,
/// and calls on different entries run in parallel. Without a TEE there is nothing between the two: an entry changes in one
/// compare-exchange. Bits that an MMU sets meanwhile are no contention; they are kept.
///
/// *Removal has one shape*: block, fence, take. A blocked entry keeps naming its page. [`SecurePageTable::fence`]
/// starts a fence for everything blocked before it, [`SecurePageTable::fenced`] polls it and gives a [`Fenced`] proof
/// for the whole batch, and split, merge, remove, unlink and unblock refuse an entry that the proof does not cover.
///
/// *Where the fence stands* is the format's ([`FenceOrder`](crate::FenceOrder)). A table that an MMU walks is split and
/// merged under the running guest and fenced afterwards: a split owes nothing, since the old translation says the same; a
/// merge first *closes* the table to operations ([`SecurePageTable::close`]), which hides nothing from the guest, and the table
/// that it takes out waits for a fence.
///
/// *When a frame may be reused.* A page taken out of the table is [`Tainted`](crate::Tainted) until its caches are written back
/// and it is overwritten ([`SecurePageTable::reclaim`]); without a TEE it is a frame once a fence has ended
/// ([`SecurePageTable::take`]). A table that was unlinked or merged may still be read by a software walk, so it goes into an
/// [`Obligation`], chained through side words that no walker reads; the obligation turns into frames again in
/// [`SecurePageTable::settle`], after a grace period or a fence. Every operation here holds a
/// [`TableMemory::Pin`] while it walks, which is what a grace period waits for. It is also why nobody can change
/// anything below a table that is blocked and fenced, or closed and quiet: changes that began earlier have ended, later ones
/// stop at the entry, and readers that go on below it only read. So a merge or an unlink may look at the entries below
/// first and freeze the table's entry then: if it is still the same word under the same proof, nothing below changed.
///
/// *Why no fence is credited with too much.* An entry is stamped with the number of fences started, read after it was
/// hidden and before it is published; a fence draws its number before it starts. Both are updates of one counter, so a
/// fence with the stamp's number or a later one has seen the block. What an MMU walks is hidden from it by the step that
/// freezes the entry for a block, not by the one that publishes it. A walk that begins after such a fence meets the entry
/// frozen or blocked, never as it was.
///
/// *Memory.* Tables come out of a [`FrameStore`](crate::FrameStore) that was filled before; nothing here allocates. The side
/// words of a table are the ledger of what stands behind it: the TEE returns addresses, the table compares them with its
/// ledger and only then makes frames of them.
///
/// *Alone.* [`Exclusive`] is the table by `&mut`: no other walk, no pin to wait for, plain stores. An MMU may still be walking.
pub struct SecurePageTable<F: Format, M: TableMemory, X: External> {
    root: Hpa,
    config: F::Config,
    memory: M,
    external: X,
    /// Number of fences and grace periods started.
    epoch: AtomicU64,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// An empty table whose root mirror page is `root`, a 4 KiB frame. The TEE's root exists already.
    pub fn new(config: F::Config, memory: M, external: X, root: Frame) -> Self {
        let free = F::encode(config, F::top(config), Entry::Free);
        memory.write_detached(&root, |_| free);
        Self { root: root.hpa(), config, memory, external, epoch: AtomicU64::new(0) }
    }

    /// The largest page that an entry can become, by mapping or by merging.
    pub fn max_leaf(&self) -> Level {
        self.external.max_leaf().min(F::max_leaf(self.config))
    }

    /// Depth and width of the table.
    pub const fn config(&self) -> F::Config {
        self.config
    }

    /// The TEE's side.
    pub const fn external(&self) -> &X {
        &self.external
    }

    /// The memory that the mirror lives in.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Address of the root mirror page.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Frames that a table below `at` takes out of the store, the mirror page included. Exact.
    ///
    /// `backing` is the aligned host memory of `at`'s size that the table's leaves map, if it is one piece.
    pub fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds {
        self.external.table_cost(at, backing).plus(FrameNeeds::of(crate::FrameKind::MirrorTable, 1))
    }

    fn side(&self, table: Hpa, word: SideWord) -> u64 {
        self.memory.load(table, Word::Side(word), Ordering::Acquire)
    }

    fn set_side(&self, table: Hpa, word: SideWord, value: u64) {
        self.memory.store(table, Word::Side(word), value, Ordering::Release);
    }
}

/// Why an operation on the table was refused. Nothing changed, except where a variant says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError<E> {
    /// The address is outside the guest's private address space.
    #[error("{gpa:#x} is outside the private address space")]
    OutOfRange {
        /// The address.
        gpa: Gpa,
    },
    /// No operation of this kind exists at this level, or the page has another size.
    #[error("{at}: not possible at this level")]
    Level {
        /// The entry asked for.
        at: GpaEntry,
    },
    /// The format cannot name this host address (the C-bit, or more than its width).
    #[error("{at}: an entry cannot name {hpa:#x}")]
    Address {
        /// The entry asked for.
        at: GpaEntry,
        /// The page, or the frame for a table.
        hpa: Hpa,
    },
    /// The entry is not what the operation needs.
    #[error("{at}: found {found}")]
    State {
        /// The entry asked for.
        at: GpaEntry,
        /// What it holds.
        found: Entry,
    },
    /// The walk ended above the entry.
    #[error("{at}: the walk ended at {stop}, which is {found}")]
    NoTable {
        /// The entry asked for.
        at: GpaEntry,
        /// Where the walk ended.
        stop: GpaEntry,
        /// What is there.
        found: Entry,
    },
    /// Somebody else is changing the entry.
    #[error("{at}: being changed by somebody else")]
    Contended {
        /// The entry.
        at: GpaEntry,
    },
    /// A table above the entry is blocked.
    #[error("{at}: hidden by the blocked table at {stop}")]
    Hidden {
        /// The entry asked for.
        at: GpaEntry,
        /// The blocked table.
        stop: GpaEntry,
    },
    /// A page of this size is inhibited here: the guest accepts in smaller pieces.
    #[error("{at}: a page of this size is inhibited")]
    Inhibited {
        /// The entry.
        at: GpaEntry,
    },
    /// The format or the TEE cannot give a page these permissions.
    #[error("{at}: permissions {asked:?} are not possible")]
    Permissions {
        /// The entry.
        at: GpaEntry,
        /// What was asked for.
        asked: Permissions,
    },
    /// The entry is not blocked, or was blocked after the fence that the proof stands for.
    #[error("{at}: not blocked before the fence")]
    NotFenced {
        /// The entry.
        at: GpaEntry,
    },
    /// The 512 entries cannot be merged: one does not continue the page that the first one begins.
    #[error("{at}: cannot merge, {child} is {found}")]
    NotUniform {
        /// The table's entry.
        at: GpaEntry,
        /// The first child that does not fit.
        child: GpaEntry,
        /// What it holds.
        found: Entry,
    },
    /// The table still maps something.
    #[error("{at}: the table has {live} live entries")]
    NotEmpty {
        /// The table's entry.
        at: GpaEntry,
        /// Entries in use.
        live: u64,
    },
    /// The obligation belongs to another table, whose memory and TEE know nothing of this one's tables.
    #[error("{at}: the obligation belongs to another table")]
    ForeignObligation {
        /// The entry.
        at: GpaEntry,
    },
    /// The store does not hold the frames that the operation needs.
    #[error("{at}: the store does not hold the {} frames needed", need.total())]
    NoFrames {
        /// The entry.
        at: GpaEntry,
        /// What it takes.
        need: FrameNeeds,
    },
    /// The TEE gave back other pages than the ledger names. The change was made; the disputed pages are leaked.
    #[error("{at}: the TEE returned {got:?}, the ledger says {ledger:?}")]
    Ledger {
        /// The entry.
        at: GpaEntry,
        /// What the side words say.
        ledger: Option<Hpa>,
        /// What the TEE returned.
        got: Option<Hpa>,
    },
    /// The TEE refused.
    #[error("{at}: {error}")]
    External {
        /// The entry.
        at: GpaEntry,
        /// Why.
        #[source]
        error: E,
    },
}

impl<E: Classify + 'static> Classify for TableError<E> {
    fn class(&self) -> Class {
        match self {
            Self::Contended { .. } | Self::Hidden { .. } => Class::Retry,
            Self::NotFenced { .. } => Class::Quiesce,
            Self::Ledger { .. } => Class::Fatal,
            Self::External { error, .. } => error.class(),
            _ => Class::Caller,
        }
    }
}
