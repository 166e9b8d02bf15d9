use super::*;
use crate::testing::{frame, gpa};
use crate::{
    EnterFlags, Features0, FieldId, GuestRegs, Hkid, OpState, PlatformField, TdField, mng, mng::KeyConfig,
    mr, sys, vp,
};

fn on(rax: u64, rcx: u64) -> Regs {
    Regs { rax, rcx, ..Regs::new() }
}

#[test]
fn td_life() {
    let expected = Regs { rdx: 33, ..on(9, TDR) };
    let td = sends(Script::new(), expected, |t| mng::create(t, frame(TDR), Hkid::new(33))).unwrap();
    assert_eq!(td, tdr());

    assert_eq!(sends(Script::new(), on(8, TDR), |t| mng::key_config(t, td)), Ok(KeyConfig::Configured));
    let script = Script::new().status(0x0000_0815_0000_0000);
    assert_eq!(mng::key_config(&script, td), Ok(KeyConfig::Already));

    let expected = Regs { rdx: TDR, ..on(1, 0x101_0000) };
    sends(Script::new(), expected, |t| mng::addcx(t, td, frame(0x101_0000))).unwrap();
    // No entropy, or a page too many: the module has written the page; busy: it has not.
    for (status, written) in
        [(0x8000_0203_0000_0000, true), (0xc000_0608_0000_0000, true), (0x8000_0200_0000_0001, false)]
    {
        let back = mng::addcx(&Script::new().status(status), td, frame(0x101_0000)).unwrap_err();
        assert_eq!(matches!(back.held, crate::mem::MaybeTainted::Tainted(_)), written, "{status:#x}");
    }
    let expected = Regs { rdx: 0x4000_0400, ..on(21, TDR) };
    sends(Script::new(), expected, |t| mng::init(t, td, hpa(0x4000_0400))).unwrap();
    sends(Script::new(), on(17, TDR), |t| mr::finalize(t, td)).unwrap();
    sends(Script::new(), on(19, TDR), |t| mng::vpflushdone(t, td)).unwrap();
    sends(Script::new(), on(20, TDR), |t| mng::key_freeid(t, td)).unwrap();
    let expected = Regs { rdx: TDR, ..on(16, 0x1100) };
    sends(Script::new(), expected, |t| mr::extend(t, td, gpa(0x1100))).unwrap();

    // No entropy: the page has been zeroed under the global key. A key id that is taken: it has not.
    for (status, written) in [(0x8000_0203_0000_0000, true), (0xc000_0820_0000_0000, false)] {
        let back = mng::create(&Script::new().status(status), frame(TDR), Hkid::new(33)).unwrap_err();
        let tainted = matches!(back.held, crate::mem::MaybeTainted::Tainted(page) if page.hpa().raw() == TDR);
        assert_eq!(tainted, written, "{status:#x}");
    }
}

#[test]
fn td_metadata() {
    let epoch = 0x9210_0003_0000_0000;
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 7, ..regs });
    let value = sends(script, Regs { rdx: epoch, ..on(11, TDR) }, |t| mng::rd(t, tdr(), FieldId::TD_EPOCH));
    assert_eq!(value, Ok(7));
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 7, rdx: u64::MAX, ..regs });
    let expected = Regs { rdx: epoch, ..on(0x1_000b, TDR) };
    let value = sends(script, expected, |t| mng::rd_next(t, tdr(), FieldId::TD_EPOCH));
    assert_eq!(value, Ok((7, None)));
    let expected = Regs { rdx: epoch, r8: 5, r9: 0xff, ..on(13, TDR) };
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 4, ..regs });
    let value = sends(script, expected, |t| mng::wr(t, tdr(), FieldId::TD_EPOCH, 5, 0xff));
    assert_eq!(value, Ok(4));
}

#[test]
fn td_state() {
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 3, ..regs });
    let expected = Regs { rdx: 0x9010_0002_0000_0004, ..on(11, TDR) };
    assert_eq!(sends(script, expected, |t| mng::read(t, tdr(), TdField::OP_STATE)), Ok(OpState::LiveExport));
}

#[test]
fn vcpu_life() {
    let expected = Regs { rdx: TDR, ..on(10, TDVPR) };
    let vcpu = sends(Script::new(), expected, |t| vp::create(t, tdr(), frame(TDVPR))).unwrap();
    assert_eq!(vcpu, tdvpr());
    let expected = Regs { rdx: TDVPR, ..on(4, 0x101_0000) };
    sends(Script::new(), expected, |t| vp::addcx(t, vcpu, frame(0x101_0000))).unwrap();
    sends(Script::new(), Regs { rdx: 0x77, ..on(22, TDVPR) }, |t| vp::init(t, vcpu, 0x77)).unwrap();
    let expected = Regs { rdx: 0x77, r8: 3, ..on(0x1_0016, TDVPR) };
    sends(Script::new(), expected, |t| vp::init_x2apic(t, vcpu, 0x77, 3)).unwrap();
    sends(Script::new(), on(18, TDVPR), |t| vp::flush(t, vcpu)).unwrap();
}

/// Sixteen registers but `RSP`: each goes in and comes out as itself, `RAX` and `RCX` are the call's.
#[test]
#[expect(unsafe_code, reason = "the script runs no guest")]
fn vcpu_entry() {
    let regs = |n: u64| GuestRegs {
        rax: n,
        rcx: n + 1,
        rdx: n + 2,
        rbx: n + 3,
        rbp: n + 5,
        rsi: n + 6,
        rdi: n + 7,
        r8: n + 8,
        r9: n + 9,
        r10: n + 10,
        r11: n + 11,
        r12: n + 12,
        r13: n + 13,
        r14: n + 14,
        r15: n + 15,
    };
    let script = Script::new().exit(regs(0x200)).exit(regs(0x200)).exit(regs(0x200));
    // SAFETY: a script stands for the guest; it does nothing.
    let enter = |flags| unsafe { vp::enter(&script, tdvpr(), flags, regs(0x100)) };
    assert_eq!(enter(EnterFlags::empty()), regs(0x200));
    enter(EnterFlags::HOST_RECOVERABILITY_HINT);
    enter(EnterFlags::RESUME_L1);
    let sent = |rcx| GuestRegs { rax: 0, rcx, ..regs(0x100) };
    let expected = [0x200_3000, 0x0010_0000_0200_3000, 0x0020_0000_0200_3000].map(sent);
    assert_eq!(script.entries(), expected);
    assert_eq!(vp::enter_operand(tdvpr(), EnterFlags::all()), 0x0030_0000_0200_3000);

    let common = regs(0x200).regs();
    assert_eq!((common.rax, common.rcx, common.rdx, common.r8), (0x200, 0x201, 0x202, 0x208));
    assert_eq!((common.r9, common.r12, common.r13), (0x209, 0x20c, 0x20d));
    let reply = regs(0x200).with_reply(crate::exit::MapGpaReply::DONE);
    assert_eq!(reply, GuestRegs { r10: 0, r11: 0, ..regs(0x200) });
}

#[test]
fn vcpu_metadata() {
    let field = FieldId::new(0x1120_0003_0000_0000);
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 7, ..regs });
    let expected = Regs { rdx: field.raw(), ..on(26, TDVPR) };
    assert_eq!(sends(script, expected, |t| vp::rd(t, tdvpr(), field)), Ok(7));
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 7, rdx: regs.rdx + 1, ..regs });
    let expected = Regs { rdx: field.raw(), ..on(0x1_001a, TDVPR) };
    assert_eq!(sends(script, expected, |t| vp::rd_next(t, tdvpr(), field)), Ok((7, Some(field.element(1)))));
    let expected = Regs { rdx: field.raw(), r8: 1, r9: 2, ..on(43, TDVPR) };
    assert_eq!(sends(Script::new(), expected, |t| vp::wr(t, tdvpr(), field, 1, 2)), Ok(1));
}

#[test]
fn platform_metadata() {
    let script = Script::new().then(|regs| Regs { rax: 0, rdx: u64::MAX, r8: 1 << 36, ..regs });
    let expected = Regs { rdx: 0x0a00_0003_0000_0008, ..on(34, 0) };
    assert_eq!(sends(script, expected, |t| sys::rd(t, FieldId::TDX_FEATURES0)), Ok((1 << 36, None)));
    let script = Script::new().then(|regs| Regs { rax: 0, rdx: u64::MAX, r8: 1 << 36, ..regs });
    let features = sends(script, expected, |t| sys::read(t, PlatformField::TDX_FEATURES0));
    assert_eq!(features, Ok(Features0::DYNAMIC_PAMT));
    let script = Script::new().then(|regs| Regs { rax: 0, r8: 0x8000_0000, ..regs });
    let expected = Regs { rdx: 0x9000_0003_0000_0082, ..on(34, 0) };
    let base = sends(script, expected, |t| sys::read(t, PlatformField::CMR_BASE.element(2)));
    assert_eq!(base, Ok(0x8000_0000));
}
