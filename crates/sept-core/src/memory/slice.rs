//! Tables in a borrowed slice of frames.

use super::{SideWord, TableMemory, Word};
use crate::{Frame, Frames, Hpa, Level, Tainted};
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// One 4 KiB frame of 512 entries, aligned as an MMU wants it.
#[repr(C, align(4096))]
pub struct TableFrame([AtomicU64; 512]);

/// The side words of one frame, one cache line.
#[repr(C, align(64))]
pub struct SideWords([AtomicU64; SideWord::COUNT]);

impl TableFrame {
    /// A frame of zeroes.
    #[expect(clippy::declare_interior_mutable_const, reason = "a value to copy into arrays")]
    pub const ZERO: Self = Self([const { AtomicU64::new(0) }; 512]);
}

impl SideWords {
    /// Side words of a frame that was never used.
    #[expect(clippy::declare_interior_mutable_const, reason = "a value to copy into arrays")]
    pub const ZERO: Self = Self([const { AtomicU64::new(0) }; SideWord::COUNT]);
}

impl fmt::Debug for TableFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TableFrame")
    }
}

impl fmt::Debug for SideWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|word| word.load(Ordering::Relaxed))).finish()
    }
}

/// Table memory in frames that the program brings: a static, a boot-time reservation, a `Vec` in a test.
///
/// Every access to a word is bounds-checked: a table that is not of the slice reads as free and swallows writes. It has
/// no pins: software walks must be over when the host's shootdown says so, as they are with one thread.
///
/// ```
/// use sept_core::{FrameSlice, Hpa, Level, SideWords, TableFrame};
/// let mut frames = [TableFrame::ZERO; 8];
/// let mut sides = [SideWords::ZERO; 8];
/// // On bare metal: the physical address of `frames`.
/// let base = Hpa::new(0x10_0000).unwrap();
/// // SAFETY: no MMU walks these, the frames end with this function, and no page outside is ever handed in.
/// let (memory, mut pool) =
///     unsafe { FrameSlice::new(base, &mut frames, &mut sides, |_, _| unreachable!()) }.unwrap();
/// assert_eq!(pool.count(), 8);
/// let root = pool.take(Level::L4K).unwrap(); // for `SecurePageTable::new(config, memory, external, root)`
/// assert_eq!(root.hpa(), base);
/// # let _ = memory;
/// ```
pub struct FrameSlice<'a> {
    base: Hpa,
    frames: &'a [TableFrame],
    sides: &'a [SideWords],
    clear: fn(Hpa, Level),
}

impl<'a> FrameSlice<'a> {
    /// The memory and the ownership of its frames. `base` is the physical address of `frames`; `clear` overwrites the
    /// page at an address that is not of the slice (a guest's page that comes back, see [`TableMemory::scrub`]).
    ///
    /// `None` if `base` is not aligned to 4 KiB, if the frames would reach beyond 2^52, or if there are fewer side words
    /// than frames.
    ///
    /// # Safety
    ///
    /// * `base` is where an MMU finds the frames, if one walks them.
    /// * No frame is used any more, by software or an MMU, when the borrow `'a` has ended.
    /// * `clear` overwrites the whole page with ordinary host data.
    #[must_use]
    #[expect(unsafe_code, reason = "frames are minted from a borrow that their type does not name")]
    pub unsafe fn new(
        base: Hpa,
        frames: &'a mut [TableFrame],
        sides: &'a mut [SideWords],
        clear: fn(Hpa, Level),
    ) -> Option<(Self, Frames)> {
        let (frames, sides): (&[TableFrame], &[SideWords]) = (frames, sides);
        if sides.len() < frames.len() {
            return None;
        }
        for word in sides.iter().flat_map(|side| &side.0) {
            word.store(0, Ordering::Relaxed);
        }
        let count = u64::try_from(frames.len()).ok()?;
        // SAFETY: the borrow is exclusive, and the caller vouches that the frames do not outlive it. Their content is
        // ordinary host memory.
        let owned = unsafe { Frames::assume_owned(base, count) }?;
        Some((Self { base, frames, sides, clear }, owned))
    }

    #[inline]
    fn word(&self, table: Hpa, word: Word) -> Option<&AtomicU64> {
        let frame = usize::try_from(table.raw().wrapping_sub(self.base.raw()) >> Level::L4K.shift()).ok()?;
        match word {
            Word::Entry(index) => self.frames.get(frame)?.0.get(usize::from(index)),
            Word::Side(side) => self.sides.get(frame)?.0.get(side.index()),
        }
    }
}

#[expect(unsafe_code, reason = "the trait's promises")]
// SAFETY:
// * each word of a frame of the slice is an atomic of its own; side words begin as 0;
// * different words and frames are different elements;
// * `scrub` stores to every word of a frame of the slice, and `clear` does the rest by `new`'s contract.
unsafe impl TableMemory for FrameSlice<'_> {
    type Pin<'a>
        = ()
    where
        Self: 'a;

    #[inline]
    fn pin(&self) {}

    #[inline]
    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.word(table, word).map_or(0, |word| word.load(order))
    }

    #[inline]
    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        if let Some(word) = self.word(table, word) {
            word.store(value, order);
        }
    }

    #[inline]
    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        let Some(word) = self.word(table, word) else { return Err(0) };
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline]
    fn add(&self, table: Hpa, word: Word, value: u64) {
        if let Some(word) = self.word(table, word) {
            word.fetch_add(value, Ordering::AcqRel);
        }
    }

    #[inline]
    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        for index in 0..512 {
            self.store(table.hpa(), Word::Entry(index), entry(index), Ordering::Relaxed);
        }
        for side in SideWord::ALL {
            self.store(table.hpa(), Word::Side(side), 0, Ordering::Relaxed);
        }
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        if page.level() == Level::L4K && self.word(page.hpa(), Word::Entry(0)).is_some() {
            for index in 0..512 {
                self.store(page.hpa(), Word::Entry(index), 0, Ordering::Relaxed);
            }
        } else {
            (self.clear)(page.hpa(), page.level());
        }
        Frame::from_ledger(page.hpa(), page.level())
    }
}

impl fmt::Debug for FrameSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameSlice({:#x}, {} frames)", self.base, self.frames.len())
    }
}
