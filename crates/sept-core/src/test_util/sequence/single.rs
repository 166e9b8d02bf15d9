//! Operations on one entry.

use super::dump::{Page, entry_of, key, pages_of};
use super::judge::{Ask, is_anything, is_free, is_leaf, is_table, is_used};
use super::oracle::Shown;
use super::side::{Rules, Side};
use super::trial::{Left, Trial, Wants};
use super::{Memory, Op, Proof};
use crate::{
    Entry, Fenced, Fill, Frame, FrameStore, GpaEntry, GpaRange, Hpa, LeafState, Level, Obligation, Observed,
    Permissions, Returned, TableError, Tainted,
};
use std::vec;

impl<F: Rules, X: Side<F>> Trial<'_, F, X> {
    /// Carries out what any table can do.
    pub(super) fn step(&mut self, op: &Op) {
        match *op {
            Op::Link { at, backing, short } => {
                let at = self.at(at, Wants::Hole);
                let backing = backing.map(|memory| Hpa::truncate(self.host(at.gpa(), memory) << 12));
                self.link(at, backing, short);
            }
            Op::LinkTo { at, memory, short } => self.link_to(self.at(at, Wants::Hole), memory, short),
            Op::Map { at, memory, copy, exclusive, size } => {
                let at = self.at(at, Wants::Hole);
                self.map_by(at, memory, copy, size.unwrap_or(at.level()), None, |trial, page, fill| {
                    match exclusive {
                        true => trial.table_mut().exclusive().map(at, page, fill),
                        false => trial.table().map(at, page, fill),
                    }
                });
            }
            Op::Block(at) => self.block(self.at(at, Wants::Used)),
            Op::Unblock(at, proof) => {
                let at = self.at(at, Wants::Used);
                let (fence, shown, _) = self.prove(at, proof);
                self.unblock(at, &fence, shown);
            }
            Op::Protect(at, permissions) => self.protect(self.at(at, Wants::Page), permissions),
            Op::Probe(at) => self.probe(self.at(at, Wants::Page)),
            Op::Remove(at, proof) => {
                let at = self.at(at, Wants::Page);
                let (fence, shown, _) = self.prove(at, proof);
                self.remove(at, &fence, shown);
            }
            Op::Unlink(at, proof) => {
                let at = self.at(at, Wants::Empty);
                let (fence, shown, foreign) = self.prove(at, proof);
                self.unlink(at, &fence, shown, foreign);
            }
            Op::Split { at, proof, short } => {
                let at = self.at(at, Wants::Large);
                let (fence, shown, _) = self.prove(at, proof);
                self.split(at, &fence, shown, short);
            }
            Op::Merge(at, proof) => {
                let at = self.at(at, Wants::Full);
                let (fence, shown, foreign) = self.prove(at, proof);
                self.merge(at, &fence, shown, foreign);
            }
            Op::Inhibit(at, inhibit) => self.inhibit(self.at(at, Wants::Hole), inhibit),
            Op::Fence { count, held } => self.fences(count, held),
            Op::Settle { fence, pages: false } => self.settle(fence),
            Op::Accept(span) => self.accept(self.range(span, 512 << 12)),
            Op::Touch(at, dirty) => self.touch(self.at(at, Wants::Page), dirty),
            Op::Fail { op, after, fault } => {
                if let (Some(tee), None) = (self.tee(), self.fault) {
                    let nth = u64::from(after) + 1;
                    tee.fail(op, nth, fault);
                    self.fault = Some((op, tee.calls(op) + nth));
                }
            }
            _ => self.step_range(op),
        }
    }

    /// What to show; for a fresh proof the entry is blocked first and fenced.
    pub(super) fn prove(&mut self, at: GpaEntry, proof: Proof) -> (Fenced, Shown, bool) {
        if proof == Proof::Fresh {
            self.block(at);
            self.check();
            self.fence();
        }
        self.show(proof)
    }

    /// Maps with `map`, and notes what came of it. `linking` if that hangs in missing tables, and whether a frame for one
    /// is short. Says whether it was mapped.
    pub(super) fn map_by(
        &mut self,
        at: GpaEntry,
        memory: Memory,
        copy: bool,
        size: Level,
        linking: Option<bool>,
        map: impl FnOnce(&mut Self, Frame, Fill) -> Result<(), Returned<TableError<X::Error>, Frame>>,
    ) -> bool {
        let page = Hpa::truncate(self.host(at.gpa(), memory) << 12).align_down(size);
        let host = page.raw() >> 12;
        // Memory that the host does not have cannot be handed in.
        if size > Level::L1G || !self.oracle.lent.none_in(host..host + size.pages()) {
            return false;
        }
        let frame = Frame::from_ledger(page, size);
        let fill = if copy { Fill::Copy(Hpa::default()) } else { Fill::OnAccept };
        let result = map(self, frame, fill).map_err(|refused| {
            assert_eq!(
                (refused.held.hpa(), refused.held.level()),
                (page, size),
                "{at}: another frame came back"
            );
            refused.error
        });
        let misfit = size != at.level() || size > self.largest || copy && size > Level::L4K;
        let (linking, short) = (linking.is_some(), linking == Some(true));
        let ask = Ask { linking, short, ..Ask::of(is_free).misfit(misfit).sized() };
        let mapped = self.judge(at, ask, result).is_some();
        if mapped {
            self.mapped(at, host, copy);
        }
        mapped
    }

    /// Notes a page that was mapped.
    pub(super) fn mapped(&mut self, at: GpaEntry, host: u64, copied: bool) {
        let destroyed = self.oracle.destroyed.get(at.gpa().raw() >> 12).is_some();
        self.oracle.map(at, host, F::when_mapped(copied, destroyed));
    }

    pub(super) fn block(&mut self, at: GpaEntry) {
        let result = self.table().block(at);
        if self.judge(at, Ask::of(is_used).misfit(at.level() > F::top(self.config)), result).is_none() {
            return;
        }
        let now = self.oracle.now;
        if self.dump.is_table(at) {
            self.oracle.closed.remove(&key(at));
            self.oracle.hidden.entry(key(at)).or_insert(now);
        } else {
            let keep = |page: Page| Page { blocked: page.blocked.or(Some(now)), ..page };
            self.oracle.pages.change(pages_of(at), keep);
        }
    }

    pub(super) fn unblock(&mut self, at: GpaEntry, fence: &Fenced, shown: Shown) {
        let result = self.table().unblock(at, fence);
        if self.judge(at, self.ask(at, is_used).shown(shown), result).is_some() {
            self.oracle.hidden.remove(&key(at));
            self.oracle.pages.change(pages_of(at), |page| match self.dump.is_table(at) {
                true => page,
                false => Page { blocked: None, ..page },
            });
        }
    }

    /// An operation at a level that may be above the root.
    pub(super) fn ask(&self, at: GpaEntry, accepts: fn(Entry) -> bool) -> Ask {
        Ask::of(accepts).misfit(at.level() > F::top(self.config))
    }

    fn protect(&mut self, at: GpaEntry, permissions: Permissions) {
        let result = self.table().protect(at, permissions);
        let ask = Ask { unsayable: !F::can_say(permissions), ..self.ask(at, is_leaf) };
        if self.judge(at, ask, result).is_some() {
            assert!(self.tee().is_none(), "{at}: the TEE has no such call");
            self.oracle.pages.change(pages_of(at), |page| Page { permissions, ..page });
        }
    }

    fn probe(&mut self, at: GpaEntry) {
        let result = self.table().probe(at);
        let Some(observed) = self.judge(at, self.ask(at, is_anything), result) else { return };
        let leaf = self.oracle.leaf(at);
        let is_table = self.dump.is_table(at);
        match observed {
            Observed::Free => assert!(leaf.is_none() && !is_table, "{at}: not free"),
            Observed::Table => assert!(is_table, "{at}: no table"),
            Observed::Leaf(LeafState::Mapped) => self.learn(at),
            Observed::Leaf(_) => assert!(leaf.is_some(), "{at}: no page"),
            Observed::Hidden => panic!("{at}: hidden, though the walk came there"),
        }
    }

    /// The host learns that the guest has accepted a page.
    pub(super) fn learn(&mut self, at: GpaEntry) {
        let leaf = self.oracle.leaf(at).unwrap_or_else(|| panic!("{at}: no page"));
        if leaf.blocked.is_none() && leaf.state == LeafState::Pending {
            self.oracle.pages.change(pages_of(at), |page| Page { state: LeafState::Mapped, ..page });
        }
    }

    pub(super) fn remove(&mut self, at: GpaEntry, fence: &Fenced, shown: Shown) {
        let result = self.table().remove(at, fence);
        if let Some(page) = self.judge(at, self.ask(at, is_leaf).shown(shown), result) {
            self.removed(at, page);
        }
    }

    /// A page came out.
    pub(super) fn removed(&mut self, at: GpaEntry, page: Frame<Tainted>) {
        let was = self.oracle.leaf(at).unwrap_or_else(|| panic!("{at}: there was no page"));
        assert_eq!((page.hpa().raw() >> 12, page.level()), (was.host, was.level), "{at}: another page");
        self.oracle.unmap(pages_of(at), F::DESTROYS);
        self.reclaim(page);
    }

    pub(super) fn unlink(&mut self, at: GpaEntry, fence: &Fenced, shown: Shown, foreign: bool) {
        let result = self.with_obligation(foreign, |trial, owed| trial.table().unlink(at, fence, owed));
        if self.judge(at, self.ask(at, is_table).shown(shown).foreign(foreign), result).is_some() {
            assert!(self.oracle.pages.none_in(pages_of(at)), "{at}: a table with pages was unlinked");
            let below = self
                .dump
                .tables
                .keys()
                .any(|other| other.1 < at.level() && at.range().covers(entry_of(*other)));
            assert!(!below, "{at}: a table with tables was unlinked");
            self.left = Left::Exactly(vec![key(at)]);
            self.owes(false);
        }
    }

    /// Runs an operation with the trial's obligation or another table's, into which nothing must go.
    pub(super) fn with_obligation<T>(
        &mut self,
        foreign: bool,
        run: impl FnOnce(&mut Self, &mut Obligation) -> T,
    ) -> T {
        let mut owed = if foreign { self.foreign_obligation() } else { self.take_owed() };
        let result = run(self, &mut owed);
        if foreign {
            assert!(owed.is_empty(), "a table went into another one's obligation");
        } else {
            self.owed = owed;
        }
        result
    }

    fn split(&mut self, at: GpaEntry, fence: &Fenced, shown: Shown, short: bool) {
        let backing = self.oracle.leaf(at).map(|page| Hpa::truncate(page.host << 12));
        let need = self.table().table_cost(at, backing);
        let mut store = self.stock(need, short);
        let before = store.kept();
        let result = self.table().split(at, fence, &mut store);
        let used = self.unstock(before, store);
        let ask = self.ask(at, is_leaf).shown(shown).short(short);
        let ask = ask.misfit(ask.misfit || at.level() == Level::L4K);
        if self.judge(at, ask, result).is_some() {
            assert_eq!(used, need, "{at}: frames that a split takes");
            self.is_split(at);
        } else {
            assert!(used.is_none(), "{at}: frames lost");
        }
    }

    /// Notes that a page was split into the next smaller ones.
    pub(super) fn is_split(&mut self, at: GpaEntry) {
        let level = at.level().child().unwrap_or(Level::L4K);
        let was = self.oracle.leaf(at).unwrap_or_else(|| panic!("{at}: there was no page"));
        self.oracle.pages.change(pages_of(at), |page| Page { level, blocked: None, ..page });
        self.describe(at, Some(Hpa::truncate(was.host << 12)));
    }

    fn merge(&mut self, at: GpaEntry, fence: &Fenced, shown: Shown, foreign: bool) {
        let result = self.with_obligation(foreign, |trial, owed| trial.table().merge(at, fence, owed));
        let ask = self.ask(at, is_table).shown(shown).foreign(foreign).sized();
        let ask = ask.misfit(at.level() > self.oracle.max_leaf());
        if self.judge(at, ask, result).is_some() {
            self.left = Left::Exactly(vec![key(at)]);
            self.is_merged(at, false);
        }
    }

    /// Notes that a table was merged; `fence` if an MMU may still have it cached.
    pub(super) fn is_merged(&mut self, at: GpaEntry, fence: bool) {
        match self.oracle.uniform(at) {
            Ok(page) => self.oracle.pages.put(pages_of(at), page),
            Err(index) => panic!("{at}: merged, though page {index} does not fit"),
        }
        self.owes(fence);
    }

    fn inhibit(&mut self, at: GpaEntry, inhibit: bool) {
        let result = self.table().inhibit(at, inhibit);
        let ask = self.ask(at, |entry| !is_leaf(entry));
        if self.judge(at, ask.misfit(ask.misfit || at.level() == Level::L4K), result).is_some() {
            if inhibit {
                self.oracle.inhibited.insert(key(at));
            } else {
                self.oracle.inhibited.remove(&key(at));
            }
        }
    }

    /// Starts fences; the last one may be held up for a while.
    fn fences(&mut self, count: u16, held: bool) {
        for _ in 1..count {
            let _ = self.table().grace();
            self.oracle.now += 1;
        }
        self.table().external().hold(held);
        let (ticket, quiet) = (self.table().fence(), self.table().grace());
        self.oracle.now += 2;
        if held {
            let early = ticket.as_ref().ok().and_then(|ticket| self.table().fenced(ticket));
            assert!(
                early.is_none() && self.table().quiet(&quiet).is_none(),
                "a fence that is held has ended"
            );
            self.table().external().hold(false);
        }
        assert!(self.table().quiet(&quiet).is_some(), "the grace period has ended");
        assert!(self.table().fenced(&quiet).is_none(), "a grace period is no fence");
        self.fence();
    }

    /// Turns what is owed into frames.
    pub(super) fn settle(&mut self, fence: bool) {
        // Too early: tables that left since the last fence are not given away.
        let (early, shown, _) = self.show(Proof::Last);
        self.settle_by(&early.quiet(), shown, true);
        let number = self.oracle.now;
        let quiet = if fence {
            self.fence().map(|fence| fence.quiet())
        } else {
            let ticket = self.table().grace();
            self.oracle.now += 1;
            self.table().quiet(&ticket)
        };
        if let Some(quiet) = quiet {
            self.settle_by(&quiet, Shown::Number(number), fence);
        }
    }

    fn settle_by(&mut self, quiet: &crate::Quiet, shown: Shown, fence: bool) {
        let owed = self.take_owed();
        let empty = owed.is_empty();
        match self.table().settle(owed, quiet, &self.pool) {
            Ok(settled) => {
                self.all_settled(settled, empty, shown, fence);
                // Nobody asked for the pages: whoever lent them knows them.
                self.pages_home();
            }
            Err(refused) => {
                self.owed = refused.rest;
                let fault = refused.error.is_some();
                let early = !shown.covers(self.oracle.owed_at) || self.oracle.owed_fence && !fence;
                assert!(if fault { self.fault_was_hit() } else { early }, "not settled");
                assert!(fault || refused.settled.is_none(), "settled too early");
                let left = self.pool.outstanding_frames();
                self.owed_frames_mut().retain(|hpa, _| left.iter().any(|(out, _)| out.raw() == *hpa));
            }
        }
    }

    /// The pages of removed subtrees are the host's again.
    pub(super) fn pages_home(&mut self) {
        for (host, _) in self.oracle.owed.take(0..u64::MAX) {
            self.oracle.give_back(host);
        }
    }

    /// Checks that all that was owed was settled, and could be.
    pub(super) fn all_settled(&mut self, settled: crate::FrameNeeds, empty: bool, shown: Shown, fence: bool) {
        let mut expect = crate::FrameNeeds::NONE;
        for kind in self.owed_frames().values() {
            expect[*kind] += 1;
        }
        assert_eq!(settled, expect, "frames settled and owed");
        let early = !shown.covers(self.oracle.owed_at) || self.oracle.owed_fence && !fence;
        assert!(empty || !early, "settled too early");
        self.settled();
    }

    /// The guest accepts the pages of a range, as far as it can.
    fn accept(&mut self, range: GpaRange) {
        if let Some(tee) = self.tee() {
            let mut next = range.start().raw();
            while next < range.end() {
                let gpa = crate::Gpa::truncate(next);
                tee.accept(gpa);
                let level = self.oracle.pages.get(next >> 12).map_or(Level::L4K, |page| page.level);
                next = GpaEntry::containing(gpa, level).end();
            }
        }
    }

    /// The MMU sets a bit in a page's entry.
    fn touch(&mut self, at: GpaEntry, dirty: bool) {
        let bit = F::TOUCHED[usize::from(dirty)];
        if self.oracle.leaf(at).is_some_and(|page| page.blocked.is_none()) && !self.oracle.is_hidden(at) {
            let (Some(table), Some(raw)) = (self.dump.holder(at), self.dump.word(at)) else { return };
            let word = crate::Word::Entry(at.level().index(at.gpa()));
            crate::TableMemory::store(
                self.table().memory(),
                table,
                word,
                raw | bit,
                core::sync::atomic::Ordering::Relaxed,
            );
        }
    }
}
