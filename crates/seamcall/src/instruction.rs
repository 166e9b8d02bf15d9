//! The instruction. The only `asm!` of the crate.

use crate::{Call, Regs, Status, Transport};
use core::arch::asm;

/// Executes SEAMCALL on the calling CPU.
///
/// VMfailInvalid comes back as [`Status::VM_FAIL_INVALID`]. A fault (`#UD` outside VMX operation, `#GP` where the BIOS
/// did not enable TDX) is for the host's handler: the ELF section `refolio_seamcall_extable` holds, for each copy of
/// the instruction, two 32-bit offsets, each relative to its own address: of the instruction, and of where to
/// resume. A handler that finds its `RIP` there puts [`Status::TRAP_UD`] or [`Status::TRAP_GP`] into `RAX` and resumes.
///
/// TDH.VP.ENTER cannot be made with it: it exchanges registers that [`Regs`] does not have.
///
/// Source: TDX module ABI, "SEAMCALL instruction"; Intel SDM, SEAMCALL.
#[derive(Clone, Copy, Debug)]
pub struct Instruction(());

impl Instruction {
    /// The instruction as a transport.
    ///
    /// # Safety
    ///
    /// * The CPUs this is used on are in VMX root operation with TDX enabled; or the host's `#UD` and `#GP` handlers
    ///   know the section above.
    /// * What is called is a TDX module that keeps to its ABI: it writes no memory but what a call names.
    /// * Interrupts that arrive during a call may be delayed by it; the caller can live with that.
    #[must_use]
    #[expect(unsafe_code, reason = "the platform must be what the instruction needs")]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Transport for Instruction {
    #[inline]
    fn call(&self, call: Call) -> Regs {
        let mut regs = call.regs();
        #[expect(unsafe_code, reason = "there is no other way to say SEAMCALL")]
        // SAFETY:
        // * The instruction may be executed here: `Instruction::new` was told so.
        // * Memory: the module writes and takes only pages that the call names, and whoever built the `Call` vouches
        //   for them (a wrapper by owning their frames, anybody else by the contract of `Call::from_regs`). No
        //   `nomem`: other memory may be read and written.
        // * Registers: all that a leaf other than VP.ENTER changes are outputs; flags are clobbered by default.
        // * Stack: not used, and not touched.
        unsafe {
            asm!(
                "2:",
                ".byte 0x66, 0x0f, 0x01, 0xcf",
                "jnc 3f",
                "mov rax, {failed}",
                "3:",
                ".pushsection refolio_seamcall_extable, \"a\"",
                ".balign 4",
                ".long 2b - .",
                ".long 3b - .",
                ".popsection",
                failed = const Status::VM_FAIL_INVALID.raw().cast_signed(),
                inout("rax") regs.rax,
                inout("rcx") regs.rcx,
                inout("rdx") regs.rdx,
                inout("r8") regs.r8,
                inout("r9") regs.r9,
                inout("r10") regs.r10,
                inout("r11") regs.r11,
                inout("r12") regs.r12,
                inout("r13") regs.r13,
                options(nostack),
            );
        }
        regs
    }
}
