//! A table on modelled memory, and what must hold between its parts at any time.

use sept_core::test_util::{Arena, FramePool, MockLeaf, MockRefusal, MockTee, RamLedger, VecStore};
use sept_core::{
    Donated, Entry, Fenced, Fill, Found, Frame, FrameKind, FrameNeeds, FrameSource, FrameStore, Gpa,
    GpaEntry, GpaRange, Hpa, LeafState, Level, Obligation, Quiet, SecurePageTable, TableError, TdxConfig,
    TdxMirror, Unsettled,
};
use std::sync::{Arc, Mutex};

pub(crate) type Table = SecurePageTable<TdxMirror, Arena, MockTee>;
pub(crate) type Error = TableError<MockRefusal>;

pub(crate) const K4: Level = Level::L4K;
pub(crate) const M2: Level = Level::L2M;
pub(crate) const G1: Level = Level::L1G;

/// Where guest memory lies on the host.
const RAM: u64 = 0x10_0000_0000;
/// Bytes of guest address space that the tests use.
const WINDOW: u64 = 2 << 30;

/// Depth of the table and first address of the window, one for each configuration.
pub(crate) const CONFIGS: [(TdxConfig, u64); 3] = [
    (TdxConfig::LEVELS_4, (1 << 47) - WINDOW),
    (TdxConfig::LEVELS_5_GPAW_48, 0),
    (TdxConfig::LEVELS_5_GPAW_52, 5 << 48),
];

pub(crate) struct Rig {
    pub(crate) pool: FramePool,
    pub(crate) ram: RamLedger,
    /// Shared, so that it can be used from inside a call into the TEE.
    pub(crate) table: Arc<Table>,
    pub(crate) store: VecStore,
    pub(crate) owed: Obligation,
    /// TEE pages behind the tables in `owed`, as the TEE's own record had them.
    pub(crate) owed_pages: FrameNeeds,
    /// Pages that left the table and that the test holds.
    pub(crate) held_pages: u64,
    pub(crate) scrubbed: Arc<Mutex<Vec<(Hpa, Level)>>>,
    strangers: u32,
    base: u64,
}

/// Everything an operation could change.
#[derive(PartialEq, Debug)]
pub(crate) struct Snapshot {
    mirror: Vec<Found>,
    tables: Vec<Result<Entry, Error>>,
    leaves: Vec<MockLeaf>,
    linked: Vec<(GpaEntry, Donated, bool)>,
    store: Vec<u32>,
    outstanding: FrameNeeds,
    lent: u64,
    owed: u32,
}

impl Rig {
    pub(crate) fn new((config, base): (TdxConfig, u64), metadata: bool) -> Self {
        let pool = FramePool::new(Hpa::default(), 4096);
        let scrubbed = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&scrubbed);
        let scrub = Box::new(move |hpa, level| note.lock().unwrap().push((hpa, level)));
        let tee = MockTee::new(config.top());
        let tee = if metadata { tee.with_metadata() } else { tee };
        let root = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        let table = Table::new(config, Arena::new(Hpa::default(), 4096, scrub), tee, root);
        Self {
            ram: RamLedger::new(Hpa::new(RAM).unwrap(), 4 << 18),
            owed: table.obligation(),
            table: Arc::new(table),
            pool,
            store: VecStore::default(),
            owed_pages: FrameNeeds::NONE,
            held_pages: 0,
            scrubbed,
            strangers: 0,
            base,
        }
    }

    pub(crate) fn tee(&self) -> &MockTee {
        self.table.external()
    }

    /// A second, empty table on memory of its own. Its root frame is out of the same pool, and is this test's to count.
    pub(crate) fn stranger(&mut self) -> Table {
        let root = self.pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
        self.strangers += 1;
        let config = self.table.config();
        Table::new(
            config,
            Arena::new(Hpa::default(), 4096, Box::new(|_, _| {})),
            MockTee::new(config.top()),
            root,
        )
    }

    /// The entry of `level` that covers the window's byte `offset`.
    pub(crate) fn at(&self, offset: u64, level: Level) -> GpaEntry {
        GpaEntry::containing(Gpa::new(self.base + offset).unwrap(), level)
    }

    pub(crate) fn gpa(&self, offset: u64) -> Gpa {
        Gpa::new(self.base + offset).unwrap()
    }

    pub(crate) fn window(&self) -> GpaRange {
        GpaRange::new(self.gpa(0), WINDOW).unwrap()
    }

    /// The host address of RAM byte `offset`.
    pub(crate) fn hpa(offset: u64) -> Hpa {
        Hpa::new(RAM + offset).unwrap()
    }

    pub(crate) fn page(&self, offset: u64, level: Level) -> Frame {
        self.ram.lend(Self::hpa(offset), level).unwrap()
    }

    /// Fills the store up to exactly what `need` says.
    pub(crate) fn stock(&mut self, need: FrameNeeds) {
        for kind in FrameKind::ALL {
            while self.store.count(kind) < need[kind] {
                let frame = self.pool.take(kind, Hpa::default()).unwrap();
                self.store.put(kind, frame).unwrap();
            }
            while self.store.count(kind) > need[kind] {
                self.pool.give(kind, self.store.get(kind).unwrap());
            }
        }
    }

    pub(crate) fn link(&mut self, at: GpaEntry, backing: Option<Hpa>) -> Result<(), Error> {
        self.stock(self.table.table_cost(at, backing));
        let result = self.table.link(at, backing, &mut self.store);
        self.stock(FrameNeeds::NONE);
        result
    }

    /// Links every table that leads to entries of `level` at `offset`.
    pub(crate) fn link_to(&mut self, offset: u64, level: Level) {
        let top = self.table.config().top();
        for above in Level::ALL.into_iter().rev().filter(|&above| above > level && above <= top) {
            let at = self.at(offset, above);
            if self.table.entry(at).unwrap() == Entry::Free {
                self.link(at, None).unwrap();
            }
        }
    }

    /// Maps RAM at `ram` to the window at `offset`, known to be accepted if `level` is 4K and `added`.
    pub(crate) fn map(&mut self, offset: u64, ram: u64, level: Level, added: bool) -> Result<(), Error> {
        let fill = if added { Fill::Copy(Self::hpa(0)) } else { Fill::OnAccept };
        let page = self.page(ram, level);
        self.table.map(self.at(offset, level), page, fill).map_err(|refused| {
            self.ram.take_back(refused.held).unwrap();
            refused.error
        })
    }

    /// A whole 2 MiB region of 4 KiB pages, known to be accepted.
    pub(crate) fn map_region(&mut self, offset: u64, ram: u64) {
        self.link_to(offset, K4);
        for page in (0..2 << 20).step_by(4096) {
            self.map(offset + page, ram + page, K4, true).unwrap();
        }
    }

    pub(crate) fn fence(&self) -> Fenced {
        let ticket = self.table.fence().unwrap();
        self.table.fenced(&ticket).unwrap()
    }

    pub(crate) fn block_and_fence(&self, at: GpaEntry) -> Fenced {
        self.table.block(at).unwrap();
        self.fence()
    }

    fn behind(&self, at: GpaEntry) -> FrameNeeds {
        let tables = self.tee().tables();
        let donated = tables.iter().find(|(table, ..)| *table == at).map(|(_, donated, _)| *donated);
        let Some(donated) = donated else { return FrameNeeds::NONE };
        let metadata = donated.metadata.iter().flatten().count();
        FrameNeeds::of(FrameKind::TeeTable, 1)
            .plus(FrameNeeds::of(FrameKind::TeeMetadata, u32::try_from(metadata).unwrap()))
    }

    pub(crate) fn unlink(&mut self, at: GpaEntry, fence: &Fenced) -> Result<(), Error> {
        let behind = self.behind(at);
        self.table.unlink(at, fence, &mut self.owed)?;
        self.owed_pages = self.owed_pages.plus(behind);
        Ok(())
    }

    pub(crate) fn merge(&mut self, at: GpaEntry, fence: &Fenced) -> Result<(), Error> {
        let behind = self.behind(at);
        self.table.merge(at, fence, &mut self.owed)?;
        self.owed_pages = self.owed_pages.plus(behind);
        Ok(())
    }

    pub(crate) fn split(&mut self, at: GpaEntry, fence: &Fenced) -> Result<(), Error> {
        let backing = match self.table.entry(at) {
            Ok(Entry::Leaf { hpa, .. }) => Some(hpa),
            _ => None,
        };
        self.stock(self.table.table_cost(at, backing));
        let result = self.table.split(at, fence, &mut self.store);
        self.stock(FrameNeeds::NONE);
        result
    }

    pub(crate) fn remove(&mut self, at: GpaEntry, fence: &Fenced) -> Result<(), Error> {
        let page = self.table.remove(at, fence)?;
        let page = self.table.reclaim(page).unwrap();
        self.ram.take_back(page).unwrap();
        Ok(())
    }

    /// Settles all that is owed after a grace period.
    pub(crate) fn settle(&mut self) -> FrameNeeds {
        let ticket = self.table.grace();
        let quiet = self.table.quiet(&ticket).unwrap();
        self.owed_pages = FrameNeeds::NONE;
        self.settle_by(&quiet).unwrap()
    }

    pub(crate) fn settle_by(&mut self, quiet: &Quiet) -> Result<FrameNeeds, Unsettled<MockRefusal>> {
        let owed = std::mem::replace(&mut self.owed, self.table.obligation());
        self.table.settle(owed, quiet, &self.pool)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let linked = self.tee().tables();
        Snapshot {
            mirror: self.table.entries(self.window()).collect(),
            tables: linked.iter().map(|(at, ..)| self.table.entry(*at)).collect(),
            leaves: self.tee().leaves(),
            linked,
            store: FrameKind::ALL.iter().map(|&kind| self.store.count(kind)).collect(),
            outstanding: self.pool.outstanding(),
            lent: self.ram.lent_pages(),
            owed: self.owed.tables(),
        }
    }

    /// Runs an operation that must be refused with `error` and change nothing.
    pub(crate) fn refused(&mut self, error: Error, operation: impl FnOnce(&mut Self) -> Result<(), Error>) {
        self.check();
        let before = self.snapshot();
        assert_eq!(operation(self), Err(error));
        self.check();
        assert_eq!(self.snapshot(), before, "{error}: something changed");
    }

    /// The mirror, the TEE and the ledgers of frames agree.
    pub(crate) fn check(&self) {
        let (leaves, tables) = (self.tee().leaves(), self.tee().tables());

        let mapped = self.table.entries(self.window()).filter(|found| found.entry != Entry::Free);
        assert!(
            mapped.map(|found| found.at).eq(leaves.iter().map(|leaf| leaf.at)),
            "the mirror maps other pages"
        );
        for leaf in &leaves {
            let Entry::Leaf { hpa, state, blocked } = self.table.entry(leaf.at).unwrap() else {
                panic!("{}: the mirror has no page", leaf.at)
            };
            assert_eq!((hpa, blocked.is_some()), (leaf.hpa, leaf.blocked), "{}", leaf.at);
            assert!(
                state == LeafState::Pending || leaf.state == LeafState::Mapped,
                "{}: not accepted",
                leaf.at
            );
        }
        for (at, _, hidden) in &tables {
            let child = at.level().child().unwrap();
            let inside = |entry: &GpaEntry| entry.level() == child && at.range().covers(*entry);
            let live = leaves.iter().map(|leaf| &leaf.at).chain(tables.iter().map(|table| &table.0));
            let live = u64::try_from(live.filter(|entry| inside(entry)).count()).unwrap();
            assert_eq!(self.table.live(*at), Ok(Some(live)), "{at}: live entries");
            assert_eq!(self.table.entry(*at).unwrap().blocked().is_some(), *hidden, "{at}");
        }

        let count = u32::try_from(tables.len()).unwrap();
        let mirror = FrameNeeds::of(FrameKind::MirrorTable, 1 + self.strangers + count + self.owed.tables());
        let mut expect = mirror.plus(self.tee().donated()).plus(self.owed_pages);
        for kind in FrameKind::ALL {
            expect[kind] += self.store.count(kind);
        }
        assert_eq!(self.pool.outstanding(), expect, "frames out of the pool");
        assert!(self.pool.faults().is_empty());
        let pages: u64 = leaves.iter().map(|leaf| leaf.at.level().pages()).sum();
        assert_eq!(self.ram.lent_pages(), pages + self.held_pages, "guest pages");
    }
}
