//! Proves that the library crates need neither std, nor libc, nor an allocator.
//!
//! Three things would stop this from building: a crate that names std brings a second panic handler, one that names
//! alloc asks for a global allocator, and one that calls into libc leaves a symbol undefined. On Linux the program
//! also runs: it leaves with 0, or with 101 if something panicked.
#![no_std]
#![no_main]

use folio_split as _;
use gpa_conversion as _;
use seamcall::{Call, Regs, Transport};
use sept_core::{Entry, Format, Gpa, GpaEntry, GpaRange, Level, TdxConfig, TdxMirror};
use vmemmap_prealloc as _;

use core::{arch::global_asm, hint::black_box, panic::PanicInfo};

// The kernel enters with the stack aligned to 16 bytes; a call wants it so before the return address is pushed.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {run}", "ud2", run = sym run);

/// A transport that nothing answers.
struct Nobody;

impl Transport for Nobody {
    fn call(&self, call: Call) -> Regs {
        call.regs()
    }
}

extern "C" fn run() -> ! {
    let gpa = black_box(Gpa::truncate(0x4020_3000));
    let block = GpaEntry::containing(gpa, Level::L1G);
    let page = GpaEntry::containing(gpa, Level::L4K);
    let whole = GpaRange::new(block.gpa(), Level::L1G.size()).is_some_and(|range| range.covers(page));

    let config = black_box(TdxConfig::LEVELS_5_GPAW_52);
    let free = TdxMirror::decode(config, Level::L4K, TdxMirror::encode(config, Level::L4K, Entry::Free));

    black_box(&Nobody as &dyn Transport);
    exit(u32::from(!(whole && free == Entry::Free)))
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

#[cfg(target_os = "linux")]
fn exit(code: u32) -> ! {
    // SAFETY: exit_group takes one number and does not come back.
    unsafe { core::arch::asm!("syscall", in("rax") 231, in("rdi") u64::from(code), options(noreturn)) }
}

#[cfg(not(target_os = "linux"))]
fn exit(code: u32) -> ! {
    loop {
        black_box(code);
        core::hint::spin_loop();
    }
}

/// What the prebuilt core of a hosted target takes from libc. Bare-metal targets bring their own.
#[cfg(target_os = "linux")]
#[path = "../../../examples/bare-metal/src/runtime.rs"]
mod from_libc;
