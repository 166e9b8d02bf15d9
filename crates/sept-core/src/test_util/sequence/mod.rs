//! Operation sequences against an oracle: for property tests and for fuzzing.
//!
//! A sequence of [`Op`]s, valid ones and misused ones, is carried out on a [`SecurePageTable`](crate::SecurePageTable)
//! in modelled memory. Beside it stands an oracle that knows nothing of tables: a map of 4 KiB pages, each with its host
//! page, its acceptance, permissions and whether it is blocked, and notes of what was blocked, closed and inhibited when.
//! After every operation
//!
//! * a success must have been possible, and the reason for a refusal must be true;
//! * a refusal changed no word of any table and took no frame;
//! * what the words in memory say, read by a walk of the oracle's own, is what the oracle says of each page;
//! * frames out of the pool are exactly the tables that exist, what stands behind them, and what is owed;
//! * a plan's frames are exactly those used;
//! * a guest page that the host does not hold is mapped, or in the obligation;
//! * the TEE, where there is one, has the same pages and tables and was never asked for what it must refuse;
//! * [`audit`](crate::SecurePageTable::audit), lookups and translations of samples agree.
//!
//! At the end all of it is looked at page by page, everything is unmapped, and every frame comes home.
//!
//! Any difference panics. Operations are generated from bytes ([`Op::from_seed`]; with the feature `arbitrary`, [`Op`]
//! is `Arbitrary`), so that a sequence shrinks by leaving operations out and making bytes smaller.
//!
//! ```
//! use sept_core::{Level, test_util::sequence::{self, Memory, Op, Place, Proof, Spot}};
//! let at = Place { spot: Spot::default(), level: Level::L2M, near: false };
//! let link = |level| Op::Link { at: Place { level, ..at }, backing: None, short: false };
//! let map = Op::Map { at, memory: Memory::Aligned, copy: false, exclusive: false, size: None };
//! let split = Op::Split { at, proof: Proof::Fresh, short: false };
//! sequence::ept(0, &[link(Level::L512G), link(Level::L1G), map, split, Op::Merge(at, Proof::Fresh)]);
//! ```

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test double: a difference panics"
)]

mod alone;
mod check;
mod dump;
mod host;
mod judge;
mod link;
mod map_range;
mod op;
mod oracle;
mod pages;
mod range;
mod resize;
mod side;
mod single;
mod take_range;
mod trial;

pub use op::{Memory, Op, Place, Proof, Span, Spot, Way};

use crate::{
    Direct, Ept, EptConfig, Rtt, RttConfig, TdxConfig, TdxMirror, X86, X86Config, test_util::MockTee,
};
use side::{Beat, Rules, Side};
use trial::Trial;

fn run<F: Rules, X: Side<F>>(config: F::Config, end: u64, metadata: bool, ops: &[Op]) {
    let arena = trial::arena();
    let mut trial = Trial::<F, X>::new(&arena, config, end, metadata);
    trial.run(ops);
    trial.finish();
}

fn pick<T: Copy>(choices: &[T], choice: u8) -> T {
    choices[usize::from(choice) % choices.len()]
}

/// Runs `ops` on an EPT: of 4 or 5 levels, with and without suppressed #VE.
pub fn ept(choice: u8, ops: &[Op]) {
    let configs = [
        (EptConfig::LEVELS_4, 1 << 48),
        (EptConfig::LEVELS_5, 1 << 52),
        (EptConfig::LEVELS_4.suppress_ve(), 1 << 48),
    ];
    let (config, end) = pick(&configs, choice);
    run::<Ept, Direct<Beat>>(config, end, false, ops);
}

/// Runs `ops` on an x86-64 or nested page table: of 4 or 5 levels, with and without a C-bit.
pub fn x86(choice: u8, ops: &[Op]) {
    let encrypted = |config: X86Config, bit| config.with_c_bit(bit).unwrap_or(config);
    let configs = [
        (X86Config::NESTED_4, 1 << 48),
        (encrypted(X86Config::NESTED_4, 51), 1 << 48),
        (X86Config::SUPERVISOR_5, 1 << 52),
        (encrypted(X86Config::NESTED_5, 47), 1 << 52),
    ];
    let (config, end) = pick(&configs, choice);
    run::<X86, Direct<Beat>>(config, end, false, ops);
}

/// Runs `ops` on the mirror of an RTT, behind a TEE: with 48 and with 40 bits of IPA.
pub fn rtt(choice: u8, ops: &[Op]) {
    let narrow = RttConfig::with_ipa_bits(40).unwrap_or(RttConfig::LEVELS_4);
    let (config, end) = pick(&[(RttConfig::LEVELS_4, 1 << 47), (narrow, 1 << 39)], choice);
    run::<Rtt, MockTee>(config, end, choice & 128 != 0, ops);
}

/// Runs `ops` on the mirror of an S-EPT, behind a TEE: of 4 or 5 levels, with and without metadata pages.
pub fn tdx(choice: u8, ops: &[Op]) {
    let configs = [
        (TdxConfig::LEVELS_4, 1 << 47),
        (TdxConfig::LEVELS_5_GPAW_48, 1 << 47),
        (TdxConfig::LEVELS_5_GPAW_52, 1 << 51),
    ];
    let (config, end) = pick(&configs, choice);
    run::<TdxMirror, MockTee>(config, end, choice & 128 != 0, ops);
}
