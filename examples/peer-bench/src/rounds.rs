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
    let repeat = if matches!(work, Work::Map2m | Work::Remove1g) { plan.repeat } else { 1 };
    let mut times = Vec::new();
    for _ in 0..repeat {
        let Some(time) = run_once::<C>(work, plan)? else { return Ok(None) };
        times.push(time);
    }
    times.sort();
    Ok(times.get(times.len() / 2).copied())
}

fn run_once<C: Contender>(work: Work, plan: &Plan) -> Result<Option<Duration>, Wrong> {
    arena::reset();
    let mut tree = C::new();
    tree.fill(work.before());
    let time = match work {
        Work::Translate => tree.translate(&plan.addresses).map(|(time, sum)| {
            let want = plan.addresses.iter().fold(0, |sum: u64, &va| sum.wrapping_add(target(va)));
            if sum == want { Ok(time) } else { Err(Wrong::Sum { who: C::NAME, work, got: sum, want }) }
        }),
        Work::Map4k => tree.map_4k().map(Ok),
        Work::Map4kRange => tree.map_4k_range().map(Ok),
        Work::Map2m => tree.map_2m().map(Ok),
        Work::SplitCommit => tree.split_commit().map(Ok),
        Work::SplitAll => tree.split_all().map(Ok),
        Work::Merge => tree.merge().map(Ok),
        Work::Unmap4k => tree.unmap_4k().map(Ok),
        Work::UnmapRange => tree.unmap_range().map(Ok),
        Work::Remove1g => tree.remove_1g().map(Ok),
    }
    .transpose()?;
    if time.is_some() {
        check(&tree, work)?;
    }
    tree.dispose();
    frames::<C>(work, 0)?;
    Ok(time)
}

/// Looks at every page of the region and beside it, and counts the tables.
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
    match work.after() {
        Mapped::With4k => frames::<C>(work, 3 + (REGION / M2) as usize),
        Mapped::With2m => frames::<C>(work, 3),
        // The tables above may stay.
        Mapped::Nothing => frames::<C>(work, arena::in_use().clamp(1, 3)),
    }
}

fn frames<C: Contender>(work: Work, want: usize) -> Result<(), Wrong> {
    let got = arena::in_use();
    if got == want { Ok(()) } else { Err(Wrong::Frames { who: C::NAME, work, got, want }) }
}

const _: () = assert!(PA >= PAGES * K4, "no page of the guest is a frame of the arena or 0");

#[cfg(test)]
mod tests;
