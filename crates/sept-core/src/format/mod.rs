//! Entry formats: what a table word says.
//!
//! A [`Format`] turns a raw word into an [`Entry`] and back. Its geometry is constant: 512 entries a table, five
//! possible levels, one fixed shift each; only the level of the root is a value, chosen once per walk. One page-table
//! algorithm serves every format.
//!
//! | format | who walks it | fence of a split | leaves |
//! |---|---|---|---|
//! | [`TdxMirror`] | nobody: it mirrors the S-EPT that the TDX module walks | before | 4K, 2M, 1G |
//! | [`Ept`] | Intel VMX | after | 4K, 2M, 1G |
//! | [`X86`] | x86-64 long mode, AMD nested paging | after | 4K, 2M, 1G |
//! | [`Rtt`] | nobody: it mirrors the RTT of the Arm CCA RMM | never | 4K, 2M |
//!
//! A word holds more than its entry: permissions, bits that an MMU sets, a level inhibit. A change keeps those
//! ([`Format::update`]); pieces of a split page inherit them ([`Format::narrow`]).

mod ept;
mod rtt;
mod tdx;
mod x86;

pub use ept::{Ept, EptConfig};
pub use rtt::{Hipas, Ripas, Rtt, RttConfig};
pub use tdx::{TdxConfig, TdxMirror};
pub use x86::{X86, X86Config};

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
    /// Change, then fence: EPT, NPT, x86-64.
    After,
    /// The TEE does its own: Arm RMM.
    Never,
}

bitflags::bitflags! {
    /// What a guest may do with a page.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Permissions: u8 {
        /// Reading. No format can map a page that cannot be read.
        const READ = 1;
        /// Writing.
        const WRITE = 1 << 1;
        /// Fetching instructions.
        const EXECUTE = 1 << 2;
    }
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
    /// Not known to be accepted: TDX holds it PENDING or MAPPED, the RMM as RIPAS EMPTY. The state after AUG.
    Pending,
    /// Known to be accepted: added at build time, read back as MAPPED, or split from such a page. Where guests accept
    /// nothing (EPT, NPT), every page.
    Mapped,
    /// The guest lost the page's content and was not told yet (RIPAS DESTROYED).
    Destroyed,
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
        /// The table.
        hpa: Hpa,
        /// Set while the subtree is hidden from the guest.
        blocked: Option<Stamp>,
    },
    /// Points to a table that the MMU still walks and that no operation enters any more: it is about to be merged.
    Closed {
        /// The table.
        hpa: Hpa,
        /// When it was closed.
        stamp: Stamp,
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
    /// When the entry was blocked or closed, if it is.
    #[must_use]
    pub const fn blocked(self) -> Option<Stamp> {
        match self {
            Self::Table { blocked, .. } | Self::Leaf { blocked, .. } => blocked,
            Self::Closed { stamp, .. } => Some(stamp),
            Self::Free | Self::Frozen => None,
        }
    }

    /// What an MMU may have set in a word since it was read as this entry.
    pub(crate) const fn mmu_sets<F: Format>(self) -> u64 {
        match self {
            Self::Leaf { .. } => F::MMU_SETS,
            Self::Table { .. } | Self::Closed { .. } => F::MMU_SETS_IN_TABLES,
            Self::Free | Self::Frozen => 0,
        }
    }

    pub(crate) const fn is_leaf(self) -> bool {
        matches!(self, Self::Leaf { .. })
    }

    pub(crate) const fn with_blocked(self, stamp: Option<Stamp>) -> Self {
        match self {
            Self::Table { hpa, .. } | Self::Closed { hpa, .. } => Self::Table { hpa, blocked: stamp },
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
            Self::Closed { hpa, .. } => write!(f, "table {hpa:#x} closed"),
            Self::Leaf { hpa, state, .. } => {
                let state = match state {
                    LeafState::Mapped => "mapped",
                    LeafState::Pending => "pending",
                    LeafState::Destroyed => "destroyed",
                };
                write!(f, "{state} {hpa:#x}{blocked}")
            }
        }
    }
}

/// A table format. Sealed.
///
/// Physical addresses stand in bits 51:12 of a word in every format, so the pieces of a page differ by addition.
pub trait Format: sealed::Sealed + 'static {
    /// Where the fence of a split or merge stands.
    const FENCE: FenceOrder;

    /// Bits that an MMU may set in a leaf at any time (accessed, dirty); 0 where software alone writes.
    const MMU_SETS: u64;

    /// Bits that an MMU may set in an entry that points to a table (accessed).
    const MMU_SETS_IN_TABLES: u64;

    /// What is chosen per table: depth, address width, attributes.
    type Config: Copy + fmt::Debug;

    /// Level of the entries in the root table: `L512G` or `L256T`.
    fn top(config: Self::Config) -> Level;

    /// Largest page that an entry can map.
    fn max_leaf(config: Self::Config) -> Level;

    /// First address that the table cannot map, in bytes.
    fn limit(config: Self::Config) -> u64;

    /// The bits of 51:12 that are no address in a word: a host address with one of them set cannot be named.
    #[inline]
    fn unnamed(config: Self::Config) -> u64 {
        let _ = config;
        0
    }

    /// Whether a word can name every page from `first` to `last`.
    #[inline]
    fn names(config: Self::Config, first: Hpa, last: Hpa) -> bool {
        let unnamed = Self::unnamed(config);
        // Counting up past the lowest of them sets it.
        first.raw() & unnamed == 0 && (first.raw() ^ last.raw()).unbounded_shr(unnamed.trailing_zeros()) == 0
    }

    /// Whether the table may map `gpa`.
    #[inline]
    fn covers(config: Self::Config, gpa: Gpa) -> bool {
        gpa.raw() < Self::limit(config)
    }

    /// Reads a word found in a table of `level` entries.
    fn decode(config: Self::Config, level: Level, raw: u64) -> Entry;

    /// The table that `raw`, found at `level`, leads to, if it is a table that is neither blocked nor closed.
    fn next(config: Self::Config, level: Level, raw: u64) -> Option<Hpa>;

    /// The table that `raw`, found at `level`, leads an MMU to while it is being changed. None where no MMU walks.
    #[inline]
    fn walks_on(config: Self::Config, level: Level, raw: u64) -> Option<Hpa> {
        let _ = (config, level, raw);
        None
    }

    /// The page that `raw`, found at `level`, maps, if it is a page that is not blocked.
    #[inline]
    fn open_leaf(config: Self::Config, level: Level, raw: u64) -> Option<Hpa> {
        match Self::decode(config, level, raw) {
            Entry::Leaf { hpa, blocked: None, .. } => Some(hpa),
            _ => None,
        }
    }

    /// Writes `entry` in place of the word `old`: a page or table keeps its permissions, its accessed and dirty bits
    /// and its inhibit as far as the new entry can have them. A fresh page gets every permission.
    fn update(config: Self::Config, level: Level, old: u64, entry: Entry) -> u64;

    /// What a page that is mapped at the free word `free` is to the guest; `copied` if its content came from the host.
    fn fresh(free: u64, copied: bool) -> LeafState;

    /// The word for the first of the 512 pieces of the page that `leaf` maps at `level`, not blocked.
    fn narrow(config: Self::Config, level: Level, leaf: u64) -> u64;

    /// The word for a page at `level` that begins as the piece `first` does. The inverse of [`Format::narrow`].
    fn widen(config: Self::Config, level: Level, first: u64) -> u64;

    /// Whether 512 pages that say what `leaf` says can become one.
    #[inline]
    #[must_use]
    fn merges(leaf: u64) -> bool {
        let _ = leaf;
        true
    }

    /// What the guest may do with the page that `leaf` maps, blocked or not.
    fn permissions(config: Self::Config, leaf: u64) -> Permissions;

    /// `leaf` with other permissions, or `None` if the format cannot say them.
    fn with_permissions(config: Self::Config, leaf: u64, permissions: Permissions) -> Option<u64>;

    /// Whether no page as large as this entry may be mapped here. Free entries and tables carry this mark.
    fn inhibited(raw: u64) -> bool;

    /// A free or table word with the mark set or cleared.
    fn with_inhibit(raw: u64, inhibit: bool) -> u64;

    /// Whether `raw` is a free entry without an inhibit.
    #[inline]
    fn vacant(config: Self::Config, level: Level, raw: u64) -> bool {
        raw == Self::update(config, level, 0, Entry::Free)
    }

    /// The word for `entry` alone, with every permission and no mark.
    fn encode(config: Self::Config, level: Level, entry: Entry) -> u64 {
        let free = Self::update(config, level, 0, Entry::Free);
        Self::update(config, level, free, entry)
    }
}

/// Bits 51:12 of a word.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where 11 bits of stamp fit in most formats.
const STAMP_SHIFT: u32 = 52;
const STAMP: u64 = (Stamp::MODULUS - 1) << STAMP_SHIFT;

const fn stamp_in(raw: u64) -> Stamp {
    Stamp::of(raw >> STAMP_SHIFT)
}

const fn stamp_bits(stamp: Stamp) -> u64 {
    stamp.raw() << STAMP_SHIFT
}
