//! Threads that fault, split, merge and take away at the same time: each against a reference in its own part of the guest,
//! where nobody gets in its way, and all of them in a part that they share, where no page and no table may be lost.

use crate::world::{Error, K4, M2, THREADS, World, at, become_thread, pages};
use core::mem::discriminant;
use sept_core::{
    Class, Classify, Ept, EptConfig, Format, GpaEntry, HardwareWalked, Level, TableError, X86, X86Config,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Barrier,
    thread,
};

/// Blocks of 2 MiB that each thread has, and those that all of them use. All lie in one GiB.
const OWN: u64 = 2;
const SHARED: u64 = 2;
const BLOCKS: u64 = SHARED + THREADS * OWN;
/// Pages of each block that are touched, so that threads meet.
const PAGES: u64 = 6;

/// Numbers that look random, the same in every run for each thread.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fault(GpaEntry),
    Remove(GpaEntry),
    Split(GpaEntry),
    Merge(GpaEntry),
    RemoveSubtree(GpaEntry),
    /// Takes the pages of a block one by one and then its table.
    Empty(GpaEntry),
    /// Maps every hole of a block, so that there is something to merge.
    Fill(GpaEntry),
}

impl Op {
    fn random(random: &mut Random, first: u64, blocks: u64) -> Self {
        let page = ((first + random.below(blocks)) << 9) + random.below(PAGES);
        match random.below(16) {
            0..6 => Self::Fault(at(page, K4)),
            6..9 => Self::Remove(at(page, K4)),
            9 => Self::Fault(at(page, M2)),
            10 => Self::Remove(at(page, M2)),
            11 => Self::Split(at(page, M2)),
            12 => Self::Merge(at(page, M2)),
            13 => Self::RemoveSubtree(at(page, M2)),
            14 => Self::Empty(at(page, M2)),
            _ => Self::Fill(at(page, M2)),
        }
    }

    /// What came of it: `None` if there was no memory to map.
    fn run<F: HardwareWalked>(self, world: &World<F>) -> Option<Result<(), Error>> {
        match self {
            Self::Fault(at) => world.fault(at),
            Self::Remove(at) => Some(world.remove(at)),
            Self::Split(at) => Some(world.split(at)),
            Self::Merge(at) => Some(world.merge(at)),
            Self::RemoveSubtree(at) => Some(world.remove_subtree(at)),
            Self::Empty(block) => {
                for page in pages(block).filter(|page| world.guest_reads(*page).is_some()) {
                    let _ = world.remove(at(page, K4));
                }
                Some(world.unlink(block))
            }
            Self::Fill(block) => pages(block).map(|page| world.fault(at(page, K4))).fold(None, Option::or),
        }
    }
}

/// One block as it should be.
#[derive(Clone, PartialEq, Debug, Default)]
enum Block {
    #[default]
    Free,
    Page,
    Table(BTreeSet<u64>),
}

/// The blocks that one thread has for itself.
#[derive(Default)]
struct Reference(BTreeMap<u64, Block>);

impl Reference {
    /// Does `op`; says whether it succeeds, `None` if there is no memory to map.
    fn run(&mut self, op: Op) -> Option<bool> {
        let (Op::Fault(at) | Op::Remove(at) | Op::Split(at) | Op::Merge(at)) = op else {
            let (Op::RemoveSubtree(at) | Op::Empty(at) | Op::Fill(at)) = op else { return None };
            return self.whole(op, at);
        };
        let page = at.gpa().raw() >> 12;
        let block = self.0.entry(page >> 9).or_default();
        match (op, at.level(), &mut *block) {
            (Op::Fault(_), K4, Block::Free) => *block = Block::Table(BTreeSet::from([page])),
            (Op::Fault(_), K4, Block::Table(pages)) => {
                return pages.insert(page).then_some(true);
            }
            (Op::Fault(_), M2, Block::Free) => *block = Block::Page,
            (Op::Fault(_), M2, Block::Table(pages)) if pages.is_empty() => return Some(false),
            (Op::Fault(_), ..) => return None,
            (Op::Remove(_), K4, Block::Table(pages)) => return Some(pages.remove(&page)),
            (Op::Remove(_), M2, Block::Page) => *block = Block::Free,
            (Op::Split(_), _, Block::Page) => *block = Block::Table(pages(at).collect()),
            (Op::Merge(_), _, Block::Table(pages)) if pages.len() == 512 => *block = Block::Page,
            _ => return Some(false),
        }
        Some(true)
    }

    fn whole(&mut self, op: Op, at: GpaEntry) -> Option<bool> {
        let block = self.0.entry(at.gpa().raw() >> 21).or_default();
        match (op, &mut *block) {
            (Op::RemoveSubtree(_) | Op::Empty(_), Block::Table(_)) => *block = Block::Free,
            (Op::Fill(_), Block::Page) => return None,
            (Op::Fill(_), Block::Table(pages)) if pages.len() == 512 => return None,
            (Op::Fill(_), _) => *block = Block::Table(pages(at).collect()),
            _ => return Some(false),
        }
        Some(true)
    }

    fn level(&self, page: u64) -> Option<Level> {
        match self.0.get(&(page >> 9))? {
            Block::Free => None,
            Block::Page => Some(M2),
            Block::Table(pages) => pages.contains(&page).then_some(K4),
        }
    }
}

/// One thread: its own blocks and the shared ones in turns. In its own, every operation ends as if it were alone.
fn work<F: HardwareWalked>(world: &World<F>, number: u64, rounds: u64) {
    become_thread(number);
    let mut random = Random(number * 0x1234_5678_9abc_def1);
    let mut reference = Reference::default();
    let own = SHARED + (number - 1) * OWN;
    let mut succeeded = HashSet::new();
    for _ in 0..rounds {
        let op = Op::random(&mut random, own, OWN);
        let (expect, result) = (reference.run(op), op.run(world));
        assert_eq!(result.map(|result| result.is_ok()), expect, "{op:?}: {result:?}");
        match result {
            Some(Err(error)) => assert_eq!(error.class(), Class::Caller, "{op:?}: {error}"),
            Some(Ok(())) => _ = succeeded.insert(discriminant(&op)),
            None => {}
        }
        for page in own << 9..(own << 9) + PAGES {
            assert_eq!(world.guest_reads(page).map(|found| found.level), reference.level(page), "{page}");
        }

        let op = Op::random(&mut random, 0, SHARED);
        if let Some(Err(error)) = op.run(world) {
            // Whatever another thread has done: contention, another state, a block that the fence does not cover.
            let fine = matches!(error.class(), Class::Retry | Class::Quiesce | Class::Caller);
            assert!(fine && !matches!(error, TableError::Level { .. }), "{op:?}: {error}");
        }
        for _ in 0..8 {
            let page = (random.below(SHARED) << 9) + random.below(PAGES);
            world.guest_reads(page);
        }
    }
    assert_eq!(succeeded.len(), 7, "one of each");
    for page in own << 9..(own + OWN) << 9 {
        assert_eq!(world.guest_reads(page).map(|found| found.level), reference.level(page), "{page}");
    }
}

fn threads<F: HardwareWalked<Config: Send + Sync>>(config: F::Config) {
    let world = World::<F>::new(config, BLOCKS);
    thread::scope(|scope| {
        for number in 1..=THREADS {
            let world = &world;
            scope.spawn(move || work(world, number, 300));
        }
    });
    world.check();
}

#[test]
fn ept() {
    threads::<Ept>(EptConfig::LEVELS_4);
}

#[test]
fn nested() {
    threads::<X86>(X86Config::NESTED_5);
}

/// Two threads map the same pages: each page once, and none is refused but for contention.
#[test]
fn overlapping_faults() {
    overlap::<Ept>(EptConfig::LEVELS_5);
    overlap::<X86>(X86Config::NESTED_4);
}

fn overlap<F: HardwareWalked<Config: Send + Sync>>(config: <F as Format>::Config) {
    let world = World::<F>::new(config, 4);
    let start = Barrier::new(2);
    let fault = |number: u64| {
        become_thread(number);
        start.wait();
        let mapped = (0..4 << 9).filter(|page| {
            loop {
                match world.fault(at(*page, K4)) {
                    None => break false,
                    Some(Ok(())) => break true,
                    Some(Err(TableError::Contended { .. })) => {}
                    Some(Err(error)) => panic!("{error}"),
                }
            }
        });
        mapped.count()
    };
    let mapped = thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| fault(1)), scope.spawn(|| fault(2)));
        first.join().unwrap() + second.join().unwrap()
    });
    assert_eq!(mapped, 4 << 9);
    world.check();
}
