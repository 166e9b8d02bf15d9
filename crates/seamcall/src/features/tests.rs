use super::*;

/// Bit numbers from the ABI's table.
#[test]
fn bits() {
    let table = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31,
        32, 33, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53, 54, 56, 57,
    ];
    let named: std::vec::Vec<u32> =
        Features0::all().iter_names().map(|(_, flag)| flag.bits().trailing_zeros()).collect();
    assert_eq!(named, table);
    assert_eq!(Features0::DYNAMIC_PAMT.bits(), 1 << 36);
    assert_eq!(Features0::ENHANCED_DEMOTE_INTERRUPTIBILITY.bits(), 1 << 51);
    assert_eq!(Features0::NO_RBP_MOD.bits(), 1 << 18);
}

#[test]
fn unknown_bits_are_kept() {
    assert_eq!(Features0::from_bits_retain(1 << 35).bits(), 1 << 35);
    assert_eq!(Features0::from_bits_truncate(1 << 35).bits(), 1 << 35);
}
