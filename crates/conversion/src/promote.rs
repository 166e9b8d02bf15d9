//! Promotion: merges small pages of the secure table again, once the guest has accepted them.
//!
//! The host cannot see an acceptance, so promotion is a pass of its own. For each 1 GiB of the guest it looks for
//! tables whose 512 pages belong to one folio large enough, asks the TEE about those pages that are not known to be
//! accepted, blocks the tables that qualify, fences once for all of them, merges, and then does the same one level up.
//! What the TEE refuses is unblocked and stays a candidate. A page that waits for acceptance is never promoted.
//!
//! A [`Promotion`] borrows nothing and holds no claim: run it while no conversion of the range is under way. It takes no
//! memory; it gives table pages back.

use crate::{Bound, Event, Needs, Observer, Pages, Platform, Step, Tee, TeeError, platform::SetOf};
use folio_split::FolioLayout;
use sept_core::{
    Class, Classify, Entry, FrameKind, FrameNeeds, FrameSource, Gpa, GpaEntry, GpaRange, LeafState, Level,
    Observed,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Probe and block the tables of this level.
    Block(Level),
    Fence(Level),
    Merge(Level),
    Grace,
    Settle,
    Ended,
}

/// A promotion pass over a range. See the [module](self).
#[must_use = "a pass that is not stepped to its end leaves tables blocked"]
pub struct Promotion<P: Platform> {
    range: GpaRange,
    /// The 1 GiB that is being worked on.
    gib: GpaEntry,
    phase: Phase,
    next: u64,
    blocked: bool,
    ticket: Option<<P::Tee as Tee>::Ticket>,
    fenced: Option<<P::Tee as Tee>::Fenced>,
    quiet: Option<<P::Tee as Tee>::Quiet>,
    owed: <P::Tee as Tee>::Obligation,
    candidates: FrameNeeds,
    released: FrameNeeds,
    merged: u64,
}

impl<P: Platform> Promotion<P> {
    /// A pass over every 1 GiB that `range` touches.
    pub fn new(platform: &P, range: GpaRange) -> Self {
        let range = range.align_out(Level::L1G);
        let gib = GpaEntry::containing(range.start(), Level::L1G);
        Self {
            range,
            gib,
            phase: Phase::Block(Level::L2M),
            next: gib.gpa().raw(),
            blocked: false,
            ticket: None,
            fenced: None,
            quiet: None,
            owed: platform.tee().obligation(),
            candidates: FrameNeeds::NONE,
            released: FrameNeeds::NONE,
            merged: 0,
        }
    }

    /// Frames that stood behind the tables found to qualify.
    #[must_use]
    pub const fn releasable(&self) -> Needs {
        Needs::frames(self.candidates)
    }

    /// Frames given back so far.
    #[must_use]
    pub const fn released(&self) -> Needs {
        Needs::frames(self.released)
    }

    /// Tables merged so far.
    #[must_use]
    pub const fn merged(&self) -> u64 {
        self.merged
    }

    /// Goes on for at most `bound`. Frames that become free go to `to`.
    ///
    /// # Errors
    ///
    /// The pass stands where it stood. A retryable refusal of one merge is not an error: that table is unblocked.
    pub fn step(
        &mut self,
        platform: &P,
        bound: Bound,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Result<Step, TeeError<P>> {
        let mut calls = bound.calls.max(1);
        while calls > 0 {
            match self.phase {
                Phase::Ended => return Ok(Step::Ended),
                Phase::Block(level) => self.block(platform, level, &mut calls, observer)?,
                Phase::Fence(level) => {
                    calls = calls.saturating_sub(1);
                    if !self.fence(platform, level, observer)? {
                        return Ok(Step::AwaitFence);
                    }
                }
                Phase::Merge(level) => self.merge(platform, level, &mut calls, observer)?,
                Phase::Grace => {
                    calls = calls.saturating_sub(1);
                    if !self.grace(platform) {
                        return Ok(Step::AwaitFence);
                    }
                }
                Phase::Settle => {
                    calls = calls.saturating_sub(1);
                    self.settle(platform, to, observer)?;
                }
            }
        }
        Ok(if self.phase == Phase::Ended { Step::Ended } else { Step::Again })
    }

    /// The entry of `level` at the cursor, in the present 1 GiB and in the range.
    fn cursor(&self, level: Level) -> Option<GpaEntry> {
        let gpa = Gpa::new(self.next).filter(|gpa| self.gib.range().contains(*gpa))?;
        Some(GpaEntry::containing(gpa, level))
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.next = self.gib.gpa().raw();
        if let Phase::Block(_) = phase {
            self.blocked = false;
        }
    }

    /// After the tables of `level`: those above, then the next 1 GiB.
    fn after(&mut self, platform: &P, level: Level) {
        match level.parent().filter(|above| *above <= Level::L1G && *above <= platform.tee().max_leaf()) {
            Some(above) => self.enter(Phase::Block(above)),
            None => match Gpa::new(self.gib.end()).filter(|gpa| self.range.contains(*gpa)) {
                Some(gpa) => {
                    self.gib = GpaEntry::containing(gpa, Level::L1G);
                    self.enter(Phase::Block(Level::L2M));
                }
                None => self.enter(Phase::Grace),
            },
        }
    }

    fn block(
        &mut self,
        platform: &P,
        level: Level,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        while let Some(at) = self.cursor(level) {
            if *calls == 0 {
                return Ok(());
            }
            if self.qualifies(platform, at, calls)? {
                platform.tee().block(at)?;
                *calls = calls.saturating_sub(1);
                self.blocked = true;
                observer.event(Event::Blocked { at, outside: true });
            }
            self.next = at.end();
        }
        if self.blocked {
            self.enter(Phase::Fence(level));
        } else {
            self.after(platform, level);
        }
        Ok(())
    }

    /// Whether the table at `at` can be merged: its pages are accepted and belong to one large folio.
    fn qualifies(&self, platform: &P, at: GpaEntry, calls: &mut u32) -> Result<bool, TeeError<P>> {
        let tee = platform.tee();
        let found = tee.lookup(at.gpa())?;
        let child = at.level().child();
        if Some(found.at.level()) != child || found.hidden || !declared(platform, at) {
            return Ok(false);
        }
        let Entry::Leaf { .. } = found.entry else { return Ok(false) };
        if tee.live(at)? != Some(512) {
            return Ok(false);
        }
        for index in 0..512 {
            let Some(page) = at.child(index) else { return Ok(false) };
            match tee.entry(page)? {
                Entry::Leaf { state: LeafState::Mapped, blocked: None, .. } => {}
                Entry::Leaf { state: LeafState::Pending, blocked: None, .. } => {
                    *calls = calls.saturating_sub(1);
                    if tee.probe(page)? != Observed::Leaf(LeafState::Mapped) {
                        return Ok(false);
                    }
                }
                _ => return Ok(false),
            }
        }
        Ok(tee.mergeable(at).is_ok())
    }

    fn fence(
        &mut self,
        platform: &P,
        level: Level,
        observer: &mut impl Observer,
    ) -> Result<bool, TeeError<P>> {
        let ticket = match self.ticket {
            Some(ticket) => ticket,
            None => {
                let ticket = platform.tee().fence()?;
                observer.event(Event::Fenced);
                *self.ticket.insert(ticket)
            }
        };
        self.fenced = platform.tee().fenced(ticket);
        if self.fenced.is_none() {
            return Ok(false);
        }
        self.ticket = None;
        self.enter(Phase::Merge(level));
        Ok(true)
    }

    fn merge(
        &mut self,
        platform: &P,
        level: Level,
        calls: &mut u32,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        let tee = platform.tee();
        let Some(fenced) = self.fenced else {
            self.after(platform, level);
            return Ok(());
        };
        while let Some(at) = self.cursor(level) {
            if *calls == 0 {
                return Ok(());
            }
            // A table above that is missing ends the look at this part of the guest.
            let entry = tee.entry(at).unwrap_or(Entry::Free);
            if let Entry::Table { blocked: Some(_), .. } = entry {
                *calls = calls.saturating_sub(1);
                let cost = tee.table_cost(
                    at,
                    platform
                        .block_of(at.gpa())
                        .and_then(|block| block.backs(at).then(|| block.hpa(at.gpa()))),
                );
                match tee.merge(at, &fenced, &mut self.owed) {
                    Ok(()) => {
                        self.merged = self.merged.saturating_add(1);
                        self.candidates = self.candidates.plus(cost);
                        observer.event(Event::Merged(at));
                    }
                    Err(error) if error.class() == Class::Fatal => return Err(error),
                    Err(_) => {
                        tee.unblock(at, &fenced)?;
                        observer.event(Event::Declined { at, pages: at.level() });
                    }
                }
            }
            self.next = at.end();
        }
        self.after(platform, level);
        Ok(())
    }

    fn grace(&mut self, platform: &P) -> bool {
        if !platform.tee().owes(&self.owed) {
            self.phase = Phase::Ended;
            return true;
        }
        let ticket = *self.ticket.get_or_insert_with(|| platform.tee().grace());
        self.quiet = platform.tee().quiet(ticket);
        if self.quiet.is_some() {
            self.ticket = None;
            self.phase = Phase::Settle;
        }
        self.quiet.is_some()
    }

    fn settle(
        &mut self,
        platform: &P,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        let Some(quiet) = self.quiet else {
            self.phase = Phase::Ended;
            return Ok(());
        };
        let (frames, result) = platform.tee().settle(&mut self.owed, &quiet, to);
        self.released = self.released.plus(frames);
        if frames[FrameKind::MirrorTable] != 0 {
            observer.event(Event::Released(Needs::frames(frames)));
        }
        match result {
            Err(Some(error)) => Err(error),
            Ok(()) | Err(None) => {
                self.phase = Phase::Ended;
                Ok(())
            }
        }
    }
}

/// Whether the provider guarantees one folio at least as large as `at`.
fn declared<P: Platform>(platform: &P, at: GpaEntry) -> bool {
    platform.block_of(at.gpa()).is_some_and(|block| {
        let small = SetOf { platform, block, set: Pages::Small };
        let layout = FolioLayout::new(block.pfn(), platform.orders(), small);
        block.backs(at) && layout.folio_at(block.page(at.gpa())).order().raw() >= at.level().order()
    })
}

impl<P: Platform> core::fmt::Debug for Promotion<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Promotion")
            .field("range", &self.range)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
