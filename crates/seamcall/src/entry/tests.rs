use super::*;
use std::{string::ToString, vec::Vec};

/// Public state codes, from the ABI's table.
#[test]
fn public_codes() {
    let codes: Vec<u8> = SeptState::ALL.iter().map(|state| state.public()).collect();
    let table = [
        0, 5, 0x84, 0x81, 4, 1, 8, 9, 11, 12, 2, 3, 16, 17, 19, 20, 32, 33, 34, 64, 0xc4, 0xc1, 68, 65, 96,
        97,
    ];
    assert_eq!(codes, table);
    for code in 0..=255 {
        assert_eq!(SeptState::from_public(code).public(), code);
    }
}

#[test]
fn details_vectors() {
    for (rcx, rdx, text) in [
        (0x7, 0x8401, "2M NL_MAPPED"),
        (0x8000_0001_2345_60f7, 0x0400, "4K MAPPED 0x123456000"),
        (0x8000_0000_8000_00f0, 0x0101, "2M BLOCKED 0x80000000"),
        (0x8000_0000_8000_00f0, 0x0301, "2M PENDING_BLOCKED 0x80000000"),
        (0x8000_0000_0000_0000, 0x0002, "1G FREE"),
        (0, 0x0500, "4K REMOVED"),
        (0, 0x8103, "512G NL_BLOCKED"),
        (0, 0x2_c101, "2M L2_NL_BLOCKED (VM 2)"),
        (0, 0x0707, "level 7 state 7"),
    ] {
        assert_eq!(EntryInfo::new(rcx, rdx).to_string(), text);
    }
}

#[test]
fn the_accept_counter_is_no_address() {
    // 2 MiB pending, 5 chunks accepted: the counter shows in bits 20:12.
    let info = EntryInfo::new(0x8000_0000_8000_50f0, 0x0201);
    assert_eq!(info.hpa().map(Hpa::raw), Some(0x8000_0000));
    assert_eq!(info.raw(), 0x8000_0000_8000_50f0);
}

#[test]
fn observed_of_every_state() {
    for state in SeptState::ALL {
        let kinds = [state.is_free(), state.is_table(), matches!(state.observed(), Some(Observed::Leaf(_)))];
        assert_eq!(kinds.iter().filter(|kind| **kind).count(), 1, "{state}");
    }
    assert_eq!(SeptState::Other(7).observed(), None);
}
