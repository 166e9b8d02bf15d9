//! x86-64 paging: our table is the CPU's own.
//!
//! The program goes on under a table that maps the machine's memory to itself, so that its code and stack stay where
//! they are. The walker is then nothing but this CPU.

use super::{
    check,
    translations::{self, Mmu},
};
use crate::{
    cpu::fault,
    guest::{Fault, Walker},
    memory,
    space::{Space, Tables, with_space},
};
use core::{cell::Cell, sync::atomic::Ordering};
use sept_core::{Frame, Gpa, GpaEntry, GpaRange, Hpa, Level, Scope, Shootdown, X86, X86Config};
use x86_64::{PhysAddr, instructions::tlb, registers::control::Cr3, structures::paging::PhysFrame};

/// Error codes: bit 0 the page is present, bit 1 it was a write.
const PAGING: Mmu = Mmu {
    name: "paging",
    accessed: 1 << 5,
    dirty: 1 << 6,
    read_of_hole: 0,
    write_to_hole: 1 << 1,
    write_denied: 1 << 1 | 1 << 0,
};

/// The addresses under test begin here.
const BASE: u64 = (512 << 30) + (6 << 20);

/// What is mapped to itself, in one page: all that the program uses.
const IDENTITY: GpaEntry = GpaEntry::containing(Gpa::truncate(0), Level::L1G);

/// The shootdown of a table that only this CPU uses.
#[derive(Debug, Default)]
struct FlushHere {
    careless: Cell<bool>,
}

impl FlushHere {
    /// As [`Kick::carelessly`](crate::kick::Kick::carelessly).
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn carelessly<R>(&self, body: impl FnOnce() -> R) -> R {
        self.careless.set(true);
        let result = body();
        self.careless.set(false);
        result
    }
}

// SAFETY:
// * when `start` returns, the only CPU that uses the table has dropped its translations;
// * it walks no table in software meanwhile;
// * who makes it careless answers for what follows.
unsafe impl Shootdown for FlushHere {
    type Ticket = ();

    fn start(&self) {
        if !self.careless.get() {
            tlb::flush_all();
        }
    }

    fn done(&self, (): ()) -> bool {
        true
    }
}

/// This CPU, at `BASE` and above.
struct ThisCpu;

impl Walker for ThisCpu {
    fn read(&mut self, at: u64) -> Result<u32, Fault> {
        assert!(at >= BASE);
        // SAFETY: from `BASE` on only guest memory is mapped.
        unsafe { fault::read(at) }
    }

    fn write(&mut self, at: u64, value: u32) -> Result<(), Fault> {
        assert!(at >= BASE);
        // SAFETY: from `BASE` on only guest memory is mapped, which Rust knows as atomics.
        unsafe { fault::write(at, value) }
    }
}

/// Checks x86-64 paging.
pub fn run(tables: &mut Tables) {
    let shootdown = FlushHere::default();
    with_space(tables, X86Config::SUPERVISOR_4, shootdown, |space: &mut Space<'_, X86, FlushHere>| {
        // SAFETY: this frame stands for the program's own memory. It stays in the table until both are forgotten.
        let memory = unsafe { Frame::assume_owned(Hpa::truncate(0), Level::L1G) };
        space.map(IDENTITY.range(), memory.expect("aligned").into(), Level::L1G);
        let table = PhysFrame::containing_address(PhysAddr::new(space.table().root().raw()));
        let (before, flags) = Cr3::read();
        check(PAGING.name, "the CPU goes on under our table", || {
            // SAFETY: the table maps all that the program uses to itself, and only one CPU uses it.
            unsafe { Cr3::write(table, flags) };
        });
        under_its_feet(space);
        translations::run(&PAGING, space, &mut ThisCpu, BASE);
        exchanged(space);
        // SAFETY: the table that the program came from.
        unsafe { Cr3::write(before, flags) };
    });
}

/// The page that holds the running code, its stack and the tables is split until each of them is in a page of 4 KiB, and
/// merged again.
fn under_its_feet(space: &Space<'_, X86, FlushHere>) {
    let tables = space.tables();
    let local = 0;
    let places = [run as *const () as usize, (&raw const local).addr(), space.table().root().raw() as usize];
    check(PAGING.name, "the page of the running code, stack and tables is split and merged", || {
        for place in places {
            let at = |level| GpaEntry::containing(Gpa::truncate(place as u64), level);
            space.split(at(Level::L4K).range(), Scope::Ends);
            space.fence();
            assert_eq!(space.tables(), tables + 2);
            space.merge(at(Level::L2M));
            space.merge(at(Level::L1G));
            assert_eq!(space.tables(), tables);
        }
    });
}

/// A missing flush shows, and a flush makes up for it.
fn exchanged(space: &Space<'_, X86, FlushHere>) {
    const PAGES: usize = 64;
    /// What each page of the machine's begins with.
    fn label(page: usize) -> u32 {
        0xe3_0000 | page as u32
    }
    check(PAGING.name, "exchanged pages are read as before without a flush, as they are with one", || {
        let range = GpaRange::new(Gpa::truncate(BASE), PAGES as u64 * Level::L4K.size()).expect("pages");
        let read = |index: usize| ThisCpu.read(BASE + 4096 * index as u64).expect("a page");
        for page in 0..2 * PAGES {
            memory::word(memory::page(page), 0).store(label(page), Ordering::Relaxed);
        }
        space.map(range, memory::lend(0, PAGES), Level::L4K);
        assert!((0..PAGES).all(|index| read(index) == label(index)));
        let mut removed = [const { None }; PAGES];
        let exchange = || {
            let mut slots = removed.iter_mut();
            space.unmap(range, |page| *slots.next().expect("a slot") = Some(page));
            space.map(range, memory::lend(PAGES, PAGES), Level::L4K);
        };
        // SAFETY: the old pages wait in `removed` until a flush.
        unsafe { space.table().external().shootdown().carelessly(exchange) };
        // The program's own pages may have driven some out of the TLB.
        let is_stale = |index: &usize| {
            let value = read(*index);
            assert!([*index, PAGES + index].map(label).contains(&value), "page {index} reads {value:#x}");
            value == label(*index)
        };
        assert_ne!((0..PAGES).filter(is_stale).count(), 0, "nothing was cached: nothing was tested");
        space.fence();
        assert!((0..PAGES).all(|index| read(index) == label(PAGES + index)));
        removed.into_iter().flatten().for_each(memory::take_back);
        space.unmap(range, memory::take_back);
        space.trim(range);
    });
}
