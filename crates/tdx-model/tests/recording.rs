//! What seamcall's recorder writes, between the lines of a trace writer, replays unchanged.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::rc::Rc;

use seamcall::adapter::Recorder;
use seamcall::phymem::{self, CacheWb};
use seamcall::{EnterFlags, GuestRegs, Hkid, KeyIdBits, Regs, Tdr, Transport, mem, mng, mr, vp};
use sept_core::{Frame, Gpa, GpaEntry, Hpa, Level};
use tdx_model::boot::{TdSpec, td_params};
use tdx_model::replay::{Event, Tally, TraceWriter, run};
use tdx_model::{Accept, Access, Machine, Status, TdCall, TdLock};

const BASE: u64 = 0x1_0000_0000;
const PARAMS: u64 = 0x4000_0000;
const PAGE: u64 = BASE + 0x1000_0000;

/// The file that the recorder and the trace writer share.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[expect(unsafe_code, reason = "a test makes up where memory is free")]
fn frame(hpa: u64) -> Frame {
    // SAFETY: the test names each address once, and the memory is the model's.
    unsafe { Frame::assume_owned(Hpa::truncate(hpa), Level::L4K) }.unwrap()
}

fn entry(gpa: u64, level: Level) -> GpaEntry {
    GpaEntry::new(Gpa::truncate(gpa), level).unwrap()
}

/// Creates, builds and starts a TD.
fn create<W: Write>(
    t: &impl Transport,
    machine: &Machine,
    trace: &mut TraceWriter<W>,
    page: impl Fn() -> Frame,
) -> (Tdr, seamcall::Tdvpr) {
    let tdr = mng::create(t, page(), Hkid::new(33)).unwrap();
    mng::key_config(t, tdr).unwrap();
    (0..6).for_each(|_| mng::addcx(t, tdr, page()).unwrap());
    let params = td_params(&TdSpec::default());
    machine.host_write_bytes(Hpa::truncate(PARAMS), &params);
    trace.memory(Hpa::truncate(PARAMS), &params).unwrap();
    mng::init(t, tdr, Hpa::truncate(PARAMS)).unwrap();
    let vcpu = vp::create(t, tdr, page()).unwrap();
    (0..5).for_each(|_| vp::addcx(t, vcpu, page()).unwrap());
    vp::init(t, vcpu, 0).unwrap();
    for level in [Level::L512G, Level::L1G, Level::L2M] {
        mem::sept_add(t, tdr, entry(0, level), page()).unwrap();
    }
    mr::finalize(t, tdr).unwrap();
    (tdr, vcpu)
}

/// A TD's life; `until_the_end` tears it down.
fn record(until_the_end: bool) -> String {
    let machine = Machine::builder().memory(BASE, 1).build();
    let file = Shared::default();
    let mut trace = TraceWriter::new(file.clone(), &machine.platform()).unwrap();
    trace.begin(0, "a life").unwrap();
    let recorder = Recorder::new(machine.lp(0), file.clone(), 0);
    let t = &recorder;
    let next = RefCell::new(BASE);
    let page = || {
        let hpa = next.replace_with(|next| *next + 4096);
        frame(hpa)
    };
    let (tdr, vcpu) = create(t, &machine, &mut trace, page);
    let (guest, at) = (machine.guest(vcpu.hpa()), entry(0x5000, Level::L4K));
    trace.entered(0, 0, guest.enter(0)).unwrap();
    let outcome = guest.accept(at.gpa(), Level::L4K).unwrap();
    assert!(matches!(outcome, Accept::Exit(_)), "nothing is there yet");
    trace.accepted(0, 0, at.gpa().raw(), &outcome).unwrap();
    mem::page_aug(t, tdr, at, frame(PAGE)).unwrap();
    trace.entered(0, 0, guest.enter(0)).unwrap();
    let outcome = guest.accept(at.gpa(), Level::L4K).unwrap();
    assert_eq!(outcome, Accept::Returned(Status::SUCCESS));
    trace.accepted(0, 0, at.gpa().raw(), &outcome).unwrap();
    mem::sept_rd(t, tdr, at).unwrap();
    assert!(mem::page_remove(t, tdr, at).is_err(), "not blocked");
    let _ = mem::range_block(t, tdr, at).unwrap();
    mem::track(t, tdr).unwrap();
    assert!(mem::page_remove(t, tdr, at).is_err(), "the vCPU is inside");
    guest.exit();
    trace.exited(0, 0).unwrap();
    let _ = mem::page_remove(t, tdr, at).unwrap();
    let keys = KeyIdBits::new(52, 6).unwrap();
    phymem::page_wbinvd(t, Hpa::truncate(PAGE), Hkid::new(33), keys).unwrap();
    if until_the_end {
        vp::flush(t, vcpu).unwrap();
        mng::vpflushdone(t, tdr).unwrap();
        phymem::cache_wb(t, CacheWb::Start).unwrap();
        mng::key_freeid(t, tdr).unwrap();
        for number in 1..16 {
            phymem::page_reclaim(t, Hpa::truncate(BASE + number * 4096)).unwrap();
        }
        phymem::page_reclaim(t, tdr.hpa()).unwrap();
        trace.end().unwrap();
    } else {
        trace.end_with(&machine).unwrap();
    }
    recorder.finish().unwrap();
    String::from_utf8(file.0.take()).unwrap()
}

fn replay(trace: &str) -> (Tally, Vec<String>) {
    let mut told = Vec::new();
    let tally = run(trace.as_bytes(), true, |event| {
        if let Event::Mismatch(mismatch) = event {
            told.push(mismatch.to_string());
        }
    });
    (tally.unwrap(), told)
}

#[test]
fn a_recorded_life_replays_unchanged() {
    for until_the_end in [false, true] {
        let trace = record(until_the_end);
        let (tally, told) = replay(&trace);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 0, 0), "{told:#?}");
        assert!(tally.steps > 25, "{trace}");
    }
}

#[test]
fn a_changed_answer_is_found() {
    let trace = record(false);
    let (from, to) = (r#""out":{"rax":"0xc0000b0800000001""#, r#""out":{"rax":"0xc0000b0600000001""#);
    assert!(trace.contains(from), "{trace}");
    let (tally, told) = replay(&trace.replace(from, to));
    assert_eq!((tally.failed, told.len()), (1, 1));
    assert!(told[0].contains("TDH.MEM.PAGE.REMOVE: rax: expected 0xc0000b0600000001"), "{told:?}");
    let (tally, told) = replay(&trace.replace(r#""chldcnt":15"#, r#""chldcnt":16"#));
    assert_eq!((tally.failed, told.len()), (1, 1), "{told:?}");
}

/// The recorder writes VP.ENTER too, with the guest's registers; what a guest did is known of the ACCEPT that made it exit.
#[test]
fn entries_that_the_recorder_wrote_replay() {
    let machine = Machine::builder().memory(BASE, 1).build();
    let file = Shared::default();
    let mut trace = TraceWriter::new(file.clone(), &machine.platform()).unwrap();
    trace.begin(0, "entries").unwrap();
    let at = entry(0x5000, Level::L4K);
    // First an ACCEPT, then a hypercall, from then on nothing.
    let turn = Cell::new(0);
    let lp = machine.lp(0).running(|guest, _| {
        turn.set(turn.get() + 1);
        match turn.get() {
            1 => match guest.accept(at.gpa(), at.level()) {
                Ok(Accept::Exit(exit)) => exit.into(),
                other => panic!("{other:?}"),
            },
            2 => GuestRegs { rax: 77, rcx: 0x3C00, r11: 0x10001, r14: 7, ..GuestRegs::new() },
            _ => GuestRegs { rax: 1, ..GuestRegs::new() },
        }
    });
    let recorder = Recorder::new(lp, file.clone(), 0);
    let t = &recorder;
    let next = RefCell::new(BASE);
    let page = || frame(next.replace_with(|next| *next + 4096));
    let (tdr, vcpu) = create(t, &machine, &mut trace, page);
    #[expect(unsafe_code, reason = "the guest is a program of this test")]
    // SAFETY: the guest is a program of this test.
    let enter =
        || unsafe { vp::enter(t, vcpu, EnterFlags::empty(), GuestRegs { rbx: 3, ..GuestRegs::new() }) };
    assert_eq!((enter().rax, enter().rax, enter().rax), (48, 77, 1));
    let hold = machine.hold_td(tdr.hpa(), TdLock::Epoch, Access::Exclusive).unwrap();
    let refused = enter();
    assert_eq!((refused.rax, refused.rbx), (0x8000_0200_0000_00A9, 3));
    machine.release(hold);
    let without_hold = String::from_utf8(file.0.borrow().clone()).unwrap();
    mem::page_aug(t, tdr, at, frame(PAGE)).unwrap();
    // The vCPU is inside while others call: the begin is told, the recorder writes the end.
    trace.entered(0, 0, machine.guest(vcpu.hpa()).enter(0)).unwrap();
    let input = Regs { rax: 23, rcx: at.gpa().raw(), ..Regs::new() };
    let outcome = machine.guest(vcpu.hpa()).tdcall(input).unwrap();
    assert!(matches!(outcome, TdCall::Returned(Regs { rax: 0, .. })), "{outcome:?}");
    trace.called(0, 0, input, &outcome).unwrap();
    mem::track(t, tdr).unwrap();
    assert!(mem::track(t, tdr).is_err(), "of the epoch before");
    assert!(machine.guest(vcpu.hpa()).exit());
    trace.exited(0, 0).unwrap();
    mem::track(t, tdr).unwrap();
    trace.end_with(&machine).unwrap();
    recorder.finish().unwrap();
    let text = String::from_utf8(file.0.take()).unwrap();
    // The refused entry needs the lock that it found.
    let line = without_hold.lines().last().unwrap();
    assert!(line.contains("TDH.VP.ENTER") && line.contains("0x80000200000000a9"), "{line}");
    let (name, input) = (r#""td":0,"what":"EPOCH","mode":"ex""#, "SIM.LOCK");
    let lock = format!(r#"{{"seq":0,"leaf":"{input}","in":{{{name}}},"out":{{"ok":true}}}}"#);
    let unlock = format!(r#"{{"seq":0,"leaf":"SIM.UNLOCK","in":{{{name}}}}}"#);
    let text = text.replace(line, &format!("{lock}\n{line}\n{unlock}"));
    let (tally, told) = replay(&text);
    assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 0, 0), "{told:#?}");
    let exit = text.lines().find(|line| line.contains(r#""rax":"0x30""#)).unwrap();
    let other = exit.replace(r#""rcx":"0x2""#, r#""rcx":"0x1""#);
    let (tally, told) = replay(&text.replace(exit, &other));
    assert_eq!((tally.failed, told.len()), (1, 1), "{told:#?}");
    assert!(told[0].contains("TDH.VP.ENTER: rcx: expected 0x1, got 0x2"), "{told:?}");
}
