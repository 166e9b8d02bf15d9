//! Words of the formats.

use proptest::prelude::*;
use sept_core::{
    Entry, Ept, EptConfig, Format, Gpa, GpaEntry, Hpa, LeafState, Level, TdxConfig, TdxMirror, X86, X86Config,
};

const CONFIG: TdxConfig = TdxConfig::LEVELS_4;

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(Level::ALL.to_vec())
}

proptest! {
    /// No word is unreadable, and what was read is written as something that reads the same.
    #[test]
    fn every_word_decodes(raw: u64, level in level()) {
        let entry = TdxMirror::decode(CONFIG, level, raw);
        let again = TdxMirror::decode(CONFIG, level, TdxMirror::encode(CONFIG, level, entry));
        prop_assert_eq!(again, entry);
        prop_assert_eq!(entry.blocked().is_some(), raw & 0b1000 != 0 && matches!(raw & 3, 1 | 2));
        prop_assert!(!entry.to_string().is_empty());
    }

    #[test]
    fn every_leaf_survives_its_word(page in 0_u64..1 << 40, level in level(), pending: bool) {
        let hpa = Hpa::new(page << 12).unwrap().align_down(level);
        let state = if pending { LeafState::Pending } else { LeafState::Mapped };
        let leaf = Entry::Leaf { hpa, state, blocked: None };
        prop_assert_eq!(TdxMirror::decode(CONFIG, level, TdxMirror::encode(CONFIG, level, leaf)), leaf);
        let table = Entry::Table { hpa, blocked: None };
        prop_assert_eq!(TdxMirror::decode(CONFIG, level, TdxMirror::encode(CONFIG, level, table)), table);
    }

    /// The private half lies below the shared bit (GPAW 48: bit 47, GPAW 52: bit 51).
    #[test]
    fn the_shared_bit_bounds_the_private_space(raw in 0_u64..1 << 52) {
        let gpa = Gpa::new(raw).unwrap();
        prop_assert_eq!(TdxMirror::covers(TdxConfig::LEVELS_4, gpa), raw < 1 << 47);
        prop_assert_eq!(TdxMirror::covers(TdxConfig::LEVELS_5_GPAW_48, gpa), raw < 1 << 47);
        prop_assert_eq!(TdxMirror::covers(TdxConfig::LEVELS_5_GPAW_52, gpa), raw < 1 << 51);
    }
}

#[test]
fn depth_follows_the_configuration() {
    assert_eq!(TdxMirror::top(TdxConfig::LEVELS_4), Level::L512G);
    assert_eq!(TdxMirror::top(TdxConfig::LEVELS_5_GPAW_48), Level::L256T);
    assert_eq!(TdxMirror::top(TdxConfig::LEVELS_5_GPAW_52), Level::L256T);
    assert_eq!(TdxConfig::LEVELS_4.shared_bit(), 47);
    assert_eq!(TdxConfig::LEVELS_5_GPAW_52.shared_bit(), 51);
}

#[test]
fn a_fresh_page_of_zeroes_is_free() {
    let at = GpaEntry::containing(Gpa::default(), Level::L4K);
    assert_eq!(TdxMirror::decode(CONFIG, at.level(), 0), Entry::Free);
    assert_eq!(TdxMirror::encode(CONFIG, at.level(), Entry::Free), 0);
    assert_ne!(TdxMirror::encode(CONFIG, at.level(), Entry::Frozen), 0);
}

/// A page that was written (EPT: bit 9, x86: bit 6) leaves a free entry in which any page may be mapped, blocked before
/// or not.
#[test]
fn a_dirty_page_leaves_no_mark() {
    fn check<F: Format>(config: F::Config, dirty: u64, held: u64) {
        for level in [Level::L4K, Level::L2M, Level::L1G] {
            let page = |blocked| Entry::Leaf { hpa: Hpa::default(), state: LeafState::Mapped, blocked };
            let stamp = F::decode(config, level, held).blocked();
            let open = F::encode(config, level, page(None)) | dirty;
            let blocked = F::update(config, level, open, page(stamp));
            for word in [open, blocked] {
                assert_eq!(F::decode(config, level, word).blocked().is_some(), word == blocked);
                let free = F::update(config, level, word, Entry::Free);
                assert_eq!(F::decode(config, level, free), Entry::Free);
                assert!(!F::inhibited(free), "{word:#x} at {level}");
            }
        }
    }
    check::<Ept>(EptConfig::LEVELS_4, 1 << 9, 1 << 10);
    check::<X86>(X86Config::NESTED_4, 1 << 6, 1 << 10);
}
