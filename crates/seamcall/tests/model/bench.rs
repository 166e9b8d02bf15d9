//! A TD on the software module, built with the wrappers through any transport.

use core::cell::Cell;
use seamcall::{
    Hkid, KeyIdBits, RetryBudget, Td, TdDescription, TdParams, Tdvpr, Transport, mng, phymem, vp,
};
use sept_core::{
    External, Frame, FrameKind, FrameStore, Gpa, GpaEntry, Hpa, Level, Shootdown, Tainted, TdxConfig,
};
use tdx_model::{Accept, Guest, Lp, Machine, MachineBuilder, Status};
use zerocopy::IntoBytes;

pub(crate) const BASE: u64 = 0x1_0000_0000;
/// A GiB of which nothing else is in use.
pub(crate) const LARGE: u64 = BASE + (1 << 30);
pub(crate) const PARAMS: u64 = 0x4000_0000;

#[expect(unsafe_code, reason = "a test makes up where memory is free")]
pub(crate) fn frame(hpa: u64, level: Level) -> Frame {
    // SAFETY: the test names each address once, and the memory is the model's.
    unsafe { Frame::assume_owned(Hpa::truncate(hpa), level) }.unwrap()
}

#[expect(unsafe_code, reason = "no host reads the pages of this test")]
pub(crate) fn scrub(page: Frame<Tainted>) -> Frame {
    // SAFETY: it was written back by the caller, and nobody looks at its content.
    unsafe { page.assume_scrubbed() }
}

/// Makes the one vCPU leave.
pub(crate) struct Kick<'m>(pub(crate) Guest<'m>);

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
pub(crate) struct Shelf {
    pub(crate) fresh: Vec<u64>,
    pub(crate) back: Vec<(FrameKind, Frame)>,
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

pub(crate) type ModelTd<'m, T = Lp<'m>> = Td<T, Kick<'m>>;

pub(crate) struct Bench<'m, T = Lp<'m>> {
    pub(crate) machine: &'m Machine,
    pub(crate) td: ModelTd<'m, T>,
    pub(crate) vcpu: Tdvpr,
    next: Cell<u64>,
}

pub(crate) fn builder(dynamic_pamt: bool) -> MachineBuilder {
    Machine::builder().memory(BASE, 4).dynamic_pamt(dynamic_pamt)
}

pub(crate) fn entry(gpa: u64, level: Level) -> GpaEntry {
    GpaEntry::new(Gpa::new(gpa).unwrap(), level).unwrap()
}

/// Puts TD_PARAMS where MNG.INIT will look for them.
pub(crate) fn write_params(machine: &Machine) {
    let params = TdParams::new(TdxConfig::LEVELS_4, seamcall::Attributes::SEPT_VE_DISABLE, 1);
    machine.host_write_bytes(Hpa::truncate(PARAMS), params.as_bytes());
}

impl<'m> Bench<'m> {
    /// Builds a TD with the wrappers. `finalize` ends the build.
    pub(crate) fn new(machine: &'m Machine, dynamic_pamt: bool, finalize: bool) -> Self {
        Self::over(machine.lp(0), machine, dynamic_pamt, finalize)
    }
}

impl<'m, T: Transport> Bench<'m, T> {
    /// As [`Bench::new`], each call through `t`.
    pub(crate) fn over(t: T, machine: &'m Machine, dynamic_pamt: bool, finalize: bool) -> Self {
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
        write_params(machine);
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

    pub(crate) fn shelf(&self, pages: u64) -> Shelf {
        let first = self.next.get();
        self.next.set(first + pages * 0x1000);
        Shelf { fresh: (0..pages).map(|page| first + page * 0x1000).collect(), back: Vec::new() }
    }

    pub(crate) fn link(&self, at: GpaEntry, backing: Option<Hpa>) {
        let pages = self.td.gather(at, backing, &mut self.shelf(3)).unwrap();
        self.td.link(at, backing, pages).unwrap();
    }

    pub(crate) fn guest(&self) -> Guest<'m> {
        self.machine.guest(self.vcpu.hpa())
    }

    pub(crate) fn accept(&self, at: GpaEntry) {
        assert_eq!(self.guest().accept(at.gpa(), at.level()), Ok(Accept::Returned(Status::SUCCESS)));
    }

    #[track_caller]
    pub(crate) fn sound(&self) {
        assert_eq!(self.machine.check_invariants(), Vec::<String>::new());
        assert!(self.machine.violations().is_empty(), "{:?}", self.machine.violations());
    }
}
