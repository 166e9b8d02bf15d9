//! Faults: those of a probe are results, all others end the run.

use super::{FAULT_STACK, apic};
use crate::{console::power_off, guest::Fault, println};
use core::arch::naked_asm;
use x86_64::{
    VirtAddr,
    registers::control::Cr2,
    structures::idt::{EntryOptions, InterruptDescriptorTable},
};

/// Reads 4 bytes at `at` through the page table of this CPU.
///
/// # Errors
///
/// The page fault: its address (CR2) and error code.
///
/// # Safety
///
/// If `at` is mapped, it is memory that may be read.
pub unsafe fn read(at: u64) -> Result<u32, Fault> {
    let mut value = 0;
    // SAFETY: the caller vouches for `at`; a page fault at it is caught.
    let cause = unsafe { probe_read(at, &mut value) };
    outcome(cause).map(|()| value)
}

/// Writes 4 bytes at `at` through the page table of this CPU.
///
/// # Errors
///
/// As [`read`].
///
/// # Safety
///
/// If `at` is mapped, it is memory that may be written, and that Rust knows as atomics or not at all.
pub unsafe fn write(at: u64, value: u32) -> Result<(), Fault> {
    // SAFETY: the caller vouches for `at`; a page fault at it is caught.
    outcome(unsafe { probe_write(at, value) })
}

/// Set beside the error code of a probe that faulted.
const FAULTED: u64 = 1 << 32;

fn outcome(cause: u64) -> Result<(), Fault> {
    match cause {
        0 => Ok(()),
        cause => Err(Fault { at: Cr2::read_raw(), cause: cause & !FAULTED }),
    }
}

// The first instruction of each probe is the one that may fault: its address is the function's.

#[unsafe(naked)]
unsafe extern "sysv64" fn probe_read(at: u64, value: &mut u32) -> u64 {
    naked_asm!("mov eax, [rdi]", "mov [rsi], eax", "xor eax, eax", "ret")
}

#[unsafe(naked)]
unsafe extern "sysv64" fn probe_write(at: u64, value: u32) -> u64 {
    naked_asm!("mov [rdi], esi", "xor eax, eax", "ret")
}

/// Where a probe goes on after a fault, with the error code in rax.
#[unsafe(naked)]
extern "sysv64" fn probe_faulted() {
    naked_asm!("ret")
}

/// The gate of vector 14. Only a probe that has just begun returns, so rax and rcx are free.
#[unsafe(naked)]
extern "sysv64" fn page_fault() {
    naked_asm!(
        "pop rax",
        "lea rcx, [rip + {read}]",
        "cmp [rsp], rcx",
        "je 2f",
        "lea rcx, [rip + {write}]",
        "cmp [rsp], rcx",
        "je 2f",
        "push rax",
        "push 14",
        "jmp {fatal}",
        "2:",
        "bts rax, 32",
        "lea rcx, [rip + {faulted}]",
        "mov [rsp], rcx",
        "iretq",
        read = sym probe_read,
        write = sym probe_write,
        faulted = sym probe_faulted,
        fatal = sym fatal_gate,
    )
}

/// What a gate leaves on its stack.
#[repr(C)]
#[derive(Debug)]
struct Pushed {
    vector: u64,
    error: u64,
    rip: u64,
}

#[unsafe(naked)]
extern "sysv64" fn fatal_gate() {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {fatal}", fatal = sym fatal)
}

extern "sysv64" fn fatal(pushed: &Pushed) -> ! {
    println!("FAILED: exception at address {:#x}: {pushed:#x?}", Cr2::read_raw());
    power_off(false)
}

/// A gate that ends the run; CPUs push an error code for some vectors, and the gate pushes one for the others.
macro_rules! fatal {
    ($name:ident, $vector:literal $(, $error:literal)?) => {
        #[unsafe(naked)]
        extern "sysv64" fn $name() {
            naked_asm!($($error,)? concat!("push ", $vector), "jmp {fatal}", fatal = sym fatal_gate)
        }
    };
}
fatal!(invalid_opcode, 6, "push 0");
fatal!(double_fault, 8);
fatal!(general_protection, 13);

/// The gate of the vector by which one CPU makes another leave its guest.
#[unsafe(naked)]
extern "sysv64" fn kicked() {
    naked_asm!(
        "push rax",
        "mov rax, {end_of_interrupt}",
        "mov dword ptr [rax], 0",
        "pop rax",
        "iretq",
        end_of_interrupt = const apic::END_OF_INTERRUPT,
    )
}

/// Fills in the gates.
pub(super) fn set_gates(idt: &mut InterruptDescriptorTable) {
    let gate = |handler: extern "sysv64" fn()| VirtAddr::new(handler as usize as u64);
    let on_fault_stack = |options: &mut EntryOptions| {
        // SAFETY: `Tables::load` sets this stack up, and no gate enables interrupts while it is on it.
        unsafe { options.set_stack_index(FAULT_STACK) };
    };
    // SAFETY: a gate for a vector with an error code.
    on_fault_stack(unsafe { idt.page_fault.set_handler_addr(gate(page_fault)) });
    // SAFETY: a gate for a vector with an error code, that does not return.
    on_fault_stack(unsafe { idt.double_fault.set_handler_addr(gate(double_fault)) });
    // SAFETY: a gate for a vector with an error code.
    on_fault_stack(unsafe { idt.general_protection_fault.set_handler_addr(gate(general_protection)) });
    // SAFETY: a gate for a vector without an error code.
    on_fault_stack(unsafe { idt.invalid_opcode.set_handler_addr(gate(invalid_opcode)) });
    // SAFETY: a gate for a vector without an error code, that preserves all registers.
    on_fault_stack(unsafe { idt[apic::KICK_VECTOR].set_handler_addr(gate(kicked)) });
}
