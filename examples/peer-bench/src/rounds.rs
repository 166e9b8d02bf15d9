//! Rounds: in each, every competitor does every work once, and what it did is checked.

use crate::{
    arena,
    contender::{Contender, How, K4, M2, Mapped, PA, PAGES, REGION, VA, Work, pages, target},
    ours::Ours,
    peers::{Aarch64, Generic, Multiarch, X86},
    raw::Raw,
};
use std::time::Duration;

/// What a competitor did wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("{who}, {work}: {va:#x} leads to {got:x?} instead of {want:x?}", work = .work.name())]
    Leads { who: &'static str, work: Work, va: u64, got: Option<(u64, u64)>, want: Option<(u64, u64)> },
    #[error("{who}, {work}: the translations add up to {got:#x} instead of {want:#x}", work = .work.name())]
    Sum { who: &'static str, work: Work, got: u64, want: u64 },
    #[error("{who}, {work}: {got} frames are in use instead of {want}", work = .work.name())]
    Frames { who: &'static str, work: Work, got: usize, want: usize },
}

/// A competitor, and what it took for each work in each round.
#[derive(Debug)]
pub(crate) struct Competitor {
    pub(crate) name: &'static str,
    pub(crate) how: fn(Work) -> How,
    pub(crate) run: fn(Work, &Plan) -> Result<Option<Duration>, Wrong>,
    /// Nanoseconds per operation, in the order of [`Work::ALL`]; empty if it cannot.
    pub(crate) rounds: [Vec<f64>; Work::ALL.len()],
}

impl Competitor {
    fn of<C: Contender>() -> Self {
        Self { name: C::NAME, how: C::how, run: run::<C>, rounds: Default::default() }
    }

    /// The floor, sept-core, and the others.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self::of::<Raw>(),
            Self::of::<Ours>(),
            Self::of::<X86>(),
            Self::of::<Multiarch>(),
            Self::of::<Aarch64>(),
            Self::of::<Generic>(),
        ]
    }
}

/// How much is done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// Rounds before those.
    pub(crate) warm_up: usize,
    /// Fresh trees for a work that is over in microseconds.
    pub(crate) repeat: usize,
    addresses: Vec<u64>,
}

impl Plan {
    pub(crate) fn new(rounds: usize, warm_up: usize, repeat: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let addresses = (0..Work::Translate.operations()).map(|_| VA + random.u64(..REGION)).collect();
        Self { rounds, warm_up, repeat, addresses }
    }

    /// Runs all rounds. Who begins changes from round to round.
    pub(crate) fn carry_out(&self, all: &mut [Competitor]) -> Result<(), Wrong> {
        for round in 0..self.warm_up + self.rounds {
            for (number, work) in Work::ALL.into_iter().enumerate() {
                for turn in 0..all.len() {
                    let place = (turn + round) % all.len();
                    let one = &mut all[place];
                    let Some(time) = (one.run)(work, self)? else { continue };
                    if round >= self.warm_up {
                        one.rounds[number].push(time.as_nanos() as f64 / work.operations() as f64);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Does `work` on fresh trees, and takes the median if they are several.
fn run<C: Contender>(work: Work, plan: &Plan) -> Result<Option<Duration>, Wrong> {
    let (turns, trees) = match work {
        // Done at once one after the other: else most of the time goes into code that is not in the cache.
        Work::Map2m => (1, plan.repeat),
        Work::Remove1g => (plan.repeat, 1),
        _ => (1, 1),
    };
    let mut times = Vec::new();
    for _ in 0..turns {
        match run_on::<C>(trees, work, plan)? {
            Some(some) => times.extend(some),
            None => return Ok(None),
        }
    }
    times.sort();
    Ok(times.get(times.len() / 2).copied())
}

/// Builds so many trees, does `work` on each, then looks at what came of it.
fn run_on<C: Contender>(trees: usize, work: Work, plan: &Plan) -> Result<Option<Vec<Duration>>, Wrong> {
    arena::reset();
    let fresh = |_| {
        let mut tree = C::new();
        tree.fill(work.before());
        tree
    };
    let mut trees: Vec<C> = (0..trees).map(fresh).collect();
    let times: Option<Vec<_>> = trees.iter_mut().map(|tree| time(tree, work, plan)).collect();
    let times = times.map(|times| times.into_iter().collect::<Result<Vec<_>, _>>()).transpose()?;
    if times.is_some() {
        trees.iter().try_for_each(|tree| check(tree, work))?;
        let tables = match work.after() {
            Mapped::With4k => 3 + (REGION / M2) as usize,
            Mapped::With2m => 3,
            // The tables above may stay.
            Mapped::Nothing => arena::in_use().clamp(1, 3),
        };
        frames::<C>(work, tables * trees.len())?;
    }
    trees.into_iter().for_each(C::dispose);
    frames::<C>(work, 0)?;
    Ok(times)
}

fn time<C: Contender>(tree: &mut C, work: Work, plan: &Plan) -> Option<Result<Duration, Wrong>> {
    let time = match work {
        Work::Translate => {
            let (time, got) = tree.translate(&plan.addresses)?;
            let want = plan.addresses.iter().fold(0, |sum: u64, &va| sum.wrapping_add(target(va)));
            if got != want {
                return Some(Err(Wrong::Sum { who: C::NAME, work, got, want }));
            }
            Some(time)
        }
        Work::Map4k => tree.map_4k(),
        Work::Map4kRange => tree.map_4k_range(),
        Work::Map2m => tree.map_2m(),
        Work::SplitCommit => tree.split_commit(),
        Work::SplitAll => tree.split_all(),
        Work::Merge => tree.merge(),
        Work::Unmap4k => tree.unmap_4k(),
        Work::UnmapRange => tree.unmap_range(),
        Work::Remove1g => tree.remove_1g(),
    };
    time.map(Ok)
}

/// Looks at every page of the region and beside it.
fn check<C: Contender>(tree: &C, work: Work) -> Result<(), Wrong> {
    let size = match work.after() {
        Mapped::With4k => K4,
        Mapped::With2m => M2,
        Mapped::Nothing => 0,
    };
    let offset = 0xabc;
    for va in pages(K4).map(|page| page + offset).chain([VA - K4, VA + REGION]) {
        let inside = (VA..VA + REGION).contains(&va);
        let want = (inside && size > 0).then(|| (target(va), size));
        let got = tree.lookup(va);
        if got != want {
            return Err(Wrong::Leads { who: C::NAME, work, va, got, want });
        }
    }
    Ok(())
}

fn frames<C: Contender>(work: Work, want: usize) -> Result<(), Wrong> {
    let got = arena::in_use();
    if got == want { Ok(()) } else { Err(Wrong::Frames { who: C::NAME, work, got, want }) }
}

const _: () = assert!(PA >= PAGES * K4, "no page of the guest is a frame of the arena or 0");

#[cfg(test)]
mod tests;
