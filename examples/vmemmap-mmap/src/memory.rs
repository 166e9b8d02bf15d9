//! The memfd, the direct map of it, and the window.

use crate::page::{STRUCTS, StructPage};
use rustix::{
    fd::OwnedFd,
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};
use std::{
    ptr::NonNull,
    slice,
    sync::{Mutex, PoisonError},
};
use vmemmap_prealloc::{GeometryError, TailScheme};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Of the memfds, as the system shows it.
const NAME: &str = "refolio-vmemmap";

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The process may not have that many mappings.
    #[error(
        "{needed} mappings are needed and {in_use} are in use; vm.max_map_count is {limit}: \
         sysctl vm.max_map_count={}, or fewer blocks", needed + in_use
    )]
    Maps {
        /// One for each page of the window, and a few.
        needed: u64,
        /// Those of the process so far, with all that other windows may take.
        in_use: u64,
        /// What the system allows.
        limit: u64,
    },
    /// A block has no whole page of the vmemmap.
    #[error("a block of order {order} is too small")]
    TooSmall {
        /// Its order.
        order: u8,
    },
    /// Tails of a kind that this host has not.
    #[error("tails of {tails:?} are not to be had here")]
    Tails {
        /// The kind.
        tails: TailScheme,
    },
    /// The sizes do not go together.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] Errno),
}

/// Mappings that the windows of this process may take, whether they are apart now or the kernel has joined them.
static PROMISED: Mutex<u64> = Mutex::new(0);

/// A number of mappings that no other window of the process is given.
#[derive(Debug)]
pub(crate) struct Maps(u64);

impl Maps {
    /// Refuses what would not fit beside the mappings in use and those promised. A system that does not tell has no limit.
    pub(crate) fn promise(needed: u64) -> Result<Self, SetupError> {
        let read = |path| std::fs::read_to_string(path).ok();
        let mut promised = PROMISED.lock().unwrap_or_else(PoisonError::into_inner);
        let limit =
            read("/proc/sys/vm/max_map_count").and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
        let of_windows = |line: &&str| line.contains(NAME);
        let others = |text: String| text.lines().filter(|line| !of_windows(line)).count() as u64;
        let in_use = read("/proc/self/maps").map_or(0, others).saturating_add(*promised);
        if needed.saturating_add(in_use) > limit {
            return Err(SetupError::Maps { needed, in_use, limit });
        }
        *promised = promised.saturating_add(needed);
        Ok(Self(needed))
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        let mut promised = PROMISED.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.0);
    }
}

/// A range of addresses whose every page is, at any time, mapped to a page of one memfd.
#[derive(Debug)]
struct Region {
    base: NonNull<u8>,
    pages: usize,
}

// SAFETY: a region is addresses; what lies there is reached through atomics only.
#[expect(unsafe_code, reason = "a pointer that is not tied to a thread")]
unsafe impl Send for Region {}
// SAFETY: as above; remapping is a system call, which the kernel orders.
#[expect(unsafe_code, reason = "a pointer that is not tied to a thread")]
unsafe impl Sync for Region {}

impl Region {
    /// The `struct page`s in page `index` of the region.
    fn structs(&self, index: usize) -> &[StructPage] {
        assert!(index < self.pages, "page {index} of a region of {}", self.pages);
        let first = self.base.as_ptr().wrapping_add(index * PAGE).cast::<StructPage>();
        // SAFETY:
        // * the address lies inside the region, which is readable as long as `self` lives: a page of it is replaced
        //   by another one, never unmapped, and an access meanwhile waits in the kernel;
        // * it is aligned to a page, any bytes are a valid `StructPage`, and its fields are atomics, so that others may
        //   change them;
        // * a store to a page that is mapped read-only ends the process.
        #[expect(unsafe_code, reason = "memory that a system call mapped")]
        unsafe {
            slice::from_raw_parts(first, STRUCTS)
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region was mapped with this size, and no reference into it outlives it.
        #[expect(unsafe_code, reason = "memory that a system call mapped")]
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.pages * PAGE) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Pages, and the window in which some of them are seen.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    direct: Region,
    window: Region,
}

impl Memory {
    /// `frames` pages, and a window of `entries`, which all show the first page until they are mapped.
    pub(crate) fn new(frames: usize, entries: usize) -> Result<Self, Errno> {
        let file = memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        ftruncate(&file, (frames * PAGE) as u64)?;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place of a new mapping of a file that stays open.
        #[expect(unsafe_code, reason = "a mapping has no safe interface")]
        let direct = unsafe { mmap(std::ptr::null_mut(), frames * PAGE, both, MapFlags::SHARED, &file, 0) }?;
        let direct = Region { base: NonNull::new(direct.cast()).ok_or(Errno::NOMEM)?, pages: frames };
        // SAFETY: the kernel chooses the place of a new mapping.
        #[expect(unsafe_code, reason = "a mapping has no safe interface")]
        let window = unsafe {
            mmap_anonymous(std::ptr::null_mut(), entries * PAGE, ProtFlags::READ, MapFlags::PRIVATE)
        }?;
        let window = Region { base: NonNull::new(window.cast()).ok_or(Errno::NOMEM)?, pages: entries };
        Ok(Self { file, direct, window })
    }

    /// The page at byte `offset` of the memfd, wherever else it is mapped.
    pub(crate) fn direct(&self, offset: u64) -> &[StructPage] {
        self.direct.structs(usize::try_from(offset).unwrap_or(usize::MAX) / PAGE)
    }

    /// What entry `index` of the window shows.
    pub(crate) fn window(&self, index: u64) -> &[StructPage] {
        self.window.structs(usize::try_from(index).unwrap_or(usize::MAX))
    }

    /// The `struct page` of the `page`-th page that the window describes.
    pub(crate) fn page(&self, page: u64) -> &StructPage {
        let structs = STRUCTS as u64;
        let [.., last] = self.window(page / structs) else { unreachable!("a page holds structs") };
        self.window(page / structs).get((page % structs) as usize).unwrap_or(last)
    }

    /// Shows the page at byte `offset` of the memfd in entry `index` of the window, from now on, on all CPUs.
    pub(crate) fn map(&self, index: u64, offset: u64, writable: bool) -> Result<(), Errno> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        assert!(index < self.window.pages && offset / (PAGE as u64) < self.direct.pages as u64);
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let at = self.window.base.as_ptr().wrapping_add(index * PAGE);
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        // SAFETY:
        // * what is replaced is one page of the window, which is this value's alone;
        // * references into it see atomics before and after, of a page that exists (asserted).
        #[expect(unsafe_code, reason = "a mapping has no safe interface")]
        let mapped = unsafe { mmap(at.cast(), PAGE, access, flags, &self.file, offset) };
        mapped.map(|_| ())
    }
}
