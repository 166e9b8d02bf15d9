//! Mirror entries: every word decodes, and what was decoded is written back the same.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sept_core::{Entry, Format, Gpa, Hpa, LeafState, Level, TdxConfig, TdxMirror};

#[derive(Arbitrary, Debug)]
struct Input {
    word: u64,
    hpa: u64,
    gpa: u64,
    level: u8,
    config: u8,
    pending: bool,
}

fuzz_target!(|input: Input| {
    let configs = [TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_48, TdxConfig::LEVELS_5_GPAW_52];
    let config = configs[usize::from(input.config) % configs.len()];
    let level = Level::ALL[usize::from(input.level) % Level::ALL.len()];
    let decode = |word| TdxMirror::decode(config, level, word);
    let encode = |entry| TdxMirror::encode(config, level, entry);

    // One word for each entry: decoding and encoding lead to a fixed point in one step.
    let entry = decode(input.word);
    let word = encode(entry);
    assert_eq!(decode(word), entry, "{:#x} became {word:#x}", input.word);
    assert_eq!(encode(decode(word)), word);
    assert!(!entry.to_string().is_empty());

    // The block stamp of any word survives in any entry that can carry one.
    let hpa = Hpa::truncate(input.hpa).align_down(Level::L4K);
    let state = if input.pending { LeafState::Pending } else { LeafState::Mapped };
    for blocked in [None, entry.blocked()] {
        for written in
            [Entry::Free, Entry::Frozen, Entry::Table { hpa, blocked }, Entry::Leaf { hpa, state, blocked }]
        {
            let word = encode(written);
            assert_eq!(decode(word), written, "{written:?} became {word:#x}");
            // A memory that was never written is a table of free entries.
            assert_eq!(word == 0, written == Entry::Free);
        }
    }

    // Private addresses end where the shared bit begins.
    let gpa = Gpa::truncate(input.gpa);
    let shared = 1 << config.shared_bit();
    assert_eq!(TdxMirror::covers(config, gpa), gpa.raw() < shared);
    assert!(!TdxMirror::covers(config, Gpa::truncate(gpa.raw() | shared)));
    assert_eq!(TdxMirror::top(config), config.top());
});
