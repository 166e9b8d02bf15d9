//! The wrappers and [`Td`] against a software TDX module: a TD's life from its first page to its last.
#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test may fail by panicking")]

use core::cell::Cell;
use seamcall::phymem::{self, CacheWb};
use seamcall::{Hkid, KeyIdBits, RetryBudget, Td, TdDescription, TdParams, Tdvpr, mng, mr, ranges, vp};
use sept_core::{
    CacheKey, Class, Classify, External, Fill, Frame, FrameKind, FrameStore, Gpa, GpaEntry, Hpa, LeafState,
    Level, Observed, Shootdown, Tainted, TdxConfig,
};
use tdx_model::{Accept, Guest, Lp, Machine, MachineBuilder, Status};
use zerocopy::IntoBytes;

const BASE: u64 = 0x1_0000_0000;
/// A GiB of which nothing else is in use.
const LARGE: u64 = BASE + (1 << 30);
const PARAMS: u64 = 0x4000_0000;

#[expect(unsafe_code, reason = "a test makes up where memory is free")]
fn frame(hpa: u64, level: Level) -> Frame {
    // SAFETY: the test names each address once, and the memory is the model's.
    unsafe { Frame::assume_owned(Hpa::truncate(hpa), level) }.unwrap()
}

#[expect(unsafe_code, reason = "no host reads the pages of this test")]
fn scrub(page: Frame<Tainted>) -> Frame {
    // SAFETY: it was written back by the caller, and nobody looks at its content.
    unsafe { page.assume_scrubbed() }
}

/// Makes the one vCPU leave.
struct Kick<'m>(Guest<'m>);

#[expect(unsafe_code, reason = "the vCPU really leaves")]
// SAFETY: `start` makes the only vCPU leave before it returns; there are no software walks.
unsafe impl Shootdown for Kick<'_> {
    type Ticket = bool;

    fn start(&self) -> bool {
        self.0.exit()
    }

    fn done(&self, _: bool) -> bool {
        !self.0.is_inside()
    }
}

/// Hands out fresh frames and keeps what comes back.
#[derive(Default)]
struct Shelf {
    fresh: Vec<u64>,
    back: Vec<(FrameKind, Frame)>,
}

impl FrameStore for Shelf {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        self.back.push((kind, frame));
        Ok(())
    }

    fn get(&mut self, _: FrameKind) -> Option<Frame> {
        self.fresh.pop().map(|hpa| frame(hpa, Level::L4K))
    }

    fn count(&self, _: FrameKind) -> u32 {
        u32::try_from(self.fresh.len()).unwrap()
    }
}

type ModelTd<'m> = Td<Lp<'m>, Kick<'m>>;

struct Bench<'m> {
    machine: &'m Machine,
    td: ModelTd<'m>,
    vcpu: Tdvpr,
    next: Cell<u64>,
}

fn builder(dynamic_pamt: bool) -> MachineBuilder {
    Machine::builder().memory(BASE, 4).dynamic_pamt(dynamic_pamt)
}

fn entry(gpa: u64, level: Level) -> GpaEntry {
    GpaEntry::new(Gpa::new(gpa).unwrap(), level).unwrap()
}

impl<'m> Bench<'m> {
    /// Builds a TD with the wrappers. `finalize` ends the build.
    fn new(machine: &'m Machine, dynamic_pamt: bool, finalize: bool) -> Self {
        let t = machine.lp(0);
        if dynamic_pamt {
            // Control and table pages come from the first 2 MiB; its pair from elsewhere.
            let pair = [0x3f00_0000, 0x3f00_1000].map(|at| frame(BASE + at, Level::L4K));
            phymem::pamt_add(&t, Hpa::truncate(BASE), pair).unwrap();
        }
        let next = Cell::new(BASE);
        let page = || {
            let hpa = next.get();
            next.set(hpa + 0x1000);
            frame(hpa, Level::L4K)
        };
        let hkid = Hkid::new(33);
        let tdr = mng::create(&t, page(), hkid).unwrap();
        mng::key_config(&t, tdr).unwrap();
        (0..6).for_each(|_| mng::addcx(&t, tdr, page()).unwrap());
        let params = TdParams::new(TdxConfig::LEVELS_4, seamcall::Attributes::SEPT_VE_DISABLE, 1);
        machine.host_write_bytes(Hpa::truncate(PARAMS), params.as_bytes());
        mng::init(&t, tdr, Hpa::truncate(PARAMS)).unwrap();
        let vcpu = vp::create(&t, tdr, page()).unwrap();
        (0..5).for_each(|_| vp::addcx(&t, vcpu, page()).unwrap());
        vp::init(&t, vcpu, 0).unwrap();
        let keys = KeyIdBits::new(52, 6).unwrap();
        let description = TdDescription::new(tdr, hkid, Hkid::new(32), keys, TdxConfig::LEVELS_4)
            .with_dynamic_pamt(dynamic_pamt)
            .with_budget(RetryBudget { busy: 4, restartable: 4 });
        let td = Td::new(t, Kick(machine.guest(vcpu.hpa())), (), description);
        if finalize {
            td.finalize().unwrap();
        }
        Self { machine, td, vcpu, next }
    }

    fn shelf(&self, pages: u64) -> Shelf {
        let first = self.next.get();
        self.next.set(first + pages * 0x1000);
        Shelf { fresh: (0..pages).map(|page| first + page * 0x1000).collect(), back: Vec::new() }
    }

    fn link(&self, at: GpaEntry, backing: Option<Hpa>) {
        let pages = self.td.gather(at, backing, &mut self.shelf(3)).unwrap();
        self.td.link(at, backing, pages).unwrap();
    }

    fn guest(&self) -> Guest<'m> {
        self.machine.guest(self.vcpu.hpa())
    }

    fn accept(&self, at: GpaEntry) {
        assert_eq!(self.guest().accept(at.gpa(), at.level()), Ok(Accept::Returned(Status::SUCCESS)));
    }

    #[track_caller]
    fn sound(&self) {
        assert_eq!(self.machine.check_invariants(), Vec::<String>::new());
        assert!(self.machine.violations().is_empty(), "{:?}", self.machine.violations());
    }
}

/// Map, accept, split, merge, remove, tear down; with and without Dynamic PAMT.
#[test]
fn a_life() {
    for dynamic_pamt in [false, true] {
        let machine = builder(dynamic_pamt).build();
        let bench = Bench::new(&machine, dynamic_pamt, true);
        let (td, guest) = (&bench.td, bench.guest());
        bench.link(entry(0, Level::L512G), None);
        bench.link(entry(0x4000_0000, Level::L1G), None);
        let at = entry(0x4000_0000, Level::L2M);
        td.map(at, frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Leaf(LeafState::Pending));
        guest.enter(0).unwrap();
        bench.accept(at);
        (0..512).for_each(|page| guest.write(at.child(page).unwrap().gpa(), 100 + u64::from(page)).unwrap());
        assert_eq!(td.probe(at).unwrap(), Observed::Leaf(LeafState::Mapped));

        // Split, with the vCPU inside until the fence makes it leave.
        td.block(at).unwrap();
        td.block(at).unwrap();
        assert_eq!(td.unblock(at).unwrap_err().class(), Class::Quiesce, "not tracked yet");
        let ticket = td.fence().unwrap();
        assert!(td.fenced(ticket) && !guest.is_inside());
        let backing = Some(Hpa::truncate(LARGE));
        let mut shelf = bench.shelf(3);
        let pages = td.gather(at, backing, &mut shelf).unwrap();
        let given = td.addresses(&pages);
        assert_eq!(given.metadata[0].is_some(), dynamic_pamt);
        td.split(at, pages).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Table);
        guest.enter(0).unwrap();
        assert_eq!(guest.read(at.child(7).unwrap().gpa()), Ok(107));

        // Merge: what was given comes back.
        td.block(at).unwrap();
        td.fence().unwrap();
        assert_eq!(td.merge(at, Hpa::truncate(LARGE)).unwrap(), given);
        for page in [given.table].into_iter().flatten() {
            td.write_back(&frame(page.raw(), Level::L4K).taint(), CacheKey::Guest).unwrap();
        }
        for page in given.metadata.into_iter().flatten() {
            td.write_back(&frame(page.raw(), Level::L4K).taint(), CacheKey::Module).unwrap();
        }
        guest.enter(0).unwrap();
        assert_eq!(guest.read(at.child(511).unwrap().gpa()), Ok(611));
        bench.sound();

        // Remove.
        td.block(at).unwrap();
        td.fence().unwrap();
        td.unmap(at, Hpa::truncate(LARGE)).unwrap();
        td.write_back(&frame(LARGE, Level::L2M).taint(), CacheKey::Guest).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Free);
        bench.sound();

        // Tear down.
        let t = td.transport();
        vp::flush(t, bench.vcpu).unwrap();
        mng::vpflushdone(t, td.tdr()).unwrap();
        phymem::cache_wb(t, CacheWb::Start).unwrap();
        mng::key_freeid(t, td.tdr()).unwrap();
        let mut count = 0;
        ranges::reclaim(t, Hpa::truncate(BASE + 0x1000), 511, |_, _| count += 1).unwrap();
        assert_eq!(count, 6 + 6 + 2, "control pages and two tables");
        phymem::page_reclaim(t, td.tdr().hpa()).unwrap();
        bench.sound();
    }
}

/// A region's page pair comes with its table and goes with it.
#[test]
fn a_table_of_small_pages() {
    for dynamic_pamt in [false, true] {
        let machine = builder(dynamic_pamt).build();
        let bench = Bench::new(&machine, dynamic_pamt, true);
        let td = &bench.td;
        bench.link(entry(0, Level::L512G), None);
        bench.link(entry(0x4000_0000, Level::L1G), None);
        let (table, backing) = (entry(0x4000_0000, Level::L2M), Some(Hpa::truncate(LARGE)));
        let pages = td.gather(table, backing, &mut bench.shelf(3)).unwrap();
        let given = td.addresses(&pages);
        td.link(table, backing, pages).unwrap();
        let at = table.child(3).unwrap();
        td.map(at, frame(LARGE + 0x3000, Level::L4K), Fill::OnAccept).unwrap();
        bench.guest().enter(0).unwrap();
        bench.accept(at);
        td.block(at).unwrap();
        td.block(table).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Hidden);
        td.fence().unwrap();
        td.unblock(table).unwrap();
        td.unmap(at, Hpa::truncate(LARGE + 0x3000)).unwrap();
        td.block(table).unwrap();
        td.fence().unwrap();
        assert_eq!(td.unlink(table, backing).unwrap(), given);
        bench.sound();

        // A table that cannot be linked: the pair is taken back, and all comes home.
        let mut shelf = bench.shelf(3);
        let pages = td.gather(entry(0x8000_0000, Level::L2M), backing, &mut shelf).unwrap();
        let back = td.link(entry(0x8000_0000, Level::L2M), backing, pages).unwrap_err();
        assert_eq!(back.error.class(), Class::Caller, "there is no table above");
        td.scatter(back.held, &mut scrub, &mut shelf);
        assert_eq!(shelf.back.len() + shelf.fresh.len(), 3);
        bench.sound();
    }
}

/// Pages added and measured while the TD is built.
#[test]
fn a_build() {
    let machine = builder(false).build();
    let bench = Bench::new(&machine, false, false);
    let td = &bench.td;
    for (gpa, level) in [(0, Level::L512G), (0, Level::L1G), (0, Level::L2M)] {
        bench.link(entry(gpa, level), None);
    }
    machine.host_write(Hpa::truncate(PARAMS + 0x1000), 0xabcd);
    let at = entry(0x1000, Level::L4K);
    td.map(at, frame(LARGE, Level::L4K), Fill::Copy(Hpa::truncate(PARAMS + 0x1000))).unwrap();
    td.measure(at.gpa(), 4096).unwrap();
    let stopped = td.measure(Gpa::truncate(0x2000), 4096).unwrap_err();
    assert_eq!(stopped.at, Gpa::truncate(0x2000));
    td.finalize().unwrap();
    assert!(mr::extend(td.transport(), td.tdr(), at.gpa()).is_err(), "the build is over");
    bench.guest().enter(0).unwrap();
    assert_eq!(bench.guest().read(at.gpa()), Ok(0xabcd));
    bench.sound();
}
