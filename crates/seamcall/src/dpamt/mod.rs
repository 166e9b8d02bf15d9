//! Dynamic PAMT: which 2 MiB regions have a page pair, and who needs it.
//!
//! With Dynamic PAMT, a page can be used at 4 KiB only while its 2 MiB region has a *page pair* that describes its 512
//! pages; and a region can be mapped at 2 MiB only while it has none. Who has to see to it:
//!
//! * Guest memory that comes in blocks of 2 MiB or more: its pairs come and go with its tables, [`Td`](crate::Td) does
//!   that.
//! * TDR, control and S-EPT pages of every TD, which share regions: this module, through a [`ReadySource`].
//! * Guest memory that comes in smaller blocks, so that the pages of one table lie in many regions: this module too;
//!   the host [holds](PamtRegions::hold) the region of a page before it is mapped, and lets it go after it was
//!   removed.
//! * The page pairs themselves need none.
//!
//! A [`PamtRegions`] counts the users of each region, in storage of the caller's that all TDs share: the first brings
//! a pair ([`phymem::pamt_add`]), the last takes it away ([`phymem::pamt_remove`]); [`PamtRegions::vacate`] does so on
//! the module's hint and before a 2 MiB page is mapped. Count and call are one step under a lock of the caller's. A
//! [`ReadySource`] is a frame source whose table pages have their pair.
//!
//! ```
//! use core::sync::atomic::AtomicU16;
//! use seamcall::dpamt::{PamtRegions, ReadySource};
//! use seamcall::Transport;
//! use sept_core::{Frame, FrameKind, FrameSource, Hpa};
//!
//! /// A page for an S-EPT table, in a region that has its page pair.
//! fn table_page<T: Transport>(t: &T, regions: &PamtRegions<&[AtomicU16]>, pool: &dyn FrameSource) -> Option<Frame> {
//!     let near = Hpa::new(0)?;
//!     let ready = ReadySource::new(t, regions, pool, |_pair| { /* write back, scrub, mint, give to the pool */ });
//!     ready.take(FrameKind::TeeTable, near)
//! }
//! ```
//!
//! Source: TDX module ABI, "Dynamic PAMT"; modules 1.5.20 and 2.0.08.

mod source;
#[cfg(test)]
mod tests;

pub use source::ReadySource;

use crate::{SeamcallError, Status, Transport, phymem};
use core::sync::atomic::{AtomicU16, Ordering};
use sept_core::{Class, Classify, Frame, Hpa, Level, Returned};

/// The lock around the counts of the whole machine. `()` for a host with one thread.
pub trait MachineLock {
    /// Runs `call` alone.
    fn locked<R>(&self, call: impl FnOnce() -> R) -> R;
}

impl MachineLock for () {
    fn locked<R>(&self, call: impl FnOnce() -> R) -> R {
        call()
    }
}

impl<K: MachineLock> MachineLock for &K {
    fn locked<R>(&self, call: impl FnOnce() -> R) -> R {
        (**self).locked(call)
    }
}

/// Why a region could not be held or let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The module refused; the count is as before.
    #[error(transparent)]
    Seamcall(#[from] SeamcallError),
    /// The page lies outside the counted memory.
    #[error("page {page:#x} is outside the counted regions")]
    Outside {
        /// The page.
        page: Hpa,
    },
    /// The page is the first of its region, and no pair was given.
    #[error("the region of page {page:#x} needs a page pair")]
    NeedsPair {
        /// The page.
        page: Hpa,
    },
    /// Pages of the region are in use at 4 KiB.
    #[error("the region of page {page:#x} is in use")]
    InUse {
        /// The page.
        page: Hpa,
    },
    /// Let go more often than held, or held more often than can be counted.
    #[error("the users of the region of page {page:#x} are miscounted")]
    Miscounted {
        /// The page.
        page: Hpa,
    },
}

impl Classify for RegionError {
    fn class(&self) -> Class {
        match self {
            Self::Seamcall(error) => error.class(),
            _ => Class::Caller,
        }
    }
}

/// Counts the users of each 2 MiB region from a first address on.
#[derive(Debug)]
pub struct PamtRegions<C, K = ()> {
    first: Hpa,
    counts: C,
    lock: K,
}

/// What came back from [`PamtRegions::hold`]: a pair that was given and not needed.
pub type UnusedPair = Option<[Frame; 2]>;

impl<C: AsRef<[AtomicU16]>, K: MachineLock> PamtRegions<C, K> {
    /// One count, at first 0, for each region from `first` on; `None` unless that is 2 MiB aligned.
    ///
    /// The storage (2 bytes for each 2 MiB) is an array, a slice, a vector: the caller's.
    #[must_use]
    pub fn new(first: Hpa, counts: C, lock: K) -> Option<Self> {
        first.is_aligned(Level::L2M).then_some(Self { first, counts, lock })
    }

    /// Users of the region of `page`; `None` outside the counted memory.
    #[must_use]
    pub fn users(&self, page: Hpa) -> Option<u16> {
        self.count(page).map(|count| count.load(Ordering::Relaxed))
    }

    /// Counts one more user of `page`'s region. Its first needs a `pair`; otherwise the pair comes back.
    ///
    /// # Errors
    ///
    /// Comes with the pair. [`RegionError::NeedsPair`] (call again with one), [`RegionError::Outside`],
    /// [`RegionError::Miscounted`], or the errors of [`phymem::pamt_add`]. `HPA_RANGE_NOT_FREE`: the region has a pair
    /// that was not counted here, or is mapped at 2 MiB.
    pub fn hold<T: Transport + ?Sized>(
        &self,
        t: &T,
        page: Hpa,
        pair: UnusedPair,
    ) -> Result<UnusedPair, Returned<RegionError, UnusedPair>> {
        let Some(count) = self.count(page) else {
            return Err(Returned { error: RegionError::Outside { page }, held: pair });
        };
        self.lock.locked(|| {
            let users = count.load(Ordering::Relaxed);
            let Some(more) = users.checked_add(1) else {
                return Err(Returned { error: RegionError::Miscounted { page }, held: pair });
            };
            let unused = match (users, pair) {
                (0, None) => return Err(Returned { error: RegionError::NeedsPair { page }, held: None }),
                (0, Some(pair)) => {
                    phymem::pamt_add(t, page.align_down(Level::L2M), pair)
                        .map_err(|back| Returned { error: back.error.into(), held: Some(back.held) })?;
                    None
                }
                (_, pair) => pair,
            };
            count.store(more, Ordering::Relaxed);
            Ok(unused)
        })
    }

    /// Counts one user of `page`'s region less. After the last, the region's pair comes back: addresses only, to be
    /// written back under the global key, overwritten, and made frames again by whoever keeps account of them.
    ///
    /// Must follow the call that took `page` from the module: a hint that the region is idle is not needed.
    ///
    /// # Errors
    ///
    /// Nothing was counted. [`RegionError::Outside`], [`RegionError::Miscounted`], or the errors of
    /// [`phymem::pamt_remove`]: `PAMT_PAGE_NOT_EMPTY` if a page of the region is still in use.
    pub fn release<T: Transport + ?Sized>(&self, t: &T, page: Hpa) -> Result<Option<[Hpa; 2]>, RegionError> {
        let count = self.count(page).ok_or(RegionError::Outside { page })?;
        self.lock.locked(|| {
            let users = count.load(Ordering::Relaxed);
            let fewer = users.checked_sub(1).ok_or(RegionError::Miscounted { page })?;
            let pair = match fewer {
                0 => Some(phymem::pamt_remove(t, page.align_down(Level::L2M))?),
                _ => None,
            };
            count.store(fewer, Ordering::Relaxed);
            Ok(pair)
        })
    }

    /// Takes the pair of `page`'s region away if nobody counts as its user; `None` if it had none.
    ///
    /// Two occasions: a removal says that the region has become idle ([`Removed::pair_idle`](crate::Removed)), and the
    /// region is about to be mapped at 2 MiB, which PAGE.AUG refuses while it has a pair. Not needed where every
    /// [`PamtRegions::release`] succeeded.
    ///
    /// # Errors
    ///
    /// Nothing changed. [`RegionError::Outside`], [`RegionError::InUse`], or the errors of [`phymem::pamt_remove`].
    pub fn vacate<T: Transport + ?Sized>(&self, t: &T, page: Hpa) -> Result<Option<[Hpa; 2]>, RegionError> {
        let count = self.count(page).ok_or(RegionError::Outside { page })?;
        self.lock.locked(|| {
            if count.load(Ordering::Relaxed) != 0 {
                return Err(RegionError::InUse { page });
            }
            match phymem::pamt_remove(t, page.align_down(Level::L2M)) {
                Ok(pair) => Ok(Some(pair)),
                Err(error) if error.status.is(Status::NO_PAMT_PAGE_PAIR) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn count(&self, page: Hpa) -> Option<&AtomicU16> {
        let offset = page.raw().checked_sub(self.first.raw())?;
        self.counts.as_ref().get(usize::try_from(offset >> Level::L2M.shift()).ok()?)
    }
}
