use super::*;
use crate::testing::{Kicks, Script, Sections, Shelf, entry, frame, frame_of, gpa, hpa, scrub};
use crate::{Operand, Regs};
use core::cell::RefCell;
use sept_core::{CacheKey, Class, Classify, External, Fill, Frame, FrameNeeds, Level, Observed};
use std::{string::ToString, vec, vec::Vec};

const BUSY_ENTRY: (u64, u64, u64) = (0x8000_0200_0000_0001, 0x8000_0000_8000_00f0, 0x0101);
const RESTARTABLE: u64 = 0x8000_0004_0000_0000;

#[derive(Default)]
struct Ear(RefCell<Vec<Notice>>);

impl Observe for Ear {
    fn notice(&self, notice: Notice) {
        self.0.borrow_mut().push(notice);
    }
}

fn description() -> TdDescription {
    let tdr = Tdr::new(hpa(0x100_0000)).unwrap();
    let keys = KeyIdBits::new(46, 6).unwrap();
    TdDescription::new(tdr, Hkid::new(33), Hkid::new(32), keys, TdxConfig::LEVELS_4)
        .with_budget(RetryBudget { busy: 2, restartable: 3 })
}

fn with(script: Script, description: TdDescription) -> Td<Script, Kicks, (), Ear> {
    Td::new(script, Kicks::default(), (), description).with_observer(Ear::default())
}

fn td(script: Script) -> Td<Script, Kicks, (), Ear> {
    with(script, description())
}

fn dynamic(script: Script) -> Td<Script, Kicks, (), Ear> {
    with(script, description().with_dynamic_pamt(true))
}

fn two_mib() -> GpaEntry {
    entry(0x4000_0000, Level::L2M)
}

fn shelf() -> Shelf {
    Shelf(vec![
        (FrameKind::TeeTable, frame(0x200_0000)),
        (FrameKind::TeeMetadata, frame(0x300_0000)),
        (FrameKind::TeeMetadata, frame(0x300_1000)),
    ])
}

const BACKING: u64 = 0x8000_0000;

#[test]
fn cost_and_gather_agree() {
    let td = dynamic(Script::new());
    let backing = Some(hpa(BACKING));
    for (at, backing, table, metadata) in
        [(two_mib(), backing, 1, 2), (two_mib(), None, 1, 0), (entry(0x4000_0000, Level::L1G), backing, 1, 0)]
    {
        let cost = td.table_cost(at, backing);
        assert_eq!((cost[FrameKind::TeeTable], cost[FrameKind::TeeMetadata]), (table, metadata));
        let mut store = shelf();
        let pages = td.gather(at, backing, &mut store).unwrap();
        assert_eq!(store.0.len(), usize::try_from(2 - metadata).unwrap());
        assert_eq!(td.addresses(&pages).table, Some(hpa(0x200_0000)));
        td.scatter(pages, &mut |_| panic!("nothing to scrub"), &mut store);
        assert_eq!(store.0.len(), 3);
    }
    let mut short = Shelf(shelf().0.into_iter().take(2).collect());
    assert!(td.gather(two_mib(), backing, &mut short).is_none());
    assert_eq!(short.0.len(), 2, "nothing taken");
    assert!(self::td(Script::new()).table_cost(two_mib(), backing) == FrameNeeds::of(FrameKind::TeeTable, 1));
}

#[test]
fn a_retry_sends_the_registers_it_was_given() {
    // The first answers overwrite RCX, RDX and RAX; what is sent again must not contain them.
    let (rax, rcx, rdx) = BUSY_ENTRY;
    let td = td(Script::new().details(rax, rcx, rdx).details(rax, rcx, rdx));
    td.unmap(two_mib(), hpa(0x4000_0000)).unwrap(); // the script echoes RCX as the page
    let calls = td.transport().calls();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| *call == calls[0]), "{calls:x?}");
    assert_eq!(td.observer.0.borrow().len(), 2);
}

#[test]
fn budgets_bound_retries() {
    let (rax, rcx, rdx) = BUSY_ENTRY;
    let busy = td(Script::new().details(rax, rcx, rdx).details(rax, rcx, rdx).details(rax, rcx, rdx));
    let error = busy.unblock(two_mib()).unwrap_err();
    assert_eq!((error.class(), busy.transport().leaves()), (Class::Quiesce, vec![39, 39, 39, 25]));

    let script = (0..4).fold(Script::new(), |script, _| script.status(RESTARTABLE));
    let interrupted = td(script);
    let error = interrupted.merge(two_mib(), hpa(BACKING)).unwrap_err();
    assert_eq!((error.class(), interrupted.transport().calls().len()), (Class::Retry, 4));

    let impatient = with(Script::new().status(RESTARTABLE), description().with_budget(RetryBudget::NONE));
    assert!(impatient.merge(two_mib(), hpa(BACKING)).is_err());
    assert_eq!(impatient.transport().calls().len(), 1);

    // Other errors come out at once.
    let td = td(Script::new().status(0xc000_0b08_0000_0001));
    assert_eq!(td.unblock(two_mib()).unwrap_err().class(), Class::Quiesce);
    assert_eq!(td.transport().calls().len(), 1);
}

/// A refused call leaves the host-priority flag on the entry; SEPT.RD takes it away, so that the guest can accept.
#[test]
fn an_entry_that_is_given_up_is_read() {
    let (rax, rcx, rdx) = BUSY_ENTRY;
    let busy = |script: Script| script.details(rax, rcx, rdx);
    let td =
        with(busy(busy(Script::new())), description().with_budget(RetryBudget { busy: 1, restartable: 0 }));
    assert!(td.split(two_mib(), td.gather(two_mib(), None, &mut shelf()).unwrap()).is_err());
    assert_eq!(td.transport().leaves(), [15, 15, 25]);
    assert_eq!(td.transport().calls()[2], Regs { rax: 25, rcx: 0x4000_0001, rdx: 0x100_0000, ..Regs::new() });

    // The reader is bounded too, and is not read itself.
    let script = (0..9).fold(Script::new(), |script, _| busy(script));
    let td = with(script, description().with_budget(RetryBudget { busy: 1, restartable: 0 }));
    assert!(td.block(two_mib()).is_err());
    assert_eq!(td.transport().leaves(), [7, 7, 25, 25]);
    assert!(td.probe(two_mib()).is_err());
    assert_eq!(td.transport().leaves().len(), 6);

    // The last attempt does not even come to the entry: the flag of the first is still there.
    for lock in [0x92, 0xac, 2] {
        let script = busy(Script::new()).status(0x8000_0200_0000_0000 | lock);
        let td = with(script, description().with_budget(RetryBudget { busy: 1, restartable: 0 }));
        assert!(td.block(two_mib()).is_err());
        assert_eq!(td.transport().leaves(), [7, 7, 25], "{lock:#x}");
    }
    // Somebody who got the lock since has taken it away: not tracked, or the page's own metadata is locked.
    for answer in [0xc000_0b08_0000_0001, 0x8000_0200_0000_0001] {
        let script = busy(Script::new()).status(answer);
        let td = with(script, description().with_budget(RetryBudget { busy: 1, restartable: 0 }));
        assert!(td.unmap(two_mib(), hpa(BACKING)).is_err());
        assert_eq!(td.transport().leaves(), [29, 29], "{answer:#x}");
    }

    // Other locks leave no flag.
    let script = (0..3).fold(Script::new(), |script, _| script.status(0x8000_0200_0000_0092));
    let td = self::td(script);
    assert!(td.block(two_mib()).is_err());
    assert_eq!(td.transport().leaves(), [7, 7, 7]);
}

#[test]
fn sections() {
    let sections = Sections::default();
    let description = description().with_exclusive_promote(true);
    let td = Td::new(Script::new(), Kicks::default(), &sections, description);
    td.block(two_mib()).unwrap();
    td.unblock(two_mib()).unwrap();
    td.unlink(two_mib(), None).unwrap();
    td.merge(two_mib(), hpa(BACKING)).unwrap();
    td.map(two_mib(), frame_of(BACKING, Level::L2M), Fill::OnAccept).unwrap();
    td.fence().unwrap();
    td.probe(two_mib()).unwrap();
    let _ = td.unmap(two_mib(), hpa(BACKING));
    let pages = td.gather(two_mib(), None, &mut shelf()).unwrap();
    td.link(two_mib(), None, pages).unwrap();
    let pages = td.gather(two_mib(), None, &mut shelf()).unwrap();
    td.split(two_mib(), pages).unwrap();
    assert_eq!(*sections.0.borrow(), "xxxxssssss");

    let shared = Td::new(Script::new(), Kicks::default(), &sections, self::description());
    shared.merge(two_mib(), hpa(BACKING)).unwrap();
    assert!(sections.0.borrow().ends_with("xxxxsssssss"));
}

#[test]
fn map_fills_by_aug_or_add() {
    let td = td(Script::new());
    td.map(two_mib(), frame_of(BACKING, Level::L2M), Fill::OnAccept).unwrap();
    let at = entry(0x1000, Level::L4K);
    td.map(at, frame(0x9000_0000), Fill::Copy(hpa(0x5000))).unwrap();
    let calls = td.transport().calls();
    assert_eq!(calls[0], Regs { rax: 6, rcx: 0x4000_0001, rdx: 0x100_0000, r8: BACKING, ..Regs::new() });
    assert_eq!((calls[1].rax, calls[1].r8, calls[1].r9), (2, 0x9000_0000, 0x5000));

    let back = td.map(at, frame_of(BACKING, Level::L2M), Fill::OnAccept).unwrap_err();
    assert_eq!(back.held.level(), Level::L2M);
    assert_eq!(td.transport().calls().len(), 2);
}

#[test]
fn measure_goes_on_where_it_stopped() {
    let script = (0..3).fold(Script::new(), |script, _| script.status(0x8000_0200_0000_0002));
    let td = td(script);
    let stopped = td.measure(gpa(0x1000), 4096).unwrap_err();
    assert_eq!(stopped.at, gpa(0x1000));
    td.measure(stopped.at, 4096).unwrap();
    let calls = td.transport().calls();
    assert_eq!(calls.len(), 3 + 16);
    assert_eq!(calls.last().unwrap().rcx, 0x1f00);
}

#[test]
fn link_adds_the_pair_first_and_takes_it_back() {
    let backing = Some(hpa(BACKING));
    let td = dynamic(Script::new());
    let pages = td.gather(two_mib(), backing, &mut shelf()).unwrap();
    td.link(two_mib(), backing, pages).unwrap();
    assert_eq!(td.transport().leaves(), [58, 3]);
    assert_eq!(td.transport().calls()[0].rcx, BACKING | 1);

    let td = dynamic(Script::new().status(0).status(0xc000_0b0d_0000_0001));
    let mut store = shelf();
    let pages = td.gather(two_mib(), backing, &mut store).unwrap();
    let back = td.link(two_mib(), backing, pages).unwrap_err();
    assert_eq!(back.error.class(), Class::Caller);
    assert_eq!(td.transport().leaves(), [58, 3, 59]);
    // The pair was written under the global key; the table page was not touched.
    let mut scrubbed = 0;
    let mut count = |page| {
        scrubbed += 1;
        scrub(page)
    };
    td.scatter(back.held, &mut count, &mut store);
    assert_eq!((scrubbed, store.0.len()), (2, 3));
    let written: Vec<u64> = td.transport().calls()[3..].iter().map(|call| call.rcx).collect();
    assert_eq!(written, [32 << 40 | 0x300_0000, 32 << 40 | 0x300_1000]);

    // The pair cannot be taken back: it does not come back, and the error says that nothing more will help.
    let refuse = 0xc000_0306_0000_0000;
    let td = dynamic(Script::new().status(0).status(0xc000_0b0d_0000_0001).status(refuse));
    let pages = td.gather(two_mib(), backing, &mut shelf()).unwrap();
    let back = td.link(two_mib(), backing, pages).unwrap_err();
    assert!(matches!(back.error, TdError::Torn { .. }) && back.error.class() == Class::Fatal);
    assert_eq!(td.addresses(&back.held).metadata, [None; 2]);
}

#[test]
fn unlink_takes_the_pair_last() {
    let script = Script::new().details(0, 0x200_0000 | 1 << 62, 0).then(|regs| Regs {
        rax: 0,
        rdx: 0x300_0000,
        r8: 0x300_1000,
        ..regs
    });
    let td = dynamic(script);
    let donated = td.unlink(two_mib(), Some(hpa(BACKING))).unwrap();
    assert_eq!(td.transport().leaves(), [30, 59]);
    assert_eq!(donated.table, Some(hpa(0x200_0000)));
    assert_eq!(donated.metadata, [Some(hpa(0x300_0000)), Some(hpa(0x300_1000))]);

    let td = dynamic(Script::new().details(0, 0x200_0000, 0).status(0xc000_0306_0000_0001));
    let error = td.unlink(two_mib(), Some(hpa(BACKING))).unwrap_err();
    assert_eq!(error.class(), Class::Fatal);

    let td = dynamic(Script::new().details(0, 0x200_0000, 0).status(0xc000_0305_0000_0001));
    assert_eq!(td.unlink(two_mib(), Some(hpa(BACKING))).unwrap().metadata, [None; 2]);
}

/// A caller without patience wants its refusals at once, but not a change that is half made.
#[test]
fn the_other_half_is_tried_without_a_budget() {
    let impatient =
        |script| with(script, description().with_dynamic_pamt(true).with_budget(RetryBudget::NONE));
    let busy = 0x8000_0200_0000_0001;
    let pair = |regs: Regs| Regs { rax: 0, rdx: 0x300_0000, r8: 0x300_1000, ..regs };
    let td = impatient(Script::new().details(0, 0x200_0000, 0).status(busy).status(busy).then(pair));
    let donated = td.unlink(two_mib(), Some(hpa(BACKING))).unwrap();
    assert_eq!(donated.metadata, [Some(hpa(0x300_0000)), Some(hpa(0x300_1000))]);
    assert_eq!(td.transport().leaves(), [30, 59, 59, 59]);

    let td = impatient(Script::new().status(0).status(busy).status(busy).then(pair));
    let pages = td.gather(two_mib(), Some(hpa(BACKING)), &mut shelf()).unwrap();
    let back = td.link(two_mib(), Some(hpa(BACKING)), pages).unwrap_err();
    assert_eq!(back.error.class(), Class::Quiesce);
    assert_eq!(td.transport().leaves(), [58, 3, 59, 59]);
    assert_eq!(td.addresses(&back.held).metadata, [Some(hpa(0x300_0000)), Some(hpa(0x300_1000))]);
}

#[test]
fn unmap_names_the_page() {
    let td = td(Script::new().details(0, BACKING | 1 << 62, 0).details(0, BACKING, 0));
    td.unmap(two_mib(), hpa(BACKING)).unwrap();
    let error = td.unmap(two_mib(), hpa(0x9000_0000)).unwrap_err();
    assert_eq!(error.to_string(), "0x40000000/2M: removed page 0x80000000 where the mirror names 0x90000000");
}

#[test]
fn block_twice_is_a_success_that_is_heard() {
    let td = td(Script::new().details(0x0000_0b07_0000_0001, 0x8000_0000_8000_00f0, 0x0101));
    td.block(two_mib()).unwrap();
    assert!(matches!(td.observer.0.borrow()[..], [Notice::AlreadyBlocked { at, .. }] if at == two_mib()));
}

#[test]
fn fence_tracks_then_kicks() {
    let td = td(Script::new());
    let ticket = td.fence().unwrap();
    assert_eq!((td.transport().leaves(), ticket), (vec![38], 1));
    assert!(td.fenced(ticket));
    td.grace();
    assert_eq!((td.transport().calls().len(), td.shootdown().0.get()), (1, 2));
}

#[test]
fn fence_kicks_stragglers_of_the_epoch_before() {
    let busy = 0x8000_0201_0000_0000;
    let patient = td(Script::new().status(busy).status(busy));
    patient.fence().unwrap();
    assert_eq!((patient.transport().calls().len(), patient.shootdown().0.get()), (3, 3));

    let stuck = td(Script::new().status(busy).status(busy).status(busy));
    let error = stuck.fence().unwrap_err();
    assert_eq!(error.class(), Class::Quiesce);
    assert_eq!(stuck.transport().calls().len(), 3);
}

#[test]
fn split_donates_and_a_failed_one_is_scrubbed() {
    let backing = Some(hpa(BACKING));
    let td = dynamic(Script::new());
    let pages = td.gather(two_mib(), backing, &mut shelf()).unwrap();
    td.split(two_mib(), pages).unwrap();
    let call = td.transport().calls()[0];
    assert_eq!((call.rax, call.r8, call.r12, call.r13), (15, 0x200_0000, 0x300_0000, 0x300_1000));

    let script = (0..4).fold(Script::new(), |script, _| script.status(RESTARTABLE));
    let td = dynamic(script);
    let mut store = shelf();
    let pages = td.gather(two_mib(), backing, &mut store).unwrap();
    let back = td.split(two_mib(), pages).unwrap_err();
    assert_eq!(td.transport().leaves(), [15; 4]);
    let mut scrubbed = Vec::new();
    let mut note = |page: Frame<sept_core::Tainted>| {
        scrubbed.push(page.hpa().raw());
        scrub(page)
    };
    td.scatter(back.held, &mut note, &mut store);
    assert_eq!((scrubbed, store.0.len()), (vec![0x200_0000], 3));
    let last = td.transport().calls()[4];
    assert_eq!((last.rax, last.rcx), (41, 33 << 40 | 0x200_0000));
}

#[test]
fn split_without_its_pair_makes_no_call() {
    let td = dynamic(Script::new());
    let pages = td.gather(two_mib(), None, &mut shelf()).unwrap();
    let back = td.split(two_mib(), pages).unwrap_err();
    let TdError::Seamcall(error) = back.error else { panic!("{:?}", back.error) };
    assert_eq!(error.status.operand(), Some(Operand::R12));
    assert!(td.transport().calls().is_empty());
    td.scatter(back.held, &mut |_| panic!("clean"), &mut Shelf::default());
}

#[test]
fn split_of_a_larger_page_takes_no_pair() {
    let td = dynamic(Script::new());
    let pages = td.gather(two_mib(), Some(hpa(BACKING)), &mut shelf()).unwrap();
    let back = td.split(entry(0x4000_0000, Level::L1G), pages).unwrap_err();
    assert!(td.transport().calls().is_empty());
    let mut store = Shelf::default();
    td.scatter(back.held, &mut |_| panic!("clean"), &mut store);
    assert_eq!(store.0.len(), 3);
}

#[test]
fn a_page_that_cannot_be_written_back_is_lost_and_heard() {
    let script = (0..4).fold(Script::new(), |script, _| script.status(RESTARTABLE));
    let td = td(script.status(0xc000_0300_0000_0001));
    let pages = td.gather(two_mib(), None, &mut shelf()).unwrap();
    let back = td.split(two_mib(), pages).unwrap_err();
    let mut store = Shelf::default();
    td.scatter(back.held, &mut scrub, &mut store);
    assert!(store.0.is_empty());
    let lost = Notice::Lost { page: hpa(0x200_0000), kind: FrameKind::TeeTable };
    assert_eq!(td.observer.0.borrow().last(), Some(&lost));
}

#[test]
fn merge_returns_the_pair_at_2m_only() {
    let out = |regs: Regs| Regs { rax: 0, rcx: 0x200_0000, rdx: 0, r12: 0x300_0000, r13: 0x300_1000, ..regs };
    let td = dynamic(Script::new().then(out).then(out));
    let donated = td.merge(two_mib(), hpa(BACKING)).unwrap();
    assert_eq!(donated.metadata, [Some(hpa(0x300_0000)), Some(hpa(0x300_1000))]);
    assert_eq!(td.merge(entry(0x4000_0000, Level::L1G), hpa(BACKING)).unwrap().metadata, [None; 2]);
}

#[test]
fn probe_reads_states_and_clears_host_priority() {
    let (rax, rcx, rdx) = BUSY_ENTRY;
    for (rcx_out, rdx_out, expected) in [
        (1 << 63, 0x0001, Observed::Free),
        (0x7, 0x8401, Observed::Table),
        (0, 0x8101, Observed::Table),
        (0x8000_0000_8000_00f7, 0x0401, Observed::Leaf(sept_core::LeafState::Mapped)),
        (0x8000_0000_8000_00f0, 0x0101, Observed::Leaf(sept_core::LeafState::Mapped)),
        (0x8000_0000_8000_00f0, 0x0201, Observed::Leaf(sept_core::LeafState::Pending)),
        (0x8000_0000_8000_00f0, 0x0301, Observed::Leaf(sept_core::LeafState::Pending)),
    ] {
        let td = td(Script::new().details(rax, rcx, rdx).details(0, rcx_out, rdx_out));
        assert_eq!(td.probe(two_mib()).unwrap(), expected);
        assert_eq!(td.transport().leaves(), [25, 25]);
    }
    let hidden = td(Script::new().details(0xc000_0b00_0000_0001, 0, 0x8102));
    assert_eq!(hidden.probe(two_mib()).unwrap(), Observed::Hidden);
    let unknown = td(Script::new().details(0, 0, 0x7f01));
    assert!(matches!(unknown.probe(two_mib()), Err(TdError::UnknownState { .. })));
}

#[test]
fn write_back_touches_the_page_and_nothing_else() {
    let td = td(Script::new());
    td.write_back(&frame_of(BACKING, Level::L2M).taint(), CacheKey::Guest).unwrap();
    let pages: Vec<u64> = td.transport().calls().iter().map(|call| call.rcx).collect();
    let expected: Vec<u64> = (0..512).map(|i| 33 << 40 | (BACKING + i * 4096)).collect();
    assert_eq!(pages, expected);
}
