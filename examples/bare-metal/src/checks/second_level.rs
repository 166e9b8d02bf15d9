//! What holds for both second-level MMUs, whose walkers are guests.

use super::{
    check,
    translations::{self, Mmu},
};
use crate::{
    cpu::second,
    guest::{self, Exit, Fault, Guest, Vcpu, Virtualization, Walker},
    kick::Kick,
    memory,
    space::{Space, Tables, with_space},
};
use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, Ordering},
};
use sept_core::{Gpa, GpaEntry, HardwareWalked, Hpa, Level, Permissions};

/// What the guest sees beside its programs: the page in which it shows what it read, the page that is exchanged while
/// it runs, and the block that is split and merged.
const SHOWN: u64 = 0x1000;
const WATCHED: u64 = 0x4000_0000;
const BLOCK: u64 = 0x8060_0000;

/// Checks a second-level MMU, and `more` that is peculiar to it. `fetch_denied` is the cause of a fault when an
/// instruction is fetched from a page that may be read and written only.
pub fn run<F: HardwareWalked, V: Virtualization>(
    mmu: &Mmu,
    fetch_denied: u64,
    config: F::Config,
    tables: &mut Tables,
    more: impl FnOnce(&Space<'_, F, &Kick>, &mut Guest<'_>),
) {
    let kick = Kick::new();
    with_space(tables, config, &kick, |space: &mut Space<'_, F, &Kick>| {
        let (code, shown) = (memory::page(512), memory::page(513));
        let always_there = [(small(guest::CODE), code), (small(SHOWN), shown)];
        for (at, page) in always_there {
            space.map(at, memory::lend(page, Level::L4K));
        }
        guest::load_programs(code);

        let root = space.table().root();
        let body = |vcpu: &mut dyn Vcpu| {
            let mut guest = Guest::new(vcpu, &kick);
            translations::run(mmu, space, &mut guest, BLOCK);
            execute(mmu, fetch_denied, space, &mut guest);
            more(space, &mut guest);
        };
        // SAFETY: the table lives until the end of this function and maps pages of guest memory only.
        unsafe { V::with_vcpu(root, body) };
        stale::<F, V>(mmu, space, &kick, shown);

        for (at, _) in always_there {
            memory::take_back(space.unmap(at));
            space.trim(at);
        }
        assert_eq!(space.tables(), 1, "tables that did not come back");
    });
}

/// A page without execute permission can be read and is not executed.
fn execute<F: HardwareWalked>(
    mmu: &Mmu,
    fetch_denied: u64,
    space: &Space<'_, F, &Kick>,
    guest: &mut Guest<'_>,
) {
    check(mmu.name, "a page without execute permission is not executed", || {
        let code = small(guest::CODE);
        space.table().protect(code, Permissions::READ | Permissions::WRITE).expect("a page");
        space.fence();
        let fault = Fault { at: guest::WRITE_PROGRAM, cause: fetch_denied };
        assert_eq!(guest.write(SHOWN, 1), Err(fault));
        space.table().protect(code, Permissions::all()).expect("a page");
        assert_eq!(guest.write(SHOWN, 1), Ok(()));
    });
}

fn small(gpa: u64) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(gpa), Level::L4K)
}

/// A guest on the second CPU keeps reading a page while this CPU exchanges it: without a fence the guest goes on with
/// the old page, however long it runs; once a fence is done it reads the new one.
fn stale<F: HardwareWalked, V: Virtualization>(
    mmu: &Mmu,
    space: &Space<'_, F, &Kick>,
    kick: &Kick,
    shown: Hpa,
) {
    let root = space.table().root();
    let at = small(WATCHED);
    let (old, new) = (memory::page(0), memory::page(1));
    memory::word(old, 0).store(0x01d, Ordering::Relaxed);
    memory::word(new, 0).store(0x0e3, Ordering::Relaxed);
    let [value, count] = [0, 1].map(|index| memory::word(shown, index));
    let stop = AtomicBool::new(false);

    let guest = || {
        let body = |vcpu: &mut dyn Vcpu| {
            let mut guest = Guest::new(vcpu, kick);
            while !stop.load(Ordering::Acquire) {
                match guest.watch(WATCHED, SHOWN) {
                    Exit::Interrupt => {}
                    // In the middle of the exchange: try again.
                    Exit::Hole(fault) => assert_eq!(fault.at, WATCHED),
                    exit => panic!("unexpected exit: {exit:x?}"),
                }
            }
        };
        // SAFETY: the caller's table outlives the job and maps pages of guest memory only.
        unsafe { V::with_vcpu(root, body) };
    };
    // What the guest sees from now on: a read that begins after this is called.
    let seen = || {
        let begin = count.load(Ordering::Acquire);
        // One may be under way.
        while count.load(Ordering::Acquire).wrapping_sub(begin) < 2 {
            spin_loop();
        }
        value.load(Ordering::Acquire)
    };
    check(mmu.name, "a running guest sees that a page was exchanged only after a fence", || {
        space.map(at, memory::lend(old, Level::L4K));
        second::beside(&guest, || {
            assert_eq!(seen(), 0x01d);
            let exchange = || {
                let removed = space.unmap(at);
                space.map(at, memory::lend(new, Level::L4K));
                removed
            };
            // SAFETY: the old page waits in `removed` until the fence below has ended, and no table was taken out.
            let removed = unsafe { kick.carelessly(exchange) };
            assert_eq!(seen(), 0x01d, "the translation was not cached: nothing was tested");
            space.fence();
            assert_eq!(seen(), 0x0e3);
            memory::take_back(removed);
            stop.store(true, Ordering::Release);
            space.fence();
        });
        memory::take_back(space.unmap(at));
        space.trim(at);
    });
}
