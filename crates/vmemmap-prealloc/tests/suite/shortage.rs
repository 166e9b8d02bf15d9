//! Every allocation made to fail, every page pinned: nothing has changed then.

use crate::common::{Held, Host, SCHEMES, Store, block, geometry, pool};
use folio_split::{Change, Empty, FolioBackend, OrderSet, Pfn, Transition};
use sept_core::{Class, Classify, FrameKind, FrameNeeds, FrameStore, Short};
use vmemmap_prealloc::{
    ApplyError, Atom, AtomError, Commit, Geometry, RegisterError, ReserveError, VmemmapNeeds, install_tables,
    install_templates, merge_atom, model::HostModel, split_atom,
};

/// Without optimization, the slowest failures are tried for one number in so many; with it, for each.
const STEP: usize = if cfg!(debug_assertions) { 23 } else { 1 };

#[test]
fn every_frame_of_a_reservation() {
    for orders in [OrderSet::ALL, OrderSet::HUGETLB] {
        let host = Host::new(Geometry::LINUX_X86_64, orders, &[block(18)]);
        let Host { model, pool } = &host;
        let t = Transition::new(block(18), orders, Empty, 1000..1001);
        let counts = t.counts();
        let needs = VmemmapNeeds::plan(model, &t, &counts);
        let nodes = counts.delta(model.index()).needed;
        let need = needs.fresh as u32;
        let (start, counters) = (pool.outstanding(), model.counters());
        let empty = |room| {
            let store = Store { room, ..Store::default() };
            Held::new(block(18), needs.node, store)
        };
        for got in 0..need {
            pool.limit(Some(got.into()));
            let mut held = empty(None);
            let error = held.fill(model, &needs, nodes, pool).unwrap_err();
            pool.limit(None);
            let kind = FrameKind::Vmemmap;
            assert_eq!(error, ReserveError::Pages(Short { kind, need, got, full: false }));
            assert_eq!(error.class(), Class::Retry);
            assert!(held.is_empty(model));
            let error = empty(Some(got)).fill(model, &needs, nodes, pool).unwrap_err();
            assert_eq!(error, ReserveError::Pages(Short { kind, need, got, full: true }));
            assert_eq!((pool.outstanding(), model.counters()), (start, counters));
        }
        for limit in 0..nodes {
            model.limit_nodes(Some(limit));
            let mut held = empty(None);
            let error = held.fill(model, &needs, nodes, pool).unwrap_err();
            assert!(matches!(error, ReserveError::Nodes(short) if short.count == nodes));
            assert!(held.is_empty(model));
            model.limit_nodes(None);
            assert_eq!((pool.outstanding(), model.counters()), (start, counters));
        }
        // What was there before stays, when more cannot be had; and goes back, when less is needed.
        let mut held = empty(None);
        held.fill(model, &needs, nodes, pool).unwrap();
        let mut more = needs;
        more.fresh += 1;
        pool.limit(Some(0));
        assert!(held.fill(model, &more, nodes, pool).is_err());
        pool.limit(None);
        assert_eq!((held.pages_left(), held.nodes_left(model)), (needs.fresh, nodes));
        let mut less = needs;
        less.fresh = 3;
        held.trim(&less, pool);
        assert_eq!(held.pages_left(), 3);
        assert_eq!(held.release(model, pool).count(FrameKind::Vmemmap), 0);
        assert_eq!((pool.outstanding(), model.counters()), (start, counters));
    }
}

#[test]
fn every_page_of_a_commit() {
    for (orders, tails) in SCHEMES.into_iter().flat_map(|t| [(OrderSet::ALL, t), (OrderSet::HUGETLB, t)]) {
        let host = Host::new(geometry(tails, 1), orders, &[block(18)]);
        let Host { model, pool } = &host;
        let t = Transition::new(block(18), orders, Empty, 1000..1001);
        let (_, needs, held) = host.reserve(&t);
        let nodes_needed = held.nodes_left(model);
        let (need, near) = (needs.fresh, block(18).base().hpa());
        let _ = held.release(model, pool);
        let start = (pool.outstanding(), model.counters().in_use());
        // Every store that is too small, and every one that counts more than it has.
        for have in (0..need).step_by(STEP) {
            let mut store = Store::default();
            store.fill(&FrameNeeds::of(FrameKind::Vmemmap, have as u32), near, pool).unwrap();
            let mut nodes = Default::default();
            model.reserve_nodes(&mut nodes, block(18), nodes_needed).unwrap();
            let (kept, before) = (pool.outstanding(), model.counters());
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut store);
            let short = ApplyError::Short { whole: block(18), need, have };
            assert_eq!(error, Err(AtomError::Vmemmap(short)));
            assert_eq!((pool.outstanding(), model.counters()), (kept, before));
            store.lies = (need - have) as u32;
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut store);
            let broken = ApplyError::BrokenStore { whole: block(18), need, got: have };
            assert_eq!(error, Err(AtomError::Vmemmap(broken)));
            assert_eq!(host.collect(block(18)), have);
            assert_eq!(model.nodes_left(&nodes), nodes_needed);
            model.release_nodes(nodes);
            assert_eq!((pool.outstanding(), model.counters().in_use()), start);
            host.check(&t.from_layout());
        }
        for have in 0..nodes_needed {
            let mut nodes = Default::default();
            model.reserve_nodes(&mut nodes, block(18), have).unwrap();
            let error = split_atom(model, model, &t, block(18), 1, &mut nodes, &mut Store::default());
            assert!(matches!(error, Err(AtomError::Index(_))));
            model.release_nodes(nodes);
        }
        assert_eq!((pool.outstanding(), model.counters().in_use()), start);
        host.carry_out(&t);
    }
}

/// A zone without one of its templates, a block without one of its tables; each call of the source fails once, and the
/// next call goes on.
#[test]
fn every_template_and_table() {
    let pool = pool();
    let model = HostModel::new(Geometry::LINUX_X86_64, OrderSet::ALL.clipped(block(18).order()));
    model.add_boot_block(block(18), &pool).unwrap();
    let t = Transition::new(block(18), model.orders(), Empty, 1000..1001);
    let start = pool.outstanding();
    for left in (1..=12).rev() {
        pool.fail_after(Some(1));
        let error = install_templates(&model, block(18), model.orders(), &pool);
        assert_eq!(error.is_err(), left > 1, "{error:?}");
        pool.fail_after(None);
        assert_eq!(model.counters().templates, 13 - left);
    }
    for left in (1..=8_u32).rev() {
        assert_eq!(VmemmapNeeds::plan(&model, &t, &t.counts()), VmemmapNeeds::default(), "still plain");
        pool.fail_after(Some(1));
        let error = install_tables(&model, block(18), &pool);
        pool.fail_after(None);
        let kind = FrameKind::VmemmapTable;
        let short = RegisterError::NoFrame { kind, near: block(18) };
        assert_eq!(error, if left > 1 { Err(short) } else { Ok(1) });
    }
    // What is there is not asked for again.
    pool.fail_after(Some(0));
    assert_eq!(install_templates(&model, block(18), model.orders(), &pool), Ok(0));
    assert_eq!(install_tables(&model, block(18), &pool), Ok(0));
    pool.fail_after(None);
    let mut want = start;
    want[FrameKind::TailTemplate] += 12;
    want[FrameKind::VmemmapTable] += 8;
    assert_eq!(pool.outstanding(), want);
}

#[test]
fn a_missing_template_is_named() {
    // Installed for other orders than those that the transition makes.
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &[block(18)]);
    let t = Transition::new(block(18), OrderSet::ALL, Empty, 1000..1001);
    let mut needs = VmemmapNeeds::plan(&host.model, &t, &t.counts());
    assert_eq!(needs.templates, 10, "7 to 17 but 9");
    let mut held = Held::new(block(18), needs.node, Store::default());
    let refused = held.fill(&host.model, &needs, 3, &host.pool);
    assert_eq!(refused, Err(ReserveError::NotPrepared { templates: 10, tables: 0 }));
    // Who goes on all the same is refused before anything changed.
    needs.templates = 0;
    held.fill(&host.model, &needs, 3, &host.pool).unwrap();
    let before = host.model.counters();
    let mut atoms = [Atom::split(t.by_ref(), block(18))];
    let refused = Commit::freeze(&host.model, &host.model, &mut atoms, held.lend(), 1).unwrap_err();
    assert!(matches!(refused.error, AtomError::Vmemmap(ApplyError::NoTemplate { .. })), "{refused}");
    assert_eq!(host.model.counters(), before);
    let _ = held.release(&host.model, &host.pool);
    host.check(&t.from_layout());
}

#[test]
fn a_pin_stops_the_atom_and_nothing_changes() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB, &[block(18)]);
    let Host { model, pool } = &host;
    let share = Transition::new(block(18), OrderSet::HUGETLB, Empty, 1000..1004);
    host.carry_out(&share);
    let page = Pfn::new(block(18).base().raw() + 1002).unwrap();
    assert!(model.pin(page));
    assert_eq!(model.first_pinned(block(18), 0..1 << 18), Some(page));
    let back = share.reversed();
    let before = (model.counters(), pool.outstanding());
    match merge_atom(model, model, &back, block(18), 3, pool) {
        Err(AtomError::Pinned(pinned)) => assert_eq!(pinned.first, page),
        other => panic!("{other:?}"),
    }
    assert_eq!((model.counters(), pool.outstanding()), before);
    host.check(&share.to_layout());
    assert!(model.unpin(page));
    host.carry_out(&back);
}

/// What the transition does not do is refused, whichever way it is asked for.
#[test]
fn other_folios_are_refused() {
    let host = Host::new(Geometry::LINUX_X86_64, OrderSet::ALL, &[block(12)]);
    let t = Transition::new(block(12), OrderSet::ALL, Empty, 7..8);
    let half = block(12).part(0, block(11).order()).unwrap();
    for change in
        [Change::Merge(block(12)), Change::Split(half), Change::Merge(half), Change::Split(block(11))]
    {
        let mut held = host.reserve(&t).2;
        let mut atoms = [Atom::new(t.by_ref(), change)];
        let refused = Commit::freeze(&host.model, &host.model, &mut atoms, held.lend(), 1).unwrap_err();
        assert_eq!((refused.position, refused.class()), (0, Class::Caller), "{change:?}");
        let _ = held.release(&host.model, &host.pool);
    }
    host.check(&t.from_layout());
}
