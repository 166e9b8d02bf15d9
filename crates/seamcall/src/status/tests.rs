use super::*;
use std::string::ToString;

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
        (0x6000_0002_0000_0000, "TDX_NON_RECOVERABLE_TD", Fatal),
        (0x4000_0001_0000_0000, "TDX_NON_RECOVERABLE_VCPU", Fatal),
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
fn every_code_has_one_name_and_survives() {
    let mut names: std::vec::Vec<_> = Status::ALL.iter().map(|status| status.name().unwrap()).collect();
    assert_eq!(names.len(), 184);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 184);
    for code in Status::ALL {
        assert_eq!(code.code(), *code);
        for low in [0, 1, 8, 0x92, 0x0002_0001, u32::MAX] {
            let status = Status::from_raw(code.raw() | u64::from(low));
            assert_eq!(status.detail().raw(), low, "{status}");
            assert_eq!(status.code().with_detail(status.detail()), status);
            assert_eq!(status.name(), code.name());
        }
    }
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
