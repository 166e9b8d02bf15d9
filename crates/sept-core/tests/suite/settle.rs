//! Obligations: when unlinked tables become frames again.

use crate::rig::{CONFIGS, Error, M2, Rig};
use sept_core::test_util::{MockFault, MockOp, MockRefusal};
use sept_core::{CacheKey, Class, Classify, Donated, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa};

const MIRROR: FrameKind = FrameKind::MirrorTable;
const TABLE: FrameKind = FrameKind::TeeTable;
const METADATA: FrameKind = FrameKind::TeeMetadata;

fn needs(mirror: u32, table: u32, metadata: u32) -> FrameNeeds {
    FrameNeeds::of(MIRROR, mirror).plus(FrameNeeds::of(TABLE, table)).plus(FrameNeeds::of(METADATA, metadata))
}

/// A rig that owes `tables` tables, each with a TEE page and a metadata pair.
fn owing(tables: u64) -> Rig {
    let mut rig = Rig::new(CONFIGS[0], true);
    rig.link_to(0, M2);
    for table in 0..tables {
        let at = rig.at(table << 21, M2);
        rig.link(at, Some(Rig::hpa(table << 21))).unwrap();
        rig.table.block(at).unwrap();
    }
    let fence = rig.fence();
    for table in 0..tables {
        let at = rig.at(table << 21, M2);
        rig.unlink(at, &fence).unwrap();
        rig.check();
    }
    assert_eq!(rig.owed.tables(), u32::try_from(tables).unwrap());
    rig
}

#[test]
fn settling_returns_every_frame_once() {
    let mut rig = owing(3);
    let out = rig.pool.outstanding();
    assert_eq!(rig.settle(), needs(3, 3, 6));
    assert_eq!(rig.pool.outstanding(), out.saturating_sub(&needs(3, 3, 6)));
    rig.check();
    // Each TEE page was written back under its key, then overwritten, and nothing else was.
    let back = rig.tee().written_back();
    let keys = |key| back.iter().filter(|page| page.2 == key).count();
    assert_eq!((keys(CacheKey::Guest), keys(CacheKey::Module)), (3, 6));
    let order: Vec<_> = back.iter().map(|&(hpa, level, _)| (hpa, level)).collect();
    assert_eq!(*rig.scrubbed.lock().unwrap(), order);
}

#[test]
fn nothing_is_settled_before_its_grace_period() {
    let mut rig = owing(2);
    rig.tee().hold_fences(true);
    let early = rig.table.grace();
    let at = rig.at(7 << 21, M2);
    rig.tee().hold_fences(false);
    let quiet = rig.table.quiet(&early).unwrap();
    rig.link(at, None).unwrap();
    let fence = rig.block_and_fence(at);
    rig.unlink(at, &fence).unwrap();

    // Too old for the last table; so is the fence under which that table was unlinked.
    for quiet in [quiet, fence.quiet()] {
        let out = rig.pool.outstanding();
        let unsettled = rig.settle_by(&quiet).unwrap_err();
        assert_eq!((unsettled.settled, unsettled.error), (FrameNeeds::NONE, None));
        assert_eq!(unsettled.rest.tables(), 3);
        rig.owed = unsettled.rest;
        assert_eq!(rig.pool.outstanding(), out);
        rig.check();
    }

    rig.tee().hold_fences(true);
    let grace = rig.table.grace();
    assert!(rig.table.quiet(&grace).is_none(), "a walk may still be under way");
    rig.tee().end_fences();
    let quiet = rig.table.quiet(&grace).unwrap();
    assert_eq!(rig.settle_by(&quiet).unwrap(), needs(3, 3, 4));
    rig.owed_pages = FrameNeeds::NONE;
    rig.check();
}

#[test]
fn a_later_fence_is_a_grace_period_too() {
    let mut rig = owing(1);
    let quiet = rig.fence().quiet();
    assert_eq!(rig.settle_by(&quiet).unwrap(), needs(1, 1, 2));
}

#[test]
fn a_refused_write_back_returns_the_rest() {
    for nth in 1..=9 {
        let mut rig = owing(3);
        let out = rig.pool.outstanding();
        let ticket = rig.table.grace();
        let quiet = rig.table.quiet(&ticket).unwrap();
        rig.tee().fail(MockOp::WriteBack, nth, MockFault::Busy);
        let unsettled = rig.settle_by(&quiet).unwrap_err();
        assert_eq!(unsettled.error, Some(MockRefusal::Busy));
        // Three write-backs for each table: all before the nth have given their page back.
        let whole = u32::try_from((nth - 1) / 3).unwrap();
        assert_eq!(unsettled.rest.tables(), 3 - whole);
        assert_eq!(unsettled.settled.total(), nth - 1 + u64::from(whole));
        assert_eq!(rig.pool.outstanding(), out.saturating_sub(&unsettled.settled));
        let more = rig.table.settle(unsettled.rest, &quiet, &rig.pool).unwrap();
        assert_eq!(unsettled.settled.plus(more), needs(3, 3, 6));
        rig.owed_pages = FrameNeeds::NONE;
        rig.check();
    }
}

#[test]
fn obligations_belong_to_one_table() {
    let mut rig = owing(1);
    let stranger = rig.stranger();
    let at = rig.at(0, M2);
    rig.link(at, None).unwrap();
    let fence = rig.block_and_fence(at);
    let mut foreign = stranger.obligation();
    rig.refused(Error::ForeignObligation { at }, |rig| rig.table.unlink(at, &fence, &mut foreign));
    rig.refused(Error::ForeignObligation { at }, |rig| rig.table.merge(at, &fence, &mut foreign));
    assert!(foreign.is_empty());

    let ticket = stranger.grace();
    let theirs = stranger.quiet(&ticket).unwrap();
    for table in [&rig.table, &stranger] {
        let owed = std::mem::replace(&mut rig.owed, rig.table.obligation());
        let unsettled = table.settle(owed, &theirs, &rig.pool).unwrap_err();
        assert_eq!(unsettled.settled, FrameNeeds::NONE);
        rig.owed = unsettled.rest;
    }
    rig.check();
    assert_eq!(rig.table.settle(rig.table.obligation(), &theirs, &rig.pool).unwrap(), FrameNeeds::NONE);
    assert_eq!(rig.settle(), needs(1, 1, 2));
    rig.check();
}

#[test]
fn a_page_that_the_ledger_does_not_name_is_never_minted() {
    let forged = Hpa::new(0x123_4000).unwrap();
    for slot in 0..3 {
        let mut rig = Rig::new(CONFIGS[0], true);
        rig.link_to(0, M2);
        let at = rig.at(0, M2);
        rig.link(at, Some(Rig::hpa(0))).unwrap();
        let truth = rig.tee().tables().iter().find(|table| table.0 == at).unwrap().1;
        let mut lie = truth;
        let ledger = match slot {
            0 => lie.table.replace(forged),
            1 => lie.metadata[0].replace(forged),
            _ => lie.metadata[1].take(),
        };
        let got = if slot == 2 { None } else { Some(forged) };
        let fence = rig.block_and_fence(at);
        rig.tee().misreport(lie);
        let error = rig.unlink(at, &fence).unwrap_err();
        assert_eq!(error, Error::Ledger { at, ledger, got });
        assert_eq!(error.class(), Class::Fatal);
        assert_eq!(rig.table.entry(at), Ok(sept_core::Entry::Free));

        // All but the disputed page come back; the forged one does not.
        let expect = if slot == 0 { needs(1, 0, 2) } else { needs(1, 1, 1) };
        assert_eq!(rig.settle(), expect);
        assert_eq!(rig.pool.faults(), []);
        let lost = if slot == 0 { needs(0, 1, 0) } else { needs(0, 0, 1) };
        assert_eq!(rig.pool.outstanding(), needs(3, 2, 0).plus(lost));
    }
}

#[test]
fn a_tee_that_returns_nothing_or_too_much_is_noticed() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, M2);
    let at = rig.at(0, M2);
    let extra = Hpa::new(0x5000).unwrap();
    for extra in [None, Some(extra)] {
        rig.link(at, None).unwrap();
        let truth = rig.tee().tables().iter().find(|table| table.0 == at).unwrap().1;
        let fence = rig.block_and_fence(at);
        rig.tee().misreport(match extra {
            None => Donated::default(),
            Some(_) => Donated { metadata: [extra, None], ..truth },
        });
        let ledger = if extra.is_none() { truth.table } else { None };
        assert_eq!(rig.unlink(at, &fence), Err(Error::Ledger { at, ledger, got: extra }));
        let tables = if extra.is_none() { 0 } else { 1 };
        assert_eq!(rig.settle(), needs(1, tables, 0));
    }
    assert_eq!(rig.pool.faults(), []);
}

/// Page 0 is memory like any other.
#[test]
fn a_donated_page_at_address_zero_comes_back() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, M2);
    let at = rig.at(0, M2);
    let pool = sept_core::test_util::FramePool::new(Hpa::default(), 1);
    rig.stock(needs(1, 0, 0));
    rig.store.put(TABLE, pool.take(TABLE, Hpa::default()).unwrap()).unwrap();
    rig.table.link(at, None, &mut rig.store).unwrap();
    let fence = rig.block_and_fence(at);
    rig.table.unlink(at, &fence, &mut rig.owed).unwrap();
    let ticket = rig.table.grace();
    let quiet = rig.table.quiet(&ticket).unwrap();
    let owed = std::mem::replace(&mut rig.owed, rig.table.obligation());
    let settled = rig.table.settle(owed, &quiet, &pool).unwrap();
    assert_eq!(settled, needs(1, 1, 0));
    assert!(pool.outstanding().is_none());
}
