//! Properties over all register values: nothing panics, nothing is lost.

mod wrappers;

use crate::{
    Detail, EntryInfo, EptViolation, FieldId, GpaListEntry, GpaListInfo, KeyIdBits, Leaf, MapGpa, PamtEntry,
    Regs, SeptLayout, Status,
    exit::{Exit, ExitReason, exit_reason, exit_vm},
};
use proptest::{prelude::*, sample::select};
use sept_core::TdxConfig;
use std::string::ToString;

/// Any word, with zero, all ones, single bits and page addresses made likelier.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => any::<u64>(),
        1 => Just(0),
        1 => Just(u64::MAX),
        1 => any::<u8>().prop_map(u64::from),
        1 => (0..64_u32).prop_map(|bit| 1 << bit),
        2 => any::<u64>().prop_map(|raw| raw & !0xfff),
        2 => (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b),
    ]
}

/// Any status, half of them a known code with any detail.
fn status() -> impl Strategy<Value = u64> {
    let known = (select(Status::ALL), any::<u32>()).prop_map(|(code, low)| code.raw() | u64::from(low));
    prop_oneof![known, word()]
}

fn registers() -> impl Strategy<Value = Regs> {
    let words = (word(), word(), word(), word(), word(), word(), word(), word());
    (status(), words).prop_map(|(rax, (rcx, rdx, r8, r9, r10, r11, r12, r13))| Regs {
        rax,
        rcx,
        rdx,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
    })
}

fn config() -> impl Strategy<Value = TdxConfig> {
    select(&[TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_48, TdxConfig::LEVELS_5_GPAW_52][..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_status_keeps_its_bits(raw in status()) {
        let status = Status::from_raw(raw);
        prop_assert_eq!(status.raw(), raw);
        prop_assert_eq!(u64::from(status.detail().raw()), raw & 0xffff_ffff);
        prop_assert_eq!(status.code().with_detail(status.detail()), status);
        prop_assert_eq!(status.class().is_none(), status.is_success());
        prop_assert_eq!(status.is_success(), raw >> 61 == 0);
        prop_assert!(!status.to_string().is_empty());
        if let Detail::Operand(operand) = status.detail() {
            prop_assert_eq!((u64::from(operand.id()), status.operand()), (raw & 0xffff_ffff, Some(operand)));
        }
    }

    #[test]
    fn an_entry_keeps_both_registers(rcx in word(), rdx in word()) {
        let info = EntryInfo::new(rcx, rdx);
        prop_assert_eq!((info.raw(), info.raw_info()), (rcx, rdx));
        prop_assert_eq!(u64::from(info.state().public()), rdx >> 8 & 0xff);
        prop_assert_eq!(info.level().map(|level| u64::from(level.raw())), Some(rdx & 7).filter(|level| *level < 5));
        prop_assert!(!info.to_string().is_empty());
        if let Some(hpa) = info.hpa() {
            prop_assert!(info.level().is_some_and(|level| hpa.is_aligned(level)));
            prop_assert_eq!(hpa.raw() & !rcx, 0);
        }
    }

    #[test]
    fn other_words_keep_their_bits(raw in word(), other in word()) {
        prop_assert_eq!(Leaf::from_rax(raw).rax(), raw & 0x00ff_ffff);
        prop_assert_eq!(FieldId::new(raw).raw(), raw);
        prop_assert_eq!(GpaListEntry::from_raw(raw).raw(), raw);
        prop_assert_eq!(GpaListInfo::from_raw(raw).raw(), raw);
        // A resumed list moves its first entry, and nothing else; what names another list is ignored.
        let info = GpaListInfo::from_raw(raw);
        prop_assert_eq!(info.resumed(other).raw(), if (raw ^ other) & !0xff8 == 0 { other } else { raw });
        let moved = raw & !0xff8 | other & 0xff8;
        prop_assert_eq!(info.resumed(moved).raw(), moved);
        let entry = PamtEntry { control: raw, block_epoch: other };
        prop_assert_eq!(u64::from(entry.page_type().raw()), raw >> 16 & 0x1f);
        prop_assert_eq!(entry.owner().raw(), raw >> 24 << 12);
        let shown = SeptLayout::V2_0_08.shown(raw, KeyIdBits::new(52, 6).unwrap());
        prop_assert_eq!(shown & !(raw | 1 << 63), 0);
    }

    #[test]
    fn exits(out in registers(), near in select(&[0, 1, 48, 77, 0x0400_0030, 0x0400_004d][..]), config in config()) {
        for out in [out, Regs { rax: near, ..out }, Regs { rax: near, r10: 0, r11: MapGpa::LEAF, ..out }] {
            let reason = exit_reason(&out);
            prop_assert_eq!(reason.is_some(), out.rax >> 32 == 0);
            prop_assert_eq!(u64::from(exit_vm(&out)), out.rcx >> 32 & 3);
            let violation = EptViolation::decode(&out);
            prop_assert_eq!(violation.is_some(), reason.map(ExitReason::basic) == Some(48));
            if let Some(violation) = violation {
                prop_assert_eq!((violation.qualification, violation.extended), (out.rcx, out.rdx));
                prop_assert_eq!(violation.details().is_some(), matches!(out.rdx & 0xf, 1 | 5));
                prop_assert_eq!(violation.missing_l2().is_some(), out.rdx & 0xf == 2 && out.rdx >> 35 & 7 < 5);
            }
            match MapGpa::decode(&out, config) {
                Some(Ok(request)) => {
                    let shared = u64::from(request.to_shared) << config.shared_bit();
                    prop_assert_eq!((request.range.start().raw() | shared, request.range.len()), (out.r12, out.r13));
                    prop_assert!(request.range.end() <= 1 << config.shared_bit());
                }
                Some(Err(error)) => prop_assert_eq!((error.gpa, error.size), (out.r12, out.r13)),
                None => {}
            }
            if let Exit::Status(status) = Exit::decode(&out, config) {
                prop_assert_eq!((status.raw(), reason), (out.rax, None));
            }
        }
    }
}
