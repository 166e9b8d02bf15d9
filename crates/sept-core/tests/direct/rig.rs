//! A table without a TEE on modelled memory.

use sept_core::test_util::{Arena, FramePool, Kick, VecStore};
use sept_core::{
    Direct, Entry, Fenced, Format, FrameKind, FrameNeeds, FrameSource, Frames, Gpa, GpaEntry, GpaRange, Hpa,
    Level, Obligation, Plan, SecurePageTable,
};

/// All of [`TableMemory`](sept_core::TableMemory) but pins and reads, by the arena in field 0.
macro_rules! arena_writes {
    () => {
        fn store(&self, table: sept_core::Hpa, word: sept_core::Word, value: u64, order: Ordering) {
            self.0.store(table, word, value, order);
        }

        fn compare_exchange(
            &self,
            table: sept_core::Hpa,
            word: sept_core::Word,
            old: u64,
            new: u64,
        ) -> Result<(), u64> {
            self.0.compare_exchange(table, word, old, new)
        }

        fn add(&self, table: sept_core::Hpa, word: sept_core::Word, value: u64) {
            self.0.add(table, word, value);
        }

        fn write_detached(&self, table: &sept_core::Frame, entry: impl Fn(u16) -> u64) {
            self.0.write_detached(table, entry);
        }

        fn scrub(&self, page: sept_core::Frame<sept_core::Tainted>) -> sept_core::Frame {
            self.0.scrub(page)
        }
    };
}
pub(crate) use arena_writes;

pub(crate) type Table<F> = SecurePageTable<F, Arena, Direct<Kick<'static>>>;

pub(crate) struct Rig<F: Format> {
    pub(crate) pool: FramePool,
    pub(crate) table: Table<F>,
    pub(crate) owed: Obligation,
}

impl<F: Format> Rig<F> {
    pub(crate) fn new(config: F::Config) -> Self {
        let pool = FramePool::new(Hpa::default(), 8192);
        let arena = Arena::new(Hpa::default(), 8192, Box::new(|_, _| {}));
        let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        let table = Table::new(config, arena, Direct::new(Kick::new(|| {}, || true)), root);
        let owed = table.obligation();
        Self { pool, table, owed }
    }

    /// Maps `pages` from `gpa` to memory at `hpa`, in pages of at most `largest`. Says what it took.
    pub(crate) fn map(&self, range: GpaRange, hpa: u64, largest: Level) -> FrameNeeds {
        let plan = self.table.plan_map(range, Hpa::new(hpa).unwrap(), largest).unwrap();
        let reserved = plan.reserve(&self.pool, VecStore::default()).unwrap();
        let done = self.table.map_range(reserved, frames(hpa, range.pages())).unwrap();
        assert_eq!(done.used, plan.needs());
        done.used
    }

    pub(crate) fn fence(&self) -> Fenced {
        let ticket = self.table.fence().unwrap();
        self.table.fenced(&ticket).unwrap()
    }

    /// Leaves of the range, each with what it maps.
    pub(crate) fn leaves(&self, range: GpaRange) -> Vec<(GpaEntry, Hpa)> {
        let leaf = |found: sept_core::Found| match found.entry {
            Entry::Leaf { hpa, .. } => Some((found.at, hpa)),
            _ => None,
        };
        self.table.entries(range).filter_map(leaf).collect()
    }
}

/// Memory that nobody uses.
#[expect(unsafe_code, reason = "modelled memory")]
pub(crate) fn frames(hpa: u64, pages: u64) -> Frames {
    // SAFETY: modelled memory, never accessed.
    unsafe { Frames::assume_owned(Hpa::new(hpa).unwrap(), pages) }.unwrap()
}

pub(crate) fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).unwrap(), len).unwrap()
}
