//! A table, its oracle, and what must hold between them after every operation.

use super::dump::{Dump, Key, Words, entry_of, key};
use super::oracle::{Oracle, Shown};
use super::side::{Rules, Side, Table};
use super::{Memory, Op, Place, Proof, Span, Spot};
use crate::test_util::{Arena, FramePool, MockOp, MockTee, VecStore};
use crate::{
    FenceTicket, Fenced, Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Gpa, GpaEntry, GpaRange, Hpa,
    Level, Obligation, Tainted, Unmapped,
};
use std::{boxed::Box, collections::BTreeMap, vec::Vec};

/// Where guest memory lies on the host.
const RAM: u64 = 1 << 40;
const FRAMES: usize = 8192;
pub(super) const G1: u64 = 1 << 30;

/// What an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    Hole,
    Page,
    /// A page that can be split.
    Large,
    Table,
    Full,
    Empty,
    Used,
}

/// Tables that an operation took out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Left {
    None,
    Exactly(Vec<Key>),
    /// Any, and what they may still hold is in the obligation.
    Any,
}

pub(super) struct Trial<'m, F: Rules, X: Side<F>> {
    arena: &'m Arena,
    pub(super) config: F::Config,
    pub(super) root: Hpa,
    /// Away while somebody has it alone.
    pub(super) table: Option<Table<'m, F, X>>,
    pub(super) pool: FramePool,
    pub(super) oracle: Oracle,
    pub(super) owed: Obligation,
    /// Frames in the obligation.
    pub(super) owed_frames: BTreeMap<u64, FrameKind>,
    /// The last fences, youngest first.
    proofs: Vec<(Fenced, u64)>,
    foreign: (Fenced, Table<'m, F, X>),
    /// Pages that were unmapped since the last fence.
    pub(super) unmapped: Vec<(GpaEntry, Unmapped)>,
    /// The table as it was before the operation.
    pub(super) dump: Dump,
    pub(super) donated: BTreeMap<u64, FrameKind>,
    /// What the operation did, as far as the oracle does not say it.
    pub(super) refused: bool,
    pub(super) left: Left,
    pub(super) used: FrameNeeds,
    /// A failure that the TEE will make: the kind of call and its number.
    pub(super) fault: Option<(MockOp, u64)>,
    pub(super) metadata: bool,
    /// Largest page that can be mapped.
    pub(super) largest: Level,
    pub(super) windows: [u64; 3],
    /// For samples.
    pub(super) seed: u64,
}

/// Memory for the tables of a trial.
pub(super) fn arena() -> Arena {
    Arena::new(Hpa::default(), FRAMES, Box::new(|_, _| {}))
}

impl<'m, F: Rules, X: Side<F>> Trial<'m, F, X> {
    /// An empty table of a guest whose addresses end at `end`, in an empty arena.
    pub(super) fn new(arena: &'m Arena, config: F::Config, end: u64, metadata: bool) -> Self {
        let table = |pool: &FramePool| {
            let root = pool.take(FrameKind::MirrorTable, Hpa::default()).expect("an empty pool");
            Table::<F, X>::new(config, arena, X::new(F::top(config), metadata), root)
        };
        // One frame of the arena is another table's root.
        let pool = FramePool::new(Hpa::default(), FRAMES as u64 - 1);
        let stranger = table(&FramePool::new(Hpa::truncate(4096 * (FRAMES as u64 - 1)), 1));
        let ticket = stranger.fence().expect("nothing fails yet");
        let foreign = stranger.fenced(&ticket).expect("ends at once");
        let table = table(&pool);
        let boundary = if F::top(config) == Level::L256T && end > 1 << 48 { 1 << 48 } else { 1 << 39 };
        let dump = Dump::of::<F>(arena, table.root(), config);
        let mut trial = Self {
            arena,
            config,
            root: table.root(),
            oracle: Oracle::new(F::top(config), end, table.max_leaf()),
            owed: table.obligation(),
            owed_frames: BTreeMap::new(),
            proofs: Vec::new(),
            foreign: (foreign, stranger),
            unmapped: Vec::new(),
            dump,
            donated: BTreeMap::new(),
            refused: false,
            left: Left::None,
            used: FrameNeeds::NONE,
            fault: None,
            metadata,
            largest: table.external().max_map().min(F::max_leaf(config)),
            windows: [0, boundary - 2 * G1, end - 2 * G1],
            seed: 1,
            table: Some(table),
            pool,
        };
        trial.fence();
        trial.refused = false;
        trial
    }

    /// The table, which nobody has alone.
    pub(super) fn table(&self) -> &Table<'m, F, X> {
        self.table.as_ref().expect("nobody has it alone")
    }

    pub(super) fn table_mut(&mut self) -> &mut Table<'m, F, X> {
        self.table.as_mut().expect("nobody has it alone")
    }

    /// The TEE, if there is one.
    pub(super) fn tee(&self) -> Option<&MockTee> {
        self.table.as_ref()?.external().tee()
    }

    /// What stands in the table now.
    pub(super) fn words(&self) -> Dump {
        Dump::of::<F>(self.arena, self.root, self.config)
    }

    pub(super) fn gpa(&self, spot: Spot) -> Gpa {
        let window = self.windows[usize::from(spot.window % 3)];
        let offset =
            u64::from(spot.g & 3) << 30 | u64::from(spot.m & 511) << 21 | u64::from(spot.k & 511) << 12;
        // The last window may end where addresses do.
        Gpa::new(window + offset).unwrap_or(Gpa::truncate(window + offset % (2 * G1)))
    }

    /// The entry that is meant for an operation on what `wants` says.
    pub(super) fn at(&self, place: Place, wants: Wants) -> GpaEntry {
        let at = GpaEntry::containing(self.gpa(place.spot), place.level);
        let near = match wants {
            _ if !place.near => None,
            Wants::Hole => self.hole_near(self.gpa(place.spot)),
            Wants::Page => self.page_near(at),
            Wants::Large => self.page_near(GpaEntry::containing(at.gpa(), at.level().max(Level::L2M))),
            Wants::Table => self.table_near(at, |_| true),
            Wants::Full => self.table_near(at, |table| table.live == 512),
            Wants::Empty => self.table_near(at, |table| table.live == 0),
            Wants::Used if place.spot.k.is_multiple_of(2) => self.page_near(at),
            Wants::Used => self.table_near(at, |_| true),
        };
        near.unwrap_or(at)
    }

    /// The entry for `gpa` in the lowest table that leads there.
    fn hole_near(&self, gpa: Gpa) -> Option<GpaEntry> {
        let page = GpaEntry::containing(gpa, Level::L4K);
        let tables = core::iter::once(page).chain(self.oracle.above(page));
        tables.into_iter().find(|at| self.dump.holder(*at).is_some())
    }

    /// A page at `at` or after it, else the first one; of its size if there is one.
    fn page_near(&self, at: GpaEntry) -> Option<GpaEntry> {
        let from = at.gpa().raw() >> 12;
        let after = self.oracle.pages.within(from..u64::MAX).chain(self.oracle.pages.iter());
        let mut any = None;
        for (run, page) in after.take(64) {
            let found = GpaEntry::containing(Gpa::truncate(run.start << 12), page.level);
            if page.level == at.level() {
                return Some(found);
            }
            any = any.or(Some(found));
        }
        any
    }

    /// The same for a table.
    fn table_near(&self, at: GpaEntry, fits: impl Fn(&Words) -> bool) -> Option<GpaEntry> {
        let after = self.dump.tables.range(key(at)..).chain(&self.dump.tables);
        let mut fitting = after.filter(|(_, table)| fits(table)).map(|(at, _)| entry_of(*at));
        let first = fitting.next();
        first.into_iter().chain(fitting).find(|found| found.level() == at.level()).or(first)
    }

    /// The range of a span, at most `most` bytes from its start on.
    pub(super) fn range(&self, span: Span, most: u64) -> GpaRange {
        let ends = [span.from, Spot { window: span.from.window, ..span.to }].map(|spot| self.gpa(spot));
        let (first, last) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        // Rounded outwards, but not out of the window.
        let window = self.windows[usize::from(span.from.window % 3)];
        let start = GpaEntry::containing(first, span.level).gpa().raw().max(window);
        let end = GpaEntry::containing(last, span.level).end().min(window + 4 * G1);
        let (start, len) = (Gpa::truncate(start), (end - start).min(most.max(4096)));
        GpaRange::new(start, len).expect("whole pages below 2^52")
    }

    /// Number of the host page that `memory` has for the guest page at `gpa`.
    pub(super) fn host(&self, gpa: Gpa, memory: Memory) -> u64 {
        let window = self.windows.iter().rposition(|start| *start <= gpa.raw()).unwrap_or(0);
        let distance = (gpa.raw() - self.windows[window]) % (4 * G1);
        let skew = match memory {
            Memory::Aligned => 0,
            Memory::Other => 8 * G1,
            Memory::By2M => 16 * G1 + (1 << 21),
            Memory::By4K => 24 * G1 + (1 << 12),
        };
        (RAM + window as u64 * 64 * G1 + distance + skew) >> 12
    }

    /// A store with exactly `need`, or one frame short of it.
    pub(super) fn stock(&self, need: FrameNeeds, short: bool) -> VecStore {
        let mut store = VecStore::default();
        store.fill(&need, Hpa::default(), &self.pool).expect("the pool is large");
        let dearest = FrameKind::ALL.into_iter().rfind(|kind| short && need[*kind] > 0);
        if let Some(frame) = dearest.and_then(|kind| store.get(kind).map(|frame| (kind, frame))) {
            self.pool.give(frame.0, frame.1);
        }
        store
    }

    /// Puts what is left of it back into the pool.
    pub(super) fn unstock(&mut self, before: FrameNeeds, store: VecStore) -> FrameNeeds {
        let mut store = store;
        let kept = store.kept();
        store.drain(&kept, &self.pool);
        let used = before.saturating_sub(&kept);
        self.used = self.used.plus(used);
        used
    }

    /// Starts a fence and waits for it, which is at once.
    pub(super) fn fence(&mut self) -> Option<Fenced> {
        let number = self.oracle.now;
        let ticket = self.table().fence();
        self.oracle.now += 1;
        let Ok(ticket) = ticket else {
            assert!(self.fault_was_hit(), "no fence to be had");
            return None;
        };
        let fence = self.fenced(&ticket);
        self.proofs.insert(0, (fence, number));
        self.proofs.truncate(4);
        Some(fence)
    }

    pub(super) fn fenced(&self, ticket: &FenceTicket<X::Ticket>) -> Fenced {
        assert!(self.foreign.1.fenced(ticket).is_none(), "another table's ticket");
        self.table().fenced(ticket).expect("the fence has ended")
    }

    /// The proof to show, and whether to show an obligation of another table with it.
    pub(super) fn show(&mut self, proof: Proof) -> (Fenced, Shown, bool) {
        let foreign = proof == Proof::Foreign && self.coin().is_multiple_of(2);
        let (fence, number) = match proof {
            Proof::Foreign if !foreign => return (self.foreign.0, Shown::Foreign, false),
            Proof::Older => self.proofs[self.proofs.len() - 1],
            _ => self.proofs[0],
        };
        (fence, Shown::Number(number), foreign)
    }

    /// Some number.
    pub(super) fn coin(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    /// The obligation; put it back, or an empty one.
    pub(super) fn take_owed(&mut self) -> Obligation {
        let empty = self.table.as_ref().map_or_else(|| self.foreign_obligation(), |table| table.obligation());
        core::mem::replace(&mut self.owed, empty)
    }

    /// An obligation of another table.
    pub(super) fn foreign_obligation(&self) -> Obligation {
        self.foreign.1.obligation()
    }

    pub(super) fn fault_was_hit(&self) -> bool {
        let calls = |op| self.tee().map_or(0, |tee| tee.calls(op));
        self.fault.is_some_and(|(op, number)| calls(op) >= number)
    }

    /// Notes that tables went into the obligation; `fence` if an MMU may still have them cached.
    pub(super) fn owes(&mut self, fence: bool) {
        self.oracle.owed_at = self.oracle.now;
        self.oracle.owed_fence |= fence;
    }

    /// The host has a page back that it took out of the guest.
    pub(super) fn reclaim(&mut self, page: Frame<Tainted>) {
        let mut page = page;
        loop {
            match self.table().reclaim(page) {
                Ok(page) => {
                    let first = page.hpa().raw() >> 12;
                    return self.oracle.give_back(first..first + page.level().pages());
                }
                Err(refused) => {
                    assert!(self.fault_was_hit(), "a page cannot be written back");
                    self.fault = None;
                    page = refused.held;
                }
            }
        }
    }

    /// Carries out operations and checks everything after each. Those that need the table alone are done in one go, with a
    /// look at the words after each.
    pub(super) fn run(&mut self, ops: &[Op]) {
        let mut rest = ops;
        while let Some((op, after)) = rest.split_first() {
            let alone = rest.iter().take_while(|op| op.is_alone()).count();
            if alone > 0 && self.tee().is_none() {
                let (ops, after) = rest.split_at(alone);
                X::alone(self, ops);
                rest = after;
            } else {
                self.step(op);
                X::without_tee(self, op);
                rest = after;
            }
            self.check();
        }
    }

    /// All frames of the obligation that it settled are the host's again.
    pub(super) fn settled(&mut self) {
        self.owed_frames.clear();
        self.oracle.owed_fence = false;
    }

    pub(super) fn owed_frames(&self) -> &BTreeMap<u64, FrameKind> {
        &self.owed_frames
    }

    pub(super) fn owed_frames_mut(&mut self) -> &mut BTreeMap<u64, FrameKind> {
        &mut self.owed_frames
    }
}
