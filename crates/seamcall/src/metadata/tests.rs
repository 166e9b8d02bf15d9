use super::*;

/// Ids from the ABI's metadata tables, with the size of an element.
#[test]
fn ids() {
    for (field, raw, size, context) in [
        (FieldId::TDX_FEATURES0, 0x0a00_0003_0000_0008, 8, FieldContext::Platform),
        (FieldId::NUM_TDX_FEATURES, 0x0a00_0000_0000_0001, 1, FieldContext::Platform),
        (FieldId::MAX_TDMRS, 0x9100_0001_0000_0008, 2, FieldContext::Platform),
        (FieldId::MAX_RESERVED_PER_TDMR, 0x9100_0001_0000_0009, 2, FieldContext::Platform),
        (FieldId::PAMT_4K_ENTRY_SIZE, 0x9100_0001_0000_0010, 2, FieldContext::Platform),
        (FieldId::PAMT_PAGE_BITMAP_ENTRY_BITS, 0x9100_0001_0000_0013, 2, FieldContext::Platform),
        (FieldId::PAMT_MIN_HKID_BITS, 0x9100_0001_0000_0014, 2, FieldContext::Platform),
        (FieldId::TDCS_BASE_SIZE, 0x9800_0001_0000_0100, 2, FieldContext::Platform),
        (FieldId::TDVPS_BASE_SIZE, 0x9800_0001_0000_0200, 2, FieldContext::Platform),
        (FieldId::CMR_BASE, 0x9000_0003_0000_0080, 8, FieldContext::Platform),
        (FieldId::CMR_SIZE, 0x9000_0003_0000_0100, 8, FieldContext::Platform),
        (FieldId::MODULE_HV, 0x8900_0001_0000_0000, 2, FieldContext::Platform),
        (FieldId::BUILD_DATE, 0x8800_0002_0000_0001, 4, FieldContext::Platform),
        (FieldId::ATTRIBUTES_FIXED1, 0x1900_0003_0000_0001, 8, FieldContext::Platform),
        (FieldId::XFAM_FIXED0, 0x1900_0003_0000_0002, 8, FieldContext::Platform),
        (FieldId::CONFIG_FLAGS_FIXED0, 0x9900_0003_0000_0006, 8, FieldContext::Platform),
        (FieldId::TD_EPOCH, 0x9210_0003_0000_0000, 8, FieldContext::Td),
        (FieldId::REFCOUNT, 0x9210_0001_0000_0001, 2, FieldContext::Td),
        (FieldId::CHLDCNT, 0x8010_0003_0000_0004, 8, FieldContext::Td),
        (FieldId::NUM_TDCX, 0x8010_0002_0000_0002, 4, FieldContext::Td),
        (FieldId::FATAL, 0x8010_0000_0000_0001, 1, FieldContext::Td),
        (FieldId::LIFECYCLE_STATE, 0x8010_0002_0000_0005, 4, FieldContext::Td),
        (FieldId::HKID, 0x8110_0001_0000_0001, 2, FieldContext::Td),
        (FieldId::OP_STATE, 0x9010_0002_0000_0004, 4, FieldContext::Td),
        (FieldId::NUM_L2_VMS, 0x9010_0001_0000_0005, 2, FieldContext::Td),
        (FieldId::GPAW, 0x1110_0000_0000_0003, 1, FieldContext::Td),
        (FieldId::EPTP, 0x1110_0003_0000_0004, 8, FieldContext::Td),
        (FieldId::CONFIG_FLAGS, 0x1110_0003_0000_0016, 8, FieldContext::Td),
        (FieldId::TD_CTLS, 0x1110_0003_0000_0017, 8, FieldContext::Td),
    ] {
        assert_eq!((field.raw(), field.element_size(), field.context()), (raw, size, context), "{field:?}");
    }
    assert_eq!(FieldId::TDX_FEATURES0.class(), 0x0a);
    assert_eq!(FieldId::TD_EPOCH.class(), 0x12);
}

#[test]
fn names() {
    assert_eq!(std::format!("{:?}", FieldId::TD_EPOCH), "TD_EPOCH");
    assert_eq!(std::format!("{:?}", FieldId::new(5)), "FieldId(0x0000000000000005)");
    let mut raw: std::vec::Vec<_> = FieldId::ALL.iter().map(|field| field.raw()).collect();
    raw.sort_unstable();
    raw.dedup();
    assert_eq!(raw.len(), FieldId::ALL.len());
}

/// The type of a value is as wide as the field, and is read where the field is.
#[test]
fn types() {
    for (name, id, bytes) in TYPED {
        let wide = usize::from(id.element_size());
        // States of 4 bytes are enums that keep an unknown number.
        assert!(*bytes == wide || matches!(*id, FieldId::OP_STATE | FieldId::LIFECYCLE_STATE), "{name}");
    }
    assert_eq!(TYPED.len(), FieldId::ALL.len());
    assert_eq!(PlatformField::TDX_FEATURES0.id(), FieldId::TDX_FEATURES0);
    assert_eq!(TdField::REFCOUNT.element(1).id(), FieldId::REFCOUNT.element(1));
    assert_eq!(std::format!("{:?}", TdField::OP_STATE), "OP_STATE");
}

#[test]
fn values() {
    assert_eq!(u8::from_register(0x1_02ff), 0xff);
    assert_eq!(u16::from_register(0x1_02ff), 0x02ff);
    assert_eq!(u32::from_register(0xf_0001_02ff), 0x0001_02ff);
    assert_eq!((bool::from_register(0), bool::from_register(1)), (false, true));
    assert_eq!(Hkid::from_register(33), Hkid::new(33));
    assert_eq!(Features0::from_register(1 << 36 | 1 << 63).bits(), 1 << 36 | 1 << 63);
    assert_eq!(OpState::from_register(2), OpState::Runnable);
    assert_eq!(LifecycleState::from_register(3), LifecycleState::Teardown);
}

/// Numbers of the states: 0 to 10 and 0 to 3, in the order of a TD's life.
#[test]
fn states() {
    for (raw, state) in (0..).zip(OpState::ALL) {
        assert_eq!((state.raw(), OpState::from_raw(raw)), (raw, *state));
    }
    for (raw, state) in (0..).zip(LifecycleState::ALL) {
        assert_eq!((state.raw(), LifecycleState::from_raw(raw)), (raw, *state));
    }
    assert_eq!((OpState::ALL.len(), LifecycleState::ALL.len()), (11, 4));
    assert_eq!((OpState::from_raw(11).raw(), LifecycleState::Other(9).raw()), (11, 9));
    let tracked: std::vec::Vec<u32> =
        OpState::ALL.iter().filter(|state| state.is_tracked()).map(|state| state.raw()).collect();
    assert_eq!(tracked, [2, 3, 9]);
}
