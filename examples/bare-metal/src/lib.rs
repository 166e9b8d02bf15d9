//! sept-core on bare metal: page tables that the MMU of an emulated machine walks.
//!
//! The program boots two CPUs without an operating system and checks that what sept-core writes is what an MMU that
//! others wrote reads. CPU 0 owns the tables and changes them; CPU 1 runs a guest meanwhile.
//!
//! | MMU | whose | checked in |
//! |---|---|---|
//! | x86-64 paging | QEMU's and Bochs's; the table is the CPU's own | [`checks::paging`] |
//! | AMD nested paging | QEMU's and Bochs's, under SVM | [`checks::npt`] |
//! | Intel EPT | Bochs's, under VMX | [`checks::ept`] |
//!
//! Begin with [`space`], which is all that a hypervisor needs of sept-core, and [`kick`], which is what sept-core needs of
//! a hypervisor. [`checks::translations`] is what holds for every MMU.
//!
//! `ci/boot.sh` builds the program, boots it in the emulators and looks at how it ends. A check that does not hold panics;
//! the run then ends with `FAILED` and the reason.
//!
//! # How it boots
//!
//! `boot/pvh.s` is how QEMU enters (an ELF file, PVH), `boot/mbr.s` how a BIOS does (a disk image). Both continue in
//! `boot/long_mode.s`, which leads to `first_cpu` in 64-bit mode with the first 4 GiB mapped to themselves, so a
//! physical address is a pointer. Nothing here takes an interrupt but where it says so.
#![no_std]

pub mod checks;
pub mod console;
pub mod cpu;
pub mod guest;
pub mod kick;
pub mod memory;
mod runtime;
pub mod space;
pub mod svm;
pub mod vmx;

core::arch::global_asm!(include_str!("../boot/long_mode.s"), options(att_syntax));

/// Where the first CPU arrives, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn first_cpu() -> ! {
    cpu::FIRST.take().load();
    cpu::mask_devices();
    cpu::second::start();
    checks::run();
    console::power_off(true)
}
