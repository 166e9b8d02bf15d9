//! Intel EPT, walked by VMX.

use super::{
    ADDRESS, Entry, FenceOrder, Format, LeafState, Permissions, STAMP, sealed, stamp_bits, stamp_in,
};
use crate::{ADDRESS_BITS, Hpa, Level};

/// Intel extended page tables.
///
/// Source: Intel SDM volume 3, section "The Extended Page Table Mechanism" (formats of EPT entries). The MMU ignores
/// every bit of an entry whose bits 2:0 are clear, and bits 11:9 and 62:52 of an entry that points to a table.
///
/// | bits | present (some of 2:0 set) | not present |
/// |---|---|---|
/// | 2:0 | execute, write, read | 0 |
/// | 5:3 | memory type of a leaf (6, write-back) | saved bits 2:0 of a blocked entry |
/// | 6 | 0 (PAT is not ignored) | set with 10 clear: being changed; set with 10 set: blocked table |
/// | 7 | leaf above 4K | the same, saved |
/// | 8 | accessed | the same, saved |
/// | 9 | dirty of a leaf, level inhibit of a table | the same, saved; level inhibit of a free entry |
/// | 10 | closed table | blocked |
/// | 11 | open table; a table with 10 and 11 clear is being changed | 0 |
/// | 51:12 | address | address of what is blocked |
/// | 62:52 | [`Stamp`](super::Stamp) of a closed table | stamp of what is blocked |
/// | 63 | suppress #VE, as configured | the same |
///
/// Bit 10 of a present entry means *execute for user-mode addresses* where mode-based execute control is on; a table being
/// closed then allows it, which the leaves below still refuse.
///
/// ```
/// use sept_core::{Entry, Ept, EptConfig, Format, Hpa, LeafState, Level};
/// let page = Entry::Leaf { hpa: Hpa::new(0x20_0000).unwrap(), state: LeafState::Mapped, blocked: None };
/// // 2 MiB leaf, write-back, all permissions.
/// assert_eq!(Ept::encode(EptConfig::LEVELS_4, Level::L2M, page), 0x20_00b7);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Ept;

/// Depth of an EPT and what all its entries have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptConfig {
    top: Level,
    /// First address that is not translated.
    limit: u64,
    common: u64,
}

impl EptConfig {
    /// 4-level EPT: guest addresses below 2^48.
    pub const LEVELS_4: Self = Self { top: Level::L512G, limit: 1 << 48, common: 0 };
    /// 5-level EPT: guest addresses below 2^52 (hardware translates up to 2^57).
    pub const LEVELS_5: Self = Self { top: Level::L256T, limit: 1 << ADDRESS_BITS, common: 0 };

    /// The same with bit 63 set in every entry: EPT violations exit and never become #VE.
    #[must_use]
    pub const fn suppress_ve(self) -> Self {
        Self { common: SUPPRESS_VE, ..self }
    }

    /// Level of the root's entries.
    #[must_use]
    pub const fn top(self) -> Level {
        self.top
    }
}

const RWX: u64 = 0b111;
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const WRITE_BACK: u64 = 6 << 3;
const SAVED_SHIFT: u32 = 3;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const INHIBIT: u64 = 1 << 9;
/// Of entries that are not present.
const TABLE: u64 = 1 << 6;
const HELD: u64 = 1 << 10;
/// A table that operations may enter: the one bit that a walk looks at.
const OPEN: u64 = 1 << 11;
const SUPPRESS_VE: u64 = 1 << 63;
const KEPT: u64 = LARGE | ACCESSED | DIRTY;

/// The permissions that `leaf` has or, while it is blocked, will have again.
const fn rwx(leaf: u64) -> u64 {
    if leaf & RWX == 0 { (leaf >> SAVED_SHIFT) & RWX } else { leaf & RWX }
}

const fn is_leaf(level: Level, raw: u64) -> bool {
    matches!(level, Level::L4K) || raw & LARGE != 0
}

/// The level inhibit of a free entry or a table. A page has its dirty bit there, which ends with it.
const fn inhibit(level: Level, raw: u64) -> u64 {
    let page = if raw & RWX == 0 { raw & (HELD | TABLE) == HELD } else { is_leaf(level, raw) };
    if page { 0 } else { raw & INHIBIT }
}

impl sealed::Sealed for Ept {}

impl Format for Ept {
    const FENCE: FenceOrder = FenceOrder::After;
    const MMU_SETS: u64 = ACCESSED | DIRTY;
    const MMU_SETS_IN_TABLES: u64 = ACCESSED;

    type Config = EptConfig;

    #[inline]
    fn top(config: EptConfig) -> Level {
        config.top
    }

    #[inline]
    fn max_leaf(_: EptConfig) -> Level {
        Level::L1G
    }

    #[inline]
    fn limit(config: EptConfig) -> u64 {
        config.limit
    }

    #[inline]
    fn decode(_: EptConfig, level: Level, raw: u64) -> Entry {
        let hpa = Hpa::truncate(raw & ADDRESS);
        let state = LeafState::Mapped;
        if raw & RWX != 0 {
            return match raw & (HELD | OPEN) {
                _ if is_leaf(level, raw) => Entry::Leaf { hpa, state, blocked: None },
                OPEN => Entry::Table { hpa, blocked: None },
                HELD => Entry::Closed { hpa, stamp: stamp_in(raw) },
                _ => Entry::Frozen,
            };
        }
        let blocked = Some(stamp_in(raw));
        match raw & (HELD | TABLE) {
            0 => Entry::Free,
            TABLE => Entry::Frozen,
            HELD => Entry::Leaf { hpa, state, blocked },
            _ => Entry::Table { hpa, blocked },
        }
    }

    #[inline]
    fn next(_: EptConfig, level: Level, raw: u64) -> Option<Hpa> {
        if raw & OPEN != 0 && !matches!(level, Level::L4K) {
            Some(Hpa::truncate(raw & ADDRESS))
        } else {
            None
        }
    }

    #[inline]
    fn walks_on(_: EptConfig, level: Level, raw: u64) -> Option<Hpa> {
        let frozen = raw & RWX != 0 && raw & (HELD | OPEN) == 0 && !is_leaf(level, raw);
        if frozen { Some(Hpa::truncate(raw & ADDRESS)) } else { None }
    }

    #[inline]
    fn update(config: EptConfig, level: Level, old: u64, entry: Entry) -> u64 {
        let word = match entry {
            Entry::Free => inhibit(level, old),
            // A table that is being changed is walked on by the MMU.
            Entry::Frozen if old & RWX != 0 && !is_leaf(level, old) => old & !(HELD | OPEN),
            Entry::Frozen => TABLE,
            Entry::Table { hpa, blocked: None } => RWX | OPEN | hpa.raw() & ADDRESS | inhibit(level, old),
            Entry::Table { hpa, blocked: Some(stamp) } => {
                HELD | TABLE | hpa.raw() & ADDRESS | stamp_bits(stamp) | inhibit(level, old)
            }
            Entry::Closed { hpa, stamp } => {
                RWX | HELD | hpa.raw() & ADDRESS | stamp_bits(stamp) | inhibit(level, old)
            }
            Entry::Leaf { hpa, blocked, .. } => {
                // A fresh page: what was free has neither permissions nor accessed and dirty bits.
                let (rwx, kept) = match rwx(old) {
                    0 => (RWX, if matches!(level, Level::L4K) { 0 } else { LARGE }),
                    rwx => (rwx, old & KEPT),
                };
                let rest = match blocked {
                    None => rwx | WRITE_BACK,
                    Some(stamp) => HELD | rwx << SAVED_SHIFT | stamp_bits(stamp),
                };
                hpa.raw() & ADDRESS | kept | rest
            }
        };
        word | config.common
    }

    #[inline]
    fn fresh(_: u64, _: bool) -> LeafState {
        LeafState::Mapped
    }

    #[inline]
    fn narrow(_: EptConfig, level: Level, leaf: u64) -> u64 {
        let open = if leaf & RWX == 0 {
            leaf & !(HELD | STAMP | RWX << SAVED_SHIFT) | rwx(leaf) | WRITE_BACK
        } else {
            leaf
        };
        if matches!(level, Level::L2M) { open & !LARGE } else { open }
    }

    #[inline]
    fn widen(_: EptConfig, _: Level, first: u64) -> u64 {
        first | LARGE
    }

    #[inline]
    fn permissions(_: EptConfig, leaf: u64) -> Permissions {
        let has = |bit, flag| if rwx(leaf) & bit == 0 { Permissions::empty() } else { flag };
        has(READ, Permissions::READ) | has(WRITE, Permissions::WRITE) | has(EXECUTE, Permissions::EXECUTE)
    }

    #[inline]
    fn with_permissions(_: EptConfig, leaf: u64, permissions: Permissions) -> Option<u64> {
        // Write without read is a misconfiguration, and nothing at all would read as a free entry.
        if !permissions.contains(Permissions::READ) {
            return None;
        }
        let bit = |flag, bit| if permissions.contains(flag) { bit } else { 0 };
        let rwx = READ | bit(Permissions::WRITE, WRITE) | bit(Permissions::EXECUTE, EXECUTE);
        let shift = if leaf & RWX == 0 { SAVED_SHIFT } else { 0 };
        Some(leaf & !(RWX << shift) | rwx << shift)
    }

    #[inline]
    fn inhibited(raw: u64) -> bool {
        raw & INHIBIT != 0
    }

    #[inline]
    fn with_inhibit(raw: u64, inhibit: bool) -> u64 {
        if inhibit { raw | INHIBIT } else { raw & !INHIBIT }
    }
}
