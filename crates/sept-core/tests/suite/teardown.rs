//! Taking a table apart: every page and every frame comes back once, also when the TEE refuses half way.

use crate::rig::{CONFIGS, G1, K4, M2, Rig};
use sept_core::test_util::Arena;
use sept_core::{Frame, FrameKind, FrameNeeds, GpaEntry, TableMemory, Tainted, Teardown, Torn};
use std::sync::Arc;

/// Reclaims as told: refuses the `refuse`-th request once.
#[derive(Default)]
struct Host {
    reclaimed: Vec<Torn>,
    pages: Vec<Frame>,
    refuse: Option<usize>,
}

impl Teardown<Arena> for Host {
    type Error = Torn;

    fn reclaim(&mut self, what: Torn) -> Result<(), Torn> {
        if self.refuse == Some(self.reclaimed.len()) {
            self.refuse = None;
            return Err(what);
        }
        self.reclaimed.push(what);
        Ok(())
    }

    fn page(&mut self, _: GpaEntry, page: Frame<Tainted>, memory: &Arena) {
        self.pages.push(memory.scrub(page));
    }
}

/// A guest with pages of both sizes, an empty table, a blocked page and a blocked table.
fn populated(config: usize) -> Rig {
    let mut rig = Rig::new(CONFIGS[config], true);
    rig.link_to(0, M2);
    for region in [0_u64, 511] {
        let at = rig.at(region << 21, M2);
        rig.link(at, Some(Rig::hpa(region << 21))).unwrap();
    }
    rig.map(0, 0, K4, true).unwrap();
    rig.map((511 << 21) + 0x1f_f000, (511 << 21) + 0x1f_f000, K4, false).unwrap();
    rig.map(1 << 21, 1 << 21, M2, false).unwrap();
    let empty = rig.at(5 << 21, M2);
    rig.link(empty, Some(Rig::hpa(5 << 21))).unwrap();
    rig.link_to(1 << 30, K4);
    rig.map((1 << 30) + 0x3000, (1 << 30) + 0x3000, K4, false).unwrap();
    rig.table.block(rig.at(1 << 21, M2)).unwrap();
    rig.table.block(empty).unwrap();
    rig.table.block(rig.at(1 << 30, G1)).unwrap();
    rig.check();
    rig
}

/// Takes the rig's table apart with a host that refuses the `refuse`-th request once. Says what was reclaimed.
fn torn(config: usize, refuse: Option<usize>) -> Vec<Torn> {
    let mut rig = populated(config);
    let (leaves, linked) = (rig.tee().leaves(), rig.tee().tables());
    let out = rig.pool.outstanding();
    let mut host = Host { refuse, ..Host::default() };
    let table = Arc::get_mut(&mut rig.table).unwrap();
    let first = table.tear_down(&mut host, &rig.pool);
    let mut released = FrameNeeds::NONE;
    match (first, refuse) {
        (Ok(frames), None) => released = frames,
        (Err(_), Some(_)) => drop(table.tear_down(&mut host, &rig.pool).unwrap()),
        other => panic!("{other:?}"),
    }
    // Each page of the guest, each table page and each pair was asked for exactly once.
    let pages = host.reclaimed.iter().filter(|torn| matches!(torn, Torn::Page { .. })).count();
    let tables = host.reclaimed.iter().filter(|torn| matches!(torn, Torn::Table { .. })).count();
    let pairs = host.reclaimed.iter().filter(|torn| matches!(torn, Torn::Metadata { .. })).count();
    let with_pair = linked.iter().filter(|(_, donated, _)| donated.metadata[0].is_some()).count();
    assert_eq!((pages, tables, pairs), (leaves.len(), linked.len(), with_pair));
    for page in host.pages {
        rig.ram.take_back(page).unwrap();
    }
    assert_eq!(rig.ram.lent_pages(), 0);
    let tables = u32::try_from(linked.len()).unwrap();
    let all = FrameNeeds::of(FrameKind::MirrorTable, tables)
        .plus(FrameNeeds::of(FrameKind::TeeTable, tables))
        .plus(FrameNeeds::of(FrameKind::TeeMetadata, 2 * u32::try_from(with_pair).unwrap()));
    if refuse.is_none() {
        assert_eq!(released, all);
    }
    // Only the root is out, and it comes back as a frame.
    assert_eq!(out.saturating_sub(&all), rig.pool.outstanding());
    let root = Arc::into_inner(rig.table).unwrap().into_root().unwrap();
    sept_core::FrameSource::give(&rig.pool, FrameKind::MirrorTable, root);
    assert!(rig.pool.outstanding().is_none() && rig.pool.faults().is_empty());
    host.reclaimed
}

#[test]
fn everything_comes_back_once() {
    for config in 0..CONFIGS.len() {
        torn(config, None);
    }
}

#[test]
fn children_come_before_the_table_that_names_them() {
    let order = torn(0, None);
    for (index, what) in order.iter().enumerate() {
        let Torn::Table { at, .. } = what else { continue };
        let later = &order[index..];
        let below = |torn: &Torn| matches!(torn, Torn::Page { at: page, .. } if at.range().covers(*page));
        assert!(!later.iter().any(below), "{at} was reclaimed before a page below it");
    }
}

#[test]
fn a_refusal_at_any_point_only_delays() {
    let all = torn(0, None).len();
    for refuse in 0..all {
        assert_eq!(torn(0, Some(refuse)).len(), all);
    }
}

#[test]
fn a_table_in_use_keeps_its_root() {
    let rig = populated(0);
    let table = Arc::into_inner(rig.table).unwrap();
    assert!(table.into_root().is_err());
}
