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
mod from_libc {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller vouches for `len` bytes at both addresses.
        unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if to.addr().wrapping_sub(from.addr()) >= len {
            // SAFETY: as above; copying upwards never reads what it wrote.
            return unsafe { memcpy(to, from, len) };
        }
        let last = len.wrapping_sub(1);
        let (end, source) = (to.wrapping_add(last), from.wrapping_add(last));
        // SAFETY: as above; copying downwards never reads what it wrote, and the flag is cleared again.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") end => _, inout("rsi") source => _);
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller vouches for `len` bytes.
        unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        for at in 0..len {
            // SAFETY: the caller vouches for `len` bytes at both addresses; volatile keeps this loop a loop.
            let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the same promise.
        unsafe { memcmp(a, b, len) }
    }

    /// Named by the unwind tables of the prebuilt core; nothing unwinds here.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
