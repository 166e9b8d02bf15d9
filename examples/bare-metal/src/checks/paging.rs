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
use sept_core::{Frame, Gpa, GpaEntry, Hpa, Level, Shootdown, X86, X86Config};
use x86_64::{PhysAddr, VirtAddr, instructions::tlb, registers::control::Cr3, structures::paging::PhysFrame};

/// Error codes: bit 0 the page is present, bit 1 it was a write.
const PAGING: Mmu = Mmu {
    name: "paging",
    accessed: 1 << 5,
    dirty: 1 << 6,
    read_of_hole: 0,
    write_to_hole: 1 << 1,
    write_denied: 1 << 1 | 1 << 0,
};

/// The address under test. Bits 22:12 differ from those of the program's own pages, which could drive it out of a
/// small TLB.
const BASE: u64 = (512 << 30) + (6 << 20);

/// Memory that is mapped to itself, in leaves of 2 MiB: all that the program uses.
const IDENTITY: u64 = 64 << 20;

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
    with_space(
        tables,
        X86Config::SUPERVISOR_4,
        FlushHere::default(),
        |space: &mut Space<'_, X86, FlushHere>| {
            for base in (0..IDENTITY).step_by(2 << 20) {
                let at = GpaEntry::containing(Gpa::truncate(base), Level::L2M);
                // SAFETY: the frame stands for the program's own memory. It stays in the table until both are forgotten.
                let frame = unsafe { Frame::assume_owned(Hpa::truncate(base), Level::L2M) };
                space.map(at, frame.expect("an aligned page"));
            }
            let table = PhysFrame::containing_address(PhysAddr::new(space.table().root().raw()));
            let (before, flags) = Cr3::read();
            check(PAGING.name, "the CPU goes on under our table", || {
                // SAFETY: the table maps all that the program uses to itself, and only one CPU uses it.
                unsafe { Cr3::write(table, flags) };
            });
            under_its_feet(space);
            translations::run(&PAGING, space, &mut ThisCpu, BASE);
            stale(space);
            // SAFETY: the table that the program came from.
            unsafe { Cr3::write(before, flags) };
        },
    );
}

/// The pages that hold the running code, its stack and the tables themselves are split and merged.
fn under_its_feet(space: &Space<'_, X86, FlushHere>) {
    let tables = space.tables();
    let here = |address: usize| GpaEntry::containing(Gpa::truncate(address as u64), Level::L2M);
    let local = 0;
    let places = [run as *const () as usize, (&raw const local).addr(), space.table().root().raw() as usize];
    check(PAGING.name, "the leaf of the running code, stack and tables is split and merged", || {
        for at in places.map(here) {
            space.split(at);
            assert_eq!(space.tables(), tables + 1);
            space.merge(at);
            assert_eq!(space.tables(), tables);
        }
    });
}

/// A missing flush shows, and a flush makes up for it.
fn stale(space: &Space<'_, X86, FlushHere>) {
    let at = GpaEntry::containing(Gpa::truncate(BASE), Level::L4K);
    let (old, new) = (memory::page(0), memory::page(1));
    memory::word(old, 0).store(0x01d, Ordering::Relaxed);
    memory::word(new, 0).store(0x0e3, Ordering::Relaxed);
    check(PAGING.name, "an exchanged page is read as before without a flush, as it is with one", || {
        space.map(at, memory::lend(old, Level::L4K));
        assert_eq!(ThisCpu.read(BASE), Ok(0x01d));
        let exchange = || {
            let removed = space.unmap(at);
            space.map(at, memory::lend(new, Level::L4K));
            removed
        };
        // SAFETY: the old page waits in `removed` until after the flush, and no table was taken out.
        let removed = unsafe { space.table().external().shootdown().carelessly(exchange) };
        assert_eq!(ThisCpu.read(BASE), Ok(0x01d), "the translation was not cached: nothing was tested");
        tlb::flush(VirtAddr::new(BASE));
        assert_eq!(ThisCpu.read(BASE), Ok(0x0e3));
        memory::take_back(removed);
        memory::take_back(space.unmap(at));
        space.trim(at);
    });
}
