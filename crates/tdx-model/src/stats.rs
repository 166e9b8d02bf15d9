//! How often each leaf was called and what it answered.

use std::collections::BTreeMap;

use crate::abi::{Leaf, Status};

/// Calls of each leaf, and the answers that were not zero.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Calls by leaf; leaves never called are absent.
    pub calls: BTreeMap<Leaf, u64>,
    /// Non-zero answers by leaf number and status code (without its detail).
    pub answers: BTreeMap<(u16, Status), u64>,
    /// All calls, of unknown leaves too.
    pub total: u64,
    /// Guest PAGE.ACCEPT attempts.
    pub accepts: u64,
}

impl Stats {
    /// Calls of `leaf`.
    #[must_use]
    pub fn of(&self, leaf: Leaf) -> u64 {
        self.calls.get(&leaf).copied().unwrap_or(0)
    }
}

const NUMBERS: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Counters {
    calls: [u64; NUMBERS],
    answers: BTreeMap<(u16, Status), u64>,
    total: u64,
    pub(crate) accepts: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { calls: [0; NUMBERS], answers: BTreeMap::new(), total: 0, accepts: 0 }
    }
}

impl Counters {
    pub(crate) fn note(&mut self, leaf: u16, status: Status) {
        self.total += 1;
        if let Some(count) = self.calls.get_mut(usize::from(leaf)) {
            *count += 1;
        }
        if status != Status::SUCCESS {
            *self.answers.entry((leaf, Status(status.code()))).or_insert(0) += 1;
        }
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let calls = Leaf::ALL.iter().map(|&leaf| (leaf, self.calls[leaf as usize])).filter(|&(_, n)| n > 0);
        Stats {
            calls: calls.collect(),
            answers: self.answers.clone(),
            total: self.total,
            accepts: self.accepts,
        }
    }
}
