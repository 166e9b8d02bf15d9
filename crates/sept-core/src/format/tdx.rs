//! The host's mirror of a TDX S-EPT.

use super::{
    ADDRESS, Entry, FenceOrder, Format, LeafState, Permissions, STAMP, sealed, stamp_bits, stamp_in,
};
use crate::{Hpa, Level};

/// The host's mirror of a TDX S-EPT, which no hardware walks.
///
/// | bits | meaning |
/// |---|---|
/// | 1:0 | 0 free, 1 table, 2 leaf, 3 being changed |
/// | 2 | leaf not known to be accepted |
/// | 3 | blocked |
/// | 4 | leaf write-blocked (TDH.EXPORT.BLOCKW) |
/// | 5 | level inhibit, in free entries and tables |
/// | 51:12 | address |
/// | 62:52 | [`Stamp`](super::Stamp) of the block |
///
/// A block ends a write-block: TDH.MEM.RANGE.BLOCK turns BLOCKEDW into BLOCKED, and TDH.MEM.RANGE.UNBLOCK makes that MAPPED. Nor
/// can a blocked page be write-blocked, and write-blocked pages are not merged. Source: TDX module 1.5.34,
/// `tdh_mem_range_block.c`, `tdh_export_blockw.c`, `tdh_mem_page_promote.c`.
///
/// ```
/// use sept_core::{Entry, Format, Hpa, LeafState, Level, TdxConfig, TdxMirror};
/// let page = Entry::Leaf { hpa: Hpa::new(0x20_0000).unwrap(), state: LeafState::Pending, blocked: None };
/// let word = TdxMirror::encode(TdxConfig::LEVELS_4, Level::L2M, page);
/// assert_eq!(TdxMirror::decode(TdxConfig::LEVELS_4, Level::L2M, word), page);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct TdxMirror;

/// Depth and width of a TD's private address space.
///
/// Source: TDX module ABI, `TD_PARAMS.EPTP_CONTROLS` (page-walk levels) and `CONFIG_FLAGS.GPAW`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdxConfig {
    top: Level,
    shared_bit: u8,
}

impl TdxConfig {
    /// 4-level S-EPT, GPAW 48: the shared bit is bit 47.
    pub const LEVELS_4: Self = Self { top: Level::L512G, shared_bit: 47 };
    /// 5-level S-EPT, GPAW 48: the shared bit is bit 47.
    pub const LEVELS_5_GPAW_48: Self = Self { top: Level::L256T, shared_bit: 47 };
    /// 5-level S-EPT, GPAW 52: the shared bit is bit 51.
    pub const LEVELS_5_GPAW_52: Self = Self { top: Level::L256T, shared_bit: 51 };

    /// Position of the bit that tells a shared GPA from a private one, 47 or 51.
    #[must_use]
    pub const fn shared_bit(self) -> u8 {
        self.shared_bit
    }

    /// Level of the root's entries.
    #[must_use]
    pub const fn top(self) -> Level {
        self.top
    }
}

const KIND: u64 = 0b11;
const TABLE: u64 = 1;
const LEAF: u64 = 2;
const FROZEN: u64 = 3;
const PENDING: u64 = 1 << 2;
const BLOCKED: u64 = 1 << 3;
const WRITE_BLOCKED: u64 = 1 << 4;
const INHIBIT: u64 = 1 << 5;

impl sealed::Sealed for TdxMirror {}

impl Format for TdxMirror {
    const FENCE: FenceOrder = FenceOrder::Before;
    const MMU_SETS: u64 = 0;
    const MMU_SETS_IN_TABLES: u64 = 0;

    type Config = TdxConfig;

    #[inline]
    fn top(config: TdxConfig) -> Level {
        config.top
    }

    #[inline]
    fn max_leaf(_: TdxConfig) -> Level {
        Level::L1G
    }

    #[inline]
    fn limit(config: TdxConfig) -> u64 {
        1 << config.shared_bit
    }

    #[inline]
    fn decode(_: TdxConfig, _: Level, raw: u64) -> Entry {
        let hpa = Hpa::truncate(raw & ADDRESS);
        let blocked = if raw & BLOCKED == 0 { None } else { Some(stamp_in(raw)) };
        match raw & KIND {
            TABLE => Entry::Table { hpa, blocked },
            LEAF => {
                let state = if raw & PENDING == 0 { LeafState::Mapped } else { LeafState::Pending };
                Entry::Leaf { hpa, state, blocked }
            }
            FROZEN => Entry::Frozen,
            _ => Entry::Free,
        }
    }

    #[inline]
    fn next(_: TdxConfig, _: Level, raw: u64) -> Option<Hpa> {
        if raw & (KIND | BLOCKED) == TABLE { Some(Hpa::truncate(raw & ADDRESS)) } else { None }
    }

    #[inline]
    fn update(_: TdxConfig, _: Level, old: u64, entry: Entry) -> u64 {
        let blocked = match entry.blocked() {
            Some(stamp) => BLOCKED | stamp_bits(stamp),
            None => 0,
        };
        match entry {
            Entry::Free => old & INHIBIT,
            Entry::Frozen => FROZEN,
            // Nothing walks the mirror, so closing a table and blocking it are one.
            Entry::Table { hpa, .. } | Entry::Closed { hpa, .. } => {
                TABLE | hpa.raw() & ADDRESS | blocked | old & INHIBIT
            }
            Entry::Leaf { hpa, state, .. } => {
                let pending = if matches!(state, LeafState::Mapped) { 0 } else { PENDING };
                // What is blocked is not write-blocked any more.
                let write_blocked = if blocked == 0 { old & WRITE_BLOCKED } else { 0 };
                LEAF | hpa.raw() & ADDRESS | pending | blocked | write_blocked
            }
        }
    }

    #[inline]
    fn fresh(_: u64, copied: bool) -> LeafState {
        if copied { LeafState::Mapped } else { LeafState::Pending }
    }

    #[inline]
    fn narrow(_: TdxConfig, _: Level, leaf: u64) -> u64 {
        leaf & !(BLOCKED | STAMP)
    }

    #[inline]
    fn widen(_: TdxConfig, _: Level, first: u64) -> u64 {
        first
    }

    #[inline]
    fn merges(leaf: u64) -> bool {
        leaf & WRITE_BLOCKED == 0
    }

    #[inline]
    fn permissions(_: TdxConfig, leaf: u64) -> Permissions {
        if leaf & WRITE_BLOCKED == 0 { Permissions::all() } else { Permissions::READ | Permissions::EXECUTE }
    }

    #[inline]
    fn with_permissions(_: TdxConfig, leaf: u64, permissions: Permissions) -> Option<u64> {
        if !permissions.contains(Permissions::READ | Permissions::EXECUTE) {
            return None;
        }
        let write = match permissions.contains(Permissions::WRITE) {
            true => 0,
            false if leaf & BLOCKED != 0 => return None,
            false => WRITE_BLOCKED,
        };
        Some(leaf & !WRITE_BLOCKED | write)
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
