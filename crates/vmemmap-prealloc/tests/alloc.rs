//! A plan allocates nothing.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};
use folio_split::{Empty, Order, OrderSet, Pfn, PfnBlock, Transition, XArray};
use std::alloc::System;
use vmemmap_prealloc::{BlockState, Geometry, Savings, VmemmapNeeds};

struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator, as it came.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get().wrapping_add(1));
        // SAFETY: the caller answers for `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller answers for both.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_plan_allocates_nothing() {
    let every_other = [0x5555_5555_5555_5555_u64; 4096];
    let runs = [5..6, 1000..1001, 70_000..70_512, 200_000..200_700];
    for order in [18, 27] {
        let block = Pfn::new(0).zip(Order::new(order)).and_then(|(base, order)| PfnBlock::new(base, order));
        let Some(block) = block else { continue };
        for orders in [OrderSet::HUGETLB, OrderSet::ALL, OrderSet::PAGES] {
            let before = CALLS.get();
            let share = Transition::new(block, orders, Empty, runs.as_slice());
            let more = Transition::new(block, orders, runs.as_slice(), every_other.as_slice());
            for counts in [share.counts(), more.counts(), more.reversed().counts()] {
                let _ = core::hint::black_box(counts.delta(&XArray::LINUX));
                let _ = core::hint::black_box(Savings::of(&Geometry::LINUX_X86_64, counts.to(), 8));
            }
            let needs = VmemmapNeeds::of(&more, &Geometry::LINUX_X86_64, BlockState::Optimized);
            assert!(core::hint::black_box(needs).fresh > 0 || orders == OrderSet::PAGES);
            assert!(more.changes(0..block.pages()).count() > 0 || orders == OrderSet::PAGES);
            assert_eq!(CALLS.get(), before);
        }
    }
}
