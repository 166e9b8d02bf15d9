//! Words that went through changes, beside a value that says what they must mean.

use crate::{mmu::Seen, subject::Subject};
use proptest::prelude::*;
use sept_core::{Entry, Ept, Format, Hpa, LeafState, Level, Permissions, Ripas, Rtt, Stamp, TdxMirror, X86};

/// What a word must mean.
#[derive(Clone, Copy, Debug)]
struct Meaning {
    level: Level,
    entry: Entry,
    inhibit: bool,
    permissions: Permissions,
    /// Accessed and dirty bits of a page.
    touched: u64,
    /// A table that is being changed: the MMU walks on.
    walks_on: Option<Hpa>,
}

/// A change, with random numbers for what it needs.
#[derive(Clone, Copy, Debug)]
struct Change {
    kind: u8,
    page: u64,
    number: u64,
    bits: u64,
}

fn change() -> impl Strategy<Value = Change> {
    (0_u8..12, any::<u64>(), 0_u64..2048, any::<u64>()).prop_map(|(kind, page, number, bits)| Change {
        kind,
        page,
        number,
        bits,
    })
}

struct Word<F: Subject> {
    config: F::Config,
    /// Bits of an address.
    address: u64,
    raw: u64,
    meaning: Meaning,
}

impl<F: Subject> Word<F> {
    fn free(config: F::Config, address: u64, level: Level) -> Self {
        let raw = F::encode(config, level, Entry::Free);
        let meaning = Meaning {
            level,
            entry: Entry::Free,
            inhibit: false,
            permissions: Permissions::all(),
            touched: 0,
            walks_on: None,
        };
        Self { config, address, raw, meaning }
    }

    fn hpa(&self, page: u64, level: Level) -> Hpa {
        Hpa::new(page & self.address).unwrap().align_down(level)
    }

    fn state(bits: u64) -> LeafState {
        *F::STATES.iter().cycle().nth(usize::try_from(bits % 6).unwrap()).unwrap()
    }

    /// Writes `entry`, as an operation of the table would.
    fn write(&mut self, entry: Entry) {
        let was_leaf = matches!(self.meaning.entry, Entry::Leaf { .. });
        let is_leaf = matches!(entry, Entry::Leaf { .. });
        self.raw = F::update(self.config, self.meaning.level, self.raw, entry);
        self.meaning.entry = entry;
        if was_leaf && !is_leaf {
            self.meaning.inhibit = false;
        }
        if !(was_leaf && is_leaf) {
            (self.meaning.permissions, self.meaning.touched) = (Permissions::all(), 0);
        }
        if self.forgets() {
            self.meaning.permissions = Permissions::all();
        }
    }

    /// Whether the entry can have no less than every permission.
    fn forgets(&self) -> bool {
        !F::BLOCK_KEEPS && self.meaning.entry.blocked().is_some()
    }

    fn apply(&mut self, change: Change) {
        let level = self.meaning.level;
        let stamp: Stamp = F::stamp(self.config, change.number);
        let blocked = (change.bits & 1 != 0).then_some(stamp);
        match (change.kind, self.meaning.entry) {
            // A page, where one may be.
            (0 | 1, Entry::Free) if !self.meaning.inhibit && level <= F::max_leaf(self.config) => {
                let hpa = self.hpa(change.page, level);
                self.write(Entry::Leaf {
                    hpa,
                    state: F::fresh(self.raw, change.bits & 2 != 0),
                    blocked: None,
                });
            }
            (0 | 1, Entry::Leaf { hpa, .. }) => {
                self.write(Entry::Leaf { hpa, state: Self::state(change.bits >> 8), blocked });
            }
            // A table: hung in, blocked, shown, closed, or the two ends of a split.
            (2 | 3, Entry::Free | Entry::Leaf { .. }) if level > Level::L4K => {
                let hpa = self.hpa(change.page, Level::L4K);
                self.write(Entry::Table { hpa, blocked: None });
            }
            (2, Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) => {
                self.write(Entry::Table { hpa, blocked });
            }
            (3, Entry::Table { hpa, blocked: None }) if F::CLOSES => self.write(Entry::Closed { hpa, stamp }),
            (4, Entry::Leaf { .. } | Entry::Table { .. }) => self.write(Entry::Free),
            (5, Entry::Free | Entry::Table { .. } | Entry::Closed { .. }) if level > Level::L4K => {
                self.meaning.inhibit = change.bits & 1 != 0;
                self.raw = F::with_inhibit(self.raw, self.meaning.inhibit);
            }
            (6 | 7, Entry::Leaf { .. }) => {
                let permissions = Permissions::from_bits_truncate(change.bits.to_le_bytes()[0]);
                let word = F::with_permissions(self.config, self.raw, permissions);
                let possible = F::can_say(permissions) && (permissions.is_all() || !self.forgets());
                assert_eq!(word.is_some(), possible, "{permissions:?}");
                if let Some(word) = word {
                    (self.raw, self.meaning.permissions) = (word, permissions);
                }
            }
            (8, Entry::Leaf { blocked: None, .. }) => {
                let bits = change.bits & F::MMU_SETS;
                self.raw |= bits;
                self.meaning.touched |= bits;
            }
            (8, Entry::Table { blocked: None, .. } | Entry::Closed { .. }) => {
                self.raw |= change.bits & F::MMU_SETS_IN_TABLES;
            }
            (9, Entry::Leaf { hpa, state, .. }) if level > Level::L4K => self.narrow(hpa, state),
            (10, Entry::Leaf { hpa, state, blocked: None }) if level < F::max_leaf(self.config) => {
                let parent = level.parent().unwrap();
                // Only a piece that begins the larger page.
                if hpa.is_aligned(parent) {
                    self.raw = F::widen(self.config, parent, self.raw);
                    self.meaning.level = parent;
                    self.meaning.entry = Entry::Leaf { hpa, state, blocked: None };
                }
            }
            // Frozen, looked at, and put back.
            (11, entry) => {
                let (raw, meaning) = (self.raw, self.meaning);
                self.meaning.walks_on = match entry {
                    Entry::Table { hpa, blocked: None } | Entry::Closed { hpa, .. } if F::CLOSES => Some(hpa),
                    _ => None,
                };
                self.raw = F::update(self.config, level, self.raw, Entry::Frozen);
                self.meaning.entry = Entry::Frozen;
                self.check();
                (self.raw, self.meaning) = (raw, meaning);
            }
            _ => {}
        }
    }

    /// The first piece of a page, and the page that begins like it.
    fn narrow(&mut self, hpa: Hpa, state: LeafState) {
        let level = self.meaning.level;
        let child = level.child().unwrap();
        let open = F::update(self.config, level, self.raw, Entry::Leaf { hpa, state, blocked: None });
        let first = F::narrow(self.config, level, self.raw);
        assert_eq!(F::widen(self.config, level, first), open, "{:#x} narrowed and widened", self.raw);
        // The last piece lies 511 pages on.
        let last = first + 511 * child.size();
        let end = Hpa::new(hpa.raw() + 511 * child.size()).unwrap();
        let piece = |hpa| Entry::Leaf { hpa, state, blocked: None };
        assert_eq!(F::decode(self.config, child, last), piece(end));
        self.raw = first;
        (self.meaning.level, self.meaning.entry) = (child, piece(hpa));
    }

    /// The word means what it must.
    fn check(&self) {
        let (raw, level, config) = (self.raw, self.meaning.level, self.config);
        let Meaning { entry, inhibit, permissions, touched, walks_on, .. } = self.meaning;
        assert_eq!(F::decode(config, level, raw), entry, "{raw:#x} at {level}");
        let table = match entry {
            Entry::Table { hpa, blocked: None } => Some(hpa),
            _ => None,
        };
        let page = match entry {
            Entry::Leaf { hpa, blocked: None, .. } => Some(hpa),
            _ => None,
        };
        if level > Level::L4K {
            assert_eq!(F::next(config, level, raw), table, "{raw:#x} at {level}: next");
        }
        assert_eq!(F::walks_on(config, level, raw), walks_on, "{raw:#x} at {level}: walks_on");
        assert_eq!(F::open_leaf(config, level, raw), page, "{raw:#x} at {level}: open_leaf");
        assert_eq!(F::vacant(config, level, raw), entry == Entry::Free && !inhibit, "{raw:#x}: vacant");
        match entry {
            Entry::Leaf { .. } => {
                assert_eq!(F::permissions(config, raw), permissions, "{raw:#x}: permissions");
                assert_eq!(raw & F::MMU_SETS, touched, "{raw:#x}: accessed and dirty");
                assert_eq!(F::decode(config, level, raw ^ F::MMU_SETS), entry, "{raw:#x}: an MMU sets bits");
            }
            Entry::Frozen => {}
            _ => assert_eq!(F::inhibited(raw), inhibit, "{raw:#x}: inhibit"),
        }
        if matches!(entry, Entry::Table { .. } | Entry::Closed { .. }) {
            let seen = raw ^ F::MMU_SETS_IN_TABLES;
            assert_eq!(F::decode(config, level, seen), entry, "{raw:#x}: an MMU sets a bit");
        }
        // Written again it is the same, but for a bit that an MMU set in a table.
        let again = F::update(config, level, raw, entry);
        assert_eq!((again ^ raw) & !F::MMU_SETS_IN_TABLES, 0, "{raw:#x} became {again:#x}");
        if let Some(seen) = F::seen(config, level, raw) {
            let expect = match entry {
                Entry::Table { hpa, blocked: None } | Entry::Closed { hpa, .. } => Seen::Table(hpa.raw()),
                // The RMM keeps a page that is not accepted out of the realm's reach.
                Entry::Leaf { state, .. } if state != LeafState::Mapped => Seen::NotPresent,
                Entry::Leaf { hpa, blocked: None, .. } => Seen::Page(hpa.raw(), permissions),
                _ => walks_on.map_or(Seen::NotPresent, |hpa| Seen::Table(hpa.raw())),
            };
            assert_eq!(seen, expect, "{raw:#x} at {level}: what the MMU sees of {entry}");
        }
    }
}

/// Any number of changes of one entry: the word always says what it must.
fn changes<F: Subject>(config: prop::sample::Index, level: Level, changes: &[Change]) {
    let (config, address) = *config.get(&F::configs());
    let mut word = Word::<F>::free(config, address, level);
    word.check();
    for change in changes {
        word.apply(*change);
        word.check();
    }
}

/// No word is unreadable, and over any word any entry can be written.
fn any_word<F: Subject>(config: prop::sample::Index, level: Level, raw: u64, change: Change) {
    let (config, address) = *config.get(&F::configs());
    let found = F::decode(config, level, raw);
    assert!(!found.to_string().is_empty());
    let _ = (F::next(config, level, raw), F::permissions(config, raw), F::inhibited(raw));
    let hpa = Hpa::new(change.page & address).unwrap();
    let blocked = (change.bits & 1 != 0).then(|| F::stamp(config, change.number));
    let leaf = Entry::Leaf { hpa, state: Word::<F>::state(change.bits >> 8), blocked };
    let may_be_table = level > Level::L4K;
    let written =
        [Some(Entry::Free), Some(Entry::Frozen), may_be_table.then_some(Entry::Table { hpa, blocked })];
    // A page is written over a free entry; the other test writes one over a page.
    let over = F::vacant(config, level, raw).then_some(leaf);
    for entry in written.into_iter().chain([over]).flatten() {
        let word = F::update(config, level, raw, entry);
        assert_eq!(
            F::decode(config, level, word),
            entry,
            "{entry:?} over {raw:#x} became {word:#x} at {level}"
        );
    }
}

macro_rules! of_every_format {
    ($($format:ident as $module:ident),*) => {
        $(mod $module {
            use super::*;
            proptest! {
                #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

                #[test]
                fn changes_keep_the_meaning(
                    config: prop::sample::Index,
                    level in prop::sample::select(Level::ALL.to_vec()),
                    changes in prop::collection::vec(change(), 1..24),
                ) {
                    super::changes::<$format>(config, level, &changes);
                }

                #[test]
                fn any_word_is_read_and_written_over(
                    config: prop::sample::Index,
                    level in prop::sample::select(Level::ALL.to_vec()),
                    raw: u64,
                    // Words with few bits set are the likelier ones.
                    mask: u64,
                    change in change(),
                ) {
                    any_word::<$format>(config, level, raw, change);
                    any_word::<$format>(config, level, raw & mask & 0xfff0_0000_0000_0fff, change);
                }
            }
        })*
    };
}
of_every_format!(Ept as ept, X86 as x86, Rtt as rtt, TdxMirror as tdx);

proptest! {
    /// RIPAS of a realm's address goes on through tables and pages as the RMM has it.
    #[test]
    fn ripas_goes_with_the_entry(page in any::<u64>(), level in prop::sample::select(vec![Level::L4K, Level::L2M])) {
        let (config, address) = Rtt::configs()[0];
        let hpa = Hpa::new(page & address).unwrap().align_down(level);
        for ripas in [Ripas::Empty, Ripas::Ram, Ripas::Destroyed] {
            let free = Rtt::with_ripas(Rtt::encode(config, level, Entry::Free), ripas).unwrap();
            let leaf = Entry::Leaf { hpa, state: Rtt::fresh(free, false), blocked: None };
            let word = Rtt::update(config, level, free, leaf);
            prop_assert_eq!(Rtt::ripas(word), Some(ripas));
            let blocked = Rtt::update(
                config, level, word, Entry::Leaf { hpa, state: Rtt::fresh(free, false), blocked: Some(Rtt::stamp(config, 77)) },
            );
            prop_assert_eq!(Rtt::ripas(blocked), Some(ripas));
            let left = if ripas == Ripas::Ram { Ripas::Destroyed } else { ripas };
            prop_assert_eq!(Rtt::ripas(Rtt::update(config, level, blocked, Entry::Free)), Some(left));
        }
    }
}
