//! The host's mirror of a realm translation table of the Arm CCA RMM.

use super::{Entry, FenceOrder, Format, LeafState, Permissions, Stamp, sealed};
use crate::{Hpa, Level};

/// Arm stage-2 descriptors as the RMM keeps them in a realm translation table: 4 KiB granule, RIPAS and HIPAS.
///
/// The RMM owns the real table; the host mirrors it, and each change is a call into the RMM, which fences by itself.
/// RTT level 3 is `L4K`, 2 is `L2M`, 1 is `L1G`, 0 is `L512G`.
///
/// | entry | bits 1:0 | RIPAS 2:1 | HIPAS 7:5 | address |
/// |---|---|---|---|---|
/// | unassigned | - | as below | 0 | none |
/// | assigned, empty or destroyed | - | 0 or 2 | 1 | yes |
/// | assigned, RAM | 3 at 4K, 1 above | - | - | yes, with attributes |
/// | table | 3 | - | - | yes |
///
/// RIPAS: 0 empty, 1 RAM, 2 destroyed; bit 0 of all but valid descriptors is clear. A valid leaf has the attributes normal
/// write-back with FWB (bits 5:2 = 0b0110), read and write (7:6 = 3), inner shareable (9:8 = 3), access flag (bit 10).
/// What the RMM ignores holds the host's state: bit 8 blocked, 9 table or RAM that is blocked, 11 being changed, bit 54
/// level inhibit, bits 53:48 and 60:56 the [`Stamp`](super::Stamp).
///
/// Sources: Arm DEN0137 (RMM specification), chapter "Realm memory management"; Arm DDI0487, section "VMSAv8-64 translation
/// table format descriptors"; TF-RMM `lib/s2tt` for the places of RIPAS and HIPAS.
///
/// ```
/// use sept_core::{Format, Hpa, LeafState, Entry, Level, Ripas, Rtt, RttConfig};
/// let free = Rtt::with_ripas(Rtt::encode(RttConfig::LEVELS_4, Level::L4K, Entry::Free), Ripas::Ram).unwrap();
/// let hpa = Hpa::new(0x8000_0000).unwrap();
/// // A page that is mapped where the realm expects RAM is RAM.
/// let page = Entry::Leaf { hpa, state: Rtt::fresh(free, false), blocked: None };
/// assert_eq!(Rtt::update(RttConfig::LEVELS_4, Level::L4K, free, page), 0x8000_07db);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Rtt;

/// Width of a realm's protected address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RttConfig {
    ipa_bits: u8,
}

impl RttConfig {
    /// A start level of 0 and 48 bits of IPA, the lower half of which is protected.
    pub const LEVELS_4: Self = Self { ipa_bits: 48 };

    /// The same with `bits` of IPA, 40 to 48; `None` outside. (Fewer bits begin at level 1 in hardware; the mirror keeps
    /// its level-0 root.)
    #[must_use]
    pub const fn with_ipa_bits(bits: u8) -> Option<Self> {
        match bits {
            40..=48 => Some(Self { ipa_bits: bits }),
            _ => None,
        }
    }
}

/// What the realm expects of an address: the Realm IPA state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Ripas {
    /// Unused.
    Empty,
    /// Private memory.
    Ram,
    /// Private memory whose content the host destroyed.
    Destroyed,
}

/// What the host has put at an address: the Host IPA state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Hipas {
    /// Nothing.
    Unassigned,
    /// A granule.
    Assigned,
}

const VALID: u64 = 1;
const TYPE: u64 = 0b11;
const RIPAS_SHIFT: u32 = 1;
const RIPAS: u64 = 0b11 << RIPAS_SHIFT;
const RIPAS_EMPTY: u64 = 0;
const RIPAS_RAM: u64 = 1 << RIPAS_SHIFT;
const RIPAS_DESTROYED: u64 = 2 << RIPAS_SHIFT;
const HIPAS: u64 = 0b111 << 5;
const ASSIGNED: u64 = 1 << 5;
/// MemAttr write-back with FWB, S2AP read and write, inner shareable, accessed.
const ATTRIBUTES: u64 = 0b0110 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const HELD: u64 = 1 << 8;
/// With [`HELD`]: a table, or a page of RAM (which HIPAS tells apart).
const WAS_VALID: u64 = 1 << 9;
const FROZEN: u64 = 1 << 11;
const INHIBIT: u64 = 1 << 54;

const fn stamp_bits(stamp: Stamp) -> u64 {
    let raw = stamp.raw();
    (raw & 0x3f) << 48 | (raw >> 6) << 56
}

const fn stamp_in(raw: u64) -> Stamp {
    Stamp::of((raw >> 48) & 0x3f | ((raw >> 56) & 0x1f) << 6)
}

impl Rtt {
    /// The realm's view of a free or leaf word, `None` of a table or a word being changed.
    #[must_use]
    pub const fn ripas(raw: u64) -> Option<Ripas> {
        if raw & (VALID | HELD | FROZEN) == 0 {
            return Some(match raw & RIPAS {
                RIPAS_EMPTY => Ripas::Empty,
                RIPAS_RAM => Ripas::Ram,
                _ => Ripas::Destroyed,
            });
        }
        match Self::state(raw) {
            Some(LeafState::Mapped) => Some(Ripas::Ram),
            Some(LeafState::Pending) => Some(Ripas::Empty),
            Some(LeafState::Destroyed) => Some(Ripas::Destroyed),
            None => None,
        }
    }

    /// The host's view of a free or leaf word, `None` of a table or a word being changed.
    #[must_use]
    pub const fn hipas(raw: u64) -> Option<Hipas> {
        match Self::ripas(raw) {
            Some(_) if raw & (VALID | ASSIGNED) == 0 => Some(Hipas::Unassigned),
            Some(_) => Some(Hipas::Assigned),
            None => None,
        }
    }

    /// A free word with another RIPAS, `None` for any other word.
    #[must_use]
    pub const fn with_ripas(raw: u64, ripas: Ripas) -> Option<u64> {
        if raw & (VALID | HELD | FROZEN | HIPAS) != 0 {
            return None;
        }
        Some(raw & !RIPAS | ripas_bits(ripas))
    }

    /// The state of a leaf word at any level.
    const fn state(raw: u64) -> Option<LeafState> {
        if raw & VALID != 0 {
            // A table has no attributes.
            return if raw & ATTRIBUTES == ATTRIBUTES { Some(LeafState::Mapped) } else { None };
        }
        if raw & FROZEN != 0 || raw & HIPAS != ASSIGNED {
            return None;
        }
        if raw & HELD != 0 && raw & WAS_VALID != 0 {
            return Some(LeafState::Mapped);
        }
        Some(if raw & RIPAS == RIPAS_DESTROYED { LeafState::Destroyed } else { LeafState::Pending })
    }
}

const fn ripas_bits(ripas: Ripas) -> u64 {
    match ripas {
        Ripas::Empty => RIPAS_EMPTY,
        Ripas::Ram => RIPAS_RAM,
        Ripas::Destroyed => RIPAS_DESTROYED,
    }
}

impl sealed::Sealed for Rtt {}

impl Format for Rtt {
    const FENCE: FenceOrder = FenceOrder::Never;
    const MMU_SETS: u64 = 0;
    const MMU_SETS_IN_TABLES: u64 = 0;

    type Config = RttConfig;

    #[inline]
    fn top(_: RttConfig) -> Level {
        Level::L512G
    }

    #[inline]
    fn max_leaf(_: RttConfig) -> Level {
        Level::L2M
    }

    #[inline]
    fn limit(config: RttConfig) -> u64 {
        // The upper half of the IPA space is unprotected.
        1 << config.ipa_bits.saturating_sub(1)
    }

    #[inline]
    fn unnamed(_: RttConfig) -> u64 {
        super::ADDRESS & !ADDRESS
    }

    #[inline]
    fn decode(_: RttConfig, _: Level, raw: u64) -> Entry {
        let hpa = Hpa::truncate(raw & ADDRESS);
        let blocked = if raw & HELD != 0 && raw & VALID == 0 { Some(stamp_in(raw)) } else { None };
        match Self::state(raw) {
            Some(state) => Entry::Leaf { hpa, state, blocked },
            None if raw & VALID != 0 || raw & HELD != 0 => Entry::Table { hpa, blocked },
            None if raw & FROZEN != 0 => Entry::Frozen,
            None => Entry::Free,
        }
    }

    #[inline]
    fn next(_: RttConfig, _: Level, raw: u64) -> Option<Hpa> {
        if raw & (TYPE | ATTRIBUTES) == TYPE { Some(Hpa::truncate(raw & ADDRESS)) } else { None }
    }

    #[inline]
    fn update(_: RttConfig, level: Level, old: u64, entry: Entry) -> u64 {
        match entry {
            // A page of RAM that leaves takes the realm's data with it.
            Entry::Free => match Self::ripas(old) {
                Some(Ripas::Ram) if old & (VALID | HELD) != 0 => RIPAS_DESTROYED,
                Some(ripas) => ripas_bits(ripas) | old & INHIBIT,
                // RTT_DESTROY leaves a destroyed entry behind.
                None => RIPAS_DESTROYED | old & INHIBIT,
            },
            Entry::Frozen => FROZEN,
            Entry::Table { hpa, blocked: None } => TYPE | hpa.raw() & ADDRESS | old & INHIBIT,
            Entry::Table { hpa, blocked: Some(stamp) } | Entry::Closed { hpa, stamp } => {
                HELD | WAS_VALID | hpa.raw() & ADDRESS | stamp_bits(stamp) | old & INHIBIT
            }
            Entry::Leaf { hpa, state, blocked } => {
                let assigned = match (state, blocked) {
                    (LeafState::Mapped, None) if matches!(level, Level::L4K) => ATTRIBUTES | TYPE,
                    (LeafState::Mapped, None) => ATTRIBUTES | VALID,
                    (LeafState::Mapped, Some(_)) => ASSIGNED | WAS_VALID,
                    (LeafState::Pending, _) => ASSIGNED | RIPAS_EMPTY,
                    (LeafState::Destroyed, _) => ASSIGNED | RIPAS_DESTROYED,
                };
                let held = match blocked {
                    Some(stamp) => HELD | stamp_bits(stamp),
                    None => 0,
                };
                hpa.raw() & ADDRESS | assigned | held
            }
        }
    }

    #[inline]
    fn vacant(_: RttConfig, _: Level, raw: u64) -> bool {
        raw & !RIPAS == 0
    }

    #[inline]
    fn fresh(free: u64, _: bool) -> LeafState {
        match free & RIPAS {
            RIPAS_RAM => LeafState::Mapped,
            RIPAS_EMPTY => LeafState::Pending,
            _ => LeafState::Destroyed,
        }
    }

    #[inline]
    fn narrow(config: RttConfig, level: Level, leaf: u64) -> u64 {
        let child = match level.child() {
            Some(child) => child,
            None => level,
        };
        Self::update(config, child, leaf, Self::decode(config, level, leaf).with_blocked(None))
    }

    #[inline]
    fn widen(config: RttConfig, level: Level, first: u64) -> u64 {
        Self::update(config, level, first, Self::decode(config, level, first))
    }

    #[inline]
    fn permissions(_: RttConfig, _: u64) -> Permissions {
        Permissions::all()
    }

    #[inline]
    fn with_permissions(_: RttConfig, leaf: u64, permissions: Permissions) -> Option<u64> {
        // Permissions inside a realm are the realm's own affair.
        if permissions.is_all() { Some(leaf) } else { None }
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
