//! A vCPU in the model, run by TDH.VP.ENTER: what its exits ask for is done, and it is entered again.

use crate::bench::{Bench, LARGE, builder, entry, frame};
use core::cell::RefCell;
use seamcall::exit::{Exit, ViolationKind};
use seamcall::{Call, EnterCall, EnterFlags, GuestRegs, Regs, SeptState, Transport, VpEnter, mem, vp};
use sept_core::{External, Fill, GpaEntry, Hpa, Level, TdxConfig};
use std::collections::VecDeque;
use tdx_model::{Accept, Guest, Lp, Machine};

/// What the guest does next; the registers of the exit, if it comes to one.
type Step = fn(&Guest<'_>) -> Option<Regs>;

/// A logical processor whose guest follows a program. An interrupt ends it.
struct Cpu<'m> {
    lp: Lp<'m>,
    machine: &'m Machine,
    program: RefCell<VecDeque<Step>>,
}

impl Transport for Cpu<'_> {
    fn call(&self, call: Call<'_>) -> Regs {
        self.lp.call(call)
    }
}

impl VpEnter for Cpu<'_> {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        let regs = call.regs();
        let guest = self.machine.guest(Hpa::truncate(regs.rcx & 0x000f_ffff_ffff_f000));
        if let Err(status) = guest.enter(0) {
            return GuestRegs { rax: status.0, ..regs };
        }
        while let Some(step) = self.program.borrow_mut().pop_front() {
            if let Some(Regs { rax, rcx, rdx, r8, r9, .. }) = step(&guest) {
                return GuestRegs { rax, rcx, rdx, r8, r9, ..GuestRegs::new() };
            }
        }
        assert!(guest.exit());
        GuestRegs { rax: 1, ..GuestRegs::new() }
    }
}

fn accept(guest: &Guest<'_>, at: GpaEntry) -> Option<Regs> {
    match guest.accept(at.gpa(), at.level()) {
        Ok(Accept::Returned(status)) => {
            assert_eq!(status.0, 0);
            None
        }
        Ok(Accept::Exit(exit)) => Some(exit.regs),
        other => panic!("{other:?}"),
    }
}

fn small() -> GpaEntry {
    entry(0x4000_3000, Level::L4K)
}

fn large() -> GpaEntry {
    entry(0x4000_0000, Level::L2M)
}

/// The guest accepts 4 KiB of a page that is pending at 2 MiB: the exit says so, the host splits, the guest goes on.
#[test]
fn an_accept_of_a_smaller_size_splits_the_page() {
    let machine = builder(false).build();
    let program: [Step; 3] = [
        |guest| accept(guest, small()),
        |guest| accept(guest, small()),
        |guest| {
            guest.write(small().gpa(), 7).unwrap();
            None
        },
    ];
    let cpu = Cpu { lp: machine.lp(0), machine: &machine, program: RefCell::new(program.into()) };
    let bench = Bench::over(cpu, &machine, false, true);
    bench.link(entry(0, Level::L512G), None);
    bench.link(entry(0x4000_0000, Level::L1G), None);
    bench.td.map(large(), frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();

    let config = TdxConfig::LEVELS_4;
    #[expect(unsafe_code, reason = "the guest is a model")]
    // SAFETY: the guest runs in the model, which touches nothing of this process.
    let enter =
        || unsafe { vp::enter(bench.td.transport(), bench.vcpu, EnterFlags::empty(), GuestRegs::new()) };
    let out = enter();
    let Exit::EptViolation(violation) = Exit::decode(&out.regs(), config) else { panic!("{out:x?}") };
    assert_eq!((violation.kind(), violation.wanted()), (ViolationKind::Accept, Some(small())));
    let found = violation.details().unwrap();
    assert_eq!((found.found, found.state, found.is_leaf), (Some(Level::L2M), SeptState::Pending, true));

    bench.td.block(large()).unwrap();
    bench.td.fence().unwrap();
    let pages = bench.td.gather(large(), None, &mut bench.shelf(1)).unwrap();
    bench.td.split(large(), pages).unwrap();
    let out = enter();
    assert!(
        matches!(Exit::decode(&out.regs(), config), Exit::Other(reason) if reason.basic() == 1),
        "{out:x?}"
    );
    let read = mem::sept_rd(bench.td.transport(), bench.td.tdr(), small()).unwrap();
    assert_eq!((read.state(), read.hpa()), (SeptState::Mapped, Hpa::new(LARGE + 0x3000)));
    bench.sound();
}

/// A TD that was not finalised cannot be entered: a status, not an exit.
#[test]
fn an_entry_that_is_refused_is_no_exit() {
    let machine = builder(false).build();
    let cpu = Cpu { lp: machine.lp(0), machine: &machine, program: RefCell::default() };
    let bench = Bench::over(cpu, &machine, false, false);
    #[expect(unsafe_code, reason = "the guest is a model")]
    // SAFETY: the guest runs in the model, which touches nothing of this process.
    let out = unsafe { vp::enter(bench.td.transport(), bench.vcpu, EnterFlags::empty(), GuestRegs::new()) };
    let Exit::Status(status) = Exit::decode(&out.regs(), TdxConfig::LEVELS_4) else { panic!("{out:x?}") };
    assert!(status.is(seamcall::Status::OP_STATE_INCORRECT), "{status}");
}
