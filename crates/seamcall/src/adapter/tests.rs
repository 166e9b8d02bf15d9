use super::*;
use crate::testing::{Script, entry, hpa};
use crate::{
    Detail, EnterFlags, Features0, GuestRegs, Hkid, Leaf, Operand, Regs, Status, Tdr, Tdvpr, Transport,
    VpEnter, mem, mng, vp,
};
use sept_core::Level;
use std::vec::Vec;

const NO_ENTROPY: u64 = 0x8000_0203_0000_0000;

fn td() -> Tdr {
    Tdr::new(hpa(0x1_0100_0000)).unwrap()
}

/// Leaves rubbish in every register, as a leaf that was refused may.
fn rubbish(rax: u64) -> impl Fn(Regs) -> Regs {
    move |_| Regs { rax, rcx: 1, rdx: 2, r8: 3, r9: 4, r10: 5, r11: 6, r12: 7, r13: 8 }
}

#[test]
fn entropy_is_waited_for_with_the_same_registers() {
    let script = Script::new().then(rubbish(NO_ENTROPY)).then(rubbish(NO_ENTROPY));
    let transport = EntropyRetry::new(script);
    mng::create(&transport, crate::testing::frame(0x1_0100_0000), Hkid::new(33)).unwrap();
    let calls = transport.inner().calls();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| *call == calls[0]));
}

#[test]
fn entropy_is_waited_for_in_bounds() {
    for (attempts, expected) in [(0, 1), (1, 1), (3, 3)] {
        let script = (0..5).fold(Script::new(), |script, _| script.status(NO_ENTROPY));
        let transport = EntropyRetry::with_attempts(script, attempts);
        assert!(mng::key_config(&transport, td()).is_err());
        assert_eq!(transport.inner().calls().len(), expected);
    }
}

#[test]
fn entropy_retry_leaves_busy_to_others() {
    let transport = EntropyRetry::new(Script::new().status(0x8000_0200_0000_0092));
    assert!(mem::track(&transport, td()).is_err());
    assert_eq!(transport.inner().calls().len(), 1);
}

#[test]
fn faults_count_their_own_calls() {
    let plan = [
        Fault::at_leaf(Leaf::MEM_RANGE_BLOCK, 1, Status::OPERAND_BUSY).times(2),
        Fault::at_call(4, Status::INTERRUPTED_RESTARTABLE),
    ];
    let transport = Inject::new(Script::new(), plan);
    let at = entry(0x4000_0000, Level::L2M);
    let results: Vec<bool> = [true, false, true, true, false, false]
        .into_iter()
        .map(|block| match block {
            true => mem::range_block(&transport, td(), at).is_ok(),
            false => mem::track(&transport, td()).is_ok(),
        })
        .collect();
    // BLOCK ok; TRACK ok; BLOCK busy twice; the fifth call interrupted; TRACK ok.
    assert_eq!(results, [true, true, false, false, false, true]);
    assert_eq!(transport.inner().leaves(), [7, 38, 38]);
}

#[test]
fn a_transport_is_an_object() {
    let script = Script::new();
    let object: &dyn Transport = &script;
    mem::track(object, td()).unwrap();
    mem::track(&EntropyRetry::new(object), td()).unwrap();
    assert_eq!(script.calls().len(), 2);
}

#[test]
fn operands_of_a_missing_feature_make_no_call() {
    use crate::mem::{DemotePages, L2Mode, SeptPages};
    use crate::{phymem, testing::frame};
    let at = entry(0x4000_0000, Level::L2M);
    let plain = || DemotePages::new(frame(0x200_0000));
    let paired = || plain().with_pair([frame(0x300_0000), frame(0x300_1000)]);
    let layered = || plain().with_l2(2, [None, Some(frame(0x201_0000)), None]);
    let demote = |t: &Gate<&Script>, pages| {
        let result = mem::page_demote(t, td(), at, L2Mode::All, pages);
        result.map(drop).map_err(|back| {
            assert!(!back.held.is_tainted(), "no call was made");
            back.error.status.raw()
        })
    };
    let script = Script::new();
    let none = Gate::new(&script, Features0::empty());
    assert_eq!(demote(&none, paired()), Err(0xc000_ff01_0000_000c));
    assert_eq!(demote(&none, layered()), Err(0xc000_ff01_0000_000a));
    assert!(phymem::pamt_remove(&none, hpa(0x20_0000)).is_err());
    let region = |t: &Gate<&Script>| phymem::page_rdmd_at(t, hpa(0x20_0000), Level::L2M).map(drop);
    assert_eq!(region(&none).unwrap_err().status.raw(), 0xc000_ff01_0000_0001);
    let sparse = mem::page_demote(&none, td(), at, L2Mode::Sparse, plain()).unwrap_err();
    assert_eq!(sparse.error.status.raw(), 0xc000_ff01_0000_0002);
    assert_eq!(mem::sept_rd_l2(&none, td(), at).unwrap_err().status.raw(), 0xc000_ff01_0000_0002);
    let l2 = SeptPages { l1: None, l2: [Some(frame(0x201_0000)), None, None] };
    let back = mem::sept_add_v1(&none, td(), at, false, l2).unwrap_err();
    assert!(back.held.l2[0].is_some());
    assert!(script.calls().is_empty());
    assert_eq!(demote(&none, plain()), Ok(()));
    mem::sept_add(&none, td(), at, frame(0x202_0000)).unwrap();

    let all = Gate::new(&script, Features0::DYNAMIC_PAMT | Features0::TD_PARTITIONING);
    assert_eq!(demote(&all, paired()), Ok(()));
    assert_eq!(demote(&all, layered()), Ok(()));
    phymem::pamt_remove(&all, hpa(0x20_0000)).unwrap();
    region(&all).unwrap();
    assert_eq!(script.leaves(), [15, 3, 15, 15, 59, 24]);
}

/// Enters through `t` with a value in each register, and gives what came out.
#[expect(unsafe_code, reason = "a script stands for the guest")]
fn enter<T: VpEnter>(t: &T, flags: EnterFlags) -> GuestRegs {
    let guest = GuestRegs { rbx: 3, rbp: 5, r15: 15, ..GuestRegs::new() };
    // SAFETY: a script stands for the guest; it does nothing.
    unsafe { vp::enter(t, Tdvpr::new(hpa(0x200_3000)).unwrap(), flags, guest) }
}

#[test]
fn entries_go_through() {
    let out = GuestRegs { rax: 1, rbx: 30, rbp: 50, r15: 150, ..GuestRegs::new() };
    let script = Script::new().exit(out).exit(out).exit(out);
    let busy = Status::OPERAND_BUSY.with_detail(Detail::Operand(Operand::TD_EPOCH));
    let plan = [Fault::at_leaf(Leaf::VP_ENTER, 1, busy), Fault::at_call(3, Status::TD_FATAL)];
    let transport = EntropyRetry::new(Inject::new(&script, plan));
    let flags = EnterFlags::empty();
    assert_eq!(enter(&transport, flags), out);
    // Refused by plan: the status, and every register as it went in.
    let refused = enter(&transport, flags);
    let sent = script.entries()[0];
    assert_eq!(refused, GuestRegs { rax: 0x8000_0200_0000_00a9, ..sent });
    mem::track(&transport, td()).unwrap();
    assert_eq!(enter(&transport, flags).rax, Status::TD_FATAL.raw());
    assert_eq!(script.entries().len(), 1);

    let gate = Gate::new(&script, Features0::empty());
    assert_eq!(enter(&gate, EnterFlags::RESUME_L1).rax, 0xc000_ff01_0000_0001);
    assert_eq!(enter(&gate, flags), out);
    assert_eq!(enter(&Gate::new(&script, Features0::TD_PARTITIONING), EnterFlags::RESUME_L1), out);
    assert_eq!(script.entries().len(), 3);
    let object: &dyn VpEnter = &script;
    mem::track(object, td()).unwrap();
}

#[cfg(feature = "std")]
#[test]
fn recorded_entry() {
    let out = GuestRegs { rax: 0x4d, rcx: 0x8c00, rbx: 30, rbp: 5, r15: 0, ..GuestRegs::new() };
    let recorder = Recorder::new(Script::new().exit(out), Vec::new(), 0);
    enter(&recorder, EnterFlags::empty());
    let text = std::string::String::from_utf8(recorder.finish().unwrap()).unwrap();
    let expected = r#"{"seq":0,"i":0,"leaf":"TDH.VP.ENTER","ver":0,"in":{"rcx":"0x2003000","rbx":"0x3","rbp":"0x5","r15":"0xf"},"out":{"rax":"0x4d","rcx":"0x8c00","rbx":"0x1e","r15":"0x0"}}"#;
    assert_eq!(text.trim_end(), expected);
}

#[cfg(feature = "std")]
#[test]
fn recorded_lines() {
    let script = Script::new()
        .details(0xc000_0b0d_0000_0001, 0x7, 0x8401)
        .status(0x8000_0201_0000_0000)
        .then(|regs| Regs { rax: 0xc000_0100_0000_0000, ..regs })
        .then(|_| Regs { rax: 0, rcx: 1, rdx: 2, r8: 3, r9: 4, r10: 5, r11: 6, r12: 7, r13: 8 });
    let recorder = Recorder::new(script, Vec::new(), 3);
    let at = entry(0x60_0000, Level::L2M);
    let _ = mem::sept_add(&recorder, td(), at, crate::testing::frame(0x1_0200_3000));
    let _ = mem::track(&recorder, td());
    recorder.call(crate::Call::new(Regs { rax: 0x8006, rcx: 0x60_0000, ..Regs::new() }));
    let _ = mem::sept_remove_v1(&recorder, td(), at);
    let text = std::string::String::from_utf8(recorder.finish().unwrap()).unwrap();
    let expected = [
        r#"{"seq":3,"i":0,"leaf":"TDH.MEM.SEPT.ADD","ver":0,"in":{"rcx":"0x600001","rdx":"0x101000000","r8":"0x102003000"},"out":{"rax":"0xc0000b0d00000001","rcx":"0x7","rdx":"0x8401"}}"#,
        r#"{"seq":3,"i":1,"leaf":"TDH.MEM.TRACK","ver":0,"in":{"rcx":"0x101000000"},"out":{"rax":"0x8000020100000000","rcx":"0x0"}}"#,
        r#"{"seq":3,"i":2,"leaf":"RAW","in":{"rcx":"0x600000","rax":"0x8006"},"out":{"rax":"0xc000010000000000"}}"#,
        r#"{"seq":3,"i":3,"leaf":"TDH.MEM.SEPT.REMOVE","ver":1,"in":{"rcx":"0x600001","rdx":"0x101000000"},"out":{"rax":"0x0","rcx":"0x1","rdx":"0x2","r8":"0x3","r9":"0x4","r10":"0x5","r11":"0x6","r12":"0x7","r13":"0x8"}}"#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[cfg(feature = "std")]
#[test]
fn a_full_disk_does_not_stop_a_call() {
    #[derive(Debug)]
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let recorder = Recorder::new(Script::new(), Full, 0);
    mem::track(&recorder, td()).unwrap();
    mem::track(&recorder, td()).unwrap();
    assert_eq!(recorder.inner().calls().len(), 2);
    assert_eq!(recorder.finish().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}
