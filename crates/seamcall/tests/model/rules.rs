//! One test for each row of the module's retry rules: what the status is classed as, and that doing what the rule says
//! helps.

use crate::bench::{BASE, Bench, LARGE, PARAMS, builder, entry, frame, scrub};
use core::cell::Cell;
use seamcall::adapter::EntropyRetry;
use seamcall::exit::Exit;
use seamcall::mem::{self, Blocked, MaybeTainted};
use seamcall::phymem::{self, CacheWb, CacheWritten};
use seamcall::{
    Notice, Observe, Regs, RetryBudget, SeamcallError, SeptState, Status, Td, TdError, mng, ranges, vp,
};
use sept_core::{Class, Classify, External, Fill, GpaEntry, Hpa, Level, Observed, Returned, TdxConfig};
use tdx_model::{Accept, Access, Fault, Hold, Interrupts, Leaf, Machine, ModuleVersion, TdLock};

const AT: u64 = 0x4000_0000;

fn two_mib() -> GpaEntry {
    entry(AT, Level::L2M)
}

fn model(status: Status) -> tdx_model::Status {
    tdx_model::Status(status.raw())
}

/// A TD with a 2 MiB page that its guest has accepted.
fn with_page(machine: &Machine) -> Bench<'_> {
    let bench = Bench::new(machine, false, true);
    bench.link(entry(0, Level::L512G), None);
    bench.link(entry(AT, Level::L1G), None);
    bench.td.map(two_mib(), frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();
    bench.guest().enter(0).unwrap();
    bench.accept(two_mib());
    bench
}

#[track_caller]
fn refused<T>(result: Result<T, TdError>, status: Status, class: Class) -> SeamcallError {
    match result {
        Err(TdError::Seamcall(error)) => {
            assert!(error.status.is(status), "{error}");
            assert_eq!(error.class(), class, "{error}");
            error
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn no_entropy_is_retried_plainly_and_in_bounds() {
    let machine = builder(false).build();
    let dry = |times| Fault { times, ..Fault::nth(Leaf::MngCreate, 1, model(Status::RND_NO_ENTROPY)) };
    machine.inject(dry(2));
    let t = EntropyRetry::with_attempts(machine.lp(0), 2);
    let back = mng::create(&t, frame(BASE, Level::L4K), seamcall::Hkid::new(33)).unwrap_err();
    assert_eq!(back.error.class(), Class::Retry);
    machine.inject(dry(1));
    let MaybeTainted::Tainted(page) = back.held else { panic!("the module wrote it") };
    mng::create(&t, scrub(page), seamcall::Hkid::new(33)).unwrap();
}

/// Another call holds the tree: it is gone in a moment, so the same call again.
#[test]
fn a_lock_of_another_call_is_waited_for() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let hold = machine.hold_td(bench.td.tdr().hpa(), TdLock::SeptTree, Access::Shared).unwrap();
    let error = refused(bench.td.block(two_mib()), Status::OPERAND_BUSY, Class::Retry);
    assert!(!error.is_entry_busy());
    machine.release(hold);
    bench.td.block(two_mib()).unwrap();
    bench.sound();
}

/// A vCPU holds the TDR for as long as it is inside: only a kick helps.
#[test]
fn a_lock_of_a_vcpu_is_kicked_away() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let error = mng::vpflushdone(bench.td.transport(), bench.td.tdr()).unwrap_err();
    assert!(error.status.is(Status::OPERAND_BUSY));
    assert_eq!(error.class(), Class::Quiesce);
    assert!(bench.guest().exit());
    let error = mng::vpflushdone(bench.td.transport(), bench.td.tdr()).unwrap_err();
    assert!(error.status.is(Status::FLUSHVP_NOT_DONE) && error.class() == Class::Quiesce);
    vp::flush(bench.td.transport(), bench.vcpu).unwrap();
    mng::vpflushdone(bench.td.transport(), bench.td.tdr()).unwrap();
}

/// Lets go of a foreign lock at the n-th repetition.
struct LetGo<'m> {
    machine: &'m Machine,
    hold: Cell<Option<Hold>>,
    after: Cell<u32>,
}

impl Observe for &LetGo<'_> {
    fn notice(&self, notice: Notice) {
        assert!(matches!(notice, Notice::Retry(error) if error.is_entry_busy()));
        self.after.set(self.after.get() - 1);
        if self.after.get() == 0 {
            self.machine.release(self.hold.take().unwrap());
        }
    }
}

/// The lock of an entry: host priority stays behind and keeps the guest out, until the entry has been read. Only the
/// guest ever sees `OPERAND_BUSY_HOST_PRIORITY`.
#[test]
fn an_entry_that_is_given_up_can_be_accepted() {
    let machine = builder(false).build();
    for gave_up_well in [false, true] {
        let bench_machine = if gave_up_well { &machine } else { &builder(false).build() };
        let bench = Bench::new(bench_machine, false, true);
        bench.link(entry(0, Level::L512G), None);
        bench.link(entry(AT, Level::L1G), None);
        bench.td.map(two_mib(), frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();
        bench.guest().enter(0).unwrap();
        let tdr = bench.td.tdr().hpa();
        let hold = bench_machine.hold_entry(tdr, two_mib().gpa(), Level::L2M).unwrap();
        // Four repetitions of the call; the lock goes at the second repetition of the reader, or never.
        let after = if gave_up_well { 6 } else { 1000 };
        let listener = LetGo { machine: bench_machine, hold: Cell::new(Some(hold)), after: Cell::new(after) };
        let td = Td::new(bench_machine.lp(0), &NoKick, (), *bench.td.description()).with_observer(&listener);
        let error = refused(td.block(two_mib()), Status::OPERAND_BUSY, Class::Quiesce);
        assert!(error.is_entry_busy());
        assert_eq!(listener.hold.get().is_none(), gave_up_well, "the reader repeats too");
        if let Some(hold) = listener.hold.take() {
            bench_machine.release(hold);
            let refusal = bench.guest().accept(two_mib().gpa(), Level::L2M);
            let Ok(Accept::Returned(status)) = refusal else { panic!("{refusal:?}") };
            assert!(
                [Status::OPERAND_BUSY, Status::OPERAND_BUSY_HOST_PRIORITY]
                    .map(|code| code.raw())
                    .contains(&status.code()),
                "{status:?}"
            );
            assert_eq!(bench.td.probe(two_mib()).unwrap(), Observed::Leaf(sept_core::LeafState::Pending));
        }
        bench.accept(two_mib());
        bench.sound();
    }
}

struct NoKick;

#[expect(unsafe_code, reason = "nothing is fenced with it")]
// SAFETY: `done` never says so.
unsafe impl sept_core::Shootdown for NoKick {
    type Ticket = ();

    fn start(&self) {}

    fn done(&self, (): ()) -> bool {
        false
    }
}

/// A TD exit, no status of a call: end what was begun, enter again.
#[test]
fn a_guest_that_was_kept_out_too_long_exits() {
    let status = Status::HOST_PRIORITY_BUSY_TIMEOUT;
    assert_eq!(status.class(), Some(Class::Retry));
    let out = Regs { rax: status.raw(), ..Regs::new() };
    assert_eq!(Exit::decode(&out, TdxConfig::LEVELS_4), Exit::HostPriority);
}

#[cfg(feature = "test-util")]
#[test]
fn a_busy_module_is_called_again() {
    use seamcall::adapter::{Fault, Inject};
    use seamcall::sys;
    let machine = builder(false).build();
    let plan = Fault::at_leaf(seamcall::Leaf::SYS_RD, 0, Status::SYS_BUSY).times(3);
    let t = Inject::new(machine.lp(0), [plan]);
    let mut budget = RetryBudget { busy: 2, restartable: 0 };
    let read = || sys::rd(&t, seamcall::FieldId::TDX_FEATURES0);
    let error = loop {
        match read() {
            Err(error) if budget.spend(&error) => {}
            result => break result.unwrap_err(),
        }
    };
    assert!(error.status.is(Status::SYS_BUSY) && error.class() == Class::Retry);
    assert_eq!(budget, RetryBudget::NONE);
    read().unwrap();
}

/// Progress was made: each leaf has its own way to go on, CACHE.WB with another command.
#[test]
fn resumable_goes_on_by_the_rule_of_its_leaf() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let (t, td) = (bench.td.transport(), bench.td.tdr());
    bench.guest().exit();
    vp::flush(t, bench.vcpu).unwrap();
    mng::vpflushdone(t, td).unwrap();
    let error = mng::key_freeid(t, td).unwrap_err();
    assert!(error.status.is(Status::WBCACHE_NOT_COMPLETE) && error.class() == Class::Caller);

    let error = phymem::cache_wb(t, CacheWb::Resume).unwrap_err();
    assert!(error.status.is(Status::WBCACHE_RESUME_ERROR) && error.class() == Class::Caller);
    machine.set_interrupts(Some(Interrupts::nmi_after(0)));
    let error = ranges::cache_wb_to_end(t, 3).unwrap_err();
    assert!(error.status.is(Status::INTERRUPTED_RESUMABLE) && error.class() == Class::Retry);
    let mut budget = RetryBudget::DEFAULT;
    assert!(!budget.spend(&error), "the same operands would begin again");
    machine.set_interrupts(None);
    assert_eq!(phymem::cache_wb(t, CacheWb::Resume), Ok(CacheWritten::Done));
    // Until the key is free it can be written back again.
    mng::key_freeid(t, td).unwrap();
    assert_eq!(phymem::cache_wb(t, CacheWb::Start), Ok(CacheWritten::NothingToDo));
}

/// Nothing was committed: the same again, in bounds; then unblock, and again later.
#[test]
fn restartable_is_bounded_and_given_up_by_unblocking() {
    let machine = builder(false).version(ModuleVersion::V1_5_01).build();
    let bench = with_page(&machine);
    let td = &bench.td;
    td.block(two_mib()).unwrap();
    td.fence().unwrap();
    machine.set_interrupts(Some(Interrupts::nmi_after(0)));
    machine.reset_stats();
    let pages = td.gather(two_mib(), None, &mut bench.shelf(1)).unwrap();
    let Returned { error, held } = td.split(two_mib(), pages).unwrap_err();
    refused(Err::<(), _>(error), Status::INTERRUPTED_RESTARTABLE, Class::Retry);
    assert_eq!(machine.stats().of(Leaf::PageDemote), 1 + u64::from(td.description().budget().restartable));
    td.unblock(two_mib()).unwrap();
    bench.guest().enter(0).unwrap();
    bench.guest().write(two_mib().gpa(), 9).unwrap();

    machine.set_interrupts(None);
    td.block(two_mib()).unwrap();
    td.fence().unwrap();
    td.split(two_mib(), held).unwrap();
    bench.guest().enter(0).unwrap();
    assert_eq!(bench.guest().read(two_mib().gpa()), Ok(9));
    bench.sound();
}

#[test]
fn a_straggler_of_the_epoch_before_is_kicked() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let (t, td) = (bench.td.transport(), bench.td.tdr());
    mem::track(t, td).unwrap();
    let error = mem::track(t, td).unwrap_err();
    assert!(error.status.is(Status::PREVIOUS_TLB_EPOCH_BUSY) && error.class() == Class::Quiesce);
    assert!(!RetryBudget::DEFAULT.clone().spend(&error), "calling again does not make it leave");
    // The fence kicks before it calls again.
    bench.td.fence().unwrap();
    assert!(!bench.guest().is_inside());
}

#[test]
fn what_is_not_tracked_is_tracked_and_kicked() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    bench.td.block(two_mib()).unwrap();
    for tracked in [false, true] {
        if tracked {
            mem::track(bench.td.transport(), bench.td.tdr()).unwrap();
        }
        refused(
            bench.td.unmap(two_mib(), Hpa::truncate(LARGE)),
            Status::TLB_TRACKING_NOT_DONE,
            Class::Quiesce,
        );
    }
    assert!(bench.guest().exit(), "the kick");
    bench.td.unmap(two_mib(), Hpa::truncate(LARGE)).unwrap();
}

#[test]
fn what_is_not_blocked_is_blocked_first() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let unmap = || bench.td.unmap(two_mib(), Hpa::truncate(LARGE));
    let error = refused(unmap(), Status::GPA_RANGE_NOT_BLOCKED, Class::Caller);
    assert_eq!(error.entry().unwrap().state(), SeptState::Mapped);
    bench.td.block(two_mib()).unwrap();
    bench.td.fence().unwrap();
    unmap().unwrap();
    bench.sound();
}

#[test]
fn already_blocked_is_a_success_with_the_older_stamp() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let (t, td) = (bench.td.transport(), bench.td.tdr());
    assert_eq!(mem::range_block(t, td, two_mib()), Ok(Blocked::Now));
    let stamp = machine.page(Hpa::truncate(LARGE)).bepoch;
    mem::track(t, td).unwrap();
    let Ok(Blocked::Already(found)) = mem::range_block(t, td, two_mib()) else { panic!("blocked twice") };
    assert_eq!((found.state(), found.hpa()), (SeptState::Blocked, Hpa::new(LARGE)));
    assert_eq!(machine.page(Hpa::truncate(LARGE)).bepoch, stamp);
    assert_ne!(machine.td(td.hpa()).unwrap().td_epoch, stamp);
}

/// A level is missing: add it. A block above: somebody will undo it.
#[test]
fn a_walk_that_fails_says_where() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let missing = entry(0x8000_0000, Level::L2M);
    let page = frame(LARGE + 0x20_0000, Level::L2M);
    let Returned { error, held } = bench.td.map(missing, page, Fill::OnAccept).unwrap_err();
    let error = refused(Err::<(), _>(error), Status::EPT_WALK_FAILED, Class::Caller);
    let stopped = error.entry().unwrap();
    assert_eq!((stopped.level(), stopped.state()), (Some(Level::L1G), SeptState::Free));
    bench.link(entry(0x8000_0000, Level::L1G), None);
    bench.td.map(missing, held, Fill::OnAccept).unwrap();

    bench.td.block(entry(0x8000_0000, Level::L1G)).unwrap();
    let error = refused(bench.td.block(missing), Status::EPT_WALK_FAILED, Class::Retry);
    assert!(error.is_hidden());
}

/// Two vCPUs fault on one page: the loser's page comes back, and nothing is wrong.
#[test]
fn losing_a_race_is_benign() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    let page = frame(LARGE + 0x20_0000, Level::L2M);
    let Returned { error, held } = bench.td.map(two_mib(), page, Fill::OnAccept).unwrap_err();
    let error = refused(Err::<(), _>(error), Status::EPT_ENTRY_STATE_INCORRECT, Class::Caller);
    assert_eq!(
        (error.entry().unwrap().state(), error.entry().unwrap().level()),
        (SeptState::Mapped, Some(Level::L2M))
    );
    assert_eq!(held.hpa().raw(), LARGE + 0x20_0000);
    bench.sound();
}

/// A page that is in use, and one that is in no TDMR: the caller's mistakes.
#[test]
fn a_page_that_cannot_be_given_comes_back() {
    let machine = builder(false).build();
    let bench = with_page(&machine);
    bench.link(entry(0x8000_0000, Level::L1G), None);
    let free = entry(0x8000_0000, Level::L2M);
    for (page, status) in
        [(LARGE, Status::PAGE_METADATA_INCORRECT), (PARAMS, Status::OPERAND_ADDR_RANGE_ERROR)]
    {
        let Returned { error, held } =
            bench.td.map(free, frame(page, Level::L2M), Fill::OnAccept).unwrap_err();
        refused(Err::<(), _>(error), status, Class::Caller);
        assert_eq!(held.hpa().raw(), page);
    }
    bench.sound();
}

#[test]
fn a_missing_page_pair_is_added() {
    let machine = builder(true).build();
    let bench = Bench::new(&machine, true, true);
    for (gpa, level) in [(0, Level::L512G), (AT, Level::L1G), (AT, Level::L2M)] {
        bench.link(entry(gpa, level), None);
    }
    let at = entry(AT, Level::L4K);
    let Returned { error, held } = bench.td.map(at, frame(LARGE, Level::L4K), Fill::OnAccept).unwrap_err();
    refused(Err::<(), _>(error), Status::MISSING_PAMT_PAGE_PAIR, Class::Caller);
    let pair = [0x10_0000, 0x10_1000].map(|offset| frame(BASE + offset, Level::L4K));
    phymem::pamt_add(bench.td.transport(), Hpa::truncate(LARGE), pair).unwrap();
    bench.td.map(at, held, Fill::OnAccept).unwrap();
    let mut left = bench.shelf(0);
    let pages = bench.td.gather(entry(0x4020_0000, Level::L2M), None, &mut bench.shelf(1)).unwrap();
    bench.td.scatter(pages, &mut scrub, &mut left);
    bench.sound();
}
