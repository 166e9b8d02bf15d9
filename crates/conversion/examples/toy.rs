//! The smallest host: one 2 MiB guest, a vector for who may use which page, no folios, no vmemmap optimization.
//!
//! The secure table is the real one, in front of the TEE that the tests use. A real host differs in its `External`, in
//! its locks, and in what the empty methods below have to do.

use core::{cell::RefCell, error::Error, ops::Range};
use folio_split::{NoFolios, Order, OrderSet, Pfn, PfnBlock};
use gpa_conversion::{
    Block, Bound, Operation, Pages, Plan, Platform, Promotion, Request, Scope, Step, Visibility,
};
use sept_core::test_util::{Arena, FramePool, MockTee, RamLedger, VecStore};
use sept_core::{
    Class, Classify, Frame, FrameKind, FrameSource, Gpa, GpaEntry, GpaRange, Hpa, Level, SecurePageTable,
    Tainted, TdxConfig, TdxMirror,
};
use vmemmap_prealloc::NoVmemmap;

const PAGES: u64 = 512;
const RAM: u64 = 0x4000_0000;
const POOL: u64 = 0x1000_0000;

/// The host.
#[derive(Debug)]
struct Toy {
    table: SecurePageTable<TdxMirror, Arena, MockTee>,
    pool: FramePool,
    ram: RamLedger,
    shared: RefCell<Vec<bool>>,
}

impl Toy {
    fn new() -> Option<Self> {
        let pool = FramePool::new(Hpa::new(POOL)?, 64);
        let arena = Arena::new(Hpa::new(POOL)?, 64, Box::new(|_, _| {}));
        let root = pool.take(FrameKind::MirrorTable, Hpa::default())?;
        Some(Self {
            table: SecurePageTable::new(TdxConfig::LEVELS_4, arena, MockTee::new(Level::L512G), root),
            pool,
            ram: RamLedger::new(Hpa::new(RAM)?, PAGES),
            shared: RefCell::new(vec![false; 512]),
        })
    }
}

impl Platform for Toy {
    type Tee = SecurePageTable<TdxMirror, Arena, MockTee>;
    type Folios = NoFolios;
    type Vmemmap = NoVmemmap;
    type Claim = ();
    type Store = VecStore;
    type Flush = ();

    fn tee(&self) -> &Self::Tee {
        &self.table
    }
    fn folios(&self) -> &NoFolios {
        const { &NoFolios::new() }
    }
    fn vmemmap(&self) -> &NoVmemmap {
        const { &NoVmemmap::new() }
    }
    fn orders(&self) -> OrderSet {
        OrderSet::HUGETLB
    }
    fn block_of(&self, gpa: Gpa) -> Option<Block> {
        let block = PfnBlock::new(Pfn::containing(Hpa::new(RAM)?), Order::HUGE_2M)?;
        (gpa.raw() < Level::L2M.size()).then(|| Block::new(block, Gpa::default()))?
    }
    fn next_run(&self, _: &Block, set: Pages, from: u64) -> Option<Range<u64>> {
        // Without folios a page is small because it is shared; nothing is ever poisoned here.
        if set == Pages::Poisoned {
            return None;
        }
        let shared = self.shared.borrow();
        let at = |page: u64| usize::try_from(page).ok().and_then(|page| shared.get(page)).copied();
        let start = (from..PAGES).find(|&page| at(page) == Some(true))?;
        let end = (start..PAGES).find(|&page| at(page) != Some(true)).unwrap_or(PAGES);
        Some(start..end)
    }
    fn set_small(&self, _: &Block, _: Range<u64>, _: bool) {}
    fn set_visibility(&self, range: GpaRange, to: Visibility) {
        for (page, shared) in (0_u64..).zip(self.shared.borrow_mut().iter_mut()) {
            if range.contains(Gpa::truncate(page << Level::L4K.shift())) {
                *shared = to == Visibility::Shared;
            }
        }
    }
    fn visibility(&self, gpa: Gpa) -> Visibility {
        let page = usize::try_from(gpa.raw() >> Level::L4K.shift()).ok();
        let shared = page.and_then(|page| self.shared.borrow().get(page).copied()) == Some(true);
        if shared { Visibility::Shared } else { Visibility::Private }
    }
    fn next_pinned(&self, _: GpaRange) -> Option<Gpa> {
        None
    }
    fn set_converting(&self, _: GpaRange, _: bool) {}
    fn unmap_host(&self, _: GpaRange) {}
    fn host_flushed(&self, (): ()) -> bool {
        true
    }
    fn lend(&self, at: GpaEntry) -> Option<Frame> {
        self.ram.lend(self.block_of(at.gpa())?.hpa(at.gpa()), at.level())
    }
    fn take_back(&self, _: GpaEntry, page: Frame) {
        // What was not lent is not taken: it stays leaked.
        drop(self.ram.take_back(page));
    }
    fn poison(&self, _: Gpa, _: Option<Frame<Tainted>>) {}
    fn claim(&self, _: GpaRange, _: Scope) -> Option<()> {
        Some(())
    }
    fn release(&self, (): ()) {}
}

/// Plan, reserve, commit. What a hypervisor's ioctl would do, in one piece.
fn convert(toy: &Toy, request: Request) -> Result<(), Box<dyn Error>> {
    let plan = Plan::new(toy, request)?;
    println!("{plan}");
    let reserved = plan.reserve(toy, &toy.pool, VecStore::default()).map_err(|refused| refused.error)?;
    let mut commit = match reserved.commit(toy) {
        Ok(commit) => commit,
        Err(refused) => {
            drop(refused.held.release(toy, &toy.pool));
            return Err(refused.error.into());
        }
    };
    loop {
        match commit.step(toy, Bound::calls(16), &toy.pool, &mut ()) {
            Ok(Step::Ended) => break,
            Ok(_) => {}
            Err(error) if error.class() == Class::Retry => {}
            Err(_) => commit.cancel()?,
        }
    }
    let receipt = commit.finish(toy).map_err(|commit| format!("{commit:?} has not ended"))?;
    println!("  {:?}, used {}, released {}", receipt.outcome, receipt.used, receipt.released);
    drop(receipt.rest.release(toy, &toy.pool));
    Ok(())
}

fn leaves(toy: &Toy) -> usize {
    toy.table.external().leaves().len()
}

fn main() -> Result<(), Box<dyn Error>> {
    let toy = Toy::new().ok_or("addresses")?;
    let pages =
        |first: u64, count: u64| GpaRange::new(Gpa::truncate(first << 12), count << 12).ok_or("range");
    convert(
        &toy,
        Request::new(pages(0, PAGES)?, Operation::Populate { largest: Level::L2M, around: false }),
    )?;
    assert!(toy.table.external().accept(Gpa::default()), "the guest accepts its 2 MiB");
    assert_eq!(leaves(&toy), 1);

    convert(&toy, Request::new(pages(3, 1)?, Operation::Share))?;
    assert_eq!(leaves(&toy), 511, "one page is the host's, the others kept their content");

    convert(&toy, Request::new(pages(3, 1)?, Operation::Unshare { merge: true }))?;
    assert!(toy.table.external().accept(Gpa::truncate(3 << 12)), "the guest accepts the page again");

    let mut pass = Promotion::new(&toy, pages(0, PAGES)?);
    while pass.step(&toy, Bound::calls(64), &toy.pool, &mut ())? != Step::Ended {}
    println!("promotion released {}", pass.released());
    assert_eq!(leaves(&toy), 1);
    Ok(())
}
