//! Blocks that are optimized, and transitions carried out with retries.

use folio_split::{
    Change, Empty, FolioBackend, FolioLayout, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition,
};
use sept_core::{FrameKind, FrameStore, test_util::VecStore};
use vmemmap_mmap::MmapHost;
use vmemmap_prealloc::{
    AtomDone, AtomError, VmemmapBackend, VmemmapNeeds, install_templates, merge_atom, optimize, reserve,
    split_atom,
};

pub(crate) fn block(order: u8, number: u64) -> PfnBlock {
    PfnBlock::new(Pfn::new((8 + number) << order).unwrap(), Order::new(order).unwrap()).unwrap()
}

/// A host with `blocks` optimized blocks of `order`.
pub(crate) fn host(order: u8, blocks: u64, orders: OrderSet) -> MmapHost {
    let spare = 64 + blocks * (1 << (order - 6));
    let host = MmapHost::new(block(order, 0), blocks, spare).unwrap();
    install_templates(&host, block(order, 0), orders, &host).unwrap();
    for block in (0..blocks).map(|number| block(order, number)) {
        let layout = FolioLayout::new(block, orders, Empty);
        let frozen = host.freeze(block, 1).unwrap();
        let _ = optimize(&host, &layout).unwrap();
        let flushed = host.flush();
        host.thaw(frozen);
        host.release(block, &flushed, &host);
        host.check(&layout).unwrap();
    }
    host
}

/// Plans, reserves and carries out; `pinned` is told of each atom that somebody's reference stopped, and it is tried
/// again.
pub(crate) fn carry_out<A: PageSet, B: PageSet>(
    host: &MmapHost,
    t: &Transition<A, B>,
    mut pinned: impl FnMut(),
) -> AtomDone {
    let needs = VmemmapNeeds::plan(host, t, &t.counts());
    let mut store = VecStore::default();
    reserve(&needs.frames(), t.block().base().hpa(), host, &mut store).unwrap();
    let mut sum = AtomDone::default();
    for splits in [true, false] {
        for change in t.changes(0..t.block().pages()) {
            let done = loop {
                let done = match change {
                    Change::Split(whole) if splits => {
                        split_atom(host, host, t, whole, 4, &mut (), &mut store)
                    }
                    Change::Merge(whole) if !splits => merge_atom(host, host, t, whole, 4, host),
                    _ => break AtomDone::default(),
                };
                match done {
                    Ok(done) => break done,
                    Err(AtomError::Pinned(_)) => pinned(),
                    Err(error) => panic!("{error}"),
                }
            };
            sum.vmemmap.fresh += done.vmemmap.fresh;
            sum.vmemmap.rewrites += done.vmemmap.rewrites;
            sum.released += done.released;
        }
    }
    assert_eq!(store.count(FrameKind::Vmemmap), 0, "pages planned and not used");
    assert_eq!(
        (sum.vmemmap.fresh, sum.vmemmap.rewrites, sum.released),
        (needs.fresh, needs.rewrites, needs.released)
    );
    sum
}
