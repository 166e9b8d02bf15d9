//! Contiguous memory on its way into a table.

use super::{Frame, Free};
use crate::{ADDRESS_BITS, Hpa, Level};
use core::fmt;

/// Owned contiguous 4 KiB pages, any number of them.
///
/// Move-only, and like a [`Frame`] leaked when dropped. [`Frames::take`] cuts frames off its front.
///
/// ```
/// use sept_core::{Frames, Hpa, Level};
/// // SAFETY: nothing else uses the memory of this example.
/// let mut run = unsafe { Frames::assume_owned(Hpa::new(0x1f_f000).unwrap(), 513) }.unwrap();
/// assert_eq!(run.take(Level::L2M).map(|_| ()), None); // not aligned
/// assert_eq!(run.take(Level::L4K).unwrap().hpa().raw(), 0x1f_f000);
/// assert_eq!(run.take(Level::L2M).unwrap().hpa().raw(), 0x20_0000);
/// assert!(run.is_empty());
/// ```
#[must_use = "dropping frames leaks their memory"]
#[derive(PartialEq, Eq)]
pub struct Frames {
    base: u64,
    pages: u64,
}

impl Frames {
    /// No page, at `hpa`.
    pub const fn none(hpa: Hpa) -> Self {
        Self { base: hpa.raw(), pages: 0 }
    }

    /// Makes the owner of `pages` pages from `hpa`; `None` if `hpa` is not aligned to 4 KiB or the end is above 2^52.
    ///
    /// # Safety
    ///
    /// As for [`Frame::assume_owned`]: nobody else owns, reads or writes any of it, and its caches are clean.
    #[must_use]
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    pub const unsafe fn assume_owned(hpa: Hpa, pages: u64) -> Option<Self> {
        let room = (1_u64 << ADDRESS_BITS).wrapping_sub(hpa.raw()) >> Level::L4K.shift();
        if hpa.is_aligned(Level::L4K) && pages <= room { Some(Self { base: hpa.raw(), pages }) } else { None }
    }

    /// Mints inside this crate, where entries gave up the pages.
    pub(crate) const fn from_ledger(hpa: Hpa, pages: u64) -> Self {
        Self { base: hpa.raw(), pages }
    }

    /// Physical address of the first page.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        Hpa::truncate(self.base)
    }

    /// Pages left.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.pages
    }

    /// Whether no page is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The frame of `level` at the front; `None` if the front is not aligned to it or fewer pages are left.
    pub const fn take(&mut self, level: Level) -> Option<Frame<Free>> {
        let hpa = self.hpa();
        let Some(rest) = self.pages.checked_sub(level.pages()) else { return None };
        if !hpa.is_aligned(level) {
            return None;
        }
        self.pages = rest;
        // At most 2^52: the run ends there.
        self.base = self.base.wrapping_add(level.size());
        Some(Frame::from_ledger(hpa, level))
    }

    /// Puts a frame back that was the last to be taken.
    ///
    /// # Errors
    ///
    /// It does not end where the run begins; it comes back.
    pub fn put_back(&mut self, frame: Frame) -> Result<(), Frame> {
        if frame.hpa().raw().wrapping_add(frame.level().size()) != self.base {
            return Err(frame);
        }
        self.base = frame.hpa().raw();
        self.pages = self.pages.saturating_add(frame.level().pages());
        Ok(())
    }

    /// The first `pages` pages as a run of their own, or all there are.
    pub const fn take_run(&mut self, pages: u64) -> Self {
        let pages = if pages < self.pages { pages } else { self.pages };
        let front = Self { base: self.base, pages };
        self.pages = self.pages.saturating_sub(pages);
        self.base = self.base.wrapping_add(pages << Level::L4K.shift());
        front
    }
}

impl From<Frame> for Frames {
    fn from(frame: Frame) -> Self {
        Self { base: frame.hpa().raw(), pages: frame.level().pages() }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frames({:#x}, {} pages)", self.base, self.pages)
    }
}
