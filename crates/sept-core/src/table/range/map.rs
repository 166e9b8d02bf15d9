//! Mapping contiguous memory.
//!
//! Each piece of the range gets the largest page that alignment of both addresses, the asked-for limit and inhibits
//! allow. Without a TEE a table that is missing is filled before it is hung in: plain stores, then one that publishes all
//! its entries. With one, table and pages go through [`External`] one by one.

use super::{Committed, Plan, RangeError, Reserved};
use crate::memory::FANOUT;
use crate::table::{
    SecurePageTable, TableError,
    walk::{Slot, Stop, occupied},
};
use crate::{
    Donated, Entry, External, Fill, Format, FrameKind, FrameNeeds, FrameStore, Frames, Gpa, GpaEntry,
    GpaRange, Hpa, Level, Returned, TableMemory, Word,
};
use core::sync::atomic::Ordering;

/// What mapping contiguous memory takes: see [`SecurePageTable::plan_map`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a plan does nothing"]
pub struct MapPlan {
    range: GpaRange,
    hpa: Hpa,
    largest: Level,
    needs: FrameNeeds,
}

impl MapPlan {
    /// The guest addresses.
    #[must_use]
    pub const fn range(&self) -> GpaRange {
        self.range
    }

    /// The memory that will be mapped there.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }
}

impl Plan for MapPlan {
    fn needs(&self) -> FrameNeeds {
        self.needs
    }

    fn near(&self) -> Hpa {
        self.hpa
    }
}

/// A mapping that was refused: why, the reservation, and the pages that are not mapped.
pub type MapRefused<E, S> = Returned<RangeError<E>, (Reserved<MapPlan, S>, Frames)>;

/// A range, the memory for it, and so the size of page that each piece can have.
#[derive(Clone, Copy)]
struct Target {
    range: GpaRange,
    /// Host address less guest address, wrapping.
    delta: u64,
    largest: Level,
}

impl Target {
    const fn hpa(&self, gpa: u64) -> Hpa {
        Hpa::truncate(gpa.wrapping_add(self.delta))
    }

    /// Whether pages of `level` can be used at all.
    const fn allows(&self, level: Level) -> bool {
        level.raw() <= self.largest.raw() && self.delta & level.mask() == 0
    }

    /// Whether one page fits `at`.
    const fn fits(&self, at: GpaEntry) -> bool {
        self.allows(at.level()) && self.range.covers(at)
    }

    /// The memory that a table at `at` maps, if it is one aligned piece.
    const fn backing(&self, at: GpaEntry) -> Option<Hpa> {
        if self.delta & at.level().mask() == 0 { Some(self.hpa(at.gpa().raw())) } else { None }
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Counts what mapping the memory at `hpa` to the free `range` takes, in pages of at most `largest`.
    ///
    /// One look at each table of the range that exists, not at its pages: what is missing is counted in closed form
    /// (with a TEE, by table).
    ///
    /// # Errors
    ///
    /// [`RangeError::Stopped`] with the first entry that is in use or being changed, or outside the private space;
    /// [`RangeError::Pages`] if the memory is misaligned, would end above 2^52, or has addresses that an entry cannot name.
    pub fn plan_map(
        &self,
        range: GpaRange,
        hpa: Hpa,
        largest: Level,
    ) -> Result<MapPlan, RangeError<X::Error>> {
        let pages = range.pages();
        let room = (1_u64 << crate::ADDRESS_BITS).wrapping_sub(hpa.raw()) >> Level::L4K.shift();
        let last = Hpa::truncate(hpa.raw().wrapping_add(range.len()).wrapping_sub(1));
        if !hpa.is_aligned(Level::L4K) || pages > room || !F::names(self.config, hpa, last) {
            return Err(RangeError::Pages { range, hpa, pages });
        }
        let target = self.target(range, hpa, largest);
        let mut needs = FrameNeeds::NONE;
        for found in self.entries(range) {
            let from = found.at.gpa().raw().max(range.start().raw());
            if found.entry != Entry::Free {
                let slot = Slot { table: self.root, word: Word::Entry(0), raw: 0, entry: found.entry };
                return Err(RangeError::stopped(from)(occupied(found.at, &slot)));
            }
            if found.at.level() == Level::L4K || target.fits(found.at) && !self.inhibited_at(found.at) {
                continue;
            }
            if let Some(piece) = found.at.range().intersect(range) {
                needs = needs.plus(self.tables_below(&target, found.at.level(), piece));
            }
        }
        self.ends_inside(range)?;
        Ok(MapPlan { range, hpa, largest, needs })
    }

    fn ends_inside(&self, range: GpaRange) -> Result<(), RangeError<X::Error>> {
        let last = Gpa::truncate(range.end().wrapping_sub(Level::L4K.size()));
        if F::covers(self.config, range.start()) && F::covers(self.config, last) {
            return Ok(());
        }
        Err(RangeError::stopped(range.start().raw())(TableError::OutOfRange { gpa: last }))
    }

    fn target(&self, range: GpaRange, hpa: Hpa, largest: Level) -> Target {
        let largest = largest.min(self.external.max_map()).min(F::max_leaf(self.config));
        Target { range, delta: hpa.raw().wrapping_sub(range.start().raw()), largest }
    }

    fn inhibited_at(&self, at: GpaEntry) -> bool {
        matches!(self.slot(at, true), Ok(slot) if F::inhibited(slot.raw))
    }

    /// Tables missing for `piece`, which lies in one free entry of `level` and gets no page of that size.
    fn tables_below(&self, target: &Target, level: Level, piece: GpaRange) -> FrameNeeds {
        let mut needs = self.hung_in(target, GpaEntry::containing(piece.start(), level), 1);
        for level in Level::ALL.into_iter().filter(|below| *below < level && *below > Level::L4K) {
            let touched = piece.align_out(level);
            let count = touched.len() >> level.shift();
            // The middle is mapped in pages of this size or larger; at most the first and the last get a table.
            let whole = if target.allows(level) { whole_entries(piece, level) } else { 0 };
            if whole == 0 {
                needs = needs.plus(self.hung_in(target, GpaEntry::containing(piece.start(), level), count));
                continue;
            }
            let (first, last) = (GpaEntry::containing(piece.start(), level), last_entry(piece, level));
            for end in [first, last] {
                if !piece.covers(end) {
                    needs = needs.plus(self.hung_in(target, end, 1));
                }
            }
        }
        needs
    }

    /// `count` tables in the entries from `at` on.
    fn hung_in(&self, target: &Target, at: GpaEntry, count: u64) -> FrameNeeds {
        let some = u32::try_from(count).unwrap_or(u32::MAX);
        if !X::TEE {
            return FrameNeeds::of(FrameKind::MirrorTable, some);
        }
        let mut needs = FrameNeeds::NONE;
        for index in 0..u64::from(some) {
            let gpa = Gpa::truncate(at.gpa().raw().wrapping_add(index << at.level().shift()));
            let at = GpaEntry::containing(gpa, at.level());
            needs = needs.plus(self.table_cost(at, target.backing(at)));
        }
        needs
    }

    /// Maps `pages` as planned, not accepted yet where guests accept. May run beside other operations.
    ///
    /// Without a TEE: one store for each entry of a table that is missing, one compare-exchange to publish the table,
    /// and one for each entry of a table that exists. With one, a walk and a call for each page and table.
    ///
    /// # Errors
    ///
    /// [`RangeError::Stale`] and [`RangeError::Pages`] change nothing. After [`RangeError::Stopped`] the range is mapped
    /// up to `next`; the pages for the rest and the frames not used come back. Empty tables on the way to `next` may stay.
    pub fn map_range<S: FrameStore>(
        &self,
        reserved: Reserved<MapPlan, S>,
        pages: Frames,
    ) -> Result<Committed<S>, MapRefused<X::Error, S>> {
        let mut held = (reserved, pages);
        let MapPlan { range, hpa, largest, needs: planned } = held.0.plan;
        if held.1.hpa() != hpa || held.1.count() != range.pages() {
            let error = RangeError::Pages { range, hpa: held.1.hpa(), pages: held.1.count() };
            return Err(Returned { error, held });
        }
        let now = match self.plan_map(range, hpa, largest) {
            Ok(plan) => plan.needs,
            Err(RangeError::Stopped { error, .. }) => {
                // Nothing is mapped, wherever the obstacle is.
                return Err(Returned { error: RangeError::stopped(range.start().raw())(error), held });
            }
            Err(error) => return Err(Returned { error, held }),
        };
        let before = held.0.store.kept();
        if !before.covers(&now) {
            return Err(Returned { error: RangeError::Stale { planned, now }, held });
        }
        let target = self.target(range, hpa, largest);
        let (reserved, pages) = &mut held;
        // Each turn maps a page or more, or hangs a table in.
        while let Some(gpa) =
            Gpa::new(range.end().wrapping_sub(pages.count() << 12)).filter(|_| !pages.is_empty())
        {
            if let Err(error) = self.map_next(gpa, &target, &mut reserved.store, pages) {
                // Pages before the one that was refused may have been mapped.
                let next = range.end().wrapping_sub(pages.count() << 12);
                return Err(Returned { error: RangeError::stopped(next)(error), held });
            }
        }
        let used = before.saturating_sub(&held.0.store.kept());
        Ok(Committed { used, rest: held.0.store })
    }

    /// Maps what begins at `gpa`, as much as one table holds, or hangs in one table on the way there.
    fn map_next(
        &self,
        gpa: Gpa,
        target: &Target,
        store: &mut dyn FrameStore,
        pages: &mut Frames,
    ) -> Result<(), TableError<X::Error>> {
        let _pin = self.memory.pin();
        let mut table = self.root;
        let top = F::top(self.config);
        for level in Level::ALL.into_iter().rev().filter(|level| *level <= top) {
            let at = GpaEntry::containing(gpa, level);
            let raw = self.word(table, level, gpa);
            if let Some(next) = F::next(self.config, level, raw) {
                table = next;
                continue;
            }
            let slot = self.slot_of(table, level, gpa, raw);
            match slot.entry {
                Entry::Free => {}
                entry @ (Entry::Table { .. } | Entry::Closed { .. }) => {
                    return Err(Stop { at, entry, shut: true }.into_error(at));
                }
                _ => return Err(occupied(at, &slot)),
            }
            return if target.fits(at) && !F::inhibited(raw) {
                self.map_run(at, table, target, pages)
            } else if X::TEE {
                self.link(at, target.backing(at), store)
            } else {
                self.link_filled(at, slot, target, store, pages)
            };
        }
        Err(TableError::Level { at: GpaEntry::containing(gpa, Level::L4K) })
    }

    /// Maps pages of `at`'s size from there on, for as long as they fit and the entries of the table are free.
    fn map_run(
        &self,
        at: GpaEntry,
        table: Hpa,
        target: &Target,
        pages: &mut Frames,
    ) -> Result<(), TableError<X::Error>> {
        let (level, before) = (at.level(), pages.count());
        let mut mapped = 0;
        for index in level.index(at.gpa())..FANOUT {
            let offset = u64::from(index.wrapping_sub(level.index(at.gpa()))) << level.shift();
            let at = GpaEntry::containing(Gpa::truncate(at.gpa().raw().wrapping_add(offset)), level);
            let raw = self.memory.load(table, Word::Entry(index), Ordering::Acquire);
            let mut slot = self.slot_of(table, level, at.gpa(), raw);
            let fits = target.fits(at) && slot.entry == Entry::Free && !F::inhibited(raw);
            let Some(page) = Some(()).filter(|()| fits).and_then(|()| pages.take(level)) else { break };
            if X::TEE {
                if let Err(refused) = self.map(at, page, Fill::OnAccept) {
                    // It was the last one taken, so it fits; if not it is leaked, and the count of pages shows it.
                    drop(pages.put_back(refused.held));
                    return Err(refused.error);
                }
                continue;
            }
            let mapping = self.mapping(at, raw, &page, Fill::OnAccept);
            if let Err(error) = self.replace(at, &mut slot, |_| mapping) {
                drop(pages.put_back(page));
                self.count_live(table, mapped);
                return Err(error);
            }
            mapped = mapped.saturating_add(1);
        }
        if !X::TEE {
            self.count_live(table, mapped);
        }
        // The first one fitted a moment ago. A caller that tries again decides for how long.
        if pages.count() == before { Err(TableError::Contended { at }) } else { Ok(()) }
    }

    /// Hangs a table into the free `slot` that maps already what fits of the range into it.
    fn link_filled(
        &self,
        at: GpaEntry,
        mut slot: Slot,
        target: &Target,
        store: &mut dyn FrameStore,
        pages: &mut Frames,
    ) -> Result<(), TableError<X::Error>> {
        let Some(child) = at.level().child() else { return Err(TableError::Level { at }) };
        let (new, _pages) = self.draw(at, None, store)?;
        let free = self.free_below(slot.raw, child);
        let inside = at.range().intersect(target.range);
        let whole = inside.filter(|_| target.allows(child)).and_then(|inside| whole_part(inside, child));
        let (from, count) = match whole {
            // Only a table that begins with pages of this size; a piece before them needs a table of its own first.
            Some(whole) if whole.start().raw() == target.range.end().wrapping_sub(pages.count() << 12) => {
                (child.index(whole.start()), whole.len() >> child.shift())
            }
            _ => (0, 0),
        };
        let hpa = pages.hpa();
        let state = F::fresh(free, false);
        let first = F::update(self.config, child, free, Entry::Leaf { hpa, state, blocked: None });
        if count == u64::from(FANOUT) && hpa.is_aligned(at.level()) {
            self.write_pieces(&new, first, child);
        } else {
            self.memory.write_detached(&new, |index| {
                let place = u64::from(index.wrapping_sub(from));
                // The addresses of the pages lie inside one block of 2^52: adding cannot carry into other bits.
                if place < count { first.wrapping_add(place << child.shift()) } else { free }
            });
        }
        self.record(new.hpa(), count, Donated::default(), None);
        let entry = Entry::Table { hpa: new.hpa(), blocked: None };
        if let Err(error) = self.replace(at, &mut slot, |old| F::update(self.config, at.level(), old, entry))
        {
            drop(store.put(FrameKind::MirrorTable, new));
            return Err(error);
        }
        self.count_live(slot.table, 1);
        // The table owns them now.
        let _mapped = pages.take_run(count << (child.shift().wrapping_sub(Level::L4K.shift())));
        Ok(())
    }
}

/// The part of `range` that whole entries of `level` make up.
fn whole_part(range: GpaRange, level: Level) -> Option<GpaRange> {
    let start = range.start().raw().checked_next_multiple_of(level.size())?;
    let end = range.end() & !level.mask();
    GpaRange::new(Gpa::new(start)?, end.checked_sub(start)?)
}

fn whole_entries(range: GpaRange, level: Level) -> u64 {
    whole_part(range, level).map_or(0, |whole| whole.len() >> level.shift())
}

/// The entry of `level` that the range ends in.
fn last_entry(range: GpaRange, level: Level) -> GpaEntry {
    GpaEntry::containing(Gpa::truncate(range.end().wrapping_sub(1)), level)
}
