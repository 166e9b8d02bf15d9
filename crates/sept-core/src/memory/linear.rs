//! Tables in a linear map: every frame at its physical address plus an offset.

use super::{SideWord, TableMemory, Word};
use crate::{Frame, Hpa, Tainted};
use core::{
    fmt,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bytes beside each frame for its side words: one cache line.
const SIDE_BYTES_SHIFT: u32 = 6;
const FRAME_SHIFT: u32 = 12;
const _: () =
    assert!(SideWord::COUNT * 8 <= 1 << SIDE_BYTES_SHIFT, "the side words of a frame share a cache line");

/// What a [`LinearMap`] leaves to the host.
///
/// `()` is a host with one thread and no second memory key: no pin, and pages are overwritten with ordinary stores.
///
/// # Safety
///
/// [`LinearHost::clear`] really overwrites the bytes with zeroes. A host with TDX must bypass the cache
/// (`MOVDIR64B`): an ordinary store first reads the line under the wrong key.
#[expect(unsafe_code, reason = "a page that was not overwritten leaks a guest's data")]
pub unsafe trait LinearHost {
    /// A software walk under way; see [`TableMemory::Pin`].
    type Pin<'a>
    where
        Self: 'a;

    /// Begins a software walk.
    fn pin(&self) -> Self::Pin<'_>;

    /// Overwrites `bytes` bytes at `page` with zeroes.
    ///
    /// # Safety
    ///
    /// The bytes are mapped, writable, aligned to 4 KiB, and nobody else reads or writes them.
    unsafe fn clear(&self, page: NonNull<u8>, bytes: usize);
}

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: `clear` writes zeroes to every byte.
unsafe impl LinearHost for () {
    type Pin<'a> = ();

    #[inline]
    fn pin(&self) {}

    unsafe fn clear(&self, page: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller vouches for `bytes` writable bytes at `page` that nobody else uses.
        unsafe { page.write_bytes(0, bytes) };
    }
}

/// Table memory of a host that has all of it mapped at one offset (a kernel's direct map).
///
/// A parallel array holds one cache line of side words for each frame, so a frame costs 64 bytes more. Every access is
/// one addition and one load or store; there is no bounds check.
pub struct LinearMap<H: LinearHost = ()> {
    /// Where physical address 0 would be; arithmetic on it wraps and keeps the provenance of the window.
    tables: *mut u8,
    /// Where the side words of frame 0 would be.
    sides: *mut u8,
    host: H,
}

impl<H: LinearHost> LinearMap<H> {
    /// The window of frames whose first is `base` (aligned to 4 KiB) and mapped at `tables`, with their side words at
    /// `sides`, 64 bytes for each frame.
    ///
    /// # Safety
    ///
    /// * Every frame that reaches a table on this memory, as a table or to be scrubbed, lies in the window: it is mapped
    ///   writable at `tables` plus its distance from `base`, and has 64 bytes at `sides` plus a 64th of that distance.
    /// * Both stay mapped for as long as the value lives; `sides` is aligned to 64 bytes and reads 0 where nothing was
    ///   written yet.
    /// * Nobody else writes the side words, and nobody but an MMU writes frames that are tables.
    #[expect(unsafe_code, reason = "raw table memory")]
    pub const unsafe fn new(base: Hpa, tables: NonNull<u8>, sides: NonNull<u8>, host: H) -> Self {
        let base = to_usize(base.raw());
        Self {
            tables: tables.as_ptr().wrapping_sub(base),
            sides: sides.as_ptr().wrapping_sub(base >> (FRAME_SHIFT - SIDE_BYTES_SHIFT)),
            host,
        }
    }

    /// The host's part.
    pub const fn host(&self) -> &H {
        &self.host
    }

    #[inline]
    fn place(&self, table: Hpa, word: Word) -> *mut AtomicU64 {
        let frame = to_usize(table.raw());
        let (origin, offset) = match word {
            Word::Entry(index) => (self.tables, frame.wrapping_add(usize::from(index & 0x1ff) << 3)),
            Word::Side(side) => {
                (self.sides, (frame >> (FRAME_SHIFT - SIDE_BYTES_SHIFT)).wrapping_add(side.index() << 3))
            }
        };
        origin.wrapping_add(offset).cast()
    }

    #[inline]
    #[expect(unsafe_code, reason = "raw table memory")]
    fn word(&self, table: Hpa, word: Word) -> &AtomicU64 {
        let place = self.place(table, word);
        // SAFETY:
        // * `new`'s caller vouches that tables lie in the window, so `place` is mapped and writable while `self` lives;
        // * it is aligned: tables to 4 KiB, side words to 64 bytes, the index counts words of 8;
        // * every software access to it is atomic but those of `write_detached`, when the frame is owned.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }
}

/// Addresses of a window that is mapped fit.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "what is mapped is at most usize long")]
const fn to_usize(raw: u64) -> usize {
    raw as usize
}

#[expect(unsafe_code, reason = "raw table memory")]
// SAFETY: the pointers are used for atomic accesses, and for plain ones to frames that the calling thread owns.
unsafe impl<H: LinearHost + Send> Send for LinearMap<H> {}

#[expect(unsafe_code, reason = "raw table memory")]
// SAFETY: as for `Send`.
unsafe impl<H: LinearHost + Sync> Sync for LinearMap<H> {}

#[expect(unsafe_code, reason = "the trait's promises")]
// SAFETY:
// * each word is one atomic at a place of its own, side words begin as 0 by `new`'s contract;
// * places differ for different frames and words: entries fill the frame, side words the frame's cache line;
// * `scrub` overwrites by the contract of `LinearHost`.
unsafe impl<H: LinearHost> TableMemory for LinearMap<H> {
    type Pin<'a>
        = H::Pin<'a>
    where
        Self: 'a;

    #[inline]
    fn pin(&self) -> Self::Pin<'_> {
        self.host.pin()
    }

    #[inline]
    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.word(table, word).load(order)
    }

    #[inline]
    fn reader(&self) -> impl Fn(Hpa, u16) -> u64 {
        let tables = self.tables;
        move |table, index| {
            // The index does not wait for the level above, so it is added first.
            let place = tables.wrapping_add(usize::from(index & 0x1ff) << 3);
            let place: *mut u64 = place.wrapping_add(to_usize(table.raw())).cast();
            // SAFETY: as in `word`.
            let word = unsafe { AtomicU64::from_ptr(place) };
            word.load(Ordering::Acquire)
        }
    }

    #[inline]
    fn load_line(&self, table: Hpa, line: u16) -> [u64; 8] {
        let place: *mut [AtomicU64; 8] = self.place(table, Word::Entry((line & 63).wrapping_mul(8))).cast();
        // SAFETY: as in `word`, for the eight words of one line of the frame.
        let words = unsafe { &*place };
        words.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        self.word(table, word).store(value, order);
    }

    #[inline]
    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        self.word(table, word).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline]
    fn add(&self, table: Hpa, word: Word, value: u64) {
        self.word(table, word).fetch_add(value, Ordering::AcqRel);
    }

    #[inline]
    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        for index in 0..512 {
            let place: *mut u64 = self.place(table.hpa(), Word::Entry(index)).cast();
            // SAFETY: the place is valid as in `word`, and the frame is owned: nobody else reads or writes it.
            unsafe { place.write(entry(index)) };
        }
        for side in SideWord::ALL {
            self.store(table.hpa(), Word::Side(side), 0, Ordering::Relaxed);
        }
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        let place = self.place(page.hpa(), Word::Entry(0)).cast();
        // SAFETY: `new`'s caller vouches that what is scrubbed lies in the window, and nothing that is mapped in it is null.
        let place = unsafe { NonNull::new_unchecked(place) };
        // SAFETY:
        // * the window is mapped and writable, and frames are aligned to 4 KiB in it;
        // * the frame is owned: nobody else reads or writes it.
        unsafe { self.host.clear(place, to_usize(page.level().size())) };
        Frame::from_ledger(page.hpa(), page.level())
    }
}

impl<H: LinearHost> fmt::Debug for LinearMap<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinearMap({:p})", self.tables)
    }
}
