//! A fence counts for what the MMU could not reach any more when it began.

use crate::rig::Rig;
use core::{cell::RefCell, sync::atomic::Ordering};
use sept_core::test_util::{Arena, FramePool, Kick, VecStore};
use sept_core::{
    Direct, Ept, EptConfig, Fenced, Frame, FrameKind, FrameSource, FrameStore, Gpa, GpaEntry, HardwareWalked,
    Hpa, Level, SecurePageTable, TableMemory, Tainted, Word, X86, X86Config,
};
use std::rc::{Rc, Weak};

type Table<F> = SecurePageTable<F, Watched, Direct<Kick<'static>>>;
type Hook = Box<dyn Fn(&Arena, Hpa, Word)>;

/// Calls a hook before each write to an entry.
struct Watched {
    arena: Arena,
    hook: Rc<RefCell<Option<Hook>>>,
}

impl Watched {
    fn before_write(&self, table: Hpa, word: Word) {
        if let (Word::Entry(_), Some(hook)) = (word, &*self.hook.borrow()) {
            hook(&self.arena, table, word);
        }
    }
}

#[expect(unsafe_code, reason = "forwards to an implementor")]
// SAFETY: every method forwards to a type that keeps the promises.
unsafe impl TableMemory for Watched {
    type Pin<'a> = ();

    fn pin(&self) {}

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        self.arena.load(table, word, order)
    }

    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        self.before_write(table, word);
        self.arena.store(table, word, value, order);
    }

    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        self.before_write(table, word);
        self.arena.compare_exchange(table, word, old, new)
    }

    fn add(&self, table: Hpa, word: Word, value: u64) {
        self.arena.add(table, word, value);
    }

    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        self.arena.write_detached(table, entry);
    }

    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        self.arena.scrub(page)
    }
}

/// Another thread fences at every moment at which an entry is about to be written, and after it the MMU looks at the
/// entry: a proof is worth nothing where the MMU found a way down.
fn fence_while_blocking<F: HardwareWalked>(config: F::Config, present: u64, at: GpaEntry, closed: bool) {
    let pool = FramePool::new(Hpa::default(), 16);
    let hook = Rc::new(RefCell::new(None::<Hook>));
    let arena = Arena::new(Hpa::default(), 16, Box::new(|_, _| {}));
    let memory = Watched { arena, hook: Rc::clone(&hook) };
    let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
    let external = Direct::new(Kick::new(|| {}, || true));
    let table = Rc::new(Table::<F>::new(config, memory, external, root));
    let mut store = VecStore::default();
    for kind in [FrameKind::MirrorTable; 3] {
        store.put(kind, pool.take(kind, Hpa::default()).unwrap()).unwrap();
    }
    table.link_to(GpaEntry::containing(at.gpa(), Level::L4K), None, &mut store).unwrap();
    if closed {
        table.close(at).unwrap();
    }

    let proofs = Rc::new(RefCell::new(Vec::<(Fenced, bool)>::new()));
    let (weak, log): (Weak<Table<F>>, _) = (Rc::downgrade(&table), Rc::clone(&proofs));
    *hook.borrow_mut() = Some(Box::new(move |arena, place, word| {
        let table = weak.upgrade().unwrap();
        let ticket = table.fence().unwrap();
        let proof = table.fenced(&ticket).unwrap();
        let reachable = arena.load(place, word, Ordering::Acquire) & present != 0;
        log.borrow_mut().push((proof, reachable));
    }));
    table.block(at).unwrap();
    *hook.borrow_mut() = None;

    let mut owed = table.obligation();
    let proofs = proofs.borrow_mut();
    assert!(proofs.iter().any(|(_, reachable)| *reachable), "the MMU walks on at first");
    for (proof, reachable) in &*proofs {
        let taken = table.remove_subtree(at, proof, &mut owed);
        assert!(!*reachable || taken.is_err(), "{at} was taken while the MMU could still walk it");
    }
}

#[test]
fn a_table_is_blocked_out_of_the_reach_of_the_mmu_before_a_fence_counts() {
    for (level, gpa) in [(Level::L2M, 1 << 30), (Level::L1G, 1 << 30), (Level::L2M, (1 << 30) + (2 << 20))] {
        let at = GpaEntry::containing(Gpa::new(gpa).unwrap(), level);
        for closed in [false, true] {
            fence_while_blocking::<Ept>(EptConfig::LEVELS_4, 0b111, at, closed);
            fence_while_blocking::<X86>(X86Config::NESTED_4, 1, at, closed);
        }
    }
}

/// The MMU may have cached the way through a table that was merged: no grace period for the host's walks ends that.
#[test]
fn a_merged_table_waits_for_a_fence() {
    let rig = Rig::<Ept>::new(EptConfig::LEVELS_4);
    let block = GpaEntry::containing(Gpa::default(), Level::L2M);
    rig.map(block.range(), 1 << 30, Level::L4K);
    rig.table.close(block).unwrap();
    let grace = || rig.table.quiet(&rig.table.grace()).unwrap();
    let mut owed = rig.table.obligation();
    rig.table.merge_in_place(block, &grace(), &mut owed).unwrap();
    let outstanding = rig.pool.outstanding();
    let refused = rig.table.settle(owed, &grace(), &rig.pool).unwrap_err();
    assert_eq!((rig.pool.outstanding(), refused.rest.tables()), (outstanding, 1));
    rig.table.settle(refused.rest, &rig.fence().quiet(), &rig.pool).unwrap();
    assert_eq!(rig.pool.outstanding().total(), rig.table.audit().unwrap().tables);
}
