//! What an MMU sees in a word: the formats of the manuals, as they are read by hardware.

use sept_core::{Level, Permissions};

/// An entry to the MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// The walk ends; every other bit is ignored.
    NotPresent,
    /// The walk goes on there, with all permissions.
    Table(u64),
    /// Write-back memory.
    Page(u64, Permissions),
}

fn field(raw: u64, high: u32, low: u32) -> u64 {
    (raw >> low) & ((1 << (high - low + 1)) - 1)
}

fn permissions(read: bool, write: bool, execute: bool) -> Permissions {
    let of = |has, flag| if has { flag } else { Permissions::empty() };
    of(read, Permissions::READ) | of(write, Permissions::WRITE) | of(execute, Permissions::EXECUTE)
}

/// Intel SDM volume 3, section "EPT Translation Mechanism" and the tables of entry formats there. Physical addresses of 52
/// bits; mode-based execute control off.
pub(crate) fn ept_mmu(level: Level, raw: u64) -> Seen {
    let rwx = field(raw, 2, 0);
    if rwx == 0 {
        return Seen::NotPresent;
    }
    assert_ne!(rwx & 0b011, 0b010, "{raw:#x}: write without read is a misconfiguration");
    let page = level == Level::L4K || raw & 1 << 7 != 0;
    if !page {
        assert_eq!(field(raw, 7, 3), 0, "{raw:#x}: reserved bits of an entry that points to a table");
        assert_eq!(rwx, 0b111, "{raw:#x}: a table must not restrict what is below");
        return Seen::Table(field(raw, 51, 12) << 12);
    }
    assert!(level <= Level::L1G, "{raw:#x}: bit 7 is reserved at {level}");
    assert_eq!(field(raw, 5, 3), 6, "{raw:#x}: memory type write-back");
    assert_eq!(raw & 1 << 6, 0, "{raw:#x}: PAT counts");
    let address = field(raw, 51, 12) << 12;
    assert_eq!(address & (level.size() - 1), 0, "{raw:#x}: reserved address bits");
    // Verify guest paging, paging-write access, supervisor shadow stack, sub-page write permissions.
    assert_eq!(raw & (1 << 57 | 1 << 58 | 1 << 60 | 1 << 61), 0, "{raw:#x}: features nobody asked for");
    Seen::Page(address, permissions(rwx & 1 != 0, rwx & 2 != 0, rwx & 4 != 0))
}

/// AMD APM volume 2, section 5.3 "Long-Mode Page Translation" and 5.4 "Page-Translation-Table Entry Fields"; Intel SDM
/// volume 3, section "4-Level Paging and 5-Level Paging". NX on, protection keys on, PAT as after reset.
pub(crate) fn x86_mmu(level: Level, raw: u64) -> Seen {
    if raw & 1 == 0 {
        return Seen::NotPresent;
    }
    assert_eq!(field(raw, 4, 3), 0, "{raw:#x}: PWT and PCD, so not write-back");
    let page = level == Level::L4K || raw & 1 << 7 != 0;
    let (write, no_execute) = (raw & 1 << 1 != 0, raw & 1 << 63 != 0);
    let address = field(raw, 51, 12) << 12;
    if !page {
        assert!(write && !no_execute, "{raw:#x}: a table must not restrict what is below");
        return Seen::Table(address);
    }
    assert!(level <= Level::L1G, "{raw:#x}: bit 7 must be zero at {level}");
    assert!(level > Level::L4K || raw & 1 << 7 == 0, "{raw:#x}: PAT of a 4 KiB page");
    // Bit 12 is PAT, the others must be zero.
    assert_eq!(address & (level.size() - 1), 0, "{raw:#x}: reserved address bits");
    assert_eq!(raw & 1 << 8, 0, "{raw:#x}: global");
    assert_eq!(field(raw, 62, 59), 0, "{raw:#x}: protection key");
    Seen::Page(address, permissions(true, write, !no_execute))
}

/// Arm DDI0487, "VMSAv8-64 translation table format descriptors", stage 2 with a 4 KiB granule, 48-bit addresses and FWB.
pub(crate) fn stage2_mmu(level: Level, raw: u64) -> Seen {
    if raw & 1 == 0 {
        return Seen::NotPresent;
    }
    let table = raw & 2 != 0;
    let address = field(raw, 47, 12) << 12;
    if table && level > Level::L4K {
        // NSTable and the hierarchical controls do not exist at stage 2.
        assert_eq!(field(raw, 51, 48), 0, "{raw:#x}: reserved bits of a table descriptor");
        return Seen::Table(address);
    }
    assert_eq!(table, level == Level::L4K, "{raw:#x}: descriptor type at {level}");
    assert!(level <= Level::L1G, "{raw:#x}: no block at {level}");
    assert_eq!(address & (level.size() - 1), 0, "{raw:#x}: reserved address bits");
    assert_eq!(field(raw, 5, 2), 0b0110, "{raw:#x}: MemAttr is not write-back");
    assert_eq!(field(raw, 9, 8), 0b11, "{raw:#x}: not inner shareable");
    assert_eq!(field(raw, 10, 10), 1, "{raw:#x}: the access flag is clear");
    assert_eq!(raw & 1 << 55, 0, "{raw:#x}: NS, so not the realm's memory");
    let (read, write) = (raw & 1 << 6 != 0, raw & 1 << 7 != 0);
    // XN is bits 54:53.
    Seen::Page(address, permissions(read, write, field(raw, 54, 53) == 0))
}
