//! What holds for both second-level MMUs, whose walkers are guests.

use super::{
    check,
    translations::{self, Mmu},
};
use crate::{
    cpu::second,
    guest::{self, Exit, Guest, Virtualization},
    kick::Kick,
    memory,
    space::{Format, Space, TableFrame},
};
use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, Ordering},
};
use sept_core::{Gpa, GpaEntry, Hpa, Level};

/// What the guest sees beside its programs: the page in which it shows what it read, the page that is exchanged while
/// it runs, and the block that is split and merged.
const SHOWN: u64 = 0x1000;
const WATCHED: u64 = 0x4000_0000;
const BLOCK: u64 = 0x8060_0000;

/// Checks a second-level MMU, and `more` that is peculiar to it.
pub fn run<F: Format, V: Virtualization>(
    mmu: &Mmu,
    tables: &mut [TableFrame; 64],
    more: impl FnOnce(&Space<'_, F, &Kick>, &mut Guest<'_>),
) {
    let kick = Kick::new();
    let space = Space::<F, _>::new(tables, &kick);
    let shown = memory::page(513);
    let always_there = [(guest::CODE, memory::page(512)), (SHOWN, shown)];
    for (gpa, page) in always_there {
        space.map(small(gpa), memory::lend(page, Level::L4K));
    }
    guest::load_programs(memory::page(512));

    V::with_vcpu(space.root(), |vcpu| {
        let mut guest = Guest::new(vcpu, &kick);
        translations::run(mmu, &space, &mut guest, BLOCK);
        more(&space, &mut guest);
    });
    stale::<F, V>(mmu, &space, &kick, shown);

    for (gpa, _) in always_there {
        memory::take_back(space.unmap(small(gpa)));
        space.trim(Gpa::truncate(gpa));
    }
    assert_eq!(space.tables(), 1, "tables that did not come back");
}

fn small(gpa: u64) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(gpa), Level::L4K)
}

/// A guest on the second CPU keeps reading a page while this CPU exchanges it: without a fence the guest goes on with
/// the old page, however long it runs; once a fence is done it reads the new one.
fn stale<F: Format, V: Virtualization>(mmu: &Mmu, space: &Space<'_, F, &Kick>, kick: &Kick, shown: Hpa) {
    let root = space.root();
    let at = small(WATCHED);
    let (old, new) = (memory::page(0), memory::page(1));
    memory::word(old, 0).store(0x01d, Ordering::Relaxed);
    memory::word(new, 0).store(0x0e3, Ordering::Relaxed);
    let [value, count] = [0, 1].map(|index| memory::word(shown, index));
    let stop = AtomicBool::new(false);

    let guest = || {
        V::with_vcpu(root, |vcpu| {
            let mut guest = Guest::new(vcpu, kick);
            while !stop.load(Ordering::Acquire) {
                match guest.watch(WATCHED, SHOWN) {
                    Exit::Interrupt => {}
                    // In the middle of the exchange: try again.
                    Exit::Hole(fault) => assert_eq!(fault.at, WATCHED),
                    exit => panic!("unexpected exit: {exit:x?}"),
                }
            }
        });
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
        space.trim(at.gpa());
    });
}
