//! Ranges are mapped in the largest pages that fit, split, merged and taken again, and every frame comes back.

use crate::rig::{Rig, range};
use core::mem::replace;
use sept_core::test_util::VecStore;
use sept_core::{
    Ept, EptConfig, FrameKind, FrameNeeds, Frames, GpaEntry, Level, Permissions, Plan, Scope, X86, X86Config,
};

const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;
const RAM: u64 = 0x40_0000_0000;

fn tables(count: u32) -> FrameNeeds {
    FrameNeeds::of(FrameKind::MirrorTable, count)
}

fn there_and_back<F: sept_core::HardwareWalked>(config: F::Config) {
    let mut rig = Rig::<F>::new(config);
    let levels = if F::top(config) == Level::L256T { 1 } else { 0 };
    // 3 pages before a 2 MiB boundary, 1 GiB and two blocks, 5 pages after.
    let start = 7 * G1 - M2 - 0x3000;
    let all = range(start, 0x3000 + M2 + G1 + M2 + 0x5000);
    // A table for the 512 GiB entry, two for the 1 GiB entries at the ends, one for the 2 MiB entry at each end.
    assert_eq!(rig.map(all, RAM - M2 - 0x3000, Level::L1G), tables(5 + levels));
    let sizes = |rig: &Rig<F>| {
        let of = |level| rig.leaves(all).iter().filter(|leaf| leaf.0.level() == level).count();
        [of(Level::L4K), of(Level::L2M), of(Level::L1G)]
    };
    assert_eq!(sizes(&rig), [8, 2, 1]);
    for offset in [0, 0x2fff, 0x3000, 0x3000 + M2 + 12345, all.len() - 1] {
        let at = sept_core::Gpa::new(start + offset).unwrap();
        assert_eq!(rig.table.translate(at).unwrap().hpa.raw(), RAM - M2 - 0x3000 + offset);
    }
    assert!(rig.table.translate(sept_core::Gpa::new(all.end()).unwrap()).is_none());

    // One page in the middle of the 1 GiB leaf: one split of each size.
    let page = range(7 * G1 + 5 * M2 + 0x7000, 0x1000);
    let plan = rig.table.plan_split(page, Scope::Ends).unwrap();
    assert_eq!((plan.needs(), plan.splits(Level::L1G), plan.splits(Level::L2M)), (tables(2), 1, 1));
    let reserved = plan.reserve(&rig.pool, VecStore::default()).unwrap();
    assert_eq!(rig.table.split_range(reserved).unwrap().used, tables(2));
    assert_eq!(sizes(&rig), [8 + 512, 2 + 511, 0]);

    // All of it, then back.
    let plan = rig.table.plan_split(all, Scope::Whole(Level::L4K)).unwrap();
    assert_eq!(plan.needs(), tables(2 + 511));
    let reserved = plan.reserve(&rig.pool, VecStore::default()).unwrap();
    assert_eq!(rig.table.split_range(reserved).unwrap().used, tables(513));
    assert_eq!(sizes(&rig), [8 + 514 * 512, 0, 0]);
    let merged = rig.table.exclusive().merge_range(all, &mut rig.owed).unwrap();
    assert_eq!(merged.tables, 514 + 1);
    assert_eq!(sizes(&rig), [8, 2, 1]);

    // Everything goes, one page at a time where tables reach beyond the range.
    let mut single = 0;
    let mut table = rig.table.exclusive();
    let done = table.unmap_range(all, &mut rig.owed, |_, page| single += page.level().pages()).unwrap();
    assert_eq!((done.pages, single), (11, 8 + 2 * 512 + (1 << 18)));
    assert_eq!(rig.leaves(all), []);
    let quiet = rig.fence().quiet();
    assert_eq!(rig.table.settle(rig.owed, &quiet, &rig.pool).unwrap(), tables(515 + 5 + levels));
    assert_eq!(rig.pool.outstanding(), tables(1));
}

#[test]
fn ept() {
    there_and_back::<Ept>(EptConfig::LEVELS_4);
    there_and_back::<Ept>(EptConfig::LEVELS_5.suppress_ve());
}

#[test]
fn nested() {
    there_and_back::<X86>(X86Config::NESTED_4.with_c_bit(47).unwrap());
    there_and_back::<X86>(X86Config::SUPERVISOR_5);
}

#[test]
fn a_subtree_is_one_obligation_and_its_pages_come_out_of_it() {
    let mut rig = Rig::<Ept>::new(EptConfig::LEVELS_4);
    let all = range(3 * G1, G1);
    assert_eq!(rig.map(all, RAM, Level::L4K), tables(1 + 1 + 512));
    rig.table.block_range(all).unwrap();
    assert!(rig.table.translate(all.start()).is_none());
    let fence = rig.fence();
    let done = rig.table.take_range(all, &fence, &mut rig.owed, |_, _| panic!("no page by itself")).unwrap();
    assert_eq!((done.pages, done.tables, rig.owed.tables()), (0, 1, 1));
    let mut seen = 0;
    let mut note = |at: GpaEntry, run: Frames| {
        assert_eq!((at.level(), run.count()), (Level::L4K, 512));
        assert_eq!(run.hpa().raw() - RAM, at.gpa().raw() - 3 * G1);
        seen += run.count();
    };
    // The grace period must be younger than the removal.
    let owed = replace(&mut rig.owed, rig.table.obligation());
    let rest = rig.table.settle_pages(owed, &fence.quiet(), &rig.pool, &mut note).unwrap_err().rest;
    let quiet = rig.fence().quiet();
    assert_eq!(rig.table.settle_pages(rest, &quiet, &rig.pool, &mut note).unwrap(), tables(513));
    assert_eq!(seen, 1 << 18);
}

#[test]
fn pieces_inherit_permissions_and_a_merge_wants_them_equal() {
    let mut rig = Rig::<X86>::new(X86Config::NESTED_4);
    let all = range(G1, M2);
    rig.map(all, RAM, Level::L2M);
    let (block, read) = (rig.leaves(all)[0].0, Permissions::READ | Permissions::EXECUTE);
    rig.table.protect(block, read).unwrap();
    let reserved = rig.table.plan_split(all, Scope::Whole(Level::L4K)).unwrap();
    let reserved = reserved.reserve(&rig.pool, VecStore::default()).unwrap();
    let _rest = rig.table.split_range(reserved).unwrap();
    let page = block.child(77).unwrap();
    assert_eq!(rig.table.permissions(page), Ok(read));
    rig.table.protect(page, Permissions::all()).unwrap();
    assert!(rig.table.exclusive().merge(block, &mut rig.owed).is_err());
    rig.table.protect(page, read).unwrap();
    rig.table.exclusive().merge(block, &mut rig.owed).unwrap();
    assert_eq!(rig.table.permissions(block), Ok(read));
}

#[test]
fn printed_as_runs_and_audited() {
    let mut rig = Rig::<Ept>::new(EptConfig::LEVELS_4);
    let all = range(G1 - 0x2000, 0x2000 + 3 * M2);
    rig.map(all, RAM - 0x2000, Level::L2M);
    let second = rig.leaves(all)[3].0;
    rig.table.block(second).unwrap();
    assert_eq!(
        format!("{:?}", rig.table),
        "[0x3fffe000 -> 0x3fffffe000 2 x 4K, 0x40000000 -> 0x4000000000 1 x 2M, \
         0x40200000 -> 0x4000200000 1 x 2M hidden, 0x40400000 -> 0x4000400000 1 x 2M]"
    );
    let census = rig.table.audit().unwrap();
    assert_eq!((census.tables, census.pages, census.blocked), (5, [2, 3, 0], 1));
    let mut table = rig.table.exclusive();
    let _page = table.unmap(second, &mut rig.owed).unwrap();
    assert_eq!(rig.table.audit().unwrap().pages, [2, 2, 0]);
}

#[test]
fn permissions_and_inhibits_of_a_range() {
    let mut rig = Rig::<Ept>::new(EptConfig::LEVELS_4);
    let all = range(G1, 4 * M2);
    rig.map(all, RAM, Level::L2M);
    let middle = range(G1 + M2, 2 * M2);
    assert!(rig.table.protect_range(range(G1 + M2, M2 + 0x1000), Permissions::READ).is_err());
    assert_eq!(rig.table.permissions(rig.leaves(all)[1].0), Ok(Permissions::all()));
    assert_eq!(rig.table.protect_range(middle, Permissions::READ).unwrap().pages, 2);
    let granted = |index: usize| rig.table.permissions(rig.leaves(all)[index].0).unwrap();
    assert_eq!([granted(0), granted(1)], [Permissions::all(), Permissions::READ]);
    assert_eq!([granted(2), granted(3)], [Permissions::READ, Permissions::all()]);

    // A page that is there cannot be inhibited; its place can, and then takes small pages only.
    assert!(rig.table.inhibit_range(middle, Level::L2M, true).is_err());
    let done = rig.table.exclusive().unmap_range(middle, &mut rig.owed, |_, _| ()).unwrap();
    assert_eq!(done.pages, 2);
    assert_eq!(rig.table.inhibit_range(range(G1 + M2 + 0x5000, M2), Level::L2M, true), Ok(2));
    assert_eq!(rig.map(middle, RAM + M2, Level::L2M), tables(2));
    assert_eq!(rig.leaves(middle).len(), 1024);
    assert_eq!(rig.table.exclusive().merge_range(all, &mut rig.owed).unwrap().tables, 0);
    assert_eq!(rig.table.inhibit_range(all, Level::L2M, false), Ok(4));
    assert_eq!(rig.table.exclusive().merge_range(all, &mut rig.owed).unwrap().tables, 2);
}
