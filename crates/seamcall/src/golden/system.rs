use super::*;
use crate::export::{self, GpaList};
use crate::sys::{self, TdmrProgress};
use crate::testing::{entry, frame, frame_of};
use crate::{FatalErrorConfig, FatalNotification, Features0, FieldId, Hkid, mng::KeyConfig};
use sept_core::Level;

fn on(rax: u64) -> Regs {
    Regs { rax, ..Regs::new() }
}

#[test]
fn bring_up() {
    sends(Script::new(), on(33), sys::init).unwrap();
    sends(Script::new(), on(35), sys::lp_init).unwrap();
    assert_eq!(sends(Script::new(), on(31), sys::key_config), Ok(KeyConfig::Configured));
    let again = Script::new().status(0x0000_0815_0000_0000);
    assert_eq!(sends(again, on(31), sys::key_config), Ok(KeyConfig::Already));
    sends(Script::new(), on(44), sys::lp_shutdown).unwrap();
    sends(Script::new(), on(53), sys::update).unwrap();
    let expected = Regs { r9: 0x0000_8000_0000_0000, ..on(0x1_0035) };
    sends(Script::new(), expected, |t| sys::update_v1(t, Features0::UPDATE_COMPATIBILITY)).unwrap();
    sends(Script::new(), Regs { rcx: 3, ..on(52) }, |t| sys::shutdown(t, 3)).unwrap();
}

/// Bit positions from the module's header.
#[test]
#[expect(unsafe_code, reason = "the script takes no memory")]
fn init_v1() {
    let info = Some(hpa(0x4000_0040));
    let none = FatalErrorConfig::new(None, FatalNotification::None);
    for (config, r8) in [
        (none, 0x000f_ffff_ffff_ffc0),
        (FatalErrorConfig::new(info, FatalNotification::None), 0x0000_0000_4000_0040),
        (FatalErrorConfig::new(info, FatalNotification::Interrupt(0xf3)), 0xf340_0000_4000_0040),
        (FatalErrorConfig::new(info, FatalNotification::Nmi), 0x0080_0000_4000_0040),
        (FatalErrorConfig::new(None, FatalNotification::Smi), 0x00cf_ffff_ffff_ffc0),
    ] {
        let expected = Regs { r8, ..on(0x1_0021) };
        // SAFETY: a script stands for the module; it writes nothing.
        sends(Script::new(), expected, |t| unsafe { sys::init_v1(t, config.unwrap()) }).unwrap();
    }
    assert_eq!(FatalErrorConfig::new(Some(hpa(0x4000_0020)), FatalNotification::None), None);
    assert_eq!(FatalErrorConfig::new(info, FatalNotification::Interrupt(15)), None);
    // CPUID leaf 7 is not as the module wants it: the registers tell.
    let script = Script::new().details(0xc000_0900_0000_0000, 7, 0xffff_ffff_0000_0000);
    let error = sys::init(&script).unwrap_err();
    assert_eq!((error.registers(), error.entry()), ((7, 0xffff_ffff_0000_0000), None));
}

#[test]
#[expect(unsafe_code, reason = "the script takes no memory")]
fn config() {
    let expected = Regs { rcx: 0x4000_0200, rdx: 3, r8: 32, ..on(45) };
    // SAFETY: a script stands for the module; it reads and takes nothing.
    sends(Script::new(), expected, |t| unsafe { sys::config(t, hpa(0x4000_0200), 3, Hkid::new(32), false) })
        .unwrap();
    let expected = Regs { r8: 0x1_0020, ..expected };
    // SAFETY: a script stands for the module; it reads and takes nothing.
    sends(Script::new(), expected, |t| unsafe { sys::config(t, hpa(0x4000_0200), 3, Hkid::new(32), true) })
        .unwrap();
    let (at, key, enable) = (hpa(0x4000_0200), Hkid::new(32), Features0::NON_BLOCKING_EXPORT);
    let expected = Regs { rax: 0x1_002d, r9: 0x0000_0200_0000_0000, ..expected };
    // SAFETY: a script stands for the module; it reads and takes nothing.
    sends(Script::new(), expected, |t| unsafe { sys::config_v1(t, at, 3, key, true, enable) }).unwrap();
}

#[test]
fn tdmr_init() {
    let script = Script::new().details(0, 0x1_0000_0000, 0x1_4000_0000);
    let expected = Regs { rcx: 0x1_0000_0000, ..on(36) };
    let progress = sends(script, expected, |t| sys::tdmr_init(t, hpa(0x1_0000_0000)));
    assert_eq!(progress, Ok(TdmrProgress::Until(hpa(0x1_4000_0000))));
    let script = Script::new().status(0x0000_0a03_0000_0000);
    assert_eq!(sys::tdmr_init(&script, hpa(0)), Ok(TdmrProgress::Done));
}

#[test]
fn info() {
    let expected = Regs { rcx: 0x5000, rdx: 1024, r8: 0x5800, r9: 32, ..on(32) };
    let script = Script::new().then(|regs| Regs { rax: 0, rdx: 1000, r9: 2, ..regs });
    let sizes = sends(script, expected, |t| sys::info(t, &mut frame(0x5000))).unwrap();
    assert_eq!((sizes.info_bytes, sizes.cmrs), (1000, 2));

    let first = FieldId::new(0x0800_0001_0000_0003);
    let expected = Regs { rdx: 0x5000, r8: first.raw(), ..on(37) };
    let script = Script::new().then(|regs| Regs { rax: 0, r8: u64::MAX, ..regs });
    assert_eq!(sends(script, expected, |t| sys::rd_all(t, &mut frame(0x5000), first)), Ok(None));
}

/// The list did not fit into its page: `R8` is the field to go on with, behind a status that looks like an error.
#[test]
fn a_full_list_goes_on() {
    let cmrs = 0x9000_0003_0000_0080;
    let full = |r8| Script::new().then(move |regs| Regs { rax: 0xc000_0c04_0000_0000, r8, ..regs });
    let all = Regs { rdx: 0x5000, r8: NULL, ..on(37) };
    let next = sends(full(cmrs), all, |t| sys::rd_all(t, &mut frame(0x5000), FieldId::NONE)).unwrap();
    assert_eq!(next, Some(FieldId::CMR_BASE));
    let expected = Regs { r8: cmrs, ..all };
    let script = Script::new().then(|regs| Regs { rax: 0, r8: NULL, ..regs });
    let rest = sends(script, expected, |t| sys::rd_all(t, &mut frame(0x5000), FieldId::CMR_BASE));
    assert_eq!(rest, Ok(None));
    // Nothing was written, or nothing is left: going on would not end.
    for (r8, first) in [(cmrs, FieldId::CMR_BASE), (NULL, FieldId::NONE)] {
        let error = sys::rd_all(&full(r8), &mut frame(0x5000), first).unwrap_err();
        assert_eq!(error.status.raw(), 0xc000_0c04_0000_0000);
    }
}

/// A transport that ends BLOCKW with `rax` before entry `next`, as the module does: the operand comes back moved on.
fn stops(rax: u64, next: u64, r8: u64) -> Script {
    Script::new().then(move |regs| Regs { rax, rcx: regs.rcx & !(0x1ff << 3) | next << 3, r8, ..regs })
}

#[test]
fn blockw() {
    let mut page = frame(0x5000);
    let list = GpaList::new(&mut page, 2, 511).unwrap();
    let expected = Regs { rcx: 0xff80_0000_0000_5010, rdx: TDR, ..on(65) };
    let back =
        sends(stops(0x8000_0003_0000_0000, 40, 0), expected, |t| export::blockw(t, tdr(), list)).unwrap_err();
    assert_eq!((back.held.first(), back.held.raw()), (40, 0xff80_0000_0000_5140));
    // Another call wanted the tree: as after an interruption, entries before this one are done.
    let script = stops(0x8000_0206_0000_0092, 60, 0);
    let back = export::blockw(&script, tdr(), back.held).unwrap_err();
    assert_eq!(back.held.first(), 60);
    // Entry 100 is malformed: those before it are done.
    let back = export::blockw(&stops(0xc000_0100_0000_0061, 100, 0), tdr(), back.held).unwrap_err();
    assert_eq!((back.held.first(), back.held.raw()), (100, 0xff80_0000_0000_5320));
    // The list as such is refused: all that was left is to do.
    let back = export::blockw(&stops(0xc000_0100_0000_0001, 100, 0), tdr(), back.held).unwrap_err();
    assert_eq!(back.held.first(), 100);
    // The address stays that of the frame, whatever comes back.
    let script =
        Script::new().then(|regs| Regs { rax: 0x8000_0003_0000_0000, rcx: 0x9_9000 | 7 << 3, ..regs });
    let back = export::blockw(&script, tdr(), back.held).unwrap_err();
    assert_eq!(back.held.raw(), 0xff80_0000_0000_5320);
    let script = Script::new().then(|regs| Regs { rax: 7, ..regs });
    assert_eq!(export::blockw(&script, tdr(), back.held).unwrap(), 7);

    assert!(GpaList::new(&mut page, 3, 2).is_none());
    assert!(GpaList::new(&mut page, 0, 512).is_none());
    assert!(GpaList::new(&mut frame_of(0x20_0000, Level::L2M), 0, 1).is_none());
}

#[test]
fn blockw_v1_counts_every_problem() {
    let mut page = frame(0x5000);
    let list = GpaList::new(&mut page, 2, 511).unwrap();
    let expected = Regs { rcx: 0xff80_0000_0000_5010, rdx: TDR, ..on(0x1_0041) };
    let script = stops(0x8000_0003_0000_0000, 40, 3);
    let back = sends(script, expected, |t| export::blockw_v1(t, tdr(), list)).unwrap_err();
    assert_eq!((back.held.first(), back.held.problems()), (40, 3));
    let script = stops(0, 0, 2);
    assert_eq!(export::blockw_v1(&script, tdr(), back.held).unwrap(), 5);
}

#[test]
fn unblockw() {
    let expected = Regs { rcx: 0x1000, rdx: TDR, ..on(75) };
    sends(Script::new(), expected, |t| export::unblockw(t, tdr(), entry(0x1000, Level::L4K))).unwrap();
    // A busy entry is not described, but it is the entry: the only thing `RCX` can mean.
    for (status, entry_busy) in
        [(0x8000_0200_0000_0001, true), (0x8000_0200_0000_0002, false), (0xc000_0100_0000_0001, false)]
    {
        let script = Script::new().status(status);
        let error = export::unblockw(&script, tdr(), entry(0x1000, Level::L4K)).unwrap_err();
        assert_eq!(error.is_entry_busy(), entry_busy, "{error}");
    }
}
