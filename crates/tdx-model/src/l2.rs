//! Secure EPT entries of the L2 virtual machines of a partitioned TD: bits, states, attributes.
//!
//! Each L2 VM has a tree of its own beside the TD's. An entry there has no lock: the lock of the L1 entry at the same place
//! protects it, and a flag in the L1 entry (its alias) says that it is in use. An L2 leaf carries permissions that the
//! L1 guest chose; while it is blocked or pending they are kept aside in the memory-type bits.
//! (TDX module ABI, "TD partitioning"; `sept_manager.h` of the TDX module.)

use crate::config::Config;

/// L2 VMs a TD can have.
pub(crate) const MAX_VMS: usize = 3;
/// An entry that maps nothing; what a new L2 table is filled with.
pub(crate) const FREE: u64 = 0;

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const EXECUTE_USER: u64 = 1 << 10;
const PERMISSIONS: u64 = READ | WRITE | EXECUTE | EXECUTE_USER;
/// Memory type write-back in bits 5:3.
const WRITE_BACK: u64 = 6 << 3;
const MEMORY_TYPE: u64 = 7 << 3;
const IPAT: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const BLOCKED: u64 = 1 << 55;
const VERIFY_PAGING: u64 = 1 << 57;
const PAGING_WRITE: u64 = 1 << 58;
const SAVED_WRITE: u64 = 1 << 59;
const SHADOW_STACK: u64 = 1 << 60;
const SUPPRESS_VE: u64 = 1 << 63;
/// Kept aside in the memory-type bits: R, Xs and Xu.
const SAVED: [(u64, u64); 3] = [(1 << 3, READ), (1 << 4, EXECUTE), (1 << 5, EXECUTE_USER)];

/// State of an L2 entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Free,
    NlMapped,
    NlBlocked,
    Mapped,
    Blocked,
}

impl State {
    /// The number the host sees in RDX bits 15:8.
    pub(crate) const fn public(self) -> u8 {
        match self {
            Self::Free => 0x40,
            Self::NlMapped => 0xC4,
            Self::NlBlocked => 0xC1,
            Self::Mapped => 0x44,
            Self::Blocked => 0x41,
        }
    }
}

/// The state of a raw entry. R is part of a table entry's state, not of a leaf's.
pub(crate) const fn state_of(entry: u64) -> State {
    match (entry & LEAF != 0, entry & BLOCKED != 0) {
        (true, false) => State::Mapped,
        (true, true) => State::Blocked,
        (false, true) => State::NlBlocked,
        (false, false) if entry & READ != 0 => State::NlMapped,
        (false, false) => State::Free,
    }
}

pub(crate) const fn is_leaf(entry: u64) -> bool {
    entry & LEAF != 0
}

pub(crate) const fn is_table(entry: u64) -> bool {
    matches!(state_of(entry), State::NlMapped | State::NlBlocked)
}

/// Whether the host's walk can go on through the entry.
pub(crate) const fn walkable(entry: u64) -> bool {
    entry & (READ | WRITE | EXECUTE) != 0 && entry & LEAF == 0
}

/// Whether the guest's walk can: it goes through blocked tables too.
pub(crate) const fn walkable_by_guest(entry: u64) -> bool {
    !matches!(state_of(entry), State::Free) && entry & LEAF == 0
}

/// An entry that leads to the table in `page` (with the bits of the TD's key, where entries keep them).
pub(crate) const fn table_entry(page: u64) -> u64 {
    PERMISSIONS | page
}

/// The entry with access taken away. What it allowed is kept aside, of a write-blocked L1 page all but W.
///
/// An entry that is blocked already loses what it had kept aside, as in the module.
pub(crate) fn blocked(entry: u64, l1_write_blocked: bool) -> u64 {
    let mut new = entry & !PERMISSIONS | BLOCKED;
    if entry & LEAF != 0 {
        if !l1_write_blocked {
            new = set(new, SAVED_WRITE, entry & WRITE != 0);
        }
        for (aside, permission) in SAVED {
            new = set(new, aside, entry & permission != 0);
        }
    }
    new
}

/// The entry with access given back; one that is not blocked as it is.
pub(crate) fn unblocked(entry: u64) -> u64 {
    match state_of(entry) {
        State::NlBlocked => (entry | PERMISSIONS) & !(BLOCKED | MEMORY_TYPE | SAVED_WRITE),
        State::Blocked => {
            let mut new = set(entry & !(BLOCKED | SAVED_WRITE), WRITE, entry & SAVED_WRITE != 0);
            for (aside, permission) in SAVED {
                new = set(new, permission, entry & aside != 0);
            }
            new & !MEMORY_TYPE | WRITE_BACK
        }
        _ => entry,
    }
}

const fn set(word: u64, bits: u64, on: bool) -> u64 {
    if on { word | bits } else { word & !bits }
}

/// Attributes of one VM as TDG.MEM.PAGE.ATTR.RD and WR and TDH.MEM.SEPT.RD know them: R 0, W 1, Xs 2, Xu 3, VGP 4,
/// PWA 5, SSS 6, SVE 7, VALID 15.
pub(crate) mod attributes {
    use super::*;

    /// The attributes mean something.
    pub(crate) const VALID: u16 = 1 << 15;
    const BITS: [(u16, u64); 8] = [
        (1 << 0, READ),
        (1 << 1, WRITE),
        (1 << 2, EXECUTE),
        (1 << 3, EXECUTE_USER),
        (1 << 4, VERIFY_PAGING),
        (1 << 5, PAGING_WRITE),
        (1 << 6, SHADOW_STACK),
        (1 << 7, SUPPRESS_VE),
    ];
    const ACCESS: u16 = 0xF;

    /// Whether the L2 VM has any access.
    pub(crate) const fn present(attributes: u16) -> bool {
        attributes & ACCESS != 0
    }

    /// Whether a guest may ask for them.
    pub(crate) const fn legal(attributes: u16) -> bool {
        let without_read = attributes & 1 == 0 && attributes & (1 << 1 | 1 << 5) != 0;
        (attributes & VALID != 0 || attributes == 0)
            && attributes & 0x7F00 == 0
            && !without_read
            && attributes & 1 << 7 == 0
    }

    /// Those of an entry, as if it were not blocked (a write-blocked L1 page shows only W of them).
    pub(crate) fn of(entry: u64, l1_write_blocked: bool) -> u16 {
        match state_of(entry) {
            State::Free => (entry >> 63 << 7) as u16,
            State::NlMapped | State::NlBlocked => ACCESS | VALID,
            State::Mapped => bits_of(entry) | VALID,
            State::Blocked => {
                let mut shown = set(entry, WRITE, entry & SAVED_WRITE != 0);
                if !l1_write_blocked {
                    for (aside, permission) in SAVED {
                        shown = set(shown, permission, entry & aside != 0);
                    }
                }
                bits_of(shown) | VALID
            }
        }
    }

    fn bits_of(entry: u64) -> u16 {
        BITS.iter().filter(|&&(_, bit)| entry & bit != 0).fold(0, |all, &(bit, _)| all | bit)
    }

    /// The entry with these instead of its own; a blocked entry keeps them aside.
    pub(crate) fn replace(entry: u64, attributes: u16) -> u64 {
        let new = BITS.iter().fold(entry, |word, &(bit, place)| set(word, place, attributes & bit != 0));
        if matches!(state_of(entry), State::Blocked) { blocked(new, false) } else { new }
    }

    /// A leaf with these attributes for `page`, blocked where the L1 page is pending.
    pub(crate) fn leaf(attributes: u16, page: u64, is_blocked: bool) -> u64 {
        let new = replace(page | WRITE_BACK | IPAT | LEAF, attributes);
        if is_blocked { blocked(new, false) } else { new }
    }
}

/// The entry as the host is shown it in RCX: attributes only of a debug TD.
pub(crate) const fn shown(cfg: &Config, entry: u64, debug: bool) -> u64 {
    let architectural = MEMORY_TYPE | cfg.address_mask() | IPAT | LEAF | SUPPRESS_VE;
    match (state_of(entry), debug) {
        (State::Free, _) => SUPPRESS_VE,
        (State::NlMapped | State::NlBlocked, _) => entry & (PERMISSIONS | LEAF),
        (_, true) => entry & (architectural | PERMISSIONS | VERIFY_PAGING | PAGING_WRITE | SHADOW_STACK),
        (State::Mapped, false) => entry & architectural | PERMISSIONS,
        (State::Blocked, false) => entry & architectural,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x1_2345_6000;
    const ALL: u16 = attributes::VALID | 0x7F;

    /// "L2 entries": state, encoding, public state.
    #[test]
    fn states_have_the_numbers_of_the_table() {
        let table = [
            (0, State::Free, 64),
            (table_entry(PAGE), State::NlMapped, 196),
            (blocked(table_entry(PAGE), false), State::NlBlocked, 193),
            (attributes::leaf(ALL, PAGE, false), State::Mapped, 68),
            (attributes::leaf(attributes::VALID | 4, PAGE, false), State::Mapped, 68),
            (attributes::leaf(ALL, PAGE, true), State::Blocked, 65),
        ];
        for (entry, state, public) in table {
            assert_eq!((state_of(entry), state_of(entry).public()), (state, public), "{entry:#x}");
        }
    }

    #[test]
    fn a_block_keeps_permissions_aside_once() {
        for bits in 0..0x80 {
            let entry = attributes::leaf(attributes::VALID | bits, PAGE, false);
            let kept = blocked(entry, false);
            assert_eq!(kept & 0x407, 0, "{bits:#x}: no access");
            assert_eq!(attributes::of(kept, false), attributes::VALID | bits);
            assert_eq!(unblocked(kept), entry);
            let twice = attributes::of(blocked(kept, false), false);
            assert_eq!(
                twice,
                attributes::VALID | bits & 0x70,
                "the second block saves what is there: nothing"
            );
        }
        let table = table_entry(PAGE);
        assert_eq!(blocked(table, false), 1 << 55 | PAGE);
        assert_eq!(unblocked(blocked(table, false)), table);
    }

    /// The raw value of a leaf: R W Xs Xu, memory type 6, IPAT, leaf, VGP 57, PWA 58, SSS 60.
    #[test]
    fn raw_values_of_leaves() {
        assert_eq!(attributes::leaf(ALL, PAGE, false), 0x1600_0000_0000_04F7 | PAGE);
        assert_eq!(attributes::leaf(ALL, PAGE, true), 0x1E80_0000_0000_00F8 | PAGE);
        assert_eq!(attributes::leaf(attributes::VALID | 1, PAGE, false), 0xF1 | PAGE);
    }

    #[test]
    fn what_a_guest_may_not_ask_for() {
        for (attributes, legal) in [
            (0, true),
            (1, false),
            (attributes::VALID, true),
            (attributes::VALID | 1, true),
            (attributes::VALID | 2, false),
            (attributes::VALID | 0x20, false),
            (attributes::VALID | 0x21, true),
            (attributes::VALID | 0x81, false),
            (attributes::VALID | 0x101, false),
        ] {
            assert_eq!(attributes::legal(attributes), legal, "{attributes:#x}");
        }
    }
}
