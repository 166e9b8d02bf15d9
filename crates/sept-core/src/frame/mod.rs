//! Owned page frames, what they are needed for, and where they come from.
//!
//! A [`Frame`] is a move-only claim on physical memory that nobody else can reach: no walker, no guest, no cache.
//! What something may still reach is never a `Frame`: a blocked page stays named in its entry, an unlinked table
//! stays chained through its side words. Dropping a `Frame` leaks the memory; it never frees it.

mod needs;
mod run;
mod source;
mod store;

pub use needs::{FrameKind, FrameNeeds};
pub use run::Frames;
pub use source::{FrameSource, FrameStore, Short};
pub use store::{FrameList, SliceStore};

use crate::{Hpa, Level};
use core::{fmt, marker::PhantomData};

mod sealed {
    pub trait Sealed {}
}

/// What is known about a frame's contents. Sealed.
pub trait FrameState: sealed::Sealed {}

/// Ordinary host memory: clean caches, any content.
#[derive(Debug)]
#[non_exhaustive]
pub struct Free;

/// Written under another memory encryption key: write back and overwrite before the host uses it.
///
/// ```compile_fail,E0277
/// use sept_core::{Frame, Frames, Tainted};
/// fn map_again(page: Frame<Tainted>) -> Frames {
///     Frames::from(page) // not before it was reclaimed
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Tainted;

impl sealed::Sealed for Free {}
impl sealed::Sealed for Tainted {}
impl FrameState for Free {}
impl FrameState for Tainted {}

/// An owned, naturally aligned page frame of one level's size.
///
/// ```compile_fail,E0382
/// fn twice(f: sept_core::Frame) -> (sept_core::Frame, sept_core::Frame) {
///     (f, f) // a frame moves: it cannot be given away twice
/// }
/// ```
#[must_use = "dropping a frame leaks its memory"]
pub struct Frame<S: FrameState = Free> {
    hpa: Hpa,
    level: Level,
    state: PhantomData<fn() -> S>,
}

impl<S: FrameState> Frame<S> {
    /// Makes the owner of `level.size()` bytes at `hpa`; `None` if `hpa` is not aligned to `level`.
    ///
    /// # Safety
    ///
    /// * No other `Frame` covers any part of that memory, and nothing else reads or writes it while this one lives.
    /// * The memory is in the state `S` promises.
    #[must_use]
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    pub const unsafe fn assume_owned(hpa: Hpa, level: Level) -> Option<Self> {
        if hpa.is_aligned(level) { Some(Self { hpa, level, state: PhantomData }) } else { None }
    }

    /// Mints inside this crate, at the places where a ledger (an entry or a side word) gave up the address.
    pub(crate) const fn from_ledger(hpa: Hpa, level: Level) -> Self {
        Self { hpa: hpa.align_down(level), level, state: PhantomData }
    }

    /// Physical address of the first byte.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Size of the frame.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl<S: FrameState> Frame<S> {
    /// The 512 frames of the next lower level that it is made of, in address order; none of a 4 KiB frame, which is
    /// then lost.
    ///
    /// ```
    /// use sept_core::{Hpa, Level, test_util::RamLedger};
    /// let ram = RamLedger::new(Hpa::new(0).unwrap(), 512);
    /// let parts = ram.lend(Hpa::new(0).unwrap(), Level::L2M).unwrap().into_parts();
    /// assert_eq!(parts.map(|part| ram.take_back(part).unwrap()).count(), 512);
    /// ```
    pub fn into_parts(self) -> impl Iterator<Item = Self> {
        let child = self.level.child();
        let base = self.hpa.raw();
        (0..512_u64).filter_map(move |index| {
            let level = child?;
            // The frame is aligned to its level, so the index falls into clear bits.
            Some(Self::from_ledger(Hpa::truncate(base | index << level.shift()), level))
        })
    }
}

impl Frame<Free> {
    /// Marks the frame as written under another key.
    pub const fn taint(self) -> Frame<Tainted> {
        Frame { hpa: self.hpa, level: self.level, state: PhantomData }
    }
}

impl Frame<Tainted> {
    /// Declares the frame clean again.
    ///
    /// # Safety
    ///
    /// Its cache lines were written back under the key that wrote them, and the whole frame was overwritten by the
    /// host since.
    #[expect(unsafe_code, reason = "the type promises clean caches")]
    pub const unsafe fn assume_scrubbed(self) -> Frame<Free> {
        Frame { hpa: self.hpa, level: self.level, state: PhantomData }
    }
}

impl<S: FrameState> fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x}/{})", self.hpa, self.level)
    }
}
