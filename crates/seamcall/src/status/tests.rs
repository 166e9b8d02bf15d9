use super::table::TABLE;
use super::*;
use std::{string::ToString, vec::Vec};

/// The encoding vectors: value, name, detail, class.
#[test]
fn vectors() {
    use Class::{Caller, Fatal, Quiesce, Retry};
    for (raw, text, class) in [
        (0xc000_0100_0000_0001, "TDX_OPERAND_INVALID|RCX", Caller),
        (0xc000_0100_0000_0000, "TDX_OPERAND_INVALID|RAX", Caller),
        (0xc000_0100_0000_0008, "TDX_OPERAND_INVALID|R8", Caller),
        (0xc000_0100_0000_000c, "TDX_OPERAND_INVALID|R12", Caller),
        (0x8000_0200_0000_0092, "TDX_OPERAND_BUSY|SEPT_TREE", Retry),
        (0x8000_0200_0000_00ac, "TDX_OPERAND_BUSY|OP_STATE", Retry),
        (0x8000_0200_0000_00a9, "TDX_OPERAND_BUSY|TD_EPOCH", Quiesce),
        (0x8000_0200_0000_0080, "TDX_OPERAND_BUSY|TDR", Quiesce),
        (0xc000_0b00_0000_0001, "TDX_EPT_WALK_FAILED|RCX", Caller),
        (0xc000_0b0d_0000_0001, "TDX_EPT_ENTRY_STATE_INCORRECT|RCX", Caller),
        (0xc000_0b06_0000_0001, "TDX_GPA_RANGE_NOT_BLOCKED|RCX", Caller),
        (0xc000_0b08_0000_0001, "TDX_TLB_TRACKING_NOT_DONE|RCX", Quiesce),
        (0xc000_0b08_0000_0092, "TDX_TLB_TRACKING_NOT_DONE|SEPT_TREE", Quiesce),
        (0xc000_0f03_0000_0001, "TDX_IOMMU_IOTLB_TRACKING_NOT_DONE|RCX", Quiesce),
        (0x8000_0201_0000_0000, "TDX_PREVIOUS_TLB_EPOCH_BUSY", Quiesce),
        (0xc000_0b09_0000_0001, "TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX", Caller),
        (0xc000_0b0e_0000_0001, "TDX_EPT_PAGE_NOT_FREE|RCX", Caller),
        (0xc000_0300_0000_0008, "TDX_PAGE_METADATA_INCORRECT|R8", Caller),
        (0x8000_0308_0000_0008, "TDX_MISSING_PAMT_PAGE_PAIR|R8", Caller),
        (0xc000_0303_0000_000d, "TDX_PAGE_NOT_FREE|R13", Caller),
        (0xc000_0306_0000_0001, "TDX_PAMT_PAGE_NOT_EMPTY|1", Caller),
        (0xc000_0b12_0000_000a, "TDX_L2_SEPT_PAGE_NOT_PROVIDED|R10", Caller),
        (0xc000_0b0f_0001_0001, "TDX_L2_SEPT_WALK_FAILED|VM 1 level 1", Caller),
        (0x8000_0203_0000_0000, "TDX_RND_NO_ENTROPY", Retry),
        (0x8000_0202_0000_0000, "TDX_SYS_BUSY", Retry),
        (0x8000_0003_0000_0000, "TDX_INTERRUPTED_RESUMABLE", Retry),
        (0x8000_0004_0000_0000, "TDX_INTERRUPTED_RESTARTABLE", Retry),
        (0x9000_0205_0000_0000, "TDX_HOST_PRIORITY_BUSY_TIMEOUT", Retry),
        (0xe000_0604_0000_0000, "TDX_TD_FATAL", Fatal),
        (0x6000_0002_0000_0030, "TDX_NON_RECOVERABLE_TD|exit reason 48", Fatal),
        (0x6000_0005_0000_0000, "TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE|exit reason 0", Fatal),
        (0x4000_0001_0000_0002, "TDX_NON_RECOVERABLE_VCPU|exit reason 2", Fatal),
        (0x8000_0810_0000_0000, "TDX_TD_KEYS_NOT_CONFIGURED", Caller),
        (0xc000_0506_0000_0000, "TDX_SYS_SHUTDOWN", Fatal),
        (0x8000_ff00_ffff_0000, "SEAMCALL_VMFAILINVALID", Fatal),
        (0x8000_ff00_0000_000d, "SEAMCALL_GP", Fatal),
        (0x8000_ff00_0000_0006, "SEAMCALL_UD", Fatal),
        (0xc000_ff01_0000_0001, "NOT_ISSUED|RCX", Caller),
    ] {
        let status = Status::from_raw(raw);
        let shown = status.to_string();
        assert_eq!(shown.split(" (0x").next(), Some(text), "{raw:#x}");
        assert!(shown.ends_with(&std::format!("({raw:#018x})")), "{shown}");
        assert_eq!(status.class(), Some(class), "{text}");
        assert!(!status.is_success());
    }
}

#[test]
fn informational_is_neither_error_nor_silence() {
    for raw in [0x0000_0b07_0000_0001, 0x0000_0815_0000_0000, 0x0000_0a03_0000_0000, 0x0000_0b0a_0000_0001] {
        let status = Status::from_raw(raw);
        assert!(status.is_success() && status.is_informational(), "{status}");
        assert_eq!(status.class(), None);
    }
    assert!(!Status::SUCCESS.is_informational());
    // A TD exit: success with a reason.
    let exit = Status::from_raw(0x30);
    assert!(exit.is_success() && !exit.is_informational());
    assert_eq!(exit.detail(), Detail::ExitReason(48));
}

#[test]
fn every_value_is_decoded_and_encoded_again() {
    for &(value, name, class) in TABLE {
        let plain = Status::from_raw(value);
        assert_eq!((plain.raw(), plain.name()), (value, Some(name)));
        assert!(plain.to_string().starts_with(name), "{plain}");
        assert_eq!((plain.class(), plain.is_success()), (class, class.is_none()), "{name}");
        assert_eq!(plain.is_recoverable(), value >> 62 & 1 == 0, "{name}");
        assert_eq!(u64::from(plain.class_number()), value >> 40 & 0xff, "{name}");
        for detail in [0, 1, 2, 8, 13, 0x80, 0x92, 0xac, 0x0002_0001, 0x0403_0201, u32::MAX] {
            let status = Status::from_raw(value | u64::from(detail));
            assert!(status.is(plain) && status.code() == plain, "{name}");
            assert_eq!((status.detail().raw(), status.name()), (detail, Some(name)));
            assert_eq!(plain.with_detail(status.detail()).raw(), value | u64::from(detail));
        }
    }
}

#[test]
fn the_table_and_the_crate_name_the_same_codes() {
    let mut listed: Vec<u64> = TABLE.iter().map(|row| row.0).collect();
    let mut named: Vec<u64> = Status::ALL.iter().map(|code| code.raw()).collect();
    listed.sort_unstable();
    named.sort_unstable();
    assert_eq!(listed, named);
    named.dedup();
    assert_eq!(listed.len(), named.len());
}

/// Operand ids, by number.
#[test]
fn operand_ids() {
    let table = [
        (0, "RAX"),
        (1, "RCX"),
        (2, "RDX"),
        (3, "RBX"),
        (5, "RBP"),
        (6, "RSI"),
        (7, "RDI"),
        (8, "R8"),
        (9, "R9"),
        (10, "R10"),
        (11, "R11"),
        (12, "R12"),
        (13, "R13"),
        (14, "R14"),
        (15, "R15"),
        (64, "ATTRIBUTES"),
        (65, "XFAM"),
        (66, "CONFIG_FLAGS"),
        (67, "EPTP_CONTROLS"),
        (68, "MAX_VCPUS"),
        (69, "CPUID_CONFIG"),
        (70, "TSC_FREQUENCY"),
        (71, "NUM_L2_VMS"),
        (72, "IA32_ARCH_CAPABILITIES_CONFIG"),
        (95, "PAGE"),
        (96, "TDMR_INFO_PA"),
        (97, "GPA_LIST_ENTRY"),
        (98, "MIG_BUFF_LIST_ENTRY"),
        (99, "NEW_PAGE_LIST_ENTRY"),
        (100, "KEYNAME"),
        (105, "MEM_SCAN_CONTEXT"),
        (106, "GPA_RANGE_LIST_ENTRY"),
        (107, "GPA_LIST_INFO_ENTRY"),
        (108, "KEYSIZE_BITMAP"),
        (128, "TDR"),
        (129, "TDCX"),
        (130, "TDVPR"),
        (132, "REG_PAGE"),
        (144, "TDCS"),
        (145, "TDVPS"),
        (146, "SEPT_TREE"),
        (147, "SEPT_ENTRY"),
        (168, "RTMR"),
        (169, "TD_EPOCH"),
        (170, "L2_VAPIC_GPA"),
        (171, "MIGSC"),
        (172, "OP_STATE"),
        (173, "MIG"),
        (174, "SERVTD_BINDINGS"),
        (175, "PASID_TRK"),
        (176, "METADATA_FIELD"),
        (177, "NUM_VCPUS"),
        (178, "CPUID_FIXED0_BITMAP"),
        (184, "SYS"),
        (185, "TDMR"),
        (186, "KOT"),
        (187, "KET"),
        (188, "WBCACHE"),
        (190, "MEM_SCAN_STATE"),
        (256, "PASIDMT"),
        (257, "MMIOMT"),
        (258, "SPDMMT"),
        (320, "DMAR"),
    ];
    for (id, name) in table {
        assert_eq!((Operand::new(id).name(), Operand::new(id).id()), (Some(name), id));
        let status = Status::OPERAND_INVALID.with_detail(Detail::Operand(Operand::new(id)));
        assert_eq!(status.raw(), 0xc000_0100_0000_0000 | u64::from(id));
        assert_eq!(status.operand(), Some(Operand::new(id)));
    }
    assert_eq!(Operand::ALL.len(), table.len());
}

/// The shapes of a detail that are no operand.
#[test]
fn details_of_each_shape() {
    for (raw, detail) in [
        (0xc000_0b0f_0001_0001, Detail::L2 { vm: 1, level: 1 }),
        (0xc000_0b10_0003_0002, Detail::L2 { vm: 3, level: 2 }),
        (0xc000_0b0b_0000_0001, Detail::Level(1)),
        (0x0000_0b0a_0000_0001, Detail::Level(1)),
        // TDMR 5: the PAMT for 2 MiB pages; reserved area 7; overlap of its 4 KiB PAMT with TDMR 9.
        (0xc000_0a10_0000_0105, Detail::Tdmr([5, 1, 0, 0])),
        (0xc000_0a20_0000_0705, Detail::Tdmr([5, 7, 0, 0])),
        (0xc000_0a12_0009_0005, Detail::Tdmr([5, 0, 9, 0])),
        (0xc000_0900_0000_001f, Detail::Cpuid(0x1f)),
        (0xc000_0306_0000_0001, Detail::Index(1)),
        // SMRR2, the third event filter, package 1: no registers.
        (0xc000_0910_0000_0001, Detail::Index(1)),
        (0xc000_0911_0000_0001, Detail::Index(1)),
        (0xc000_0102_0000_0002, Detail::Index(2)),
        (0xc000_0103_0000_0000, Detail::Index(0)),
        (0xc000_0906_0000_0001, Detail::Index(1)),
        (0x0000_0000_0000_0030, Detail::ExitReason(48)),
        (0x6000_0002_0000_0030, Detail::ExitReason(48)),
        // A machine check: reason 0, exception or NMI. A triple fault of an L2 VM that goes to L1, a TDCALL of one.
        (0x6000_0005_0000_0000, Detail::ExitReason(0)),
        (0x4000_0001_0000_0002, Detail::ExitReason(2)),
        (0x0000_1100_0000_0030, Detail::ExitReason(48)),
        (0x0000_1101_0000_004d, Detail::ExitReason(77)),
        (0x0000_1102_0000_0000, Detail::ExitReason(0)),
        (0x0000_1142_0000_0000, Detail::ExitReason(0)),
        // These come without one, and so does what is made before an L2 VM is entered.
        (0x6000_000a_0000_0000, Detail::None),
        (0x9000_0009_0000_0000, Detail::None),
        (0x0000_1140_0000_0000, Detail::None),
        (0xc000_0d05_0000_0001, Detail::Index(1)),
        (0xc000_0608_0000_0004, Detail::State(4)),
        (0xc000_0700_0000_0002, Detail::State(2)),
        // IA32_TSC_ADJUST differs.
        (0xc000_0920_0000_003b, Detail::Msr(0x3b)),
        (0xc000_0921_0000_01a0, Detail::Msr(0x1a0)),
        (0xc000_0621_0000_0000, Detail::X2ApicId(0)),
        (0xc000_0825_0000_0040, Detail::Count(64)),
        (0xc000_0c00_ffff_0003, Detail::Other(0xffff_0003)),
        (0x8000_0201_0000_0000, Detail::None),
    ] {
        assert_eq!(Status::from_raw(raw).detail(), detail, "{raw:#x}");
    }
}

/// TDH.IMPORT.* add the fatal bit to the error that ended the import, and with it the TD.
#[test]
fn an_error_that_is_fatal_has_its_name() {
    let status = Status::from_raw(0xe000_0e01_0000_0000);
    assert_eq!((status.name(), status.class()), (Some("TDX_INCORRECT_MBMD_MAC"), Some(Class::Fatal)));
    assert!(!status.is(Status::INCORRECT_MBMD_MAC) && status.raw() == 0xe000_0e01_0000_0000);
    // No error, no name.
    assert_eq!(Status::from_raw(0x2000_0000_0000_0000).name(), None);
    assert_eq!(Status::from_raw(0x2000_0b07_0000_0001).name(), None);
}

#[test]
fn unknown_codes_keep_their_bits() {
    let status = Status::from_raw(0xc123_4567_89ab_cdef);
    assert_eq!(status.name(), None);
    assert_eq!(status.raw(), 0xc123_4567_89ab_cdef);
    assert_eq!(status.to_string(), "0xc123456789abcdef");
    assert_eq!(status.class(), Some(Class::Caller));
    assert_eq!(Status::from_raw(0x8123_4567_0000_0000).class(), Some(Class::Retry));
}
