//! Entry formats: what a table word says.
//!
//! A [`Format`] turns a raw word into an [`Entry`] and back. The only format so far is [`TdxMirror`], the host's own
//! copy of an S-EPT, which no hardware walks.

use crate::{Gpa, Hpa, Level};
use core::fmt;

mod sealed {
    pub trait Sealed {}
}

/// On which side of a split or merge the fence stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FenceOrder {
    /// Block, fence, then change: TDX, CoVE.
    Before,
    /// Change, then fence: plain EPT and NPT.
    After,
    /// The TEE does its own: Arm RMM.
    Never,
}

/// When an entry was blocked, in fences of its table, modulo 2^11.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Stamp(u16);

impl Stamp {
    /// Stamps count modulo this.
    pub(crate) const MODULUS: u64 = 1 << 11;

    pub(crate) const fn of(epoch: u64) -> Self {
        let [low, high, ..] = (epoch & (Self::MODULUS - 1)).to_le_bytes();
        Self(u16::from_le_bytes([low, high]))
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0 as u64
    }
}

/// What the host knows about the guest's acceptance of a mapped page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum LeafState {
    /// Not known to be accepted: the TEE holds it PENDING or MAPPED. The state after AUG.
    Pending,
    /// Known to be accepted: added at build time, read back as MAPPED, or split from such a page.
    Mapped,
}

/// One entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Entry {
    /// Maps nothing.
    Free,
    /// Being changed by somebody; look again.
    Frozen,
    /// Points to a table of the next lower level.
    Table {
        /// The mirror table.
        hpa: Hpa,
        /// Set while the subtree is hidden from the guest.
        blocked: Option<Stamp>,
    },
    /// Maps a page.
    Leaf {
        /// The page.
        hpa: Hpa,
        /// Acceptance.
        state: LeafState,
        /// Set while the page is hidden from the guest. The entry keeps naming it.
        blocked: Option<Stamp>,
    },
}

impl Entry {
    /// When the entry was blocked, if it is.
    #[must_use]
    pub const fn blocked(self) -> Option<Stamp> {
        match self {
            Self::Table { blocked, .. } | Self::Leaf { blocked, .. } => blocked,
            Self::Free | Self::Frozen => None,
        }
    }

    pub(crate) const fn with_blocked(self, stamp: Option<Stamp>) -> Self {
        match self {
            Self::Table { hpa, .. } => Self::Table { hpa, blocked: stamp },
            Self::Leaf { hpa, state, .. } => Self::Leaf { hpa, state, blocked: stamp },
            other => other,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocked = if self.blocked().is_some() { " blocked" } else { "" };
        match self {
            Self::Free => f.write_str("free"),
            Self::Frozen => f.write_str("being changed"),
            Self::Table { hpa, .. } => write!(f, "table {hpa:#x}{blocked}"),
            Self::Leaf { hpa, state: LeafState::Mapped, .. } => write!(f, "mapped {hpa:#x}{blocked}"),
            Self::Leaf { hpa, state: LeafState::Pending, .. } => write!(f, "pending {hpa:#x}{blocked}"),
        }
    }
}

/// A table format. Sealed.
pub trait Format: sealed::Sealed + 'static {
    /// Where the fence of a split or merge stands.
    const FENCE: FenceOrder;

    /// What is chosen per table: depth, address width.
    type Config: Copy + fmt::Debug;

    /// Level of the entries in the root table.
    fn top(config: Self::Config) -> Level;

    /// Whether the table may map `gpa`.
    fn covers(config: Self::Config, gpa: Gpa) -> bool;

    /// Reads a word found in a table of `level` entries.
    fn decode(config: Self::Config, level: Level, raw: u64) -> Entry;

    /// Writes the word for `entry`.
    fn encode(config: Self::Config, level: Level, entry: Entry) -> u64;
}

/// The host's mirror of a TDX S-EPT.
///
/// Bits 1:0 kind (0 free, 1 table, 2 leaf, 3 being changed), bit 2 pending, bit 3 blocked, bits 51:12 address,
/// bits 62:52 [`Stamp`] of the block.
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

const KIND_MASK: u64 = 0b11;
const KIND_TABLE: u64 = 1;
const KIND_LEAF: u64 = 2;
const KIND_FROZEN: u64 = 3;
const PENDING: u64 = 1 << 2;
const BLOCKED: u64 = 1 << 3;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const STAMP_SHIFT: u32 = 52;

impl sealed::Sealed for TdxMirror {}

impl Format for TdxMirror {
    const FENCE: FenceOrder = FenceOrder::Before;

    type Config = TdxConfig;

    fn top(config: TdxConfig) -> Level {
        config.top
    }

    fn covers(config: TdxConfig, gpa: Gpa) -> bool {
        gpa.raw() >> config.shared_bit == 0
    }

    #[inline]
    fn decode(_: TdxConfig, _: Level, raw: u64) -> Entry {
        let hpa = Hpa::truncate(raw & ADDRESS);
        let blocked = (raw & BLOCKED != 0).then(|| Stamp::of(raw >> STAMP_SHIFT));
        match raw & KIND_MASK {
            KIND_TABLE => Entry::Table { hpa, blocked },
            KIND_LEAF => {
                let state = if raw & PENDING == 0 { LeafState::Mapped } else { LeafState::Pending };
                Entry::Leaf { hpa, state, blocked }
            }
            KIND_FROZEN => Entry::Frozen,
            _ => Entry::Free,
        }
    }

    #[inline]
    fn encode(_: TdxConfig, _: Level, entry: Entry) -> u64 {
        let blocked = entry.blocked().map_or(0, |stamp| BLOCKED | stamp.raw() << STAMP_SHIFT);
        match entry {
            Entry::Free => 0,
            Entry::Frozen => KIND_FROZEN,
            Entry::Table { hpa, .. } => KIND_TABLE | hpa.raw() & ADDRESS | blocked,
            Entry::Leaf { hpa, state, .. } => {
                let pending = if state == LeafState::Pending { PENDING } else { 0 };
                KIND_LEAF | hpa.raw() & ADDRESS | pending | blocked
            }
        }
    }
}
