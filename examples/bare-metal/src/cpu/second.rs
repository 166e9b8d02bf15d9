//! The second CPU: started once, then it does one job at a time.

use super::apic;
use core::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
};

/// Its APIC id.
pub const ID: u32 = 1;

/// The page of the first megabyte where it begins. Nothing else uses it after boot.
const TRAMPOLINE_PAGE: u8 = 8;

type Job<'a> = dyn Fn() + Sync + 'a;

static RUNS: AtomicBool = AtomicBool::new(false);
/// The job it is at, null if none.
static JOB: AtomicPtr<&Job<'static>> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" {
    safe static boot_stack: AtomicU64;
    safe static boot_entry: AtomicU64;
    safe static second_stack_end: u8;
    safe static trampoline: u8;
    safe static trampoline_end: u8;
}

/// Starts the second CPU and waits until it runs.
pub fn start() {
    boot_stack.store((&raw const second_stack_end).addr() as u64, Ordering::Relaxed);
    boot_entry.store(second_cpu as *const () as u64, Ordering::Release);
    let size = (&raw const trampoline_end).addr() - (&raw const trampoline).addr();
    let page = (usize::from(TRAMPOLINE_PAGE) << 12) as *mut u8;
    // SAFETY: from label to label it is the trampoline, and the page belongs to nobody else.
    unsafe { page.copy_from_nonoverlapping(&raw const trampoline, size) };
    apic::enable();
    apic::reset(ID);
    // A start-up message may meet a CPU that is not reset yet, which ignores it; so does one that runs.
    while !RUNS.load(Ordering::Acquire) {
        apic::start(ID, TRAMPOLINE_PAGE);
        spin_loop();
    }
}

extern "C" fn second_cpu() -> ! {
    super::SECOND.take().load();
    apic::enable();
    RUNS.store(true, Ordering::Release);
    loop {
        let job = JOB.load(Ordering::Acquire);
        if job.is_null() {
            spin_loop();
            continue;
        }
        // SAFETY: `beside` keeps the job alive until the pointer is null again.
        let job = unsafe { *job };
        job();
        JOB.store(ptr::null_mut(), Ordering::Release);
    }
}

/// Runs `job` on the second CPU and `here` on this one, and returns when both have ended. To be called on the first
/// CPU, and not from within itself.
pub fn beside<R>(job: &Job<'_>, here: impl FnOnce() -> R) -> R {
    let mut job = job;
    let job = (&raw mut job).cast::<&Job<'static>>();
    assert!(JOB.swap(job, Ordering::AcqRel).is_null(), "the second CPU is at a job already");
    let result = here();
    // Nothing unwinds here, so the job cannot outlive what it borrows.
    while !JOB.load(Ordering::Acquire).is_null() {
        spin_loop();
    }
    result
}
