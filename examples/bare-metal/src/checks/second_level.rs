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
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use sept_core::{Gpa, GpaEntry, HardwareWalked, Level, Permissions, Scope};

/// Where the guest shows what it read, the 2 MiB that are under test, and the address in it that the guest watches, whose
/// place in a TLB no other page of the guest has.
const SHOWN: u64 = 0x1000;
const BLOCK: u64 = 0x8060_0000;
const WATCHED: u64 = BLOCK + WATCHED_PAGE as u64 * 4096;
const WATCHED_PAGE: usize = 37;

/// Pages of guest memory that are always mapped; the checks use others.
const CODE_PAGE: usize = 512;
const SHOWN_PAGE: usize = 513;

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
        let always_there = [(small(guest::CODE), CODE_PAGE), (small(SHOWN), SHOWN_PAGE)];
        for (at, page) in always_there {
            space.map(at.range(), memory::lend(page, 1), Level::L4K);
        }
        guest::load_programs(memory::page(CODE_PAGE));

        let root = space.table().root();
        let body = |vcpu: &mut dyn Vcpu| {
            let mut guest = Guest::new(vcpu, &kick);
            translations::run(mmu, space, &mut guest, BLOCK);
            execute(mmu, fetch_denied, space, &mut guest);
            more(space, &mut guest);
        };
        // SAFETY: the table lives until the end of this function and maps pages of guest memory only.
        unsafe { V::with_vcpu(root, body) };
        resized_beside_a_guest::<F, V>(mmu, space, &kick);
        exchanged_beside_a_guest::<F, V>(mmu, space, &kick);

        for (at, _) in always_there {
            space.unmap(at.range(), memory::take_back);
            space.trim(at.range());
        }
        assert_eq!(space.tables(), 1, "tables that did not come back");
    });
}

fn small(gpa: u64) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(gpa), Level::L4K)
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

/// Runs a guest by `run` on the second CPU again and again until `body` has ended here.
fn beside_a_guest<F: HardwareWalked, V: Virtualization>(
    space: &Space<'_, F, &Kick>,
    kick: &Kick,
    run: &(dyn Fn(&mut Guest<'_>) + Sync),
    body: impl FnOnce(),
) {
    let root = space.table().root();
    let stop = AtomicBool::new(false);
    let job = || {
        let until_stopped = |vcpu: &mut dyn Vcpu| {
            let mut guest = Guest::new(vcpu, kick);
            while !stop.load(Ordering::Acquire) {
                run(&mut guest);
            }
        };
        // SAFETY: the caller's table outlives the job and maps pages of guest memory only.
        unsafe { V::with_vcpu(root, until_stopped) };
    };
    second::beside(&job, || {
        body();
        stop.store(true, Ordering::Release);
        space.fence();
    });
}

/// Waits until `count` has grown by two: one of what it counts has begun and ended meanwhile.
fn wait_for_one_more(count: &AtomicU32) {
    let begin = count.load(Ordering::Acquire);
    while count.load(Ordering::Acquire).wrapping_sub(begin) < 2 {
        spin_loop();
    }
}

/// The guest neither faults nor reads anything else while its memory is split and merged. It is entered for each read, so
/// that the MMU walks the table each time.
fn resized_beside_a_guest<F: HardwareWalked, V: Virtualization>(
    mmu: &Mmu,
    space: &Space<'_, F, &Kick>,
    kick: &Kick,
) {
    check(mmu.name, "a running guest does not notice that its memory is split and merged", || {
        let block = GpaEntry::containing(Gpa::truncate(BLOCK), Level::L2M);
        space.map(block.range(), memory::lend(0, 512), Level::L2M);
        memory::word(memory::page(WATCHED_PAGE), 0).store(0x5a7, Ordering::Relaxed);
        let reads = AtomicU32::new(0);
        let read = |guest: &mut Guest<'_>| {
            let result = guest.try_read(WATCHED);
            if result != Err(Exit::Interrupt) {
                assert_eq!(result, Ok(0x5a7));
                reads.fetch_add(1, Ordering::Release);
            }
        };
        beside_a_guest::<F, V>(space, kick, &read, || {
            for _ in 0..100 {
                space.split(block.range(), Scope::Whole(Level::L4K));
                wait_for_one_more(&reads);
                space.merge(block);
                wait_for_one_more(&reads);
            }
        });
        space.unmap(block.range(), memory::take_back);
        space.trim(block.range());
    });
}

/// The guest keeps reading a page that is exchanged: without a fence it goes on with the old one, however long it runs;
/// once a fence is done it reads the new one.
fn exchanged_beside_a_guest<F: HardwareWalked, V: Virtualization>(
    mmu: &Mmu,
    space: &Space<'_, F, &Kick>,
    kick: &Kick,
) {
    check(mmu.name, "a running guest sees that a page was exchanged only after a fence", || {
        let range = small(WATCHED).range();
        for (page, value) in [(0, 0x01d), (1, 0x0e3)] {
            memory::word(memory::page(page), 0).store(value, Ordering::Relaxed);
        }
        space.map(range, memory::lend(0, 1), Level::L4K);
        let watch = |guest: &mut Guest<'_>| match guest.watch(WATCHED, SHOWN) {
            Exit::Interrupt => {}
            // In the middle of the exchange: try again.
            Exit::Hole(fault) => assert_eq!(fault.at, WATCHED),
            exit => panic!("unexpected exit: {exit:x?}"),
        };
        let [value, count] = [0, 1].map(|index| memory::word(memory::page(SHOWN_PAGE), index));
        let seen = || {
            wait_for_one_more(count);
            value.load(Ordering::Acquire)
        };
        beside_a_guest::<F, V>(space, kick, &watch, || {
            assert_eq!(seen(), 0x01d);
            let mut removed = None;
            let exchange = || {
                space.unmap(range, |page| removed = Some(page));
                space.map(range, memory::lend(1, 1), Level::L4K);
            };
            // SAFETY: the old page waits in `removed` until the fence below has ended, and no table was taken out.
            unsafe { kick.carelessly(exchange) };
            assert_eq!(seen(), 0x01d, "the translation was not cached: nothing was tested");
            space.fence();
            assert_eq!(seen(), 0x0e3);
            memory::take_back(removed.expect("the old page"));
        });
        space.unmap(range, memory::take_back);
        space.trim(range);
    });
}
