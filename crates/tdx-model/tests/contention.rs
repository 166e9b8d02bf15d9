//! Calls that overlap: one pauses with its locks held, others run meanwhile. Nothing here depends on time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, Leaf, Machine, MachineBuilder, Pause, Point, Status};

const BASE: u64 = 0x1_0000_0000;
const PAGE: u64 = 4096;
/// A frame to give, by number.
const FRAMES: u64 = BASE + 0x1000_0000;

fn frame(number: u64) -> u64 {
    FRAMES + number * PAGE
}

fn build(builder: MachineBuilder, spec: TdSpec, tables: u64) -> (Machine, TdPages) {
    let machine = builder.memory(BASE, 1).build();
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let td = boot::create(&machine.lp(0), &machine, &spec, &mut frames).expect("a TD");
    for chunk in 0..tables {
        boot::map_tables(&machine.lp(0), &td, Gpa::truncate(chunk << 21), Level::L4K, &mut frames)
            .expect("tables");
    }
    (machine, td)
}

fn call(machine: &Machine, lp: u32, leaf: Leaf, operands: [u64; 3]) -> Regs {
    let [rcx, rdx, r8] = operands;
    machine.lp(lp).raw(Regs { rax: leaf as u64, rcx, rdx, r8, ..Regs::new() })
}

type Answers = Arc<Mutex<Vec<(Leaf, Point, Status)>>>;

/// What other calls answer while `first` pauses, by where it pauses.
fn meanwhile(
    first: (Leaf, [u64; 3]),
    others: Vec<(Leaf, [u64; 3])>,
    prepare: impl FnOnce(&Machine, u64),
) -> (Status, Vec<(Leaf, Point, Status)>) {
    let answers = Answers::default();
    let armed = Arc::new(AtomicBool::new(false));
    let (kept, on) = (Arc::clone(&answers), Arc::clone(&armed));
    let leaf = first.0;
    let hook = move |machine: &Machine, pause: Pause| {
        if pause.lp != 0 || pause.leaf != Some(leaf) || !on.load(Ordering::Relaxed) {
            return;
        }
        for &(leaf, operands) in &others {
            let status = Status(call(machine, u32::from(leaf != Leaf::VpEnter), leaf, operands).rax);
            kept.lock().unwrap().push((leaf, pause.point, status));
        }
    };
    let (machine, td) = build(Machine::builder().audit(true).on_pause(hook), TdSpec::default(), 2);
    prepare(&machine, td.tdr.raw());
    armed.store(true, Ordering::Relaxed);
    let status = Status(call(&machine, 0, leaf, first.1).rax);
    let answers = answers.lock().unwrap().clone();
    (status, answers)
}

/// The TDR is the first frame that `build` uses.
const TDR: u64 = BASE;

#[test]
fn a_paused_call_makes_others_busy_as_its_locks_say() {
    use Leaf::{MemTrack, MrFinalize, PageAug, RangeBlock, SeptRd};
    let others = vec![
        (SeptRd, [0, TDR, 0]),
        (SeptRd, [PAGE, TDR, 0]),
        (RangeBlock, [PAGE, TDR, 0]),
        (MrFinalize, [TDR, 0, 0]),
        (PageAug, [2 * PAGE, TDR, frame(0)]),
        (MemTrack, [TDR, 0, 0]),
    ];
    let (status, answers) = meanwhile((PageAug, [0, TDR, frame(0)]), others, |_, _| {});
    let at = |point: Point| -> Vec<Status> {
        answers.iter().filter(|answer| answer.1 == point).map(|answer| answer.2).collect()
    };
    let busy = |operand: u64| Status(0x8000_0200_0000_0000 | operand);
    // The entry, another entry, the tree, the TDR; the new page is not locked yet, so another entry takes it.
    assert_eq!(at(Point::Locked)[..4], [busy(1), Status::SUCCESS, busy(146), busy(1)]);
    assert_eq!(at(Point::Locked)[4..], [Status::SUCCESS; 2]);
    assert_eq!(status, Status(0xC000_0300_0000_0008), "and is not free any more");
}

#[test]
fn the_new_page_is_busy_once_it_is_locked() {
    let (status, answers) = meanwhile(
        (Leaf::PageAug, [0, TDR, frame(0)]),
        vec![(Leaf::PhymemPageRdmd, [frame(0), 0, 0])],
        |machine, _| assert_eq!(call(machine, 1, Leaf::PageAug, [PAGE, TDR, frame(7)]).rax, 0),
    );
    let statuses: Vec<_> = answers.iter().map(|answer| answer.2).collect();
    assert_eq!(statuses, [Status::SUCCESS, Status(0x8000_0200_0000_0001)], "RDMD wants the page shared");
    assert_eq!(status, Status::SUCCESS);
}

#[test]
fn whoever_advances_the_epoch_keeps_vcpus_and_others_out() {
    let others = vec![(Leaf::MemTrack, [TDR, 0, 0]), (Leaf::VpEnter, [BASE + 7 * PAGE, 0, 0])];
    let (status, answers) = meanwhile((Leaf::MemTrack, [TDR, 0, 0]), others, |machine, _| {
        assert_eq!(machine.page(Hpa::truncate(BASE + 7 * PAGE)).kind, tdx_model::PageType::Tdvpr);
    });
    let statuses: Vec<_> = answers.iter().map(|answer| answer.2).collect();
    assert_eq!(statuses, [Status(0x8000_0200_0000_00A9); 2]);
    assert_eq!(status, Status::SUCCESS);
}

/// A host that fails on the entry of a paused SEPT.RD leaves host priority: guests wait until a host call succeeded.
#[test]
fn the_loser_leaves_host_priority() {
    let guest_answer = Arc::new(Mutex::new(None));
    let (seen, tdvpr) = (Arc::clone(&guest_answer), Hpa::truncate(BASE + 7 * PAGE));
    let hook = move |machine: &Machine, pause: Pause| {
        if (pause.lp, pause.leaf) == (2, Some(Leaf::SeptRd)) && seen.lock().unwrap().is_none() {
            *seen.lock().unwrap() = Some(machine.guest(tdvpr).accept(Gpa::truncate(0), Level::L4K));
            let loser = call(machine, 1, Leaf::RangeBlock, [0, TDR, 0]);
            assert_eq!(Status(loser.rax), Status(0x8000_0200_0000_0092), "the tree is shared by SEPT.RD");
            let loser = call(machine, 1, Leaf::PageRemove, [0, TDR, 0]);
            assert_eq!((Status(loser.rax), loser.rdx), (Status(0x8000_0200_0000_0001), 0x200));
        }
    };
    let (machine, td) = build(Machine::builder().audit(true).on_pause(hook), TdSpec::default(), 1);
    let guest = machine.guest(td.vcpus[0]);
    assert_eq!(call(&machine, 0, Leaf::PageAug, [0, TDR, frame(0)]).rax, 0);
    guest.enter(0).unwrap();
    assert_eq!(call(&machine, 2, Leaf::SeptRd, [0, TDR, 0]).rax, 0);
    let busy = Ok(Accept::Returned(Status(0x8000_0200_0000_0001)));
    assert_eq!(*guest_answer.lock().unwrap(), Some(busy), "the entry lock is taken");
    assert_eq!(guest.accept(Gpa::truncate(0), Level::L4K), busy, "host priority");
    assert_eq!(call(&machine, 1, Leaf::SeptRd, [0, TDR, 0]).rax, 0);
    assert_eq!(guest.accept(Gpa::truncate(0), Level::L4K), Ok(Accept::Returned(Status::SUCCESS)));
}

#[test]
fn a_guest_in_the_middle_of_accept_is_busy_and_leaves_afterwards() {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (kept, tdvpr) = (Arc::clone(&answers), Hpa::truncate(BASE + 7 * PAGE));
    let hook = move |machine: &Machine, pause: Pause| {
        if pause.leaf.is_none() {
            kept.lock().unwrap().push(Status(call(machine, 1, Leaf::RangeBlock, [0, TDR, 0]).rax));
            assert!(!machine.guest(tdvpr).exit(), "not before the instruction is over");
        }
    };
    let (machine, td) = build(Machine::builder().audit(true).on_pause(hook), TdSpec::default(), 1);
    let guest = machine.guest(td.vcpus[0]);
    assert_eq!(call(&machine, 0, Leaf::PageAug, [0, TDR, frame(0)]).rax, 0);
    guest.enter(0).unwrap();
    assert_eq!(guest.accept(Gpa::truncate(0), Level::L4K), Ok(Accept::Returned(Status::SUCCESS)));
    assert_eq!(*answers.lock().unwrap(), [Status(0x8000_0200_0000_0001)]);
    assert!(!guest.is_inside());
    assert_eq!(machine.td(td.tdr).unwrap().refcount, [0, 0]);
}

/// Two threads, made to meet inside of their calls: the second finds the first one's locks.
#[test]
fn threads_meet_inside_of_calls() {
    let (inside, over) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let armed = Arc::new(AtomicBool::new(false));
    let (meet, part, on) = (Arc::clone(&inside), Arc::clone(&over), Arc::clone(&armed));
    let hook = move |_: &Machine, pause: Pause| {
        if pause.lp == 0 && pause.point == Point::Commit && on.swap(false, Ordering::SeqCst) {
            meet.wait();
            part.wait();
        }
    };
    let (machine, td) = build(Machine::builder().on_pause(hook), TdSpec::default(), 1);
    armed.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(call(&machine, 0, Leaf::PageAug, [0, TDR, frame(0)]).rax, 0));
        scope.spawn(|| {
            inside.wait();
            let same = call(&machine, 1, Leaf::PageAug, [0, TDR, frame(1)]);
            assert_eq!(Status(same.rax), Status(0x8000_0200_0000_0001));
            let page = call(&machine, 1, Leaf::PageAug, [PAGE, TDR, frame(0)]);
            assert_eq!(Status(page.rax), Status(0x8000_0200_0000_0008));
            over.wait();
        });
    });
    assert_eq!(machine.td(td.tdr).unwrap().chldcnt, 6 + 6 + 3 + 1);
    assert!(machine.check_invariants().is_empty());
}

/// Without a word about contention calls of two threads overlap: one of them finds the other's lock before long.
#[test]
fn threads_contend_unless_told_otherwise() {
    let spec = TdSpec { finalize: false, ..TdSpec::default() };
    let (machine, _) = build(Machine::builder(), spec, 1);
    let found = AtomicBool::new(false);
    let work = |lp: u32, leaves: [Leaf; 2]| {
        for turn in 0..10_000_000 {
            if found.load(Ordering::Relaxed) {
                break;
            }
            let status = Status(call(&machine, lp, leaves[turn % 2], [1, TDR, 0]).rax);
            assert!(status == Status::SUCCESS || status == Status(0x8000_0200_0000_0092), "{status:?}");
            if status != Status::SUCCESS {
                found.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        // The tree exclusively, and shared.
        scope.spawn(|| work(0, [Leaf::RangeBlock, Leaf::RangeUnblock]));
        scope.spawn(|| work(1, [Leaf::SeptRd, Leaf::SeptRd]));
    });
    assert!(found.load(Ordering::Relaxed));
    assert!(machine.check_invariants().is_empty());
}

/// Calls until the answer is not "busy" and not "somebody is still inside".
fn insist(machine: &Machine, lp: u32, leaf: Leaf, operands: [u64; 3], retry: impl Fn()) -> Status {
    loop {
        let status = Status(call(machine, lp, leaf, operands).rax);
        match status.code() {
            code if Status(code) == Status::OPERAND_BUSY
                || Status(code) == Status::PREVIOUS_TLB_EPOCH_BUSY =>
            {
                retry();
            }
            code if Status(code) == Status::TLB_TRACKING_NOT_DONE => retry(),
            _ => return status,
        }
    }
}

const HOSTS: u64 = 2;
const ROUNDS: u64 = 60;
const PAGES: u64 = 4;

/// Hosts give and take pages of their 2 MiB range while two vCPUs accept, write and read all of them.
#[test]
fn hosts_and_guests_in_threads_keep_every_invariant() {
    let spec = TdSpec { vcpus: 2, ..TdSpec::default() };
    let (machine, td) = build(Machine::builder(), spec, HOSTS);
    let tdr = td.tdr.raw();
    let running = AtomicU64::new(HOSTS);
    let kick = || {
        td.vcpus.iter().for_each(|&vcpu| _ = machine.guest(vcpu).exit());
        std::thread::yield_now();
    };
    std::thread::scope(|scope| {
        for host in 0..HOSTS {
            let (machine, running, kick) = (&machine, &running, &kick);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let number = host * PAGES + round % PAGES;
                    let entry = (host << 21) + round % PAGES * PAGE;
                    let make = |leaf, r8| insist(machine, 10 + host as u32, leaf, [entry, tdr, r8], kick);
                    assert_eq!(make(Leaf::PageAug, frame(number)), Status::SUCCESS);
                    assert_eq!(make(Leaf::RangeBlock, 0), Status::SUCCESS);
                    let track = insist(machine, 10 + host as u32, Leaf::MemTrack, [tdr, 0, 0], kick);
                    assert_eq!(track, Status::SUCCESS);
                    assert_eq!(make(Leaf::PageRemove, 0), Status::SUCCESS);
                    let freed = frame(number) | 33 << 46;
                    let clean =
                        insist(machine, 10 + host as u32, Leaf::PhymemPageWbinvd, [freed, 0, 0], kick);
                    assert_eq!(clean, Status::SUCCESS);
                    assert_eq!(
                        machine.check_invariants(),
                        Vec::<String>::new(),
                        "while others are in the middle"
                    );
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for (number, &tdvpr) in (0u32..).zip(&td.vcpus) {
            let (machine, running) = (&machine, &running);
            scope.spawn(move || {
                let guest = machine.guest(tdvpr);
                let mut turn = u64::from(number);
                while running.load(Ordering::SeqCst) > 0 {
                    if !guest.is_inside() {
                        let _ = guest.enter(number);
                    }
                    turn += 1;
                    let gpa = Gpa::truncate(((turn % HOSTS) << 21) + turn / HOSTS % PAGES * PAGE);
                    let _ = guest.accept(gpa, Level::L4K);
                    let _ = guest.write(gpa, turn);
                    let _ = guest.read(gpa);
                    std::thread::yield_now();
                }
                guest.exit();
            });
        }
    });
    assert_eq!(machine.check_invariants(), Vec::<String>::new());
    assert_eq!(machine.violations(), []);
    let info = machine.td(td.tdr).unwrap();
    assert_eq!((info.refcount, info.fatal), ([0, 0], false));
    assert_eq!(machine.stats().answers.get(&(Leaf::PageAug as u16, Status::PAGE_METADATA_INCORRECT)), None);
}
