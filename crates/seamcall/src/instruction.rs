//! The instruction. The only `asm!` of the crate.

use crate::{Call, EnterCall, GuestRegs, Regs, Status, Transport, VpEnter};
use core::{arch::asm, mem::offset_of, ptr};

/// The entry of the table for an instruction at `2` that is resumed at `3`. Retained: nothing refers to the table, and
/// a linker that collects what is not referred to would drop it.
#[cfg(not(any(windows, target_os = "uefi", target_vendor = "apple")))]
macro_rules! extable {
    () => {
        ".pushsection refolio_seamcall_extable, \"aR\"
        .balign 4
        .long 2b - .
        .long 3b - .
        .popsection"
    };
}

/// No ELF, no table.
#[cfg(any(windows, target_os = "uefi", target_vendor = "apple"))]
macro_rules! extable {
    () => {
        ""
    };
}

/// Executes SEAMCALL on the calling CPU.
///
/// VMfailInvalid comes back as [`Status::VM_FAIL_INVALID`]. A fault (`#UD` outside VMX operation, `#GP` where the BIOS
/// did not enable TDX) is for the host's handler: the ELF section `refolio_seamcall_extable` holds, for each copy of
/// the instruction, two 32-bit offsets, each relative to its own address: of the instruction, and of where to resume.
/// A handler that finds its `RIP` there puts [`Status::TRAP_UD`] or [`Status::TRAP_GP`] into `RAX` and resumes. The
/// section has the flag `SHF_GNU_RETAIN`; a linker script of the host's own must keep it too.
///
/// The vector registers count as lost: leaves of migration that encrypt clear them. As [`VpEnter`], it restores its
/// caller's `RBX` and `RBP`, and counts every register that a call may change as lost.
///
/// ```
/// use seamcall::{Instruction, PlatformField, SeamcallError, adapter::{EntropyRetry, Gate}, sys};
///
/// /// The module, asked again while it finds no entropy, and never for what it does not have.
/// fn module() -> Result<Gate<EntropyRetry<Instruction>>, SeamcallError> {
///     // SAFETY: every CPU is in VMX root operation with TDX enabled, and can wait for an interrupt.
///     let module = EntropyRetry::new(unsafe { Instruction::new() });
///     let features = sys::read(&module, PlatformField::TDX_FEATURES0)?;
///     Ok(Gate::new(module, features))
/// }
/// ```
///
/// Source: TDX module ABI, "SEAMCALL instruction"; Intel SDM, SEAMCALL; `tdx_vmm_dispatcher.c` of modules 1.5.01 and
/// 1.5.34.
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
    fn call(&self, call: Call<'_>) -> Regs {
        let mut regs = call.regs();
        #[expect(unsafe_code, reason = "there is no other way to say SEAMCALL")]
        // SAFETY:
        // * The instruction may be executed here: `Instruction::new` was told so.
        // * Memory: the module writes and takes only pages that the call names, and whoever built the `Call` vouches
        //   for them (a wrapper by owning their frames, anybody else by the contract of `Call::from_regs`). No
        //   `nomem`: other memory may be read and written.
        // * Registers: all that a leaf other than VP.ENTER changes are outputs; flags are clobbered by default. The
        //   vector registers count as lost: a module clears them after a leaf that encrypted.
        // * Stack: not used, and not touched.
        unsafe {
            asm!(
                "2:",
                ".byte 0x66, 0x0f, 0x01, 0xcf",
                "jnc 3f",
                "mov rax, {failed}",
                "3:",
                extable!(),
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
                out("xmm0") _,
                out("xmm1") _,
                out("xmm2") _,
                out("xmm3") _,
                out("xmm4") _,
                out("xmm5") _,
                out("xmm6") _,
                out("xmm7") _,
                out("xmm8") _,
                out("xmm9") _,
                out("xmm10") _,
                out("xmm11") _,
                out("xmm12") _,
                out("xmm13") _,
                out("xmm14") _,
                out("xmm15") _,
                options(nostack),
            );
        }
        regs
    }
}

impl VpEnter for Instruction {
    #[inline]
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        let mut regs = call.regs();
        #[expect(unsafe_code, reason = "there is no other way to say SEAMCALL")]
        // SAFETY:
        // * The instruction may be executed here: `Instruction::new` was told so.
        // * Memory: `vp::enter`, which alone builds the call, was told what a guest may do. The registers are in
        //   `regs`, which nobody else has.
        // * Registers: `RBX` and `RBP` are saved and restored, all other general registers are outputs, the extended
        //   state is clobbered. `MXCSR` and the x87 control word come back as after a reset, which is what Rust
        //   expects.
        // * Stack: as much is popped as was pushed, and the module leaves `RSP` alone.
        unsafe {
            asm!(
                "push rbp",
                "push rbx",
                "push rax",
                "mov rcx, [rax + {rcx}]",
                "mov rdx, [rax + {rdx}]",
                "mov rbx, [rax + {rbx}]",
                "mov rbp, [rax + {rbp}]",
                "mov rsi, [rax + {rsi}]",
                "mov rdi, [rax + {rdi}]",
                "mov r8, [rax + {r8}]",
                "mov r9, [rax + {r9}]",
                "mov r10, [rax + {r10}]",
                "mov r11, [rax + {r11}]",
                "mov r12, [rax + {r12}]",
                "mov r13, [rax + {r13}]",
                "mov r14, [rax + {r14}]",
                "mov r15, [rax + {r15}]",
                "mov rax, [rax + {rax}]",
                "2:",
                ".byte 0x66, 0x0f, 0x01, 0xcf",
                "jnc 3f",
                "mov rax, {failed}",
                "3:",
                extable!(),
                "push rax",
                "mov rax, [rsp + 8]",
                "mov [rax + {rcx}], rcx",
                "mov [rax + {rdx}], rdx",
                "mov [rax + {rbx}], rbx",
                "mov [rax + {rbp}], rbp",
                "mov [rax + {rsi}], rsi",
                "mov [rax + {rdi}], rdi",
                "mov [rax + {r8}], r8",
                "mov [rax + {r9}], r9",
                "mov [rax + {r10}], r10",
                "mov [rax + {r11}], r11",
                "mov [rax + {r12}], r12",
                "mov [rax + {r13}], r13",
                "mov [rax + {r14}], r14",
                "mov [rax + {r15}], r15",
                "pop rcx",
                "mov [rax + {rax}], rcx",
                "pop rax",
                "pop rbx",
                "pop rbp",
                failed = const Status::VM_FAIL_INVALID.raw().cast_signed(),
                rax = const offset_of!(GuestRegs, rax),
                rcx = const offset_of!(GuestRegs, rcx),
                rdx = const offset_of!(GuestRegs, rdx),
                rbx = const offset_of!(GuestRegs, rbx),
                rbp = const offset_of!(GuestRegs, rbp),
                rsi = const offset_of!(GuestRegs, rsi),
                rdi = const offset_of!(GuestRegs, rdi),
                r8 = const offset_of!(GuestRegs, r8),
                r9 = const offset_of!(GuestRegs, r9),
                r10 = const offset_of!(GuestRegs, r10),
                r11 = const offset_of!(GuestRegs, r11),
                r12 = const offset_of!(GuestRegs, r12),
                r13 = const offset_of!(GuestRegs, r13),
                r14 = const offset_of!(GuestRegs, r14),
                r15 = const offset_of!(GuestRegs, r15),
                inout("rax") ptr::from_mut(&mut regs) => _,
                out("rcx") _,
                out("rdx") _,
                out("rsi") _,
                out("rdi") _,
                out("r8") _,
                out("r9") _,
                out("r10") _,
                out("r11") _,
                out("r12") _,
                out("r13") _,
                out("r14") _,
                out("r15") _,
                clobber_abi("sysv64"),
            );
        }
        regs
    }
}
