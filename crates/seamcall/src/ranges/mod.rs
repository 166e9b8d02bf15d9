//! Loops over leaves that work page by page, or have to be called until they are done.
//!
//! Each stops at the first error and says where to go on; none touches a page beyond the range it was given. Loops
//! that a module could make endless take a bound.

#[cfg(test)]
mod tests;

use crate::mem::{SeptPages, sept_add_v1};
use crate::phymem::{CacheWb, CacheWritten, PageInfo, cache_wb, page_rdmd, page_reclaim, page_wbinvd};
use crate::{
    Hkid, KeyIdBits, Leaf, Operand, PageType, SeamcallError, Status, Stopped, Tdr, Transport,
    export::{self, GpaList},
    mem, mr,
};
use sept_core::{Frame, Gpa, GpaEntry, GpaRange, Hpa, Level, Returned};

/// [`page_wbinvd`] of each of `pages` 4 KiB pages from `first` on, all removed before.
///
/// # Errors
///
/// The page that was refused; those before it are done. `NOT_ISSUED|RCX`, and nothing is done, for a range that does
/// not end within physical addresses.
pub fn write_back<T: Transport + ?Sized>(
    t: &T,
    first: Hpa,
    pages: u64,
    key: Hkid,
    bits: KeyIdBits,
) -> Result<(), Stopped<Hpa>> {
    check_pages(first, pages, Leaf::PHYMEM_PAGE_WBINVD)?;
    for at in (0..pages).map_while(|index| nth_page(first, index)) {
        page_wbinvd(t, at, key, bits).map_err(|error| Stopped { at, error })?;
    }
    Ok(())
}

/// [`page_reclaim`] of everything in `pages` 4 KiB pages from `first` on, at the sizes it was used at.
///
/// `reclaimed` hears of each page, with its first address. Pages that are not assigned or reserved are passed over.
/// The TDR of a TD goes last: leave it out of the range, or call again for it.
///
/// # Errors
///
/// The page that was refused; those before it are reclaimed. A page that does not lie wholly in the range is
/// `NOT_ISSUED|RCX`, and is left alone; so is everything if the range does not end within physical addresses.
pub fn reclaim<T: Transport + ?Sized>(
    t: &T,
    first: Hpa,
    pages: u64,
    mut reclaimed: impl FnMut(Hpa, PageInfo),
) -> Result<(), Stopped<Hpa>> {
    check_pages(first, pages, Leaf::PHYMEM_PAGE_RECLAIM)?;
    let mut index = 0_u64;
    while let Some(left) = pages.checked_sub(index).filter(|left| *left != 0) {
        let Some(at) = nth_page(first, index) else { break };
        let stopped = |error| Stopped { at, error };
        let info = page_rdmd(t, at).map_err(stopped)?;
        let level = info.level.unwrap_or(Level::L4K);
        if info.has_children || info.page_type == PageType::Reserved {
            index = index.saturating_add(1);
            continue;
        }
        if info.page_type == PageType::NotAssigned {
            // Dynamic PAMT: without a page pair nothing in the whole 2 MiB is in use.
            let into = at.raw().saturating_sub(at.align_down(level).raw()) >> Level::L4K.shift();
            index = index.saturating_add(level.pages().saturating_sub(into));
            continue;
        }
        if !at.is_aligned(level) || level.pages() > left {
            return Err(stopped(SeamcallError::refused(Leaf::PHYMEM_PAGE_RECLAIM, None, Operand::RCX)));
        }
        reclaimed(at, page_reclaim(t, at).map_err(stopped)?);
        index = index.saturating_add(level.pages());
    }
    Ok(())
}

/// A build-time [`add`] stopped.
#[derive(Debug)]
#[non_exhaustive]
pub struct AddStopped {
    /// The first entry that was not added.
    pub at: GpaEntry,
    /// Why; `None` if the supplier had nothing to give.
    pub error: Option<SeamcallError>,
    /// The page that was refused.
    pub page: Option<Frame>,
}

/// [`mem::page_add`] of each 4 KiB page of `range`. `supply` gives a page and where its content lies.
///
/// # Errors
///
/// The entry that was refused, and its page; those before it are added.
pub fn add<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    range: GpaRange,
    mut supply: impl FnMut(GpaEntry) -> Option<(Frame, Hpa)>,
) -> Result<(), AddStopped> {
    let mut gpa = range.start();
    for _ in 0..range.pages() {
        let at = GpaEntry::containing(gpa, Level::L4K);
        let Some((page, source)) = supply(at) else {
            return Err(AddStopped { at, error: None, page: None });
        };
        mem::page_add(t, td, at, page, source).map_err(|back| AddStopped {
            at,
            error: Some(back.error),
            page: Some(back.held),
        })?;
        let Some(next) = gpa.checked_add(Level::L4K.size()) else { break };
        gpa = next;
    }
    Ok(())
}

/// [`mr::extend`] of `bytes` from `from`, both multiples of 256.
///
/// # Errors
///
/// The chunk that was refused; those before it are measured, so go on from there and never from the start.
/// `NOT_ISSUED|RCX`, and nothing is measured, for `bytes` that are not whole chunks within guest addresses.
pub fn extend<T: Transport + ?Sized>(t: &T, td: Tdr, from: Gpa, bytes: u64) -> Result<(), Stopped<Gpa>> {
    each_chunk(from, bytes, |at| mr::extend(t, td, at))
}

/// Calls `measure` with each chunk of `bytes` from `from` on.
pub(crate) fn each_chunk(
    from: Gpa,
    bytes: u64,
    measure: impl Fn(Gpa) -> Result<(), SeamcallError>,
) -> Result<(), Stopped<Gpa>> {
    let last = from.checked_add(bytes.saturating_sub(mr::EXTEND_CHUNK));
    if last.is_none() || !bytes.is_multiple_of(mr::EXTEND_CHUNK) {
        let error = SeamcallError::refused(Leaf::MR_EXTEND, None, Operand::RCX);
        return Err(Stopped { at: from, error });
    }
    let chunks = 0..bytes / mr::EXTEND_CHUNK;
    for at in chunks.map_while(|index| from.checked_add(index.checked_mul(mr::EXTEND_CHUNK)?)) {
        measure(at).map_err(|error| Stopped { at, error })?;
    }
    Ok(())
}

/// [`cache_wb`] until it is done, resuming after at most `interruptions` interruptions.
///
/// # Errors
///
/// As [`cache_wb`]. `INTERRUPTED_RESUMABLE`: the bound was reached; call [`cache_wb`] with [`CacheWb::Resume`].
pub fn cache_wb_to_end<T: Transport + ?Sized>(
    t: &T,
    interruptions: u32,
) -> Result<CacheWritten, SeamcallError> {
    let mut command = CacheWb::Start;
    let mut left = interruptions;
    loop {
        match cache_wb(t, command) {
            Err(error) if error.status.is(Status::INTERRUPTED_RESUMABLE) => {
                left = left.checked_sub(1).ok_or(error)?;
                command = CacheWb::Resume;
            }
            result => return result,
        }
    }
}

/// [`sept_add_v1`] until it is done, going on with what is left after at most `interruptions` interruptions.
///
/// # Errors
///
/// As [`sept_add_v1`]. `INTERRUPTED_RESUMABLE`: the bound was reached; call it with what came back.
pub fn sept_add_to_end<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    allow_existing: bool,
    mut pages: SeptPages,
    interruptions: u32,
) -> Result<SeptPages, Returned<SeamcallError, SeptPages>> {
    let mut left = interruptions;
    loop {
        match sept_add_v1(t, td, at, allow_existing, pages) {
            Err(back) if back.error.status.is(Status::INTERRUPTED_RESUMABLE) && left != 0 => {
                left = left.saturating_sub(1);
                pages = back.held;
            }
            result => return result,
        }
    }
}

/// [`export::blockw`] until the list is done, going on after at most `interruptions` interruptions.
///
/// What became of each page stands in its entry; the module counts only those of the last call.
///
/// # Errors
///
/// As [`export::blockw`]. `INTERRUPTED_RESUMABLE`, `INTERRUPTED_BUSY`: the bound was reached; call it with the list
/// that came back.
pub fn blockw_to_end<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
    interruptions: u32,
) -> Result<(), Returned<SeamcallError, GpaList<'a>>> {
    list_to_end(list, interruptions, |list| export::blockw(t, td, list)).map(drop)
}

/// [`export::blockw_v1`] until the list is done, going on after at most `interruptions` interruptions. Returns how
/// many entries had a problem.
///
/// # Errors
///
/// As [`blockw_to_end`].
pub fn blockw_v1_to_end<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
    interruptions: u32,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    list_to_end(list, interruptions, |list| export::blockw_v1(t, td, list))
}

fn list_to_end<'a>(
    mut list: GpaList<'a>,
    interruptions: u32,
    call: impl Fn(GpaList<'a>) -> Result<u32, Returned<SeamcallError, GpaList<'a>>>,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    let mut left = interruptions;
    loop {
        match call(list) {
            Err(back) if is_interruption(&back.error) && left != 0 => {
                left = left.saturating_sub(1);
                list = back.held;
            }
            result => return result,
        }
    }
}

const fn is_interruption(error: &SeamcallError) -> bool {
    error.status.is(Status::INTERRUPTED_RESUMABLE) || error.status.is(Status::INTERRUPTED_BUSY)
}

/// The page `index` pages after `first`.
fn nth_page(first: Hpa, index: u64) -> Option<Hpa> {
    first.checked_add(index.checked_mul(Level::L4K.size())?)
}

/// Refuses a range whose last page is beyond physical addresses, before anything is done to its first.
fn check_pages(first: Hpa, pages: u64, leaf: Leaf) -> Result<(), Stopped<Hpa>> {
    match nth_page(first, pages.saturating_sub(1)) {
        Some(_) => Ok(()),
        None => Err(Stopped { at: first, error: SeamcallError::refused(leaf, None, Operand::RCX) }),
    }
}
