//! What the tests need to know of each format.

use crate::mmu::{Seen, ept_mmu, stage2_mmu, x86_mmu};
use sept_core::{
    Ept, EptConfig, Format, LeafState, Level, Permissions, Rtt, RttConfig, Stamp, TdxConfig, TdxMirror, X86,
    X86Config,
};

pub(crate) trait Subject: Format {
    /// Every configuration there is, with the bits that an address can have in it.
    fn configs() -> Vec<(Self::Config, u64)>;

    /// States that a page can have.
    const STATES: &'static [LeafState];

    /// Whether a table can be closed without being hidden.
    const CLOSES: bool = Self::MMU_SETS != 0;

    /// Whether a page keeps its permissions while it is blocked.
    const BLOCK_KEEPS: bool = true;

    /// What an MMU sees in a word, if one walks the format.
    fn seen(config: Self::Config, level: Level, raw: u64) -> Option<Seen>;

    /// A word that is blocked, made by hand from the format's table.
    fn blocked(number: u64) -> u64;

    fn can_say(permissions: Permissions) -> bool;

    /// The block number of an entry.
    fn stamp(config: Self::Config, number: u64) -> Stamp {
        let entry = Self::decode(config, Level::L2M, Self::blocked(number));
        entry.blocked().unwrap_or_else(|| panic!("{entry} is not blocked"))
    }
}

const ALL: u64 = 0x000f_ffff_ffff_f000;

impl Subject for Ept {
    fn configs() -> Vec<(EptConfig, u64)> {
        let plain = [EptConfig::LEVELS_4, EptConfig::LEVELS_5];
        plain.into_iter().flat_map(|config| [(config, ALL), (config.suppress_ve(), ALL)]).collect()
    }

    const STATES: &'static [LeafState] = &[LeafState::Mapped];

    fn seen(_: EptConfig, level: Level, raw: u64) -> Option<Seen> {
        Some(ept_mmu(level, raw))
    }

    fn blocked(number: u64) -> u64 {
        number << 52 | 1 << 10 | 1 << 7
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ)
    }
}

impl Subject for X86 {
    fn configs() -> Vec<(X86Config, u64)> {
        let plain =
            [X86Config::NESTED_4, X86Config::NESTED_5, X86Config::SUPERVISOR_4, X86Config::SUPERVISOR_5];
        let with =
            |config: X86Config| [32, 47, 51].map(|bit| (config.with_c_bit(bit).unwrap(), ALL & !(1 << bit)));
        plain.into_iter().flat_map(|config| with(config).into_iter().chain([(config, ALL)])).collect()
    }

    const STATES: &'static [LeafState] = &[LeafState::Mapped];

    fn seen(config: X86Config, level: Level, raw: u64) -> Option<Seen> {
        // The C-bit is no address bit to the MMU.
        let c_bits = [32, 47, 51].map(|bit| 1_u64 << bit);
        let same = |bit: &u64| {
            Self::configs()
                .iter()
                .any(|(other, bits)| *bits == ALL & !bit && format!("{other:?}") == format!("{config:?}"))
        };
        let c_bit = c_bits.into_iter().find(same).unwrap_or(0);
        if raw & 1 != 0 {
            assert_eq!(raw & c_bit, c_bit, "{raw:#x} is not encrypted");
        }
        Some(x86_mmu(level, raw & !c_bit))
    }

    fn blocked(number: u64) -> u64 {
        number << 52 | 1 << 10 | 1 << 7
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ)
    }
}

impl Subject for Rtt {
    fn configs() -> Vec<(RttConfig, u64)> {
        let narrow = RttConfig::with_ipa_bits(40).unwrap();
        [RttConfig::LEVELS_4, narrow].map(|config| (config, 0x0000_ffff_ffff_f000)).to_vec()
    }

    const STATES: &'static [LeafState] = &[LeafState::Pending, LeafState::Mapped, LeafState::Destroyed];

    fn seen(_: RttConfig, level: Level, raw: u64) -> Option<Seen> {
        Some(stage2_mmu(level, raw))
    }

    fn blocked(number: u64) -> u64 {
        (number & 0x3f) << 48 | (number >> 6) << 56 | 1 << 8 | 1 << 5
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.is_all()
    }
}

impl Subject for TdxMirror {
    fn configs() -> Vec<(TdxConfig, u64)> {
        let configs = [TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_48, TdxConfig::LEVELS_5_GPAW_52];
        configs.map(|config| (config, ALL)).to_vec()
    }

    const STATES: &'static [LeafState] = &[LeafState::Pending, LeafState::Mapped];

    const BLOCK_KEEPS: bool = false;

    fn seen(_: TdxConfig, _: Level, _: u64) -> Option<Seen> {
        None
    }

    fn blocked(number: u64) -> u64 {
        number << 52 | 1 << 3 | 2
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ | Permissions::EXECUTE)
    }
}
