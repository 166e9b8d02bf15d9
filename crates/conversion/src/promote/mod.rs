//! Promotion: merges small pages of the secure table again, once the guest has accepted them.
//!
//! The host cannot see an acceptance, so promotion is a pass of its own. For each 1 GiB of the guest it looks for
//! tables whose 512 pages belong to one folio large enough, asks the TEE about those pages that are not known to be
//! accepted, blocks the tables that qualify, fences once for all of them, merges, and then does the same one level up.
//! What the TEE refuses is unblocked and stays a candidate. A page that waits for acceptance is never promoted.
//!
//! # Protocol
//!
//! `Block(2M)`, `Fence`, `Merge`, then the same for 1G, then the next 1 GiB; at the end one grace period for all tables
//! that were taken out, and they become frames. A table is blocked from `Block` to `Merge` and its pages are hidden
//! from the guest. An error of class *retry* while a table is looked at or blocked drops it as a candidate, after the
//! entry was read until that succeeds (a refused call may have left a mark on it that keeps the guest out); all other
//! errors leave the pass where it stood. [`Promotion::cancel`] shows again what is blocked.
//!
//! A [`Promotion`] borrows nothing and holds no claim: run it while no conversion of the range is under way. It takes no
//! memory; it gives table pages back.

mod candidates;

use crate::{Bound, Event, Needs, Observer, Platform, Step, Tee, TeeError, commit::Budget, stage2::backing};
use candidates::Verdict;
use sept_core::{Class, Classify, Entry, FrameNeeds, FrameSource, Gpa, GpaEntry, GpaRange, Hpa, Level};

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

/// A promotion pass over a range. See the protocol in the source of this module.
#[must_use = "a pass that is not stepped to its end leaves tables blocked"]
pub struct Promotion<P: Platform> {
    range: GpaRange,
    /// The 1 GiB that is being worked on.
    gib: GpaEntry,
    phase: Phase,
    next: u64,
    blocked: bool,
    /// Whether the pass was cancelled.
    turned: bool,
    /// An entry that the TEE refused to change or tell about.
    refused: Option<GpaEntry>,
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
            turned: false,
            refused: None,
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

    /// Goes on for at most `bound`. Frames that become free go to `to`. A table that is looked at without a call counts as
    /// one too: that is up to 512 entries.
    ///
    /// # Errors
    ///
    /// The pass stands where it stood. Step again, or [cancel](Self::cancel) and step to the end.
    pub fn step(
        &mut self,
        platform: &P,
        bound: Bound,
        to: &dyn FrameSource,
        observer: &mut impl Observer,
    ) -> Result<Step, TeeError<P>> {
        let mut budget = Budget::new(bound.calls);
        while !budget.is_spent() {
            match self.phase {
                Phase::Ended => return Ok(Step::Ended),
                Phase::Block(level) => self.block(platform, level, &mut budget, observer)?,
                Phase::Fence(level) => {
                    budget.call();
                    if !self.fence(platform, level, observer)? {
                        return Ok(Step::AwaitFence);
                    }
                }
                Phase::Merge(level) => self.merge(platform, level, &mut budget, observer)?,
                Phase::Grace => {
                    budget.call();
                    if !self.grace(platform) {
                        return Ok(Step::AwaitFence);
                    }
                }
                Phase::Settle => {
                    budget.call();
                    self.settle(platform, to, observer)?;
                }
            }
        }
        Ok(if self.phase == Phase::Ended { Step::Ended } else { Step::Again })
    }

    /// Ends the pass early: what is blocked is shown to the guest again, what was merged stays. It still has to be
    /// stepped to its end.
    pub fn cancel(&mut self) {
        self.turned = true;
        if let Phase::Block(level) = self.phase {
            self.enter(if self.blocked { Phase::Fence(level) } else { Phase::Grace });
        }
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
        if self.turned {
            self.enter(Phase::Grace);
            return;
        }
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
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        self.give_way(platform, budget)?;
        while let Some(at) = self.cursor(level) {
            if budget.is_spent() {
                return Ok(());
            }
            match self.qualifies(platform, at, budget) {
                Ok(Verdict::Later) => return Ok(()),
                Ok(Verdict::No) => {}
                Ok(Verdict::Yes) => match platform.tee().block(at) {
                    Ok(()) => {
                        self.blocked = true;
                        self.candidates =
                            self.candidates.plus(platform.tee().table_cost(at, backed(platform, at)));
                        observer.event(Event::Blocked { at, outside: true });
                    }
                    Err(error) => self.decline(at, at, error, observer)?,
                },
                Err((page, error)) => self.decline(at, page, error, observer)?,
            }
            budget.call();
            self.next = at.end();
            self.give_way(platform, budget)?;
        }
        if self.blocked {
            self.enter(Phase::Fence(level));
        } else {
            self.after(platform, level);
        }
        Ok(())
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
        budget: &mut Budget,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        let tee = platform.tee();
        let Some(fenced) = self.fenced else {
            self.after(platform, level);
            return Ok(());
        };
        while let Some(at) = self.cursor(level) {
            if budget.is_spent() {
                return Ok(());
            }
            budget.look();
            match tee.entry(at) {
                Ok(Entry::Table { blocked: Some(_), .. }) => {
                    budget.call();
                    self.merge_one(platform, at, &fenced, observer)?;
                }
                // No table leads there: nothing was blocked.
                Err(error) if error.class() != Class::Caller => return Err(error),
                _ => {}
            }
            self.next = at.end();
        }
        self.after(platform, level);
        Ok(())
    }

    /// Merges one blocked table, or shows it again.
    fn merge_one(
        &mut self,
        platform: &P,
        at: GpaEntry,
        fenced: &<P::Tee as Tee>::Fenced,
        observer: &mut impl Observer,
    ) -> Result<(), TeeError<P>> {
        if !self.turned {
            match platform.tee().merge(at, fenced, &mut self.owed) {
                Ok(()) => {
                    self.merged = self.merged.saturating_add(1);
                    observer.event(Event::Merged(at));
                    return Ok(());
                }
                Err(error) if error.class() == Class::Fatal => return Err(error),
                Err(_) => {}
            }
        }
        platform.tee().unblock(at, fenced)?;
        observer.event(Event::Declined { at, pages: at.level().child().unwrap_or(Level::L4K) });
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
        if !frames.is_none() {
            observer.event(Event::Released(Needs::frames(frames)));
        }
        match result {
            Err(Some(error)) => return Err(error),
            Ok(()) => self.phase = Phase::Ended,
            // The grace period does not cover everything: another one.
            Err(None) => self.phase = Phase::Grace,
        }
        Ok(())
    }
}

/// The memory behind the pages of a table.
fn backed<P: Platform>(platform: &P, at: GpaEntry) -> Option<Hpa> {
    backing(&platform.block_of(at.gpa())?, at)
}

impl<P: Platform> core::fmt::Debug for Promotion<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Promotion")
            .field("range", &self.range)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
