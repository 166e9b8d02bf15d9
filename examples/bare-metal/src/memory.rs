//! The memory of the machine: frames for tables, and pages to give to guests.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use sept_core::{Frame, FrameState, Frames, Hpa, Level};

const BLOCKS: usize = 4;
const PAGES_PER_BLOCK: usize = 512;
const WORDS_PER_PAGE: usize = 1024;

/// Memory for guests: four blocks of 2 MiB, in words that anyone may read and write, as guests do.
static BYTES: Bytes =
    Bytes([const { [const { AtomicU32::new(0) }; WORDS_PER_PAGE] }; BLOCKS * PAGES_PER_BLOCK]);

#[repr(align(0x20_0000))]
struct Bytes([[AtomicU32; WORDS_PER_PAGE]; BLOCKS * PAGES_PER_BLOCK]);

/// Who has which page: set while a [`Frame`] of it is out.
static LENT: [AtomicBool; BLOCKS * PAGES_PER_BLOCK] =
    [const { AtomicBool::new(false) }; BLOCKS * PAGES_PER_BLOCK];

/// Address of page `index`, 0 to 2047. Every 512th begins a block.
pub fn page(index: usize) -> Hpa {
    Hpa::truncate((&raw const BYTES.0[index]).addr() as u64)
}

/// Word `index` (0 to 1023) of the page at `page`.
pub fn word(page: Hpa, index: usize) -> &'static AtomicU32 {
    &BYTES.0[number(page)][index]
}

fn number(at: Hpa) -> usize {
    (at.raw() as usize - (&raw const BYTES).addr()) / size_of_val(&BYTES.0[0])
}

fn pages_of(hpa: Hpa, level: Level) -> core::ops::Range<usize> {
    let first = number(hpa);
    first..first + level.pages() as usize
}

/// Gives out `count` pages from page `first` on.
pub fn lend(first: usize, count: usize) -> Frames {
    for (page, lent) in LENT.iter().enumerate().skip(first).take(count) {
        assert!(!lent.swap(true, Ordering::AcqRel), "page {page} is lent already");
    }
    // SAFETY:
    // * the ledger says that no frame covers any of the pages; what Rust knows of them are atomics;
    // * nothing here encrypts memory.
    unsafe { Frames::assume_owned(page(first), count as u64) }.expect("pages are aligned")
}

/// Takes a page back, whatever is in it: all memory here has the one key there is.
pub fn take_back<S: FrameState>(frame: Frame<S>) {
    for page in pages_of(frame.hpa(), frame.level()) {
        assert!(LENT[page].swap(false, Ordering::AcqRel), "page {page} was not lent");
    }
}

/// Overwrites the page of `level` at `hpa` with zeroes.
pub fn clear(hpa: Hpa, level: Level) {
    for page in pages_of(hpa, level) {
        for word in &BYTES.0[page] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Pages that are out.
pub fn lent() -> usize {
    LENT.iter().filter(|lent| lent.load(Ordering::Acquire)).count()
}
