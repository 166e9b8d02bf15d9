//! How little of a table is read: the ends of a range, and not its interior or its holes.

use crate::rig::{arena_writes, frames, range};
use core::sync::atomic::{AtomicU64, Ordering};
use sept_core::test_util::{Arena, FramePool, Kick, VecStore};
use sept_core::{
    Direct, FrameKind, FrameNeeds, FrameSource, Hpa, Level, Plan, Scope, SecurePageTable, TableMemory, Word,
    X86, X86Config,
};

const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

fn hpa(raw: u64) -> Hpa {
    Hpa::new(raw).unwrap()
}

/// An arena that counts what is read of entries.
struct Counted(Arena, AtomicU64);

impl Counted {
    fn reads(&self, work: impl FnOnce()) -> u64 {
        self.1.store(0, Ordering::Relaxed);
        work();
        self.1.load(Ordering::Relaxed)
    }
}

#[expect(unsafe_code, reason = "forwards to an implementor")]
// SAFETY: every method forwards to a type that keeps the promises.
unsafe impl TableMemory for Counted {
    type Pin<'a> = ();

    fn pin(&self) {}

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        if matches!(word, Word::Entry(_)) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        self.0.load(table, word, order)
    }

    arena_writes!();
}

fn counted() -> (SecurePageTable<X86, Counted, Direct<Kick<'static>>>, FramePool) {
    let pool = FramePool::new(Hpa::default(), 2048);
    let arena = Arena::new(Hpa::default(), 2048, Box::new(|_, _| {}));
    let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
    let memory = Counted(arena, AtomicU64::new(0));
    let flush = Direct::new(Kick::new(|| {}, || true));
    (SecurePageTable::new(X86Config::NESTED_4, memory, flush, root), pool)
}

/// A range that begins and ends inside 1 GiB pages: what it costs to plan and to split does not grow with what lies
/// between, and no more is split than the two ends.
#[test]
fn the_interior_of_a_split_is_not_read() {
    let reads = |interior: u64| {
        let (table, pool) = counted();
        let all = range(5 * G1, (interior + 2) * G1);
        let plan = table.plan_map(all, hpa(1 << 40), Level::L1G).unwrap();
        let reserved = plan.reserve(&pool, VecStore::default()).unwrap();
        let _done = table.map_range(reserved, frames(1 << 40, all.pages())).unwrap();
        let part = range(6 * G1 - 0x5000, 0x5000 + interior * G1 + M2 + 0x3000);
        let mut plan = None;
        let planning = table.memory().reads(|| plan = Some(table.plan_split(part, Scope::Ends).unwrap()));
        let plan = plan.unwrap();
        assert_eq!(plan.needs(), FrameNeeds::of(FrameKind::MirrorTable, 4));
        let reserved = plan.reserve(&pool, VecStore::default()).unwrap();
        let splitting = table.memory().reads(|| assert!(table.split_range(reserved).is_ok()));
        let census = table.audit().unwrap();
        assert_eq!(census.pages, [2 * 512, 2 * 511, interior]);
        (planning, splitting)
    };
    let (planning, splitting) = reads(1);
    // Four walks at most, of four levels each.
    assert!(planning <= 16, "{planning} entries read to plan");
    assert_eq!(reads(400), (planning, splitting));
}

/// A guest's address space is mostly empty. Passing over what no table holds costs a walk for each hole, not one for each
/// entry that could be there.
#[test]
fn holes_are_passed_over_whole() {
    let (mut table, pool) = counted();
    let all = range(0, 1 << 48);
    let some = range((7 << 40) + G1, M2);
    let plan = table.plan_map(some, hpa(1 << 40), Level::L4K).unwrap();
    let reserved = plan.reserve(&pool, VecStore::default()).unwrap();
    let _done = table.map_range(reserved, frames(1 << 40, 512)).unwrap();
    // The holes are 511 entries of the root and 511 in each of two tables: a few walks each of four levels for every one.
    let few = 3 * 4 * 4 * 512 + 3 * 512;
    let mut owed = table.obligation();

    let reads = table.memory().reads(|| {
        assert_eq!(table.probe_candidates(all, Level::L2M, all.start(), 2000).unwrap().ready, 1);
    });
    assert!(reads < few, "{reads} entries read to probe");
    let reads = table.memory().reads(|| {
        assert_eq!(table.inhibit_range(all, Level::L2M, false).unwrap(), 1 << 27);
    });
    assert!(reads < few, "{reads} entries read to clear inhibits");
    table.memory().1.store(0, Ordering::Relaxed);
    assert_eq!(table.exclusive().merge_range(all, &mut owed).unwrap().tables, 1);
    let reads = table.memory().1.load(Ordering::Relaxed);
    assert!(reads < 2 * few, "{reads} entries read to merge two levels");
    let _owed = owed;
    let mut merge = table.start_merge(all);
    let mut owed = table.obligation();
    let reads = table.memory().reads(|| {
        for _ in 0..2 {
            let _turn = merge.step(&table, &mut owed).unwrap();
        }
    });
    assert!(merge.finish().is_ok() && reads < 2 * few, "{reads} entries read to find nothing to merge");
    let _owed = owed;
}
