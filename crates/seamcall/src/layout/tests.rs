use super::*;
use crate::{KeyIdBits, SeptState};
use sept_core::{Hpa, Level, TdxConfig};
use zerocopy::{FromBytes, IntoBytes};

/// Raw entries of a page at 0x80000000, from the module's table.
#[test]
fn raw_entries() {
    let page = Hpa::new(0x8000_0000).unwrap();
    for (state, raw) in [
        (SeptState::Free, 0x80e0_0000_0000_0000),
        (SeptState::Removed, 0x80c0_0000_0000_0000),
        (SeptState::NlMapped, 0x8000_0000_8000_0007),
        (SeptState::NlBlocked, 0x8080_0000_8000_0000),
        (SeptState::Mapped, 0x8000_0000_8000_00f7),
        (SeptState::Blocked, 0x8080_0000_8000_00f0),
        (SeptState::Pending, 0x8100_0000_8000_00f0),
        (SeptState::PendingBlocked, 0x8180_0000_8000_00f0),
        (SeptState::BlockedW, 0x8040_0000_8000_00f5),
    ] {
        assert_eq!(SeptLayout::encode(state, page), Some(raw), "{state}");
        assert_eq!(SeptLayout::state(raw), Some(state));
    }
    assert_eq!(SeptLayout::FREE, 0x80e0_0000_0000_0000);
}

/// State masks, from the module's table.
#[test]
fn state_masks() {
    for (state, mask) in [
        (SeptState::ExportedBlockedW, 0x0060_0000_0000_00c0),
        (SeptState::ExportedDirty, 0x0020_0000_0000_02c0),
        (SeptState::ExportedDirtyBlockedW, 0x0060_0000_0000_02c0),
        (SeptState::PendingBlockedW, 0x0140_0000_0000_00c0),
        (SeptState::PendingExportedBlockedW, 0x0160_0000_0000_00c0),
        (SeptState::PendingExportedDirty, 0x0120_0000_0000_02c0),
        (SeptState::PendingExportedDirtyBlockedW, 0x0160_0000_0000_02c0),
        (SeptState::MmioMapped, 0x80),
        (SeptState::MmioBlocked, 0x0080_0000_0000_0080),
        (SeptState::MmioPending, 0x0100_0000_0000_0080),
    ] {
        assert_eq!(SeptLayout::state_bits(state), Some(mask), "{state}");
        assert_eq!(SeptLayout::state(mask), Some(state));
    }
    assert_eq!(SeptLayout::state_bits(SeptState::L2Mapped), None);
    assert_eq!(SeptLayout::state(0x0100_0000_0000_0000), None);
}

#[test]
fn what_the_host_is_shown() {
    for (raw, shown) in [
        (0x80e0_0000_0000_0000, 0x8000_0000_0000_0000),
        (0x80f0_0000_0000_0800, 0x8000_0000_0000_0000), // free, locked, host priority
        (0x8000_0001_2345_60f7, 0x8000_0001_2345_60f7),
        (0x8180_0001_2345_68f0, 0x8000_0001_2345_60f0),
        (0x8040_0001_2345_60f5, 0x8000_0001_2345_60f5),
        (0x8000_0000_0200_0007, 7),
        (0x8080_0000_0200_0000, 0),
        (0x80c0_1000_0001_2000, 0),
    ] {
        for layout in [SeptLayout::V1_5_01, SeptLayout::V1_5_28, SeptLayout::V2_0_08] {
            assert_eq!(layout.shown(raw, KeyIdBits::new(52, 6).unwrap()), shown, "{raw:#x}");
        }
    }
    // Key id 33 of 6 bits below bit 46.
    let (keys, raw) = (KeyIdBits::new(46, 6).unwrap(), 0x8000_2101_2345_60f7);
    assert_eq!(SeptLayout::V1_5_01.shown(raw, keys), raw);
    assert_eq!(SeptLayout::V1_5_28.shown(raw, keys), 0x8000_0001_2345_60f7);
    assert_eq!(SeptLayout::V2_0_08.shown(raw, keys), 0x8000_0001_2345_60f7);
}

#[test]
fn software_bits_by_version() {
    assert!(SeptLayout::V1_5_28.is_locked(1 << 11) && !SeptLayout::V2_0_08.is_locked(1 << 11));
    assert!(SeptLayout::V2_0_08.is_locked(1 << 59) && !SeptLayout::V1_5_28.is_locked(1 << 59));
    assert_eq!(SeptLayout::V1_5_28.aliases(1 << 58), [true, false, false]);
    assert_eq!(SeptLayout::V2_0_08.aliases(1 << 58), [false, true, false]);
    assert!(SeptLayout::has_host_priority(1 << 52));
    let pending = 0x8100_0000_8000_50f0;
    assert_eq!(SeptLayout::accepted_chunks(pending, Level::L2M), Some(5));
    assert_eq!(SeptLayout::accepted_chunks(pending, Level::L4K), None);
}

#[test]
fn pamt_entries() {
    // Unlocked PT_REG owned by the TDR at 0x101000000, blocked in epoch 5.
    let entry = PamtEntry { control: 0x0000_1010_0003_0000, block_epoch: 5 };
    assert_eq!(entry.page_type(), PageType::Regular);
    assert_eq!(entry.owner().raw(), 0x1_0100_0000);
    assert!(!entry.is_exclusive());
    let pair = PamtEntry { control: 0x0000_0300_000f_0000, block_epoch: 0x0000_0301_0000_0200 };
    assert_eq!(pair.page_type(), PageType::Pamt);
    assert_eq!(pair.pair().unwrap(), ([0x300_0000, 0x301_0000].map(|raw| Hpa::new(raw).unwrap()), 512));
    assert_eq!(entry.pair(), None);
    for raw in 0..=255 {
        assert_eq!(PageType::from_raw(raw).raw(), raw);
    }
}

/// Bit positions from the module's header; statuses in the order of its enumeration.
#[test]
fn gpa_lists() {
    let info = GpaListInfo::new(Hpa::new(0x5000).unwrap(), 2, 511).unwrap();
    assert_eq!(info.raw(), 0xff80_0000_0000_5010);
    assert_eq!((info.first(), info.last(), info.list().raw()), (2, 511, 0x5000));
    assert_eq!(info.resumed(0xff80_0000_0000_5140).first(), 40);
    assert_eq!(info.resumed(0xff80_0000_0009_9140), info);
    assert!(GpaListInfo::new(Hpa::new(0x5800).unwrap(), 0, 1).is_none());
    assert!(GpaListInfo::new(Hpa::new(0x5000).unwrap(), 2, 1).is_none());
    assert!(GpaListInfo::new(Hpa::new(0x5000).unwrap(), 2, 512).is_none());

    let at = sept_core::GpaEntry::new(sept_core::Gpa::new(0x4000_1000).unwrap(), Level::L4K).unwrap();
    let entry = GpaListEntry::new(at, GpaListOperation::Migrate).unwrap();
    assert_eq!(entry.raw(), 0x0010_0000_4000_1000);
    // Pending, mapped by VM 2, the walk failed.
    let answer = GpaListEntry::from_raw(0x0200_0000_4000_1104);
    assert_eq!((answer.gpa().raw(), answer.level()), (0x4000_1000, Some(Level::L4K)));
    assert_eq!(answer.flags(), GpaListFlags::PENDING | GpaListFlags::L2_VM2);
    assert_eq!((answer.operation(), answer.status()), (GpaListOperation::Nop, GpaListStatus::SeptWalkFailed));
    for (raw, status) in (0..16).zip(GpaListStatus::ALL) {
        assert_eq!((status.raw(), GpaListStatus::from_raw(raw)), (raw, *status));
    }
    for (raw, operation) in [
        (0, GpaListOperation::Nop),
        (1, GpaListOperation::Migrate),
        (2, GpaListOperation::Cancel),
        (3, GpaListOperation::Remigrate),
    ] {
        assert_eq!(GpaListEntry::new(at, operation).unwrap().raw() >> 52, raw);
        assert_eq!(GpaListEntry::from_raw(raw << 52).operation(), operation);
    }
    assert_eq!([entry; 2].as_bytes()[8..16], entry.raw().to_le_bytes());
    let top = sept_core::GpaEntry::new(sept_core::Gpa::new(0).unwrap(), Level::L256T).unwrap();
    assert_eq!(GpaListEntry::new(top, GpaListOperation::Migrate), None);
}

#[test]
fn td_params_bytes() {
    let mut params = TdParams::new(TdxConfig::LEVELS_4, Attributes::DEBUG | Attributes::PERFMON, 0x0102);
    params.num_l2_vms = 3;
    params.cpuid[0].eax = 0x5566_7788;
    let bytes = params.as_bytes();
    assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 0, 0x80]);
    assert_eq!(bytes[16..20], [2, 1, 3, 0]);
    assert_eq!(bytes[24], 0x1e);
    assert_eq!(bytes[32], 0);
    assert_eq!(bytes[40..42], [40, 0]);
    assert_eq!(bytes[256..260], [0x88, 0x77, 0x66, 0x55]);
    assert_eq!(TdParams::read_from_bytes(bytes).unwrap(), params);
}

#[test]
fn td_params_ask_for_what_the_module_allows() {
    for config in [TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_48, TdxConfig::LEVELS_5_GPAW_52] {
        assert_eq!(TdParams::new(config, Attributes::empty(), 1).config(), Some(config));
    }
    // A 52-bit address width needs five levels.
    let mut params = TdParams::new(TdxConfig::LEVELS_4, Attributes::empty(), 1);
    params.config_flags |= ConfigFlags::GPAW_52.bits();
    assert_eq!(params.config(), None);
    params.eptp_controls = 0x16;
    assert_eq!(params.config(), None);
}

#[test]
fn pamt_memory() {
    // The overheads: 16 B and 8 KiB and 4 MiB a GiB; a bitmap of 32 KiB.
    assert_eq!(pamt_sizes(256 << 30, [16, 16, 16], false), Some([4096, 2 << 20, 1 << 30]));
    assert_eq!(pamt_sizes(256 << 30, [16, 16, 1], true), Some([4096, 2 << 20, 8 << 20]));
    assert_eq!(pamt_sizes(u64::MAX, [u16::MAX; 3], false), None);
}

/// Bit positions from the module's header.
#[test]
fn flag_bits() {
    for (flag, bit) in [
        (Attributes::DEBUG, 0),
        (Attributes::PMT_PROF, 6),
        (Attributes::ICSSD, 16),
        (Attributes::SERVTDEXT, 17),
        (Attributes::LASS, 27),
        (Attributes::SEPT_VE_DISABLE, 28),
        (Attributes::MIGRATABLE, 29),
        (Attributes::PKS, 30),
        (Attributes::KL, 31),
        (Attributes::TPA, 62),
        (Attributes::PERFMON, 63),
    ] {
        assert_eq!(flag.bits(), 1 << bit);
    }
    let flags = [
        ConfigFlags::GPAW_52,
        ConfigFlags::FLEXIBLE_PENDING_VE,
        ConfigFlags::NO_RBP_MOD,
        ConfigFlags::MAXPA_VIRT,
        ConfigFlags::MAXGPA_VIRT,
        ConfigFlags::TDX_CONNECT,
        ConfigFlags::PAGE_RELEASE,
        ConfigFlags::SEALING,
    ];
    for (bit, flag) in flags.into_iter().enumerate() {
        assert_eq!(flag.bits(), 1 << bit);
    }
}
