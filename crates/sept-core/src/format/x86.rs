//! x86-64 page tables: long mode, and AMD nested paging, which uses the same format.

use super::{
    ADDRESS, Entry, FenceOrder, Format, LeafState, Permissions, STAMP, sealed, stamp_bits, stamp_in,
};
use crate::{ADDRESS_BITS, Hpa, Level};

/// x86-64 long-mode and AMD nested page tables, 4 or 5 levels.
///
/// Sources: AMD APM volume 2, sections 5.3 (long-mode page translation) and 15.25 (nested paging); Intel SDM volume 3,
/// chapter "Paging". The MMU ignores every bit but bit 0 of an entry that is not present, and bits 11:9 and 62:52 of a
/// present one that points to a table.
///
/// | bits | present | not present |
/// |---|---|---|
/// | 0 | 1 | 0 |
/// | 1, 2 | writable, user | the same, saved |
/// | 5, 6 | accessed, dirty | the same, saved |
/// | 7 | leaf above 4K | the same, saved |
/// | 8 | 0 | set with 10 clear: being changed; set with 10 set: blocked table |
/// | 9 | level inhibit of a table | level inhibit of a free entry |
/// | 10 | closed table | blocked |
/// | 11 | open table; a table with 10 and 11 clear is being changed | 0 |
/// | 51:12 | address, and the C-bit where configured | the same of what is blocked |
/// | 62:52 | [`Stamp`](super::Stamp) of a closed table | stamp of what is blocked |
/// | 63 | no execute | the same, saved |
///
/// An address here is a guest-physical one with nested paging, and a virtual one in long mode: bits 51:0 of it, so with
/// 5 levels only the lower 2^52 bytes and with 4 levels the lower 2^48, taken as they index the tables.
///
/// ```
/// use sept_core::{Entry, Format, Hpa, LeafState, Level, X86, X86Config};
/// let page = Entry::Leaf { hpa: Hpa::new(0x20_0000).unwrap(), state: LeafState::Mapped, blocked: None };
/// assert_eq!(X86::encode(X86Config::NESTED_4, Level::L2M, page), 0x20_0087);
/// let encrypted = X86Config::NESTED_4.with_c_bit(51).unwrap();
/// assert_eq!(X86::encode(encrypted, Level::L2M, page), 1 << 51 | 0x20_0087);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct X86;

/// Depth of an x86-64 table, and what all its entries have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86Config {
    top: Level,
    /// First address that is not translated.
    limit: u64,
    /// The C-bit, the user bit, or both.
    common: u64,
    /// Bits 51:12 but the C-bit.
    address: u64,
    c_bit: u64,
}

impl X86Config {
    /// 4-level nested page table. Nested walks are user accesses, so every entry has the user bit.
    pub const NESTED_4: Self =
        Self { top: Level::L512G, limit: 1 << 48, common: USER, address: ADDRESS, c_bit: 0 };
    /// 5-level nested page table.
    pub const NESTED_5: Self =
        Self { top: Level::L256T, limit: 1 << ADDRESS_BITS, common: USER, address: ADDRESS, c_bit: 0 };
    /// 4-level long-mode table of supervisor pages.
    pub const SUPERVISOR_4: Self =
        Self { top: Level::L512G, limit: 1 << 48, common: 0, address: ADDRESS, c_bit: 0 };
    /// 5-level long-mode table of supervisor pages.
    pub const SUPERVISOR_5: Self =
        Self { top: Level::L256T, limit: 1 << ADDRESS_BITS, common: 0, address: ADDRESS, c_bit: 0 };

    /// The same with memory encryption: address bit `position` (32 to 51; CPUID 8000_001F EBX\[5:0\]) is set in every
    /// entry and is no part of an address. `None` outside that range.
    #[must_use]
    pub const fn with_c_bit(self, position: u8) -> Option<Self> {
        match position {
            32..=51 => {
                let c_bit = 1 << position;
                let common = self.common & !self.c_bit | c_bit;
                Some(Self { common, address: ADDRESS & !c_bit, c_bit, ..self })
            }
            _ => None,
        }
    }

    /// Level of the root's entries.
    #[must_use]
    pub const fn top(self) -> Level {
        self.top
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const INHIBIT: u64 = 1 << 9;
const HELD: u64 = 1 << 10;
/// Of entries that are not present.
const TABLE: u64 = 1 << 8;
/// A table that operations may enter: the one bit that a walk looks at.
const OPEN: u64 = 1 << 11;
const NO_EXECUTE: u64 = 1 << 63;
const KEPT: u64 = WRITE | ACCESSED | DIRTY | LARGE | NO_EXECUTE;

const fn is_leaf(level: Level, raw: u64) -> bool {
    matches!(level, Level::L4K) || raw & LARGE != 0
}

impl sealed::Sealed for X86 {}

impl Format for X86 {
    const FENCE: FenceOrder = FenceOrder::After;
    const MMU_SETS: u64 = ACCESSED | DIRTY;
    const MMU_SETS_IN_TABLES: u64 = ACCESSED;

    type Config = X86Config;

    #[inline]
    fn top(config: X86Config) -> Level {
        config.top
    }

    #[inline]
    fn max_leaf(_: X86Config) -> Level {
        Level::L1G
    }

    #[inline]
    fn limit(config: X86Config) -> u64 {
        config.limit
    }

    #[inline]
    fn unnamed(config: X86Config) -> u64 {
        config.c_bit
    }

    #[inline]
    fn decode(config: X86Config, level: Level, raw: u64) -> Entry {
        let hpa = Hpa::truncate(raw & config.address);
        let state = LeafState::Mapped;
        if raw & PRESENT != 0 {
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
    fn next(config: X86Config, level: Level, raw: u64) -> Option<Hpa> {
        if raw & OPEN != 0 && !matches!(level, Level::L4K) {
            Some(Hpa::truncate(raw & config.address))
        } else {
            None
        }
    }

    #[inline]
    fn walks_on(config: X86Config, level: Level, raw: u64) -> Option<Hpa> {
        let frozen = raw & (PRESENT | HELD | OPEN) == PRESENT && !is_leaf(level, raw);
        if frozen { Some(Hpa::truncate(raw & config.address)) } else { None }
    }

    #[inline]
    fn update(config: X86Config, level: Level, old: u64, entry: Entry) -> u64 {
        let at = |hpa: Hpa| hpa.raw() & config.address | config.common;
        match entry {
            Entry::Free => old & INHIBIT,
            // A table that is being changed is walked on by the MMU.
            Entry::Frozen if old & PRESENT != 0 && !is_leaf(level, old) => old & !(HELD | OPEN),
            Entry::Frozen => TABLE,
            Entry::Table { hpa, blocked: None } => PRESENT | WRITE | OPEN | at(hpa) | old & INHIBIT,
            Entry::Table { hpa, blocked: Some(stamp) } => {
                HELD | TABLE | at(hpa) | stamp_bits(stamp) | old & INHIBIT
            }
            Entry::Closed { hpa, stamp } => {
                PRESENT | WRITE | HELD | at(hpa) | stamp_bits(stamp) | old & INHIBIT
            }
            Entry::Leaf { hpa, blocked, .. } => {
                let kept = if old & (PRESENT | HELD) == 0 {
                    WRITE | if matches!(level, Level::L4K) { 0 } else { LARGE }
                } else {
                    old & KEPT
                };
                let rest = match blocked {
                    None => PRESENT,
                    Some(stamp) => HELD | stamp_bits(stamp),
                };
                at(hpa) | kept | rest
            }
        }
    }

    #[inline]
    fn fresh(_: u64, _: bool) -> LeafState {
        LeafState::Mapped
    }

    #[inline]
    fn narrow(_: X86Config, level: Level, leaf: u64) -> u64 {
        let open = if leaf & PRESENT == 0 { leaf & !(HELD | STAMP) | PRESENT } else { leaf };
        if matches!(level, Level::L2M) { open & !LARGE } else { open }
    }

    #[inline]
    fn widen(_: X86Config, _: Level, first: u64) -> u64 {
        first | LARGE
    }

    #[inline]
    fn permissions(_: X86Config, leaf: u64) -> Permissions {
        let write = if leaf & WRITE == 0 { Permissions::empty() } else { Permissions::WRITE };
        let execute = if leaf & NO_EXECUTE == 0 { Permissions::EXECUTE } else { Permissions::empty() };
        Permissions::READ | write | execute
    }

    #[inline]
    fn with_permissions(_: X86Config, leaf: u64, permissions: Permissions) -> Option<u64> {
        if !permissions.contains(Permissions::READ) {
            return None;
        }
        let write = if permissions.contains(Permissions::WRITE) { WRITE } else { 0 };
        let no_execute = if permissions.contains(Permissions::EXECUTE) { 0 } else { NO_EXECUTE };
        Some(leaf & !(WRITE | NO_EXECUTE) | write | no_execute)
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
