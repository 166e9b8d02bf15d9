//! The instruction itself, with a signal handler in the module's place.
//!
//! Outside VMX root operation SEAMCALL faults. The handler finds the fault in the table of the crate's section, as a
//! host's handler does, looks at the registers, and goes on as if a module had answered: behind the instruction with
//! the carry flag as it likes, or at the fix-up address with the status of a trap.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test of one process with itself; it may fail in any way"
)]

use core::{
    arch::asm,
    mem, ptr,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use seamcall::{Call, EnterFlags, GuestRegs, Instruction, Regs, Status, Tdvpr, Transport, vp};
use sept_core::Hpa;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers of registers in a signal's context, in the order of [`GuestRegs`].
const ORDER: [i32; 15] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What the module does with a call.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Answer {
    /// Adds 0x1000 to each register of the leaf: all for VP.ENTER (`RAX` 0), else `RAX`, `RCX`, `RDX`, `R8` to `R13`.
    Returns,
    /// VMfailInvalid: the carry flag, and nothing else.
    Fails,
    /// A trap: the fix-up address, the number in `RAX`.
    Traps,
}

static ANSWER: AtomicU64 = AtomicU64::new(0);
static SEEN: [AtomicU64; 15] = [const { AtomicU64::new(0) }; 15];

unsafe extern "C" {
    #[link_name = "__start_refolio_seamcall_extable"]
    static TABLE: [i32; 2];
    #[link_name = "__stop_refolio_seamcall_extable"]
    static TABLE_END: [i32; 2];
}

/// Where to go on after a fault at `rip`, if the table knows it.
fn fixup(rip: u64) -> Option<u64> {
    let mut entry = &raw const TABLE;
    while entry < &raw const TABLE_END {
        // Each offset counts from where it stands.
        let target = |field: usize| unsafe {
            let at = entry.cast::<i32>().add(field);
            at.addr() as u64 + i64::from(*at) as u64
        };
        if target(0) == rip {
            return Some(target(1));
        }
        entry = unsafe { entry.add(1) };
    }
    None
}

extern "C" fn module(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let gregs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = gregs[libc::REG_RIP as usize] as u64;
    let Some(fixup) = fixup(rip) else {
        // Not ours: a fault of the test.
        unsafe { libc::abort() }
    };
    for (seen, register) in SEEN.iter().zip(ORDER) {
        seen.store(gregs[register as usize] as u64, SeqCst);
    }
    const CARRY: i64 = 1;
    gregs[libc::REG_EFL as usize] &= !CARRY;
    let resume = match ANSWER.load(SeqCst) {
        0 => {
            let guest = gregs[libc::REG_RAX as usize] == 0;
            for (index, register) in ORDER.into_iter().enumerate() {
                if guest || matches!(index, 0..=2 | 7..=12) {
                    gregs[register as usize] += 0x1000;
                }
            }
            rip + 4
        }
        1 => {
            gregs[libc::REG_EFL as usize] |= CARRY;
            rip + 4
        }
        _ => {
            gregs[libc::REG_RAX as usize] = Status::TRAP_UD.raw() as i64;
            fixup
        }
    };
    gregs[libc::REG_RIP as usize] = resume as i64;
}

/// One test at a time: handlers are the process's.
fn with(answer: Answer) -> (MutexGuard<'static, ()>, Instruction) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ANSWER.store(answer as u64, SeqCst);
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = module as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // #UD on a CPU that does not know the instruction, #GP in user mode on one that does.
        for signal in [libc::SIGILL, libc::SIGSEGV] {
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
        }
        (alone, Instruction::new())
    }
}

fn seen() -> [u64; 15] {
    SEEN.each_ref().map(|register| register.load(SeqCst))
}

fn call(answer: Answer, regs: Regs) -> Regs {
    let (_alone, instruction) = with(answer);
    instruction.call(unsafe { Call::from_regs(regs) })
}

const REGS: Regs = Regs { rax: 38, rcx: 2, rdx: 3, r8: 8, r9: 9, r10: 10, r11: 11, r12: 12, r13: 13 };

#[test]
fn nine_registers_go_in_and_come_out() {
    let out = call(Answer::Returns, REGS);
    let [rax, rcx, rdx, _, _, _, _, r8, r9, r10, r11, r12, r13, _, _] = seen();
    assert_eq!(Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 }, REGS);
    let back = |out: u64| out - 0x1000;
    let Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 } = out;
    let [rax, rcx, rdx, r8, r9, r10, r11, r12, r13] = [rax, rcx, rdx, r8, r9, r10, r11, r12, r13].map(back);
    assert_eq!(Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 }, REGS);
}

#[test]
fn a_module_that_is_not_there() {
    assert_eq!(call(Answer::Fails, REGS), Regs { rax: Status::VM_FAIL_INVALID.raw(), ..REGS });
    assert_eq!(call(Answer::Traps, REGS), Regs { rax: Status::TRAP_UD.raw(), ..REGS });
}

/// Enters with a value of its own in each register, and says whether the caller's were restored.
#[inline(never)]
fn enter(answer: Answer, guest: GuestRegs) -> GuestRegs {
    let (_alone, instruction) = with(answer);
    let vcpu = Tdvpr::new(Hpa::new(0x200_3000).unwrap()).unwrap();
    let (mut rsp, mut rbx, mut rbp): (u64, u64, u64);
    unsafe { asm!("mov {}, rsp", "mov {}, rbx", "mov {}, rbp", out(reg) rsp, out(reg) rbx, out(reg) rbp) };
    let before = (rsp, rbp);
    let out = unsafe { vp::enter(&instruction, vcpu, EnterFlags::RESUME_L1, guest) };
    unsafe { asm!("mov {}, rsp", "mov {}, rbx", "mov {}, rbp", out(reg) rsp, out(reg) rbx, out(reg) rbp) };
    assert_eq!((rsp, rbp), before);
    assert!(!(0xb00..0x2000).contains(&rbx), "RBX is the guest's");
    out
}

const GUEST: GuestRegs = GuestRegs {
    rax: 0xbad,
    rcx: 0xbad,
    rdx: 0xb02,
    rbx: 0xb03,
    rbp: 0xb05,
    rsi: 0xb06,
    rdi: 0xb07,
    r8: 0xb08,
    r9: 0xb09,
    r10: 0xb0a,
    r11: 0xb0b,
    r12: 0xb0c,
    r13: 0xb0d,
    r14: 0xb0e,
    r15: 0xb0f,
};

#[test]
fn fifteen_registers_go_into_a_guest_and_come_out() {
    let out = enter(Answer::Returns, GUEST);
    let in_order = |regs: GuestRegs| {
        let GuestRegs { rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = regs;
        [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
    };
    let sent = in_order(GuestRegs { rax: 0, rcx: 0x0020_0000_0200_3000, ..GUEST });
    assert_eq!(seen(), sent);
    assert_eq!(in_order(out), sent.map(|register| register + 0x1000));
}

#[test]
fn an_entry_that_fails_leaves_its_registers() {
    let sent = GuestRegs { rcx: 0x0020_0000_0200_3000, ..GUEST };
    let failed = GuestRegs { rax: Status::VM_FAIL_INVALID.raw(), ..sent };
    assert_eq!(enter(Answer::Fails, GUEST), failed);
    assert_eq!(enter(Answer::Traps, GUEST), GuestRegs { rax: Status::TRAP_UD.raw(), ..sent });
}
