//! The memory that all tables live in, and its frames.
//!
//! One mapping stands for physical memory: prefaulted, on 2 MiB pages of the host where it has them, and at a fixed
//! distance from its physical addresses, as a kernel's direct map is. A LIFO list hands its frames out. Every
//! competitor uses both, and begins with the same list.

use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous},
};
use std::{
    fs,
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
};

/// Bytes of a frame.
pub(crate) const FRAME: u64 = 4096;
/// Number of frames.
pub(crate) const FRAMES: usize = 8192;
/// Physical address of the first frame.
pub(crate) const PHYS: u64 = 1 << 32;
/// What is added to a physical address.
pub(crate) const OFFSET: u64 = VIRT - PHYS;

const VIRT: u64 = 0x2000_0000_0000;
const BYTES: usize = FRAMES << 12;

/// Free frames, those below `TOP`; the last one is handed out next. Not for more than one thread at a time.
static FREE: [AtomicU32; FRAMES] = [const { AtomicU32::new(0) }; FRAMES];
static TOP: AtomicUsize = AtomicUsize::new(0);

/// Maps the memory. Says how much of it is on 2 MiB pages, in bytes.
pub(crate) fn map() -> Result<usize, Errno> {
    let at = with_exposed_provenance_mut(VIRT as usize);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: nothing is mapped there yet, or the call fails.
    let base = unsafe { mmap_anonymous(at, BYTES, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    if base != at {
        return Err(Errno::EXIST); // a kernel that does not know the flag
    }
    base.expose_provenance();
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the range was just mapped; the advice changes no content.
    let huge = unsafe { madvise(base, BYTES, Advice::LinuxHugepage) };
    #[expect(unsafe_code, reason = "the first write of every page")]
    // SAFETY: the range was just mapped for reading and writing, and nobody else knows it.
    unsafe {
        base.cast::<u8>().write_bytes(0xa5, BYTES);
    }
    Ok(huge.map_or(0, |()| on_huge_pages()))
}

/// Bytes of the mapping on 2 MiB pages, as the kernel says.
fn on_huge_pages() -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let start = format!("{VIRT:x}-");
    let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
    let huge = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = huge.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// Makes all frames free again, in the order in which everyone finds them.
pub(crate) fn reset() {
    for (place, number) in FREE.iter().zip((0..FRAMES as u32).rev()) {
        place.store(number, Relaxed);
    }
    TOP.store(FRAMES, Relaxed);
}

/// Number of frames handed out.
pub(crate) fn in_use() -> usize {
    FRAMES - TOP.load(Relaxed)
}

/// Hands out a frame, whatever it holds.
#[inline]
pub(crate) fn take() -> Option<u64> {
    let top = TOP.load(Relaxed).checked_sub(1)?;
    TOP.store(top, Relaxed);
    Some(PHYS + u64::from(FREE[top].load(Relaxed)) * FRAME)
}

/// Takes a frame back.
#[inline]
pub(crate) fn give(frame: u64) {
    let top = TOP.load(Relaxed);
    FREE[top].store(((frame - PHYS) / FRAME) as u32, Relaxed);
    TOP.store(top + 1, Relaxed);
}

/// Where a frame can be read and written.
#[inline]
pub(crate) fn pointer<T>(frame: u64) -> *mut T {
    with_exposed_provenance_mut((frame + OFFSET) as usize)
}
