//! One TD, as the table that drives it sees it.

mod budget;
mod error;
mod external;
#[cfg(test)]
mod tests;

pub use budget::RetryBudget;
pub use error::TdError;
pub use external::TablePages;

use crate::{
    EntryInfo, Hkid, KeyIdBits, Leaf, Operand, SeamcallError, Status, Tdr, Transport, mem, mr, ranges,
};
use core::{cell::Cell, hint};
use sept_core::{FrameKind, Gpa, GpaEntry, Hpa, Shootdown, TdxConfig, TreeLock};

/// What a [`Td`] needs to know about its TD and platform.
///
/// ```
/// use seamcall::{Hkid, KeyIdBits, RetryBudget, TdDescription, Tdr};
/// use sept_core::{Hpa, TdxConfig};
/// let tdr = Tdr::new(Hpa::new(0x1_0000_0000).unwrap()).unwrap();
/// let keys = KeyIdBits::new(46, 6).unwrap();
/// let td = TdDescription::new(tdr, Hkid::new(33), Hkid::new(32), keys, TdxConfig::LEVELS_4)
///     .with_dynamic_pamt(true)
///     .with_budget(RetryBudget { busy: 8, restartable: 100 });
/// assert!(td.dynamic_pamt());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdDescription {
    tdr: Tdr,
    hkid: Hkid,
    global_hkid: Hkid,
    key_id_bits: KeyIdBits,
    config: TdxConfig,
    dynamic_pamt: bool,
    promote_exclusive: bool,
    budget: RetryBudget,
}

impl TdDescription {
    /// A TD without L2 VMs on a platform with a static PAMT.
    ///
    /// `hkid` is the TD's key id, `global_hkid` the one that SYS.CONFIG was given.
    #[must_use]
    pub const fn new(
        tdr: Tdr,
        hkid: Hkid,
        global_hkid: Hkid,
        key_id_bits: KeyIdBits,
        config: TdxConfig,
    ) -> Self {
        Self {
            tdr,
            hkid,
            global_hkid,
            key_id_bits,
            config,
            dynamic_pamt: false,
            promote_exclusive: false,
            budget: RetryBudget::DEFAULT,
        }
    }

    /// Whether Dynamic PAMT is enabled (SYS.CONFIG was asked for it; that the module could do it is not enough).
    #[must_use]
    pub const fn with_dynamic_pamt(self, dynamic_pamt: bool) -> Self {
        Self { dynamic_pamt, ..self }
    }

    /// Whether PROMOTE takes the module's tree lock exclusively (1.5.34 does, 1.5.28 and 2.0.08 do not).
    #[must_use]
    pub const fn with_exclusive_promote(self, promote_exclusive: bool) -> Self {
        Self { promote_exclusive, ..self }
    }

    /// How often calls are repeated.
    #[must_use]
    pub const fn with_budget(self, budget: RetryBudget) -> Self {
        Self { budget, ..self }
    }

    /// The TD.
    #[must_use]
    pub const fn tdr(&self) -> Tdr {
        self.tdr
    }

    /// Its key id.
    #[must_use]
    pub const fn hkid(&self) -> Hkid {
        self.hkid
    }

    /// Depth and width of its S-EPT.
    #[must_use]
    pub const fn config(&self) -> TdxConfig {
        self.config
    }

    /// Whether Dynamic PAMT is enabled.
    #[must_use]
    pub const fn dynamic_pamt(&self) -> bool {
        self.dynamic_pamt
    }

    /// How often calls are repeated.
    #[must_use]
    pub const fn budget(&self) -> RetryBudget {
        self.budget
    }
}

/// Something a [`Td`] dealt with by itself, or could not deal with at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A block found the entry blocked: it succeeded, with the older stamp.
    AlreadyBlocked {
        /// The entry.
        at: GpaEntry,
        /// What the module said about it.
        entry: EntryInfo,
    },
    /// A call is repeated.
    Retry(SeamcallError),
    /// A donated page could not be given back: its cache lines could not be written back, or the store was full.
    Lost {
        /// The page. Whoever counts frames has it in use for ever.
        page: Hpa,
        /// What it had been taken for.
        kind: FrameKind,
    },
}

/// Hears what a [`Td`] has to say. `()` does not listen.
pub trait Observe {
    /// Called on the path of the operation: be quick, take no lock that a caller of the table may hold.
    fn notice(&self, notice: Notice);
}

impl Observe for () {
    fn notice(&self, _: Notice) {}
}

impl<O: Observe + ?Sized> Observe for &O {
    fn notice(&self, notice: Notice) {
        (**self).notice(notice);
    }
}

/// One TD: where to call, how to make its vCPUs leave, and the section around each call.
///
/// As [`External`](sept_core::External), it makes each change of one S-EPT entry. All its retries are bounded by
/// [`TdDescription::budget`]; the section is held for one SEAMCALL at a time. When it gives up after the lock of an
/// entry was taken, it reads the entry (SEPT.RD, under the same budget), so that the module lets the guest accept it
/// again.
#[derive(Debug)]
pub struct Td<T, S, L = (), O = ()> {
    transport: T,
    shootdown: S,
    lock: L,
    observer: O,
    description: TdDescription,
}

/// A range operation stopped half way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("stopped at {at:#x}: {error}")]
#[non_exhaustive]
pub struct Stopped<A> {
    /// The first address that was not done: go on here.
    pub at: A,
    /// Why.
    pub error: SeamcallError,
}

impl<T: Transport, S: Shootdown, L: TreeLock> Td<T, S, L> {
    /// Puts a TD together. `lock` is `()` for a host with one thread, or one that lives with retries.
    pub const fn new(transport: T, shootdown: S, lock: L, description: TdDescription) -> Self {
        Self { transport, shootdown, lock, observer: (), description }
    }
}

impl<T: Transport, S: Shootdown, L: TreeLock, O: Observe> Td<T, S, L, O> {
    /// The same TD with somebody to listen.
    pub fn with_observer<P: Observe>(self, observer: P) -> Td<T, S, L, P> {
        let Self { transport, shootdown, lock, description, .. } = self;
        Td { transport, shootdown, lock, observer, description }
    }

    /// Where calls go.
    pub const fn transport(&self) -> &T {
        &self.transport
    }

    /// How vCPUs are made to leave.
    pub const fn shootdown(&self) -> &S {
        &self.shootdown
    }

    /// What the TD is.
    pub const fn description(&self) -> &TdDescription {
        &self.description
    }

    /// The TD.
    pub const fn tdr(&self) -> Tdr {
        self.description.tdr
    }

    /// Measures `bytes` from `from`, both multiples of 256, with MR.EXTEND.
    ///
    /// Not part of mapping a page: a page that was added and not (wholly) measured cannot be taken back, so whoever
    /// builds the TD has to know how far this came.
    ///
    /// # Errors
    ///
    /// Where it stopped, and why: go on from there. As [`ranges::extend`].
    pub fn measure(&self, from: Gpa, bytes: u64) -> Result<(), Stopped<Gpa>> {
        ranges::each_chunk(from, bytes, |at| self.exclusive(|| mr::extend(&self.transport, self.tdr(), at)))
    }

    /// Closes the measurement; the TD can run.
    ///
    /// # Errors
    ///
    /// See [`mr::finalize`].
    pub fn finalize(&self) -> Result<(), SeamcallError> {
        self.exclusive(|| mr::finalize(&self.transport, self.tdr()))
    }

    fn shared<R>(&self, call: impl Fn() -> Result<R, SeamcallError>) -> Result<R, SeamcallError> {
        self.retried(|| self.lock.shared(&call))
    }

    fn exclusive<R>(&self, call: impl Fn() -> Result<R, SeamcallError>) -> Result<R, SeamcallError> {
        self.retried(|| self.lock.exclusive(&call))
    }

    /// Repeats a call while it is busy or interrupted, each time from the same operands. Gives up an entry whose lock
    /// it did not get, be it that the last attempts did not even come to the entry.
    fn retried<R>(&self, call: impl Fn() -> Result<R, SeamcallError>) -> Result<R, SeamcallError> {
        let flagged = Cell::new(None);
        let result = self.repeated(|| {
            let result = call();
            match &result {
                Err(error) if error.leaf == Leaf::MEM_SEPT_RD || stopped_before_entry(error) => {}
                Err(error) if error.is_entry_busy() => flagged.set(error.at),
                // Who gets the lock takes the flag away.
                _ => flagged.set(None),
            }
            result
        });
        if let Some(at) = flagged.get() {
            // Answer and failure are the same to us: a guest that is kept out tries again, and so does our caller.
            let _ = self.repeated(|| self.lock.shared(|| mem::sept_rd(&self.transport, self.tdr(), at)));
        }
        result
    }

    /// The second half of a change, or the way back from the first: repeated at least as often as the default budget
    /// says, for a refusal would leave the change half done.
    fn completed<R>(&self, call: impl Fn() -> Result<R, SeamcallError>) -> Result<R, SeamcallError> {
        self.spending(self.description.budget.at_least(RetryBudget::DEFAULT), call)
    }

    fn repeated<R>(&self, call: impl Fn() -> Result<R, SeamcallError>) -> Result<R, SeamcallError> {
        self.spending(self.description.budget, call)
    }

    fn spending<R>(
        &self,
        mut budget: RetryBudget,
        call: impl Fn() -> Result<R, SeamcallError>,
    ) -> Result<R, SeamcallError> {
        loop {
            match call() {
                Err(error) if budget.spend(&error) => {
                    self.observer.notice(Notice::Retry(error));
                    hint::spin_loop();
                }
                result => return result,
            }
        }
    }
}

/// Whether a lock was taken that the module tries before that of the entry.
fn stopped_before_entry(error: &SeamcallError) -> bool {
    let operand = if error.status.is(Status::OPERAND_BUSY) { error.status.operand() } else { None };
    matches!(operand, Some(Operand::RDX | Operand::OP_STATE | Operand::SEPT_TREE))
}
