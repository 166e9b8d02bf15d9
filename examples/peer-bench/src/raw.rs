//! The floors: what the memory and a walk cost when nothing else is done.
//!
//! Plain loops over words in the format of x86-64. A merge reads words that an MMU and other CPUs may write, so each is read
//! by itself, atomically; all else is plain memory. Single calls walk from the root and look at what they replace,
//! since no table can do without; ranges go through table by table and look at nothing.

use crate::{
    arena,
    contender::{BLOCKS, Contender, K4, M2, Mapped, PA, REGION, VA, pages, target, timed},
};
use std::{
    array,
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const PRESENT: u64 = 1;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A tree of tables.
#[derive(Debug)]
pub(crate) struct Raw {
    root: u64,
}

type Table = &'static mut [u64; 512];

/// The entries of a table.
#[inline]
fn table(entry: u64) -> Table {
    #[expect(unsafe_code, reason = "table memory")]
    // SAFETY: entries with `PRESENT` and without `HUGE` hold addresses that `take` gave out, whose frames are mapped
    // for good and used by this tree alone; each reference is used up before the next one to the same table is made.
    unsafe {
        &mut *arena::pointer(entry & ADDRESS)
    }
}

/// The entries of a table that others read and write too: each is read once, and not together with its neighbours.
#[inline]
fn shared(entry: u64) -> &'static [AtomicU64; 512] {
    #[expect(unsafe_code, reason = "table memory")]
    // SAFETY: as in `table`, and `AtomicU64` has the layout of `u64`.
    unsafe {
        &*arena::pointer(entry & ADDRESS)
    }
}

#[inline]
const fn index(va: u64, shift: u32) -> usize {
    (va >> shift & 511) as usize
}

fn take() -> u64 {
    arena::take().expect("a free frame")
}

/// A table that holds nothing, and the entry for it.
#[cold]
fn empty() -> (u64, Table) {
    let entry = take() | PRESENT;
    let entries = table(entry);
    entries.fill(0);
    (entry, entries)
}

/// The table behind an entry, which is made if it is missing.
#[inline]
fn descend(entry: &mut u64) -> Table {
    if *entry & PRESENT != 0 {
        return table(*entry);
    }
    let (made, entries) = empty();
    *entry = made;
    entries
}

/// Writes the 512 leaves that begin with `first`.
#[inline]
fn write(entries: &mut [u64; 512], first: u64) {
    for (entry, page) in entries.iter_mut().zip(0..) {
        *entry = first + page * K4;
    }
}

impl Raw {
    fn directory(&mut self) -> Table {
        let pointers = descend(&mut table(self.root)[index(VA, 39)]);
        descend(&mut pointers[index(VA, 30)])
    }

    #[inline]
    fn map_2m_page(&mut self, va: u64) {
        let pointers = descend(&mut table(self.root)[index(va, 39)]);
        let directory = descend(&mut pointers[index(va, 30)]);
        let entry = &mut directory[index(va, 21)];
        assert_eq!(*entry, 0);
        *entry = target(va) | PRESENT | HUGE;
    }

    #[inline]
    fn map_4k_page(&mut self, va: u64) {
        let pointers = descend(&mut table(self.root)[index(va, 39)]);
        let directory = descend(&mut pointers[index(va, 30)]);
        let entries = descend(&mut directory[index(va, 21)]);
        let entry = &mut entries[index(va, 12)];
        assert_eq!(*entry, 0);
        *entry = target(va) | PRESENT;
    }

    /// Where `va` leads: each entry is looked at, and each size is possible.
    #[inline]
    fn walk(&self, va: u64) -> Option<(u64, u64)> {
        let entry = table(self.root)[index(va, 39)];
        if entry & PRESENT == 0 {
            return None;
        }
        let entry = table(entry)[index(va, 30)];
        if entry & (PRESENT | HUGE) != PRESENT {
            return leaf(entry, va, REGION);
        }
        let entry = table(entry)[index(va, 21)];
        if entry & (PRESENT | HUGE) != PRESENT {
            return leaf(entry, va, M2);
        }
        let entry = table(entry)[index(va, 12)];
        if entry & PRESENT == 0 { None } else { Some((entry & ADDRESS | va & (K4 - 1), K4)) }
    }

    #[inline]
    fn unmap(&mut self, va: u64) -> u64 {
        let pointers = table(table(self.root)[index(va, 39)]);
        let entry = pointers[index(va, 30)];
        assert_ne!(entry & PRESENT, 0);
        let entry = table(entry)[index(va, 21)];
        assert_eq!(entry & (PRESENT | HUGE), PRESENT);
        let entry = &mut table(entry)[index(va, 12)];
        assert_ne!(*entry, 0);
        std::mem::take(entry)
    }
}

#[cold]
fn leaf(entry: u64, va: u64, size: u64) -> Option<(u64, u64)> {
    (entry & PRESENT != 0).then_some((entry & ADDRESS & !(size - 1) | va & (size - 1), size))
}

impl Contender for Raw {
    const NAME: &'static str = "floor";

    fn new() -> Self {
        Self { root: empty().0 }
    }

    fn fill(&mut self, with: Mapped) {
        let _ = match with {
            Mapped::Nothing => None,
            Mapped::With4k => self.map_4k_range(),
            Mapped::With2m => self.map_2m(),
        };
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        self.walk(va)
    }

    fn dispose(self) {
        free(self.root, 4);
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        Some(timed(|| {
            addresses.iter().fold(0, |sum: u64, &va| match self.walk(va) {
                Some((pa, _)) => sum.wrapping_add(pa),
                None => sum,
            })
        }))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        Some(timed(|| pages(K4).for_each(|va| self.map_4k_page(va))).0)
    }

    fn map_4k_range(&mut self) -> Option<Duration> {
        let directory = self.directory();
        Some(
            timed(|| {
                for (entry, va) in directory.iter_mut().zip(pages(M2)) {
                    let made = take() | PRESENT;
                    write(table(made), target(va) | PRESENT);
                    *entry = made;
                }
            })
            .0,
        )
    }

    fn map_2m(&mut self) -> Option<Duration> {
        Some(timed(|| pages(M2).for_each(|va| self.map_2m_page(va))).0)
    }

    fn split_commit(&mut self) -> Option<Duration> {
        let reserved: [u64; BLOCKS as usize] = array::from_fn(|_| take() | PRESENT);
        let directory = self.directory();
        Some(
            timed(|| {
                for (entry, &made) in directory.iter_mut().zip(black_box(&reserved)) {
                    write(table(made), *entry & !HUGE);
                    *entry = made;
                }
            })
            .0,
        )
    }

    fn split_all(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                for va in pages(M2) {
                    let pointers = table(table(self.root)[index(va, 39)]);
                    let entry = &mut table(pointers[index(va, 30)])[index(va, 21)];
                    assert_ne!(*entry & HUGE, 0);
                    let made = take() | PRESENT;
                    write(table(made), *entry & !HUGE);
                    *entry = made;
                }
            })
            .0,
        )
    }

    fn merge(&mut self) -> Option<Duration> {
        let directory = self.directory();
        Some(
            timed(|| {
                for entry in directory.iter_mut() {
                    let entries = shared(*entry);
                    let first = entries[0].load(Relaxed);
                    let mut want = first;
                    let mut odd = first & (M2 - 1) & ADDRESS;
                    for entry in entries {
                        odd |= entry.load(Relaxed) ^ want;
                        want += K4;
                    }
                    assert_eq!(odd, 0);
                    arena::give(*entry & ADDRESS);
                    *entry = first | HUGE;
                }
            })
            .0,
        )
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        Some(
            timed(|| {
                let mut all = 0;
                for va in pages(K4) {
                    all ^= self.unmap(va);
                    if index(va, 12) == 511 {
                        let pointers = table(table(self.root)[index(va, 39)]);
                        let entry = &mut table(pointers[index(va, 30)])[index(va, 21)];
                        arena::give(std::mem::take(entry) & ADDRESS);
                    }
                }
                all
            })
            .0,
        )
    }

    fn unmap_range(&mut self) -> Option<Duration> {
        let directory = self.directory();
        Some(
            timed(|| {
                for entry in directory.iter_mut() {
                    table(*entry).fill(0);
                    black_box(table(*entry));
                    arena::give(std::mem::take(entry) & ADDRESS);
                }
            })
            .0,
        )
    }

    fn remove_1g(&mut self) -> Option<Duration> {
        let pointers = table(table(self.root)[index(VA, 39)]);
        Some(
            timed(|| {
                let entry = std::mem::take(&mut pointers[index(VA, 30)]);
                for entry in table(entry).iter() {
                    if entry & (PRESENT | HUGE) == PRESENT {
                        arena::give(entry & ADDRESS);
                    }
                }
                arena::give(entry & ADDRESS);
            })
            .0,
        )
    }
}

/// Gives a tree's frames back; `levels` counts those of the tree.
fn free(entry: u64, levels: u32) {
    if levels > 1 {
        for &entry in table(entry).iter().filter(|&entry| entry & (PRESENT | HUGE) == PRESENT) {
            free(entry, levels - 1);
        }
    }
    arena::give(entry & ADDRESS);
}

const _: () = assert!(PA.is_multiple_of(REGION) && VA.is_multiple_of(REGION));
