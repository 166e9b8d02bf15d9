//! Secure EPT entries: bits, states, what the host is shown of them.
//!
//! A state is seven bits of the entry (D, TDEX, TDBW, TDB, TDP, IPAT, PS). A free entry is not zero, and a 4 KiB leaf
//! has the leaf bit too. (TDX module ABI, "Secure EPT entry format".)

use crate::config::Config;

/// Read, write, execute.
pub(crate) const RWX: u64 = 7;
/// Leaf bit: part of the state, set at every leaf level.
pub(crate) const LEAF: u64 = 1 << 7;
/// Host priority: a host attempt at the entry's lock failed.
pub(crate) const HOST_PRIORITY: u64 = 1 << 52;
/// An entry that maps nothing.
pub(crate) const FREE: u64 = 0x80E0_0000_0000_0000;
/// What PAGE.REMOVE leaves while a TD is imported, without the epoch.
const REMOVED: u64 = 0x80C0_0000_0000_0000;
/// The epoch in bits 43:12 of a removed entry means something.
const MIGRATION_EPOCH_VALID: u64 = 1 << 44;
/// A non-leaf entry without its address.
pub(crate) const NL_MAPPED: u64 = 0x8000_0000_0000_0007;
/// An accepted leaf without its address.
pub(crate) const MAPPED: u64 = 0x8000_0000_0000_00F7;
/// A leaf the guest has still to accept.
pub(crate) const PENDING: u64 = 0x8100_0000_0000_00F0;

const SUPPRESS_VE: u64 = 1 << 63;
const WRITE: u64 = 1 << 1;
const DIRTY_BIT: u64 = 1 << 9;
const EXPORTED_BIT: u64 = 1 << 53;
const BLOCKED_BIT: u64 = 1 << 55;
const BLOCKED_W_BIT: u64 = 1 << 54;
const PENDING_BIT: u64 = 1 << 56;
/// Chunks already accepted, in a 2 MiB pending leaf.
const ACCEPT_COUNTER: u64 = 0x1F_F000;

/// A state of an entry, and the sets of them that leaves allow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the states carry the names of the ABI")]
pub enum EntryState {
    Free,
    Removed,
    NlMapped,
    NlBlocked,
    Mapped,
    Blocked,
    Blockedw,
    ExportedBlockedw,
    ExportedDirty,
    ExportedDirtyBlockedw,
    Pending,
    PendingBlocked,
    PendingBlockedw,
    PendingExportedBlockedw,
    PendingExportedDirty,
    PendingExportedDirtyBlockedw,
}

use EntryState as S;

/// State, its seven bits, the number the host sees.
const STATES: [(S, u8, u8); 16] = [
    (S::Free, 0x0E, 0),
    (S::Removed, 0x0C, 5),
    (S::NlMapped, 0x00, 0x84),
    (S::NlBlocked, 0x08, 0x81),
    (S::Mapped, 0x60, 4),
    (S::Blocked, 0x68, 1),
    (S::Blockedw, 0x64, 8),
    (S::ExportedBlockedw, 0x66, 9),
    (S::ExportedDirty, 0x63, 11),
    (S::ExportedDirtyBlockedw, 0x67, 12),
    (S::Pending, 0x70, 2),
    (S::PendingBlocked, 0x78, 3),
    (S::PendingBlockedw, 0x74, 16),
    (S::PendingExportedBlockedw, 0x76, 17),
    (S::PendingExportedDirty, 0x73, 19),
    (S::PendingExportedDirtyBlockedw, 0x77, 20),
];

/// State by encoding; an encoding the module never writes reads as FREE.
const BY_BITS: [S; 128] = {
    let mut table = [S::Free; 128];
    let mut index = 0;
    while index < STATES.len() {
        table[STATES[index].1 as usize] = STATES[index].0;
        index += 1;
    }
    table
};

impl EntryState {
    /// Every state, in the order of the ABI.
    pub const ALL: [Self; 16] = {
        let mut all = [S::Free; 16];
        let mut index = 0;
        while index < all.len() {
            all[index] = STATES[index].0;
            index += 1;
        }
        all
    };

    /// The number the host sees in RDX bits 15:8.
    #[must_use]
    pub const fn public(self) -> u8 {
        STATES[self as usize].2
    }

    /// The bits that make an entry be in this state, without permissions or address.
    #[must_use]
    pub const fn raw_bits(self) -> u64 {
        let bits = STATES[self as usize].1 as u64;
        (bits & 1) << 9 | (bits >> 1 & 0xF) << 53 | (bits >> 5) << 6
    }

    pub(crate) const fn is_in(self, set: u16) -> bool {
        set & 1 << self as u16 != 0
    }

    /// The guest may read through it.
    pub(crate) const fn guest_accessible(self) -> bool {
        self.is_in(set(&[
            S::Mapped,
            S::Blockedw,
            S::ExportedBlockedw,
            S::ExportedDirty,
            S::ExportedDirtyBlockedw,
        ]))
    }

    pub(crate) const fn any_blocked(self) -> bool {
        self.is_in(BLOCKED)
    }

    pub(crate) const fn any_pending(self) -> bool {
        matches!(self, S::Pending | S::PendingBlocked | S::PendingBlockedw)
            || matches!(self, S::PendingExportedBlockedw | S::PendingExportedDirty)
            || matches!(self, S::PendingExportedDirtyBlockedw)
    }

    /// Exported, and not written since.
    pub(crate) const fn exported_and_clean(self) -> bool {
        matches!(self, S::ExportedBlockedw | S::PendingExportedBlockedw)
    }

    /// The guest may read it but not write.
    pub(crate) const fn any_write_blocked(self) -> bool {
        self.is_in(WRITE_BLOCKED)
    }

    /// A removal must wait until no translation made before the block can be in use.
    pub(crate) const fn needs_tracking(self) -> bool {
        !self.is_in(set(&[S::Free, S::Removed, S::ExportedBlockedw, S::PendingExportedBlockedw]))
    }
}

const fn set(states: &[S]) -> u16 {
    let (mut mask, mut index) = (0, 0);
    while index < states.len() {
        mask |= 1 << states[index] as u16;
        index += 1;
    }
    mask
}

/// States PAGE.ADD allows.
pub(crate) const FREE_ONLY: u16 = set(&[S::Free]);
/// States PAGE.AUG allows.
pub(crate) const AUG: u16 = set(&[S::Free, S::Removed]);
/// States SEPT.ADD allows.
pub(crate) const SEPT_ADD: u16 = set(&[S::Free, S::NlMapped]);
/// A table, reachable or blocked.
pub(crate) const TABLES: u16 = set(&[S::NlMapped, S::NlBlocked]);
/// States RANGE.BLOCK allows.
pub(crate) const BLOCK: u16 = set(&[S::NlMapped, S::Mapped, S::Blockedw, S::Pending, S::PendingBlockedw]);
/// The blocked states: what UNBLOCK allows.
pub(crate) const BLOCKED: u16 = set(&[S::NlBlocked, S::Blocked, S::PendingBlocked]);
/// States PAGE.REMOVE allows.
pub(crate) const REMOVE: u16 =
    set(&[S::Mapped, S::Blocked, S::Blockedw, S::Pending, S::PendingBlocked, S::PendingBlockedw]);
/// States MEM.RD allows.
pub(crate) const MEM_RD: u16 =
    set(&[S::Mapped, S::Blockedw, S::ExportedBlockedw, S::ExportedDirty, S::ExportedDirtyBlockedw]);
/// States MEM.WR allows.
pub(crate) const MEM_WR: u16 = set(&[S::Mapped, S::ExportedDirty]);
/// States EXPORT.BLOCKW allows.
pub(crate) const BLOCKW: u16 = set(&[S::Mapped, S::ExportedDirty, S::Pending, S::PendingExportedDirty]);
/// States EXPORT.UNBLOCKW allows.
pub(crate) const WRITE_BLOCKED: u16 = set(&[
    S::Blockedw,
    S::ExportedBlockedw,
    S::ExportedDirtyBlockedw,
    S::PendingBlockedw,
    S::PendingExportedBlockedw,
    S::PendingExportedDirtyBlockedw,
]);
/// States PAGE.DEMOTE allows.
pub(crate) const DEMOTE: u16 = set(&[S::Mapped, S::Blocked, S::Pending, S::PendingBlocked]);
/// States TDG.MEM.PAGE.ATTR.RD allows.
pub(crate) const ATTR_RD: u16 = LEAVES & !set(&[S::Blocked, S::PendingBlocked]);
/// States TDG.MEM.PAGE.ATTR.WR allows.
pub(crate) const ATTR_WR: u16 = set(&[S::Mapped, S::ExportedDirty, S::Pending, S::PendingExportedDirty]);
/// Every leaf state: what RELOCATE allows.
pub(crate) const LEAVES: u16 = !set(&[S::Free, S::Removed, S::NlMapped, S::NlBlocked]);
/// States of which 512 can be merged.
pub(crate) const MERGEABLE: u16 = set(&[S::Mapped, S::Pending]);

/// The state of a raw entry.
pub(crate) const fn state_of(entry: u64) -> EntryState {
    let bits = entry >> 9 & 1 | (entry >> 53 & 0xF) << 1 | (entry >> 6 & 3) << 5;
    BY_BITS[bits as usize]
}

/// Whether a walk can go on through the entry.
pub(crate) const fn walkable(entry: u64) -> bool {
    entry & RWX != 0 && entry & LEAF == 0
}

/// What PAGE.REMOVE leaves in that epoch of an import.
pub(crate) const fn removed(epoch: u32) -> u64 {
    REMOVED | MIGRATION_EPOCH_VALID | (epoch as u64) << 12
}

/// The entry with write access taken away.
pub(crate) const fn write_blocked(entry: u64) -> u64 {
    entry & !WRITE | BLOCKED_W_BIT
}

/// The entry with access taken away.
pub(crate) const fn blocked(entry: u64, level: u8) -> u64 {
    without_counter(entry & !(RWX | BLOCKED_W_BIT) | BLOCKED_BIT, level)
}

/// The entry with access given back, unless it is pending.
pub(crate) const fn unblocked(entry: u64) -> u64 {
    let entry = entry & !BLOCKED_BIT;
    if entry & PENDING_BIT != 0 { entry } else { entry | RWX }
}

/// The entry with write access given back: exported pages are dirty from now on.
pub(crate) const fn write_unblocked(entry: u64) -> u64 {
    let dirty = if entry & EXPORTED_BIT != 0 { DIRTY_BIT } else { 0 };
    let write = if entry & PENDING_BIT == 0 { WRITE } else { 0 };
    entry & !BLOCKED_W_BIT | dirty | write
}

/// The accepted form of a pending leaf.
pub(crate) const fn accepted(entry: u64) -> u64 {
    entry & !PENDING_BIT | RWX
}

/// A 2 MiB pending leaf without its accept counter; any other entry as it is.
pub(crate) const fn without_counter(entry: u64, level: u8) -> u64 {
    if level == 1 && state_of(entry).any_pending() { entry & !ACCEPT_COUNTER } else { entry }
}

/// Chunks of a 2 MiB pending leaf already accepted.
pub(crate) const fn accept_counter(entry: u64) -> u64 {
    (entry & ACCEPT_COUNTER) >> 12
}

/// The leaf with `count` chunks accepted.
pub(crate) const fn with_counter(entry: u64, count: u64) -> u64 {
    entry & !ACCEPT_COUNTER | count << 12
}

/// The page an entry of `level` names: of a leaf, aligned to its size.
pub(crate) const fn address(cfg: &Config, entry: u64, level: u8) -> u64 {
    let page = entry & cfg.address_mask();
    if entry & LEAF != 0 { page & !(crate::abi::size_of_level(level) - 1) } else { page }
}

/// The architectural entry as the host is shown it in RCX.
pub(crate) const fn shown(cfg: &Config, entry: u64) -> u64 {
    if entry & LEAF != 0 {
        return entry & (RWX | 0x38 | 0x40 | LEAF | cfg.address_mask() | SUPPRESS_VE);
    }
    match state_of(entry) {
        S::Free => SUPPRESS_VE,
        _ => entry & RWX,
    }
}

/// Level and state as the host is shown them in RDX.
pub(crate) const fn shown_info(entry: u64, level: u8) -> u64 {
    level as u64 | (state_of(entry).public() as u64) << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "State encoding": the raw state mask of each state.
    #[test]
    fn raw_state_masks_are_those_of_the_table() {
        let masks: [u64; 16] = [
            0x00E0_0000_0000_0000,
            0x00C0_0000_0000_0000,
            0,
            0x0080_0000_0000_0000,
            0x0000_0000_0000_00C0,
            0x0080_0000_0000_00C0,
            0x0040_0000_0000_00C0,
            0x0060_0000_0000_00C0,
            0x0020_0000_0000_02C0,
            0x0060_0000_0000_02C0,
            0x0100_0000_0000_00C0,
            0x0180_0000_0000_00C0,
            0x0140_0000_0000_00C0,
            0x0160_0000_0000_00C0,
            0x0120_0000_0000_02C0,
            0x0160_0000_0000_02C0,
        ];
        for (state, mask) in EntryState::ALL.into_iter().zip(masks) {
            assert_eq!(state.raw_bits(), mask, "{state:?}");
            assert_eq!(state_of(mask | 1 << 63), state);
        }
    }

    #[test]
    fn raw_values_of_common_entries() {
        let hpa = 0x1_2345_6000;
        assert_eq!(blocked(MAPPED | hpa, 0), 0x8080_0000_0000_00F0 | hpa);
        assert_eq!(blocked(PENDING | hpa, 0), 0x8180_0000_0000_00F0 | hpa);
        assert_eq!(blocked(NL_MAPPED | hpa, 1), 0x8080_0000_0000_0000 | hpa);
        assert_eq!(unblocked(blocked(MAPPED | hpa, 0)), MAPPED | hpa);
        assert_eq!(unblocked(blocked(PENDING | hpa, 0)), PENDING | hpa);
        assert_eq!(
            blocked(0x8040_0000_0000_00F5 | hpa, 0),
            0x8080_0000_0000_00F0 | hpa,
            "write block is lost"
        );
        assert_eq!(accepted(PENDING | hpa), MAPPED | hpa);
    }
}
