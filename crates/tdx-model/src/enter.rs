//! TDH.VP.ENTER with all its registers: a logical processor whose vCPUs do what a program says.
//!
//! ```
//! # use sept_core::{Gpa, Hpa, Level};
//! # use tdx_model::{Accept, Machine, boot};
//! # let machine = Machine::builder().memory(0x1_0000_0000, 1).build();
//! # let mut frames = (0x1_0000_0000..).step_by(4096).map(Hpa::truncate);
//! # let td = boot::create(&machine.lp(0), &machine, &boot::TdSpec::default(), &mut frames).unwrap();
//! use seamcall::{EnterFlags, GuestRegs, Tdvpr, vp};
//!
//! let cpu = machine.lp(0).running(|guest, _in| match guest.accept(Gpa::truncate(0x1000), Level::L4K) {
//!     Ok(Accept::Exit(exit)) => exit.into(),
//!     // An external interrupt.
//!     _ => GuestRegs { rax: 1, ..GuestRegs::new() },
//! });
//! # let vcpu = Tdvpr::new(td.vcpus[0]).unwrap();
//! // SAFETY: the guest is a program of this process.
//! let out = unsafe { vp::enter(&cpu, vcpu, EnterFlags::empty(), GuestRegs::new()) };
//! assert_eq!((out.rax, out.r8), (48, 0x1000), "nothing is mapped there");
//! ```

use seamcall::{Call, EnterCall, GuestRegs, Regs, Transport, VpEnter};
use sept_core::Hpa;

use crate::guest::{Guest, TdExit};
use crate::machine::Lp;

/// Bits 51:12 of RCX: the TDVPR page, between flags and key id.
const PAGE: u64 = 0x000F_FFFF_FFFF_F000;
/// VM exit reason "external interrupt".
const EXTERNAL_INTERRUPT: u64 = 1;

impl From<TdExit> for GuestRegs {
    fn from(exit: TdExit) -> Self {
        from_host(Self::new(), exit.regs)
    }
}

/// The registers that a leaf knows, in a larger register file.
const fn from_host(all: GuestRegs, regs: Regs) -> GuestRegs {
    let Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 } = regs;
    GuestRegs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13, ..all }
}

/// A logical processor on which a vCPU that is entered runs a program. See [`Lp::running`].
#[derive(Clone, Copy, Debug)]
pub struct RunningLp<'m, P> {
    lp: Lp<'m>,
    program: P,
}

impl<'m> Lp<'m> {
    /// This processor, with a program for what guests do on it: it gets the vCPU and the registers that the host entered it
    /// with, and says what the host finds when it is left. A vCPU that the program leaves inside is taken out then.
    #[must_use]
    pub const fn running<P>(self, program: P) -> RunningLp<'m, P>
    where
        P: Fn(&Guest<'m>, GuestRegs) -> GuestRegs,
    {
        RunningLp { lp: self, program }
    }

    fn enter_and(
        &self,
        call: &EnterCall<'_>,
        program: impl Fn(&Guest<'m>, GuestRegs) -> GuestRegs,
    ) -> GuestRegs {
        let regs = call.regs();
        let machine = self.machine();
        if let Err(out) = machine.with(|s| s.enter_guest(self.number(), regs.rcx)) {
            // A refusal leaves the registers; an exit without a guest has its own.
            let refused = out.rax >> 32 != 0;
            return if refused {
                GuestRegs { rax: out.rax, ..regs }
            } else {
                from_host(GuestRegs::new(), out)
            };
        }
        let guest = machine.guest(Hpa::truncate(regs.rcx & PAGE));
        let out = program(&guest, regs);
        machine.with(|s| s.leave_guest(regs.rcx & PAGE));
        out
    }
}

impl<'m, P> Transport for RunningLp<'m, P>
where
    P: Fn(&Guest<'m>, GuestRegs) -> GuestRegs,
{
    fn call(&self, call: Call<'_>) -> Regs {
        self.lp.call(call)
    }
}

impl<'m, P> VpEnter for RunningLp<'m, P>
where
    P: Fn(&Guest<'m>, GuestRegs) -> GuestRegs,
{
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        self.lp.enter_and(&call, &self.program)
    }
}

/// A guest that is left at once, by an external interrupt.
impl VpEnter for Lp<'_> {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        self.enter_and(&call, |_, _| GuestRegs { rax: EXTERNAL_INTERRUPT, ..GuestRegs::new() })
    }
}
