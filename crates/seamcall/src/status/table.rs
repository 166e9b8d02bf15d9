//! Every status code that the facts list, with what section 1.5 makes of it: the values are theirs, not the code's.

use super::*;
use Class::{Caller, Fatal, Quiesce, Retry};
use std::{string::ToString, vec::Vec};

/// Value without detail, name, class (`None`: no error).
#[rustfmt::skip]
const TABLE: &[(u64, &str, Option<Class>)] = &[
    (0x0000_0000_0000_0000, "TDX_SUCCESS", None),
    (0x4000_0001_0000_0000, "TDX_NON_RECOVERABLE_VCPU", Some(Fatal)),
    (0x6000_0002_0000_0000, "TDX_NON_RECOVERABLE_TD", Some(Fatal)),
    (0x8000_0003_0000_0000, "TDX_INTERRUPTED_RESUMABLE", Some(Retry)),
    (0x8000_0004_0000_0000, "TDX_INTERRUPTED_RESTARTABLE", Some(Retry)),
    (0x6000_0005_0000_0000, "TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE", Some(Fatal)),
    (0xc000_0006_0000_0000, "TDX_INVALID_RESUMPTION", Some(Caller)),
    (0xe000_0007_0000_0000, "TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE", Some(Fatal)),
    (0x8000_0008_0000_0000, "TDX_CROSS_TD_FAULT", Some(Retry)),
    (0x9000_0009_0000_0000, "TDX_CROSS_TD_TRAP", Some(Retry)),
    (0x6000_000a_0000_0000, "TDX_NON_RECOVERABLE_TD_CORRUPTED_MD", Some(Fatal)),
    (0xc000_0100_0000_0000, "TDX_OPERAND_INVALID", Some(Caller)),
    (0xc000_0101_0000_0000, "TDX_OPERAND_ADDR_RANGE_ERROR", Some(Caller)),
    (0x8000_0200_0000_0000, "TDX_OPERAND_BUSY", Some(Retry)),
    (0x8000_0201_0000_0000, "TDX_PREVIOUS_TLB_EPOCH_BUSY", Some(Quiesce)),
    (0x8000_0202_0000_0000, "TDX_SYS_BUSY", Some(Retry)),
    (0x8000_0203_0000_0000, "TDX_RND_NO_ENTROPY", Some(Retry)),
    (0x8000_0204_0000_0000, "TDX_OPERAND_BUSY_HOST_PRIORITY", Some(Retry)),
    (0x9000_0205_0000_0000, "TDX_HOST_PRIORITY_BUSY_TIMEOUT", Some(Retry)),
    (0xc000_0300_0000_0000, "TDX_PAGE_METADATA_INCORRECT", Some(Caller)),
    (0x0000_0301_0000_0000, "TDX_PAGE_ALREADY_FREE", None),
    (0xc000_0302_0000_0000, "TDX_PAGE_NOT_OWNED_BY_TD", Some(Caller)),
    (0xc000_0303_0000_0000, "TDX_PAGE_NOT_FREE", Some(Caller)),
    (0xc000_0400_0000_0000, "TDX_TD_ASSOCIATED_PAGES_EXIST", Some(Caller)),
    (0xc000_0500_0000_0000, "TDX_SYS_INIT_NOT_PENDING", Some(Caller)),
    (0xc000_0502_0000_0000, "TDX_SYS_LP_INIT_NOT_DONE", Some(Caller)),
    (0xc000_0503_0000_0000, "TDX_SYS_LP_INIT_DONE", Some(Caller)),
    (0xc000_0505_0000_0000, "TDX_SYS_NOT_READY", Some(Caller)),
    (0xc000_0506_0000_0000, "TDX_SYS_SHUTDOWN", Some(Fatal)),
    (0xc000_0507_0000_0000, "TDX_SYS_KEY_CONFIG_NOT_PENDING", Some(Caller)),
    (0xc000_0508_0000_0000, "TDX_SYS_STATE_INCORRECT", Some(Caller)),
    (0xc000_0509_0000_0000, "TDX_SYS_INVALID_HANDOFF", Some(Caller)),
    (0xc000_050a_0000_0000, "TDX_SYS_INCOMPATIBLE_SIGSTRUCT", Some(Caller)),
    (0xc000_050b_0000_0000, "TDX_SYS_LP_INIT_NOT_PENDING", Some(Caller)),
    (0xc000_050c_0000_0000, "TDX_SYS_CONFIG_NOT_PENDING", Some(Caller)),
    (0xc000_050d_0000_0000, "TDX_INCOMPATIBLE_SEAM_CAPABILITIES", Some(Caller)),
    (0xe000_0604_0000_0000, "TDX_TD_FATAL", Some(Fatal)),
    (0xc000_0605_0000_0000, "TDX_TD_NON_DEBUG", Some(Caller)),
    (0xc000_0606_0000_0000, "TDX_TDCS_NOT_ALLOCATED", Some(Caller)),
    (0xc000_0607_0000_0000, "TDX_LIFECYCLE_STATE_INCORRECT", Some(Caller)),
    (0xc000_0608_0000_0000, "TDX_OP_STATE_INCORRECT", Some(Caller)),
    (0xc000_0609_0000_0000, "TDX_NO_VCPUS", Some(Caller)),
    (0xc000_0610_0000_0000, "TDX_TDCX_NUM_INCORRECT", Some(Caller)),
    (0xc000_0700_0000_0000, "TDX_VCPU_STATE_INCORRECT", Some(Caller)),
    (0x8000_0701_0000_0000, "TDX_VCPU_ASSOCIATED", Some(Quiesce)),
    (0x8000_0702_0000_0000, "TDX_VCPU_NOT_ASSOCIATED", Some(Caller)),
    (0xc000_0704_0000_0000, "TDX_NO_VALID_VE_INFO", Some(Caller)),
    (0xc000_0705_0000_0000, "TDX_MAX_VCPUS_EXCEEDED", Some(Caller)),
    (0xc000_0706_0000_0000, "TDX_TSC_ROLLBACK", Some(Caller)),
    (0xc000_0730_0000_0000, "TDX_TD_VMCS_FIELD_NOT_INITIALIZED", Some(Caller)),
    (0xc000_0731_0000_0000, "TD_VMCS_FIELD_ERROR", Some(Caller)),
    (0x8000_0800_0000_0000, "TDX_KEY_GENERATION_FAILED", Some(Retry)),
    (0x8000_0810_0000_0000, "TDX_TD_KEYS_NOT_CONFIGURED", Some(Caller)),
    (0xc000_0811_0000_0000, "TDX_KEY_STATE_INCORRECT", Some(Caller)),
    (0x0000_0815_0000_0000, "TDX_KEY_CONFIGURED", None),
    (0x8000_0817_0000_0000, "TDX_WBCACHE_NOT_COMPLETE", Some(Caller)),
    (0xc000_0820_0000_0000, "TDX_HKID_NOT_FREE", Some(Caller)),
    (0x0000_0821_0000_0000, "TDX_NO_HKID_READY_TO_WBCACHE", None),
    (0xc000_0823_0000_0000, "TDX_WBCACHE_RESUME_ERROR", Some(Caller)),
    (0x8000_0824_0000_0000, "TDX_FLUSHVP_NOT_DONE", Some(Quiesce)),
    (0xc000_0825_0000_0000, "TDX_NUM_ACTIVATED_HKIDS_NOT_SUPPORTED", Some(Caller)),
    (0xc000_0900_0000_0000, "TDX_INCORRECT_CPUID_VALUE", Some(Caller)),
    (0xc000_0901_0000_0000, "TDX_LIMIT_CPUID_MAXVAL_SET", Some(Caller)),
    (0xc000_0902_0000_0000, "TDX_INCONSISTENT_CPUID_FIELD", Some(Caller)),
    (0xc000_0903_0000_0000, "TDX_CPUID_MAX_SUBLEAVES_UNRECOGNIZED", Some(Caller)),
    (0xc000_0904_0000_0000, "TDX_CPUID_LEAF_1F_FORMAT_UNRECOGNIZED", Some(Caller)),
    (0xc000_0905_0000_0000, "TDX_INVALID_WBINVD_SCOPE", Some(Caller)),
    (0xc000_0906_0000_0000, "TDX_INVALID_PKG_ID", Some(Caller)),
    (0xc000_0907_0000_0000, "TDX_ENABLE_MONITOR_FSM_NOT_SET", Some(Caller)),
    (0xc000_0908_0000_0000, "TDX_CPUID_LEAF_NOT_SUPPORTED", Some(Caller)),
    (0xc000_0910_0000_0000, "TDX_SMRR_NOT_LOCKED", Some(Caller)),
    (0xc000_0911_0000_0000, "TDX_INVALID_SMRR_CONFIGURATION", Some(Caller)),
    (0xc000_0912_0000_0000, "TDX_SMRR_OVERLAPS_CMR", Some(Caller)),
    (0xc000_0913_0000_0000, "TDX_SMRR_LOCK_NOT_SUPPORTED", Some(Caller)),
    (0xc000_0914_0000_0000, "TDX_SMRR_NOT_SUPPORTED", Some(Caller)),
    (0xc000_0920_0000_0000, "TDX_INCONSISTENT_MSR", Some(Caller)),
    (0xc000_0921_0000_0000, "TDX_INCORRECT_MSR_VALUE", Some(Caller)),
    (0xc000_0930_0000_0000, "TDX_SEAMREPORT_NOT_AVAILABLE", Some(Caller)),
    (0xc000_0931_0000_0000, "TDX_SEAMDB_GETREF_NOT_AVAILABLE", Some(Caller)),
    (0xc000_0932_0000_0000, "TDX_SEAMDB_REPORT_NOT_AVAILABLE", Some(Caller)),
    (0xc000_0933_0000_0000, "TDX_SEAMVERIFYREPORT_NOT_AVAILABLE", Some(Caller)),
    (0xc000_0a00_0000_0000, "TDX_INVALID_TDMR", Some(Caller)),
    (0xc000_0a01_0000_0000, "TDX_NON_ORDERED_TDMR", Some(Caller)),
    (0xc000_0a02_0000_0000, "TDX_TDMR_OUTSIDE_CMRS", Some(Caller)),
    (0x0000_0a03_0000_0000, "TDX_TDMR_ALREADY_INITIALIZED", None),
    (0xc000_0a10_0000_0000, "TDX_INVALID_PAMT", Some(Caller)),
    (0xc000_0a11_0000_0000, "TDX_PAMT_OUTSIDE_CMRS", Some(Caller)),
    (0xc000_0a12_0000_0000, "TDX_PAMT_OVERLAP", Some(Caller)),
    (0xc000_0a20_0000_0000, "TDX_INVALID_RESERVED_IN_TDMR", Some(Caller)),
    (0xc000_0a21_0000_0000, "TDX_NON_ORDERED_RESERVED_IN_TDMR", Some(Caller)),
    (0xc000_0a22_0000_0000, "TDX_CMR_LIST_INVALID", Some(Caller)),
    (0xc000_0b00_0000_0000, "TDX_EPT_WALK_FAILED", Some(Caller)),
    (0xc000_0b01_0000_0000, "TDX_EPT_ENTRY_FREE", Some(Caller)),
    (0xc000_0b02_0000_0000, "TDX_EPT_ENTRY_NOT_FREE", Some(Caller)),
    (0xc000_0b03_0000_0000, "TDX_EPT_ENTRY_NOT_PRESENT", Some(Caller)),
    (0xc000_0b04_0000_0000, "TDX_EPT_ENTRY_NOT_LEAF", Some(Caller)),
    (0xc000_0b05_0000_0000, "TDX_EPT_ENTRY_LEAF", Some(Caller)),
    (0xc000_0b06_0000_0000, "TDX_GPA_RANGE_NOT_BLOCKED", Some(Caller)),
    (0x0000_0b07_0000_0000, "TDX_GPA_RANGE_ALREADY_BLOCKED", None),
    (0xc000_0b08_0000_0000, "TDX_TLB_TRACKING_NOT_DONE", Some(Quiesce)),
    (0xc000_0b09_0000_0000, "TDX_EPT_INVALID_PROMOTE_CONDITIONS", Some(Caller)),
    (0x0000_0b0a_0000_0000, "TDX_PAGE_ALREADY_ACCEPTED", None),
    (0xc000_0b0b_0000_0000, "TDX_PAGE_SIZE_MISMATCH", Some(Caller)),
    (0xc000_0b0c_0000_0000, "TDX_GPA_RANGE_BLOCKED", Some(Caller)),
    (0xc000_0b0d_0000_0000, "TDX_EPT_ENTRY_STATE_INCORRECT", Some(Caller)),
    (0xc000_0b0e_0000_0000, "TDX_EPT_PAGE_NOT_FREE", Some(Caller)),
    (0xc000_0b0f_0000_0000, "TDX_L2_SEPT_WALK_FAILED", Some(Caller)),
    (0xc000_0b10_0000_0000, "TDX_L2_SEPT_ENTRY_NOT_FREE", Some(Caller)),
    (0xc000_0b11_0000_0000, "TDX_PAGE_ATTR_INVALID", Some(Caller)),
    (0xc000_0b12_0000_0000, "TDX_L2_SEPT_PAGE_NOT_PROVIDED", Some(Caller)),
    (0xc000_0c00_0000_0000, "TDX_METADATA_FIELD_ID_INCORRECT", Some(Caller)),
    (0xc000_0c01_0000_0000, "TDX_METADATA_FIELD_NOT_WRITABLE", Some(Caller)),
    (0xc000_0c02_0000_0000, "TDX_METADATA_FIELD_NOT_READABLE", Some(Caller)),
    (0xc000_0c03_0000_0000, "TDX_METADATA_FIELD_VALUE_NOT_VALID", Some(Caller)),
    (0xc000_0c04_0000_0000, "TDX_METADATA_LIST_OVERFLOW", Some(Caller)),
    (0xc000_0c05_0000_0000, "TDX_INVALID_METADATA_LIST_HEADER", Some(Caller)),
    (0xc000_0c06_0000_0000, "TDX_REQUIRED_METADATA_FIELD_MISSING", Some(Caller)),
    (0xc000_0c07_0000_0000, "TDX_METADATA_ELEMENT_SIZE_INCORRECT", Some(Caller)),
    (0xc000_0c08_0000_0000, "TDX_METADATA_LAST_ELEMENT_INCORRECT", Some(Caller)),
    (0xc000_0c09_0000_0000, "TDX_METADATA_FIELD_CURRENTLY_NOT_WRITABLE", Some(Caller)),
    (0xc000_0c0a_0000_0000, "TDX_METADATA_WR_MASK_NOT_VALID", Some(Caller)),
    (0x0000_0c0b_0000_0000, "TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT", None),
    (0x0000_0c0c_0000_0000, "TDX_METADATA_FIELD_SKIP", None),
    (0xc000_0d00_0000_0000, "TDX_SERVTD_ALREADY_BOUND_FOR_TYPE", Some(Caller)),
    (0xc000_0d01_0000_0000, "TDX_SERVTD_TYPE_MISMATCH", Some(Caller)),
    (0xc000_0d02_0000_0000, "TDX_SERVTD_ATTR_MISMATCH", Some(Caller)),
    (0xc000_0d03_0000_0000, "TDX_SERVTD_INFO_HASH_MISMATCH", Some(Caller)),
    (0xc000_0d04_0000_0000, "TDX_SERVTD_UUID_MISMATCH", Some(Caller)),
    (0xc000_0d05_0000_0000, "TDX_SERVTD_NOT_BOUND", Some(Caller)),
    (0xc000_0d06_0000_0000, "TDX_SERVTD_BOUND", Some(Caller)),
    (0xc000_0d07_0000_0000, "TDX_TARGET_UUID_MISMATCH", Some(Caller)),
    (0xc000_0d08_0000_0000, "TDX_TARGET_UUID_UPDATED", Some(Caller)),
    (0xc000_0e00_0000_0000, "TDX_INVALID_MBMD", Some(Caller)),
    (0xc000_0e01_0000_0000, "TDX_INCORRECT_MBMD_MAC", Some(Caller)),
    (0xc000_0e02_0000_0000, "TDX_NOT_WRITE_BLOCKED", Some(Caller)),
    (0x0000_0e03_0000_0000, "TDX_ALREADY_WRITE_BLOCKED", None),
    (0xc000_0e04_0000_0000, "TDX_NOT_EXPORTED", Some(Caller)),
    (0xc000_0e05_0000_0000, "TDX_MIGRATION_STREAM_STATE_INCORRECT", Some(Caller)),
    (0xc000_0e06_0000_0000, "TDX_MAX_MIGS_NUM_EXCEEDED", Some(Caller)),
    (0xc000_0e07_0000_0000, "TDX_EXPORTED_DIRTY_PAGES_REMAIN", Some(Caller)),
    (0xc000_0e08_0000_0000, "TDX_MIGRATION_DECRYPTION_KEY_NOT_SET", Some(Caller)),
    (0xc000_0e09_0000_0000, "TDX_TD_NOT_MIGRATABLE", Some(Caller)),
    (0xc000_0e0a_0000_0000, "TDX_PREVIOUS_EXPORT_CLEANUP_INCOMPLETE", Some(Caller)),
    (0xc000_0e0b_0000_0000, "TDX_NUM_MIGS_HIGHER_THAN_CREATED", Some(Caller)),
    (0xc000_0e0c_0000_0000, "TDX_IMPORT_MISMATCH", Some(Caller)),
    (0xc000_0e0d_0000_0000, "TDX_MIGRATION_EPOCH_OVERFLOW", Some(Caller)),
    (0xc000_0e0e_0000_0000, "TDX_MAX_EXPORTS_EXCEEDED", Some(Caller)),
    (0xc000_0e0f_0000_0000, "TDX_INVALID_PAGE_MAC", Some(Caller)),
    (0xc000_0e10_0000_0000, "TDX_MIGRATED_IN_CURRENT_EPOCH", Some(Caller)),
    (0xc000_0e11_0000_0000, "TDX_DISALLOWED_IMPORT_OVER_REMOVED", Some(Caller)),
    (0xc000_0e12_0000_0000, "TDX_SOME_VCPUS_NOT_MIGRATED", Some(Caller)),
    (0xc000_0e13_0000_0000, "TDX_ALL_VCPUS_IMPORTED", Some(Caller)),
    (0xc000_0e14_0000_0000, "TDX_MIN_MIGS_NOT_CREATED", Some(Caller)),
    (0xc000_0e15_0000_0000, "TDX_VCPU_ALREADY_EXPORTED", Some(Caller)),
    (0xc000_0e16_0000_0000, "TDX_INVALID_MIGRATION_DECRYPTION_KEY", Some(Caller)),
    (0xc000_1000_0000_0000, "TDX_INVALID_CPUSVN", Some(Caller)),
    (0xc000_1001_0000_0000, "TDX_INVALID_REPORTMACSTRUCT", Some(Caller)),
    (0x0000_1100_0000_0000, "TDX_L2_EXIT_HOST_ROUTED_ASYNC", None),
    (0x0000_1101_0000_0000, "TDX_L2_EXIT_HOST_ROUTED_TDVMCALL", None),
    (0x0000_1102_0000_0000, "TDX_L2_EXIT_PENDING_INTERRUPT", None),
    (0x0000_1120_0000_0000, "TDX_PENDING_INTERRUPT", None),
    (0x0000_1140_0000_0000, "TDX_TD_EXIT_BEFORE_L2_ENTRY", None),
    (0x0000_1141_0000_0000, "TDX_TD_EXIT_ON_L2_VM_EXIT", None),
    (0x0000_1142_0000_0000, "TDX_TD_EXIT_ON_L2_TO_L1", None),
    (0xc000_1160_0000_0000, "TDX_GLA_NOT_CANONICAL", Some(Caller)),
    (0xc000_0102_0000_0000, "TDX_EVENT_FILTER_INVALID", Some(Caller)),
    (0xc000_0304_0000_0000, "TDX_HPA_RANGE_NOT_FREE", Some(Caller)),
    (0xc000_0305_0000_0000, "TDX_NO_PAMT_PAGE_PAIR", Some(Caller)),
    (0xc000_0306_0000_0000, "TDX_PAMT_PAGE_NOT_EMPTY", Some(Caller)),
    (0x8000_0307_0000_0000, "TDX_INTERRUPTED_PAMT", Some(Caller)),
    (0x8000_0308_0000_0000, "TDX_MISSING_PAMT_PAGE_PAIR", Some(Caller)),
    (0xc000_0511_0000_0000, "TDX_CRYPTO_SELF_TEST_FAILED", Some(Caller)),
    (0xc000_0621_0000_0000, "TDX_X2APIC_ID_NOT_UNIQUE", Some(Caller)),
    (0xc000_0f03_0000_0000, "TDX_IOMMU_IOTLB_TRACKING_NOT_DONE", Some(Quiesce)),
    (0xc000_0f3d_0000_0000, "TDX_IOMMU_MT_PAGE_IN_USE", Some(Caller)),
    (0x8000_1103_0000_0000, "TDX_L2_VM_ENTRY_FAILED", Some(Retry)),
    (0x8000_000c_0000_0000, "TDX_INTERRUPTED_LIST_FULL", Some(Retry)),
    (0x8000_0206_0000_0000, "TDX_INTERRUPTED_BUSY", Some(Retry)),
    (0x8000_0512_0000_0000, "TDX_UPDATE_COMPATIBILITY_SENSITIVE", Some(Retry)),
    (0x8000_0b13_0000_0000, "TDX_BLOCKED_MEMORY_EXISTS", Some(Caller)),
    (0xc000_0e20_0000_0000, "TDX_BLOCKING_DISALLOWED", Some(Caller)),
];

/// Named by the crate, and listed without their exact value: not in the table.
const BY_CLASS_ONLY: [u64; 3] = [0xc000_050f_0000_0000, 0xc000_060a_0000_0000, 0xe000_0e23_0000_0000];

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
    let mut listed: Vec<u64> = TABLE.iter().map(|row| row.0).chain(BY_CLASS_ONLY).collect();
    listed.sort_unstable();
    let strangers: Vec<_> =
        Status::ALL.iter().filter(|code| listed.binary_search(&code.raw()).is_err()).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
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
        (176, "METADATA_FIELD"),
        (184, "SYS"),
        (185, "TDMR"),
        (186, "KOT"),
        (187, "KET"),
        (188, "WBCACHE"),
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
        (0xc000_0306_0000_0001, Detail::Count(1)),
        (0x0000_0000_0000_0030, Detail::ExitReason(48)),
        (0x6000_0002_0000_0030, Detail::ExitReason(48)),
        (0xc000_0608_0000_0004, Detail::Other(4)),
        (0x8000_0201_0000_0000, Detail::None),
    ] {
        assert_eq!(Status::from_raw(raw).detail(), detail, "{raw:#x}");
    }
}
