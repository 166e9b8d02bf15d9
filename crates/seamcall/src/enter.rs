//! The way into a TD: TDH.VP.ENTER, which exchanges all general registers with the guest.
//!
//! The other leaves use nine registers ([`Regs`]). This one uses all but `RSP`, and comes back after the guest has run
//! for as long as it liked, so it is a call of its own: [`GuestRegs`] by value in and out, through [`VpEnter`].
//!
//! | Register | In | Out |
//! |---|---|---|
//! | `RAX` | leaf | status; after a TD exit the [exit reason](crate::exit::ExitReason) in bits 31:0 |
//! | `RCX` | TDVPR and [`EnterFlags`] | exit qualification; after TDG.VP.VMCALL the guest's choice of registers |
//! | `RDX`, `RBX`, `RBP`, `RSI`, `RDI`, `R8` to `R15` | read after TDG.VP.VMCALL only, and only those that the guest chose: its new values | after TDG.VP.VMCALL the guest's values, 0 for those it did not choose; after any other exit `RDX`, `R8` and `R9` tell about it and the rest is 0 |
//!
//! `RBP` is special. A guest may choose it, and so see the host's, unless the TD was made with
//! [`ConfigFlags::NO_RBP_MOD`](crate::ConfigFlags::NO_RBP_MOD), where the module can do that
//! ([`Features0::NO_RBP_MOD`](crate::Features0::NO_RBP_MOD)). Module 1.5.01 zeroes it after every other exit even
//! then. Here it is a value like the others: the guest sees what is in [`GuestRegs::rbp`], and
//! [`Instruction`](crate::Instruction) restores its caller's.
//!
//! A host that makes this call by its own code takes [`vp::enter_operand`](crate::vp::enter_operand) for `RCX`, and
//! reads what comes back with [`exit`](crate::exit) all the same.
//!
//! Source: TDX module ABI, TDH.VP.ENTER; `tdh_vp_enter.c`, `td_exit.c`, `tdg_vp_vmcall.c` of module 1.5.01.

use crate::{Regs, Transport, exit::MapGpaReply};
use bitflags::bitflags;
use core::marker::PhantomData;

bitflags! {
    /// What a host adds to the TDVPR when it enters.
    ///
    /// Source: `include/tdx_api_defs.h` of the module, `vcpu_and_flags_t`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct EnterFlags: u64 {
        /// Host recoverability hint: the host dealt with the cause of the last exit. Only after an exit that was
        /// trap-like (`CROSS_TD_TRAP`, `HOST_PRIORITY_BUSY_TIMEOUT`); the guest finds the hint in its status.
        const HOST_RECOVERABILITY_HINT = 1 << 52;
        /// Enter L1, where an L2 VM had been running.
        const RESUME_L1 = 1 << 53;
    }
}

/// The general registers but `RSP`, in the order of their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the register of that name")]
#[expect(clippy::exhaustive_structs, reason = "the register file; hosts and transports build it by name")]
pub struct GuestRegs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl GuestRegs {
    /// All registers zero: what an entry needs that answers no TDG.VP.VMCALL.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rax: 0,
            rcx: 0,
            rdx: 0,
            rbx: 0,
            rbp: 0,
            rsi: 0,
            rdi: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
        }
    }

    /// The registers that the decoders of [`exit`](crate::exit) read.
    #[must_use]
    pub const fn regs(&self) -> Regs {
        let Self { rax, rcx, rdx, r8, r9, r10, r11, r12, r13, .. } = *self;
        Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 }
    }

    /// With the answer to a [`MapGpa`](crate::MapGpa), for the next entry.
    #[must_use]
    pub const fn with_reply(self, reply: MapGpaReply) -> Self {
        let (r10, r11) = reply.registers();
        Self { r10, r11, ..self }
    }
}

/// One TDH.VP.ENTER, ready to be made once. Built by [`vp::enter`](crate::vp::enter). Neither copied nor kept, as a
/// [`Call`](crate::Call).
#[derive(Debug)]
pub struct EnterCall<'a> {
    regs: GuestRegs,
    wrapper: PhantomData<&'a mut ()>,
}

impl EnterCall<'_> {
    /// Used by `vp::enter`, whose caller vouches for what a guest may do.
    pub(crate) const fn new(regs: GuestRegs) -> Self {
        Self { regs, wrapper: PhantomData }
    }

    /// The registers to load.
    #[must_use]
    pub const fn regs(&self) -> GuestRegs {
        self.regs
    }
}

/// A [`Transport`] that can enter a TD. Object safe; any CPU may call.
pub trait VpEnter: Transport {
    /// Enters the vCPU that `call` names and returns the registers as the module left them, when the guest has exited
    /// or the entry was refused.
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs;
}

impl<T: VpEnter + ?Sized> VpEnter for &T {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        (**self).enter(call)
    }
}
