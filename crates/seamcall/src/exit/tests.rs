use super::*;
use sept_core::GpaRange;

fn gpa(raw: u64) -> Gpa {
    Gpa::new(raw).unwrap()
}

/// `RDX` of recorded exits: requested level, level found, state, leaf flag.
#[test]
fn accept_details() {
    for (rdx, requested, found, state, is_leaf) in [
        // 4K inside a 2M page that is pending.
        (0x4088_0000_0001, Level::L4K, Level::L2M, SeptState::Pending, true),
        // 4K, nothing there.
        (0x0000_0000_0001, Level::L4K, Level::L4K, SeptState::Free, false),
        // 2M where no table is: stopped at 1G.
        (0x0011_0000_0001, Level::L2M, Level::L1G, SeptState::Free, false),
        // 2M, blocked while pending.
        (0x40c9_0000_0001, Level::L2M, Level::L2M, SeptState::PendingBlocked, true),
        // 4K below a blocked table.
        (0x2048_0000_0001, Level::L4K, Level::L2M, SeptState::NlBlocked, false),
    ] {
        let out = Regs { rax: 48, rcx: 2, rdx, r8: 0x4000_0000, ..Regs::new() };
        let accept = EptViolation::decode(&out).unwrap().details().unwrap();
        assert_eq!((accept.requested, accept.found), (Some(requested), Some(found)), "{rdx:#x}");
        assert_eq!((accept.state, accept.is_leaf, accept.vm), (state, is_leaf, 0), "{rdx:#x}");
    }
}

#[test]
fn what_an_accept_wanted() {
    let at = |rdx, r8| EptViolation::decode(&Regs { rax: 48, rdx, r8, ..Regs::new() }).unwrap().wanted();
    let entry = |raw, level| GpaEntry::new(gpa(raw), level);
    assert_eq!(at(0x4088_0000_0001, 0x4000_1000), entry(0x4000_1000, Level::L4K));
    assert_eq!(at(0x0011_0000_0001, 0x4020_0000), entry(0x4020_0000, Level::L2M));
    assert_eq!(at(0, 0x4020_0000), None);
}

/// TDG.MEM.PAGE.ATTR.WR wants a page split as ACCEPT does, or the table of an L2 VM that is not there.
#[test]
fn what_an_attr_wr_wanted() {
    let of = |rdx| EptViolation::decode(&Regs { rax: 48, rdx, r8: 0x4000_1000, ..Regs::new() }).unwrap();
    let entry = |raw, level| GpaEntry::new(gpa(raw), level).unwrap();
    // 4K inside a 2M page that is mapped.
    let split = of(0x4108_0000_0005);
    assert_eq!((split.kind(), split.wanted()), (ViolationKind::AttrWr, Some(entry(0x4000_1000, Level::L4K))));
    let details = split.details().unwrap();
    assert_eq!((details.found, details.state), (Some(Level::L2M), SeptState::Mapped));
    assert_eq!(split.missing_l2(), None);
    // L2 VM 2 has no table of 4K entries there: level and VM are all that is said.
    let missing = of(0x0020_0008_0000_0002);
    assert_eq!((missing.kind(), missing.details()), (ViolationKind::GpaDetails, None));
    assert_eq!(missing.missing_l2(), Some((entry(0x4000_0000, Level::L2M), 2)));
}

#[test]
fn exits() {
    let config = TdxConfig::LEVELS_4;
    let decode = |regs| Exit::decode(&regs, config);
    assert!(matches!(decode(Regs { rax: 48, ..Regs::new() }), Exit::EptViolation(_)));
    let request = Regs { rax: 77, r11: 0x10001, r12: 1 << 47 | 0x1000, r13: 0x1000, ..Regs::new() };
    assert!(matches!(decode(request), Exit::MapGpa(MapGpa { to_shared: true, .. })));
    assert!(matches!(decode(Regs { r13: 1, ..request }), Exit::BadMapGpa(MapGpaError { size: 1, .. })));
    assert_eq!(decode(Regs { rax: 0x9000_0205_0000_0000, ..Regs::new() }), Exit::HostPriority);
    // External interrupt, NMI, another hypercall.
    assert_eq!(decode(Regs { rax: 1, ..Regs::new() }), Exit::Other(ExitReason::new(1)));
    assert_eq!(decode(Regs::new()), Exit::Other(ExitReason::new(0)));
    assert_eq!(decode(Regs { r11: 0x10002, ..request }), Exit::Other(ExitReason::new(77)));
    let lost = Status::from_raw(0x6000_0002_0000_0030);
    assert_eq!(decode(Regs { rax: lost.raw(), ..Regs::new() }), Exit::Status(lost));
    let busy = Status::from_raw(0x8000_0200_0000_0001);
    assert_eq!(decode(Regs { rax: busy.raw(), ..Regs::new() }), Exit::Status(busy));
}

/// Bit 26 comes with any reason: the guest took a bus lock on its way to the exit.
#[test]
fn a_bus_lock_hides_no_exit() {
    let config = TdxConfig::LEVELS_4;
    let violation = Regs { rax: 0x0400_0030, rcx: 2, r8: 0x4000_0000, ..Regs::new() };
    assert!(matches!(Exit::decode(&violation, config), Exit::EptViolation(_)));
    let request = Regs { rax: 0x0400_004d, r11: 0x10001, r12: 0x1000, r13: 0x1000, ..Regs::new() };
    assert!(matches!(Exit::decode(&request, config), Exit::MapGpa(_)));
    let reason = exit_reason(&violation).unwrap();
    assert_eq!((reason.basic(), reason.raw(), reason.bus_lock()), (48, 0x0400_0030, true));
    // The extended state of the guest could not be loaded; no bus lock.
    let failed = ExitReason::new(0x8000_0021);
    assert_eq!((failed.basic(), failed.bus_lock(), failed.entry_failed()), (33, false, true));
    assert_eq!(
        std::format!("{reason:?} {:?}", ExitReason::new(1)),
        "ExitReason(48, flags 0x400) ExitReason(1)"
    );
}

#[test]
fn the_vm_stands_above_the_qualification() {
    let of = |rcx| exit_vm(&Regs { rax: 48, rcx, ..Regs::new() });
    assert_eq!([of(0x1_0000_0002), of(0x3_0000_0000), of(0xffff_fffc_ffff_ffff)], [1, 3, 0]);
}

#[test]
fn other_exits_are_none_of_it() {
    for rax in [0, 77, 1, 0x8000_0200_0000_0030, 0x6000_0002_0000_0030] {
        assert_eq!(EptViolation::decode(&Regs { rax, ..Regs::new() }), None);
    }
    let access = EptViolation::decode(&Regs { rax: 48, r8: 1 << 47 | 0x1000, ..Regs::new() }).unwrap();
    assert_eq!((access.kind(), access.details()), (ViolationKind::Access, None));
    assert!(access.is_shared(TdxConfig::LEVELS_4) && !access.is_shared(TdxConfig::LEVELS_5_GPAW_52));
}

fn map_gpa(r12: u64, r13: u64, config: TdxConfig) -> Option<Result<MapGpa, MapGpaError>> {
    MapGpa::decode(&Regs { rax: 77, r11: 0x10001, r12, r13, ..Regs::new() }, config)
}

#[test]
fn map_gpa_direction_is_the_shared_bit() {
    let config = TdxConfig::LEVELS_5_GPAW_52;
    let request = map_gpa(1 << 51 | 0x4000_0000, 0x20_0000, config).unwrap().unwrap();
    assert!(request.to_shared);
    assert_eq!(request.range, GpaRange::new(gpa(0x4000_0000), 0x20_0000).unwrap());
    assert!(!map_gpa(0x4000_0000, 0x1000, config).unwrap().unwrap().to_shared);
    // With a 48-bit TD the same bit is no address.
    assert!(map_gpa(1 << 51, 0x1000, TdxConfig::LEVELS_4).unwrap().is_err());
}

#[test]
fn map_gpa_refuses_nonsense() {
    let config = TdxConfig::LEVELS_4;
    for (r12, r13) in [
        (0x800, 0x1000),
        (0x1000, 0),
        (0x1000, 0x800),
        ((1 << 47) - 0x1000, 0x2000),
        (1 << 47 | ((1 << 47) - 0x1000), 0x2000),
        (0x1000, u64::MAX - 0xfff),
        (u64::MAX - 0xfff, 0x1000),
    ] {
        assert!(map_gpa(r12, r13, config).unwrap().is_err(), "{r12:#x} {r13:#x}");
    }
    // What is wrong decides about the answer; the address is the guest's, shared bit and all.
    for (r12, r13, r10) in [
        (0x800, 0x1000, 0x8000_0000_0000_0002),
        (1 << 47 | 0x1000, 0x801, 0x8000_0000_0000_0002),
        (1 << 47 | 0x1000, 0, 0x8000_0000_0000_0000),
        (0x800, 0, 0x8000_0000_0000_0000),
        ((1 << 47) - 0x800, 0x1000, 0x8000_0000_0000_0000),
        (1 << 48 | 0x800, 0x1000, 0x8000_0000_0000_0000),
        (0x1000, u64::MAX, 0x8000_0000_0000_0000),
    ] {
        let error = map_gpa(r12, r13, config).unwrap().unwrap_err();
        assert_eq!((error.gpa, error.size), (r12, r13));
        assert_eq!(error.reply().registers(), (r10, r12), "{r12:#x} {r13:#x}");
    }
    assert!(map_gpa((1 << 47) - 0x1000, 0x1000, config).unwrap().is_ok());
    let other = Regs { rax: 77, r11: 0x10002, ..Regs::new() };
    assert!(MapGpa::decode(&other, config).is_none());
    let vendor = Regs { rax: 77, r10: 1, r11: 0x10001, ..Regs::new() };
    assert!(MapGpa::decode(&vendor, config).is_none());
}

/// A guest goes on at the address that it is told, and takes it for one of the kind that it asked for.
#[test]
fn replies() {
    for (r12, config, r11) in [
        (0x4000_0000, TdxConfig::LEVELS_4, 0x4000_1000),
        (1 << 47 | 0x4000_0000, TdxConfig::LEVELS_4, 1 << 47 | 0x4000_1000),
        (1 << 51 | 0x4000_0000, TdxConfig::LEVELS_5_GPAW_52, 1 << 51 | 0x4000_1000),
    ] {
        let request = map_gpa(r12, 0x2000, config).unwrap().unwrap();
        assert_eq!(request.converted_until(gpa(0x4000_1000)).registers(), (1, r11));
        assert_eq!(request.converted_until(gpa(0x4000_0000)).registers(), (1, r12));
        assert_eq!(request.converted_until(gpa(0x3000_0000)).registers(), (1, r12));
        assert_eq!(request.converted_until(gpa(0x4000_2000)), MapGpaReply::DONE);
        assert_eq!(request.converted_until(gpa(0x5000_0000)), MapGpaReply::DONE);
        for (at, failed) in [(0x4000_1234, r11), (0x3000_0000, r12), (0x5000_0000, r11)] {
            assert_eq!(request.refused_at(gpa(at)).registers(), (0x8000_0000_0000_0000, failed), "{at:#x}");
            assert_eq!(request.in_use_at(gpa(at)).registers(), (0x8000_0000_0000_0001, failed), "{at:#x}");
        }
    }
    assert_eq!(MapGpaReply::DONE.registers(), (0, 0));
}
