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
