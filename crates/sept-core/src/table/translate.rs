//! What a guest address leads to.
//!
//! The one path that a host takes a million times a second: one bit of each entry is looked at, everything else is
//! out of the way. A [`Walker`] pins the table once for many addresses. An [`ExclusiveWalker`] has the table for itself: what it
//! read above is still true at the next address, as in the paging-structure caches of an MMU, but without their
//! invalidation, since nobody can change the table while it lives.

use super::{Exclusive, Found, SecurePageTable};
use crate::{External, Format, Gpa, GpaEntry, Hpa, LeafState, Level, TableMemory};
use core::{cell::Cell, fmt};

/// What a guest address is to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Translation {
    /// The host address of the byte.
    pub hpa: Hpa,
    /// Size of the page it lies in.
    pub level: Level,
    /// Acceptance, as far as the host knows.
    pub state: LeafState,
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// What the guest reaches at `gpa`: `None` for a hole, where the page or a table above it is blocked, and for an entry
    /// that is being changed at this moment ([`SecurePageTable::lookup`] tells these apart; a table that an MMU walks is no
    /// obstacle while it is changed). One read per level.
    #[inline]
    #[must_use]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        self.walker().translate(gpa)
    }

    /// Pins the table once, to translate many addresses. Drop it before a fence is awaited.
    #[inline]
    pub fn walker(&self) -> Walker<'_, F, M, X, impl Fn(Hpa, u16) -> u64> {
        let _pin = self.memory.pin();
        let near = if F::top(self.config) == Level::L512G { F::limit(self.config) } else { 0 };
        Walker { table: self, _pin, root: self.root, config: self.config, near, read: self.memory.reader() }
    }

    /// [`Walker::translate`] where the root is above the 512 GiB level.
    #[cold]
    fn translate_far(&self, gpa: Gpa) -> Packed {
        Packed::of(self.lookup_pinned(gpa).ok().and_then(|found| found.translation(gpa)))
    }

    /// [`Walker::translate`] where the walk meets no open table above 4K: a larger page, a hole, something blocked.
    #[cold]
    fn reached(&self, level: Level, raw: u64, gpa: Gpa) -> Packed {
        Packed::of(self.end_of_walk(level, raw, gpa).translation(gpa))
    }
}

impl<F: Format, M: TableMemory, X: External> Exclusive<'_, F, M, X> {
    /// To translate many addresses while nothing changes: a walk of two reads for addresses in one 1 GiB after another.
    ///
    /// ```
    /// use sept_core::test_util::{Arena, FramePool, Kick, RamLedger, VecStore};
    /// use sept_core::{
    ///     Direct, Fill, FrameKind, FrameNeeds, FrameSource, FrameStore, Gpa, GpaEntry, Hpa, Level, SecurePageTable, X86,
    ///     X86Config,
    /// };
    /// # let base = Hpa::new(0x10_0000).unwrap();
    /// # let pool = FramePool::new(base, 8);
    /// # let root = pool.take(FrameKind::MirrorTable, base).unwrap();
    /// # let arena = Arena::new(base, 8, Box::new(|_, _| {}));
    /// # let ram = RamLedger::new(Hpa::new(0x4000_0000).unwrap(), 1);
    /// # let flush = Direct::new(Kick::new(|| (), || true));
    /// # let mut table = SecurePageTable::<X86, _, _>::new(X86Config::NESTED_4, arena, flush, root);
    /// # let mut store = VecStore::default();
    /// # store.fill(&FrameNeeds::of(FrameKind::MirrorTable, 3), base, &pool).unwrap();
    /// let mut alone = table.exclusive();
    /// let page = ram.lend(Hpa::new(0x4000_0000).unwrap(), Level::L4K).unwrap();
    /// let at = GpaEntry::containing(Gpa::new(0x5000).unwrap(), Level::L4K);
    /// alone.map_linking(at, page, Fill::OnAccept, &mut store).unwrap();
    ///
    /// let walker = alone.walker();
    /// assert_eq!(walker.translate(Gpa::new(0x5678).unwrap()).unwrap().hpa.raw(), 0x4000_0678);
    /// assert_eq!(walker.translate(Gpa::new(0x6678).unwrap()), None);
    /// drop(walker); // nothing can be changed before
    /// # let mut owed = alone.obligation();
    /// # let page = alone.unmap(at, &mut owed).unwrap();
    /// # let ticket = table.fence().unwrap();
    /// # let fence = table.fenced(&ticket).unwrap();
    /// # ram.take_back(table.take(page, &fence).unwrap()).unwrap();
    /// # table.settle(owed, &fence.quiet(), &pool).unwrap();
    /// ```
    #[inline]
    pub fn walker(&mut self) -> ExclusiveWalker<'_, F, M, X, impl Fn(Hpa, u16) -> u64> {
        let table = self.forget();
        let near = Cell::new((u64::MAX, Hpa::truncate(0)));
        ExclusiveWalker { table, config: table.config, near, read: table.memory.reader() }
    }
}

/// A translation, or none, in two registers: so that the fast path need not go through memory to meet the slow one.
#[derive(Clone, Copy)]
struct Packed {
    hpa: u64,
    /// Level and state plus one each, a byte for each; 0 for none.
    rest: u64,
}

impl Packed {
    fn of(translation: Option<Translation>) -> Self {
        let Some(Translation { hpa, level, state }) = translation else { return Self { hpa: 0, rest: 0 } };
        let state = match state {
            LeafState::Pending => 1,
            LeafState::Mapped => 2,
            LeafState::Destroyed => 3,
        };
        Self {
            hpa: hpa.raw(),
            rest: u64::from_le_bytes([level.raw().wrapping_add(1), state, 0, 0, 0, 0, 0, 0]),
        }
    }

    #[inline]
    const fn unpack(self) -> Option<Translation> {
        let [level, state, ..] = self.rest.to_le_bytes();
        let (Some(level), hpa) = (Level::new(level.wrapping_sub(1)), Hpa::truncate(self.hpa)) else {
            return None;
        };
        let state = match state {
            1 => LeafState::Pending,
            2 => LeafState::Mapped,
            _ => LeafState::Destroyed,
        };
        Some(Translation { hpa, level, state })
    }
}

/// A pinned table: walks that share one [`TableMemory::Pin`]. Made by [`SecurePageTable::walker`].
#[must_use = "it holds a pin"]
pub struct Walker<'a, F: Format, M: TableMemory + 'a, X: External, R> {
    table: &'a SecurePageTable<F, M, X>,
    _pin: M::Pin<'a>,
    root: Hpa,
    config: F::Config,
    /// First address that a walk from the 512 GiB level does not find: 0 where the root is above that level.
    near: u64,
    read: R,
}

impl<F: Format, M: TableMemory, X: External, R: Fn(Hpa, u16) -> u64> Walker<'_, F, M, X, R> {
    /// What the guest reaches at `gpa`; see [`SecurePageTable::translate`].
    #[inline(always)]
    #[must_use]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        let (mut table, config) = (self.root, self.config);
        if gpa.raw() >= self.near {
            return self.table.translate_far(gpa).unpack();
        }
        // Goes down one level, or leaves with where the way ends above 4K.
        let (level, raw) = 'end: {
            macro_rules! step {
                ($level:expr) => {
                    let raw = (self.read)(table, $level.index(gpa));
                    match F::next(config, $level, raw) {
                        Some(next) => table = next,
                        None => break 'end ($level, raw),
                    }
                };
            }
            step!(Level::L512G);
            step!(Level::L1G);
            step!(Level::L2M);
            let entry = F::decode(config, Level::L4K, (self.read)(table, Level::L4K.index(gpa)));
            let at = GpaEntry::containing(gpa, Level::L4K);
            return Found { at, entry, hidden: false }.translation(gpa);
        };
        self.table.reached(level, raw, gpa).unpack()
    }
}

impl<F: Format, M: TableMemory, X: External, R> fmt::Debug for Walker<'_, F, M, X, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Walker({:#x})", self.root)
    }
}

/// Walks of a table that nobody changes meanwhile. Made by [`Exclusive::walker`].
pub struct ExclusiveWalker<'a, F: Format, M: TableMemory, X: External, R> {
    table: &'a SecurePageTable<F, M, X>,
    config: F::Config,
    /// The last 1 GiB block, by number, and the table that holds its 2 MiB entries.
    near: Cell<(u64, Hpa)>,
    read: R,
}

impl<F: Format, M: TableMemory, X: External, R: Fn(Hpa, u16) -> u64> ExclusiveWalker<'_, F, M, X, R> {
    /// What the guest reaches at `gpa`; see [`SecurePageTable::translate`].
    #[inline(always)]
    #[must_use]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        let (config, block) = (self.config, gpa.raw() >> Level::L1G.shift());
        let (near, mut holder) = self.near.get();
        if near != block {
            let at = GpaEntry::containing(gpa, Level::L2M);
            let Some(found) = self.table.reach(at) else { return self.table.translate(gpa) };
            holder = found;
            self.near.set((block, holder));
        }
        let raw = (self.read)(holder, Level::L2M.index(gpa));
        let Some(table) = F::next(config, Level::L2M, raw) else {
            return self.table.reached(Level::L2M, raw, gpa).unpack();
        };
        let entry = F::decode(config, Level::L4K, (self.read)(table, Level::L4K.index(gpa)));
        let at = GpaEntry::containing(gpa, Level::L4K);
        Found { at, entry, hidden: false }.translation(gpa)
    }
}

impl<F: Format, M: TableMemory, X: External, R> fmt::Debug for ExclusiveWalker<'_, F, M, X, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExclusiveWalker({:#x})", self.table.root)
    }
}
