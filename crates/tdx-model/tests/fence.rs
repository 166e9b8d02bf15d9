//! A host that does not fence, on a machine that does not refuse it: what the guest still reaches is reported.

use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, GuestFault, Leaf, Machine, Status, ViolationKind};

const BASE: u64 = 0x1_0000_0000;
const PAGE: u64 = BASE + 0x1000_0000;

struct Bench {
    machine: Machine,
    tds: [TdPages; 2],
}

/// Two TDs with running vCPUs; the first has used the page at guest address 0.
fn bench(enforced: bool) -> Bench {
    let machine = Machine::builder().memory(BASE, 1).enforce_tracking(enforced).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let tds = [33, 34].map(|hkid| {
        let td = boot::create(&lp, &machine, &TdSpec { hkid, ..TdSpec::default() }, &mut frames).unwrap();
        boot::map_tables(&lp, &td, Gpa::truncate(0), Level::L4K, &mut frames).unwrap();
        machine.guest(td.vcpus[0]).enter(0).unwrap();
        td
    });
    let bench = Bench { machine, tds };
    bench.give(0);
    let guest = bench.machine.guest(bench.tds[0].vcpus[0]);
    guest.write(Gpa::truncate(0), 0x11).unwrap();
    bench
}

impl Bench {
    /// The page comes to the TD and is accepted.
    fn give(&self, td: usize) {
        boot::aug(&self.machine.lp(0), &self.tds[td], Gpa::truncate(0), Level::L4K, Hpa::truncate(PAGE))
            .unwrap();
        let accepted = self.machine.guest(self.tds[td].vcpus[0]).accept(Gpa::truncate(0), Level::L4K);
        assert_eq!(accepted, Ok(Accept::Returned(Status::SUCCESS)));
    }

    fn call(&self, leaf: Leaf) -> Result<(), Status> {
        boot::call(&self.machine.lp(0), leaf, [0, self.tds[0].tdr.raw(), 0, 0]).map(drop)
    }

    fn take(&self) -> Result<(), Status> {
        self.call(Leaf::RangeBlock)?;
        self.call(Leaf::PageRemove)
    }
}

#[test]
fn the_module_refuses_and_no_guest_sees_anything() {
    let bench = bench(true);
    assert_eq!(bench.take(), Err(Status(0xC000_0B08_0000_0001)));
    let guest = bench.machine.guest(bench.tds[0].vcpus[0]);
    assert_eq!(guest.read(Gpa::truncate(0)), Ok(0x11), "the cached translation is still good");
    assert_eq!(bench.machine.violations(), []);
}

#[test]
fn a_skipped_fence_is_reported_with_page_call_and_epoch() {
    let bench = bench(false);
    bench.take().unwrap();
    let calls = bench.machine.stats().total;
    let guest = bench.machine.guest(bench.tds[0].vcpus[0]);
    assert_eq!(guest.read(Gpa::truncate(0)), Ok(0x11), "nothing has overwritten it yet");
    let violation = bench.machine.violations()[0];
    assert_eq!(
        (violation.kind, violation.hpa, violation.call),
        (ViolationKind::StaleTranslation, PAGE, calls)
    );
    let stale = violation.stale.expect("details");
    assert_eq!((stale.gpa, stale.entered, stale.epoch), (0, 1, 1));
    assert_eq!(stale.taken_by, Some((Leaf::PageRemove, calls - 1)));
    let text = violation.to_string();
    assert!(
        text.contains("0x110000000") && text.contains("TDH.MEM.PAGE.REMOVE") && text.contains("epoch 1"),
        "{text}"
    );
}

#[test]
fn the_page_of_another_td_is_reached_and_corrupted() {
    let bench = bench(false);
    bench.take().unwrap();
    bench.give(1);
    let [first, second] = [0, 1].map(|td: usize| bench.machine.guest(bench.tds[td].vcpus[0]));
    first.write(Gpa::truncate(0), 0x66).unwrap();
    assert_eq!(
        second.read(Gpa::truncate(0)),
        Err(GuestFault::Fatal),
        "its page was written with another key"
    );
    let kinds: Vec<_> = bench.machine.violations().iter().map(|violation| violation.kind).collect();
    assert!(
        kinds.contains(&ViolationKind::StaleTranslation) && kinds.contains(&ViolationKind::GuestReadForeign)
    );
    assert!(bench.machine.td(bench.tds[1].tdr).unwrap().fatal);
}

#[test]
fn a_fence_leaves_nothing_to_report() {
    let bench = bench(false);
    bench.call(Leaf::RangeBlock).unwrap();
    boot::call(&bench.machine.lp(0), Leaf::MemTrack, [bench.tds[0].tdr.raw(), 0, 0, 0]).unwrap();
    let guest = bench.machine.guest(bench.tds[0].vcpus[0]);
    assert!(guest.exit());
    bench.call(Leaf::PageRemove).unwrap();
    guest.enter(0).unwrap();
    assert!(matches!(guest.read(Gpa::truncate(0)), Err(GuestFault::Exit(_))));
    assert!(bench.machine.violations().iter().all(|violation| violation.stale.is_none()));
}

/// A blocked table keeps its pages: until the fence is through, the guest may go on with what it has cached.
#[test]
fn a_page_under_a_blocked_table_is_still_the_guests() {
    let bench = bench(true);
    let tdr = bench.tds[0].tdr.raw();
    let guest = bench.machine.guest(bench.tds[0].vcpus[0]);
    for level in [1, 2, 3] {
        boot::call(&bench.machine.lp(0), Leaf::RangeBlock, [level, tdr, 0, 0]).unwrap();
        guest.write(Gpa::truncate(0), level).unwrap();
        assert_eq!(guest.read(Gpa::truncate(0)), Ok(level));
    }
    assert_eq!(bench.machine.violations(), []);
    boot::call(&bench.machine.lp(0), Leaf::MemTrack, [tdr, 0, 0, 0]).unwrap();
    assert!(guest.exit());
    guest.enter(0).unwrap();
    assert!(
        matches!(guest.read(Gpa::truncate(0)), Err(GuestFault::Exit(_))),
        "after the fence it is blocked"
    );
}

/// A page that came back to the place it was taken from is pending there, and a translation from before is stale.
#[test]
fn a_page_that_came_back_pending_is_not_reached_through_an_old_translation() {
    let bench = bench(false);
    bench.take().unwrap();
    boot::aug(&bench.machine.lp(0), &bench.tds[0], Gpa::truncate(0), Level::L4K, Hpa::truncate(PAGE))
        .unwrap();
    bench.machine.clear_violations();
    bench.machine.guest(bench.tds[0].vcpus[0]).write(Gpa::truncate(0), 0x22).unwrap();
    let stale: Vec<_> = bench.machine.violations().iter().filter_map(|violation| violation.stale).collect();
    assert_eq!(stale.len(), 1);
    assert_eq!(stale[0].taken_by.map(|(leaf, _)| leaf), Some(Leaf::PageRemove));
}
