//! What the tests share: a machine with one TD, calls by register.

use std::cell::RefCell;

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, EntryState, Guest, Leaf, Machine, MachineBuilder, ModuleVersion, Status};

pub(crate) const BASE: u64 = 0x1_0000_0000;

pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) td: TdPages,
    frames: RefCell<Box<dyn Iterator<Item = Hpa>>>,
}

/// Frames from the first GiB; the others stay whole.
pub(crate) fn frames() -> Box<dyn Iterator<Item = Hpa>> {
    Box::new((BASE..BASE + (1 << 30)).step_by(4096).map(Hpa::truncate))
}

impl Bench {
    pub(crate) fn new(builder: MachineBuilder, spec: TdSpec) -> Self {
        Self::unaudited(builder.audit(true), spec)
    }

    /// Without the audit after everything that is done.
    pub(crate) fn unaudited(builder: MachineBuilder, spec: TdSpec) -> Self {
        let machine = builder.memory(BASE, 4).build();
        let mut frames = frames();
        let td = boot::create(&machine.lp(0), &machine, &spec, &mut frames).expect("a TD");
        Self { machine, td, frames: RefCell::new(frames) }
    }

    pub(crate) fn tdr(&self) -> u64 {
        self.td.tdr.raw()
    }

    pub(crate) fn frame(&self) -> u64 {
        self.frames.borrow_mut().next().expect("a frame").raw()
    }

    pub(crate) fn guest(&self) -> Guest<'_> {
        self.machine.guest(self.td.vcpus[0])
    }

    pub(crate) fn call(&self, leaf: Leaf, rcx: u64, rdx: u64, r8: u64) -> Regs {
        self.raw(Regs { rax: leaf as u64, rcx, rdx, r8, ..Regs::default() })
    }

    pub(crate) fn raw(&self, regs: Regs) -> Regs {
        self.machine.lp(0).raw(regs)
    }

    /// The call must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, leaf: Leaf, rcx: u64, rdx: u64, r8: u64) -> Regs {
        let out = self.call(leaf, rcx, rdx, r8);
        assert_eq!(out.rax, 0, "{leaf:?}: {:?}", Status(out.rax));
        out
    }

    #[track_caller]
    pub(crate) fn tables(&self, gpa: u64, level: Level) {
        let frames = &mut *self.frames.borrow_mut();
        boot::map_tables(&self.machine.lp(0), &self.td, Gpa::truncate(gpa), level, frames).expect("tables");
    }

    #[track_caller]
    pub(crate) fn aug(&self, gpa: u64, level: Level, page: u64) {
        self.ok(Leaf::PageAug, gpa | u64::from(level.raw()), self.tdr(), page);
    }

    #[track_caller]
    pub(crate) fn accept(&self, gpa: u64, level: Level) {
        let guest = self.guest();
        let was_inside = guest.is_inside();
        if !was_inside {
            guest.enter(0).expect("entered");
        }
        assert_eq!(guest.accept(Gpa::truncate(gpa), level), Ok(Accept::Returned(Status::SUCCESS)));
        if !was_inside {
            guest.exit();
        }
    }

    /// BLOCK, then one epoch further with nobody inside.
    #[track_caller]
    pub(crate) fn block_and_track(&self, entry: u64) {
        self.ok(Leaf::RangeBlock, entry, self.tdr(), 0);
        self.ok(Leaf::MemTrack, self.tdr(), 0, 0);
    }

    /// The guest's view of a page.
    #[track_caller]
    pub(crate) fn guest_reads(&self, gpa: u64) -> u64 {
        self.guest().enter(0).expect("entered");
        let value = self.guest().read(Gpa::truncate(gpa)).expect("readable");
        self.guest().exit();
        value
    }

    #[track_caller]
    pub(crate) fn guest_writes(&self, gpa: u64, value: u64) {
        self.guest().enter(0).expect("entered");
        self.guest().write(Gpa::truncate(gpa), value).expect("writable");
        self.guest().exit();
    }

    /// Status, RCX and RDX of a call on the TD.
    pub(crate) fn answer(&self, leaf: Leaf, rcx: u64, r8: u64) -> (u64, u64, u64) {
        let out = self.call(leaf, rcx, self.tdr(), r8);
        (out.rax, out.rcx, out.rdx)
    }

    pub(crate) fn chldcnt(&self) -> u64 {
        self.machine.td(self.td.tdr).unwrap().chldcnt
    }

    /// What PHYMEM.PAGE.RDMD says.
    pub(crate) fn rdmd(&self, page: u64) -> Regs {
        let out = self.raw(Regs { rax: 24, rcx: page, r9: 5, ..Regs::new() });
        assert_eq!(out.rax, 0);
        out
    }

    pub(crate) fn raw_entry(&self, gpa: u64, level: Level) -> u64 {
        self.machine.entry(self.td.tdr, Gpa::truncate(gpa), level).unwrap().raw
    }

    pub(crate) fn state(&self, gpa: u64, level: Level) -> EntryState {
        self.machine.entry(self.td.tdr, Gpa::truncate(gpa), level).unwrap().state
    }

    /// One epoch further.
    pub(crate) fn fence(&self) {
        self.ok(Leaf::MemTrack, self.tdr(), 0, 0);
    }

    /// VP.FLUSH, VPFLUSHDONE, CACHE.WB, KEY.FREEID.
    pub(crate) fn tear_down(&self) {
        self.ok(Leaf::VpFlush, self.td.vcpus[0].raw(), 0, 0);
        self.ok(Leaf::MngVpFlushDone, self.tdr(), 0, 0);
        self.ok(Leaf::PhymemCacheWb, 0, 0, 0);
        self.ok(Leaf::MngKeyFreeId, self.tdr(), 0, 0);
    }
}

/// Where the tests map.
pub(crate) const GPA: u64 = 0x4000_0000;
/// 2 MiB frames.
pub(crate) const LARGE: u64 = BASE + (1 << 30);
pub(crate) const OTHER: u64 = LARGE + 0x20_0000;

pub(crate) const NOT_BLOCKED: u64 = 0xC000_0B06_0000_0001;
pub(crate) const NOT_TRACKED: u64 = 0xC000_0B08_0000_0001;
pub(crate) const BUSY_RCX: u64 = 0x8000_0200_0000_0001;
pub(crate) const WALK_FAILED: u64 = 0xC000_0B00_0000_0001;
pub(crate) const WRONG_STATE: u64 = 0xC000_0B0D_0000_0001;

/// Module 1.5.01 with a running TD.
pub(crate) fn bench() -> Bench {
    Bench::new(Machine::builder().version(ModuleVersion::V1_5_01), TdSpec::default())
}

/// A TD that is being built: no blocking, no tracking.
pub(crate) fn building() -> Bench {
    let spec = TdSpec { finalize: false, ..TdSpec::default() };
    Bench::new(Machine::builder().version(ModuleVersion::V1_5_01), spec)
}

/// A 2 MiB page, accepted.
pub(crate) fn with_large() -> Bench {
    let b = bench();
    b.tables(GPA, Level::L2M);
    b.aug(GPA, Level::L2M, LARGE);
    b.accept(GPA, Level::L2M);
    b
}

/// A 4 KiB page, accepted; returns its frame.
pub(crate) fn with_small() -> (Bench, u64) {
    let b = bench();
    b.tables(GPA, Level::L4K);
    let page = b.frame();
    b.aug(GPA, Level::L4K, page);
    b.accept(GPA, Level::L4K);
    (b, page)
}
