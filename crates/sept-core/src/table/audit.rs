//! The invariants of a table, checked over all of it.

use super::SecurePageTable;
use crate::memory::FANOUT;
use crate::{
    Entry, External, FenceOrder, Format, Gpa, GpaEntry, Hpa, LeafState, Level, SideWord, TableMemory, Word,
};
use core::sync::atomic::Ordering;

/// What a table holds, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Census {
    /// Tables, the root included.
    pub tables: u64,
    /// Pages of each size: 4K, 2M, 1G.
    pub pages: [u64; 3],
    /// Pages not known to be accepted, of any size.
    pub pending: u64,
    /// Pages and tables that are blocked or closed.
    pub blocked: u64,
}

/// An invariant that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {flaw}")]
#[expect(clippy::exhaustive_structs, reason = "a place and a flaw")]
pub struct Broken {
    /// The entry.
    pub at: GpaEntry,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// What can be wrong with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// It is being changed, though nobody should be at work.
    #[error("is being changed")]
    Frozen,
    /// A page of a size that does not exist, or a table where pages must be.
    #[error("cannot be at this level")]
    Level,
    /// The address is not aligned to the size of what it names.
    #[error("names the misaligned address {hpa:#x}")]
    Misaligned {
        /// The address.
        hpa: Hpa,
    },
    /// The word has bits set that its entry does not explain.
    #[error("has stray bits in {raw:#x}")]
    StrayBits {
        /// The word.
        raw: u64,
    },
    /// The table's count of entries in use is wrong.
    #[error("counts {recorded} entries in use, has {counted}")]
    Live {
        /// What the side word says.
        recorded: u64,
        /// What the entries say.
        counted: u64,
    },
    /// The table's metadata pages describe memory that does not have the table's size.
    #[error("has metadata pages for {backing:#x}")]
    Backing {
        /// That memory.
        backing: Hpa,
    },
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Checks every entry and every table, and counts them. Nobody may be changing the table meanwhile.
    ///
    /// Allocation-free; one look at each entry of each table.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold, in address order.
    pub fn audit(&self) -> Result<Census, Broken> {
        let mut census = Census::default();
        let top = F::top(self.config);
        // The way down: for each level the table, its first address, the next entry to look at and those in use so far.
        let mut way = [Step::default(); Level::ALL.len()];
        let mut level = top;
        self.enter(&mut way, level, self.root, Gpa::default(), &mut census);
        // Each turn looks at one entry or leaves one table.
        while let Some(step) = way.get_mut(usize::from(level.raw())) {
            if step.next == FANOUT {
                let at = self.leave(step, level, top)?;
                match level.parent().filter(|parent| *parent <= top && at.is_some()) {
                    Some(parent) => level = parent,
                    None => break,
                }
                continue;
            }
            let index = step.next;
            step.next = index.wrapping_add(1);
            let raw = self.memory.load(step.table, Word::Entry(index), Ordering::Acquire);
            let gpa = Gpa::truncate(step.base.raw() | u64::from(index) << level.shift());
            let at = GpaEntry::containing(gpa, level);
            let entry = F::decode(self.config, level, raw);
            step.live = step.live.wrapping_add(u64::from(entry != Entry::Free));
            self.check_entry(at, raw, entry).map_err(|flaw| Broken { at, flaw })?;
            census.note(level, entry);
            if let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }, Some(child)) =
                (entry, level.child())
            {
                level = child;
                self.enter(&mut way, level, hpa, gpa, &mut census);
            }
        }
        Ok(census)
    }

    fn enter(
        &self,
        way: &mut [Step; Level::ALL.len()],
        level: Level,
        table: Hpa,
        base: Gpa,
        census: &mut Census,
    ) {
        census.tables = census.tables.saturating_add(1);
        if let Some(step) = way.get_mut(usize::from(level.raw())) {
            *step = Step { table, base, next: 0, live: 0 };
        }
    }

    /// Checks a table after all its entries. `None` if it was the root.
    fn leave(&self, step: &Step, level: Level, top: Level) -> Result<Option<GpaEntry>, Broken> {
        let Some(parent) = level.parent() else { return Ok(None) };
        let at = GpaEntry::containing(step.base, parent);
        let recorded = self.side(step.table, SideWord::Live);
        if recorded != step.live {
            return Err(Broken { at, flaw: Flaw::Live { recorded, counted: step.live } });
        }
        if let Some(backing) = self.backing(step.table).filter(|backing| !backing.is_aligned(parent)) {
            return Err(Broken { at, flaw: Flaw::Backing { backing } });
        }
        Ok((level < top).then_some(at))
    }

    fn check_entry(&self, at: GpaEntry, raw: u64, entry: Entry) -> Result<(), Flaw> {
        let level = at.level();
        match entry {
            Entry::Free => {}
            Entry::Frozen => return Err(Flaw::Frozen),
            Entry::Leaf { .. } if level > F::max_leaf(self.config) => return Err(Flaw::Level),
            Entry::Leaf { hpa, .. } if !hpa.is_aligned(level) => return Err(Flaw::Misaligned { hpa }),
            Entry::Leaf { .. } => {}
            Entry::Closed { .. } if F::FENCE != FenceOrder::After => return Err(Flaw::Level),
            Entry::Table { .. } | Entry::Closed { .. } if level == Level::L4K => return Err(Flaw::Level),
            Entry::Table { .. } | Entry::Closed { .. } => {}
        }
        // What an update keeps of a word is all that there may be in it.
        let stray = (F::update(self.config, level, raw, entry) ^ raw) & !entry.mmu_sets::<F>();
        if stray == 0 { Ok(()) } else { Err(Flaw::StrayBits { raw }) }
    }
}

/// One table on the way down.
#[derive(Clone, Copy, Default)]
struct Step {
    table: Hpa,
    base: Gpa,
    next: u16,
    live: u64,
}

impl Census {
    fn note(&mut self, level: Level, entry: Entry) {
        let one = |count: &mut u64| *count = count.saturating_add(1);
        if entry.blocked().is_some() {
            one(&mut self.blocked);
        }
        if let Entry::Leaf { state, .. } = entry {
            if let Some(pages) = self.pages.get_mut(usize::from(level.raw())) {
                one(pages);
            }
            if state == LeafState::Pending {
                one(&mut self.pending);
            }
        }
    }
}
