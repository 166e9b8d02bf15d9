//! Pages: ADD, AUG, REMOVE, RELOCATE.

use crate::operand::{invoke_at, mapping};
use crate::{Leaf, Operand, Regs, Removed, SeamcallError, Tdr, Transport, error::require_level};
use sept_core::{Frame, GpaEntry, Hpa, Level, Returned};

/// TDH.MEM.PAGE.ADD (2): maps `page` at the free 4K entry `at` and copies the page at `source` into it.
///
/// Operands: `RCX` entry (4K), `RDX` TDR (locked exclusively), `R8` page, `R9` source, a page of shared memory.
/// Op state INITIALIZED, entry FREE; it becomes MAPPED. The GPA is measured, the content is not:
/// [`mr::extend`](crate::mr::extend).
///
/// # Errors
///
/// The page comes back. The common errors (no op-state, tree or entry lock is taken), then `OPERAND_INVALID|R9`,
/// then page errors on `R8`. A running vCPU makes the TDR busy.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.ADD.
#[inline]
pub fn page_add<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Frame,
    source: Hpa,
) -> Result<(), Returned<SeamcallError, Frame>> {
    match require_level(&page, Level::L4K, Leaf::MEM_PAGE_ADD, Operand::R8)
        .and_then(|()| page_add_at(t, td, at, page.hpa(), source))
    {
        Ok(()) => Ok(()),
        Err(error) => Err(Returned { error, held: page }),
    }
}

#[inline]
pub(crate) fn page_add_at<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Hpa,
    source: Hpa,
) -> Result<(), SeamcallError> {
    let regs = Regs { r8: page.raw(), r9: source.raw(), ..mapping(td, at) };
    invoke_at(t, Leaf::MEM_PAGE_ADD, at, regs).map(drop)
}

/// TDH.MEM.PAGE.AUG (6): maps `page` at the free entry `at`; the guest finds zeroes once it has accepted it.
///
/// Operands: `RCX` entry (4K or 2M), `RDX` TDR, `R8` page of the entry's size. Op states INITIALIZED, RUNNABLE,
/// LIVE_EXPORT, LIVE_IMPORT; entry FREE or REMOVED; it becomes PENDING. Tree lock shared.
///
/// # Errors
///
/// The page comes back. The common errors, then page errors on `R8`. For 2M, `PAGE_METADATA_INCORRECT|R8` also
/// means that one of its 512 pages is in use or reserved, or (Dynamic PAMT) that the region has a page pair.
///
/// ```
/// use seamcall::{SeamcallError, SeptState, Tdr, Transport, mem};
/// use sept_core::{Frame, GpaEntry, Returned};
///
/// /// Serves a fault. If another vCPU was faster, that is no error, and the page is left over.
/// fn fault<T: Transport>(t: &T, td: Tdr, at: GpaEntry, page: Frame) -> Result<Option<Frame>, SeamcallError> {
///     match mem::page_aug(t, td, at, page) {
///         Ok(()) => Ok(None),
///         Err(Returned { error, held }) => match error.entry().map(|entry| (entry.level(), entry.state())) {
///             Some((level, SeptState::Mapped | SeptState::Pending)) if level == Some(at.level()) => Ok(Some(held)),
///             // The page is dropped, and so leaked: a host gives it back to its allocator first.
///             _ => Err(error),
///         },
///     }
/// }
/// ```
///
/// Source: TDX module ABI, TDH.MEM.PAGE.AUG.
#[inline]
pub fn page_aug<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Frame,
) -> Result<(), Returned<SeamcallError, Frame>> {
    match require_level(&page, at.level(), Leaf::MEM_PAGE_AUG, Operand::R8)
        .and_then(|()| page_aug_at(t, td, at, page.hpa()))
    {
        Ok(()) => Ok(()),
        Err(error) => Err(Returned { error, held: page }),
    }
}

#[inline]
pub(crate) fn page_aug_at<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Hpa,
) -> Result<(), SeamcallError> {
    let regs = Regs { r8: page.raw(), ..mapping(td, at) };
    invoke_at(t, Leaf::MEM_PAGE_AUG, at, regs).map(drop)
}

/// TDH.MEM.PAGE.REMOVE (29): takes the page out of `at`; its content is lost to the guest.
///
/// Operands: `RCX` entry (4K, 2M or 1G), `RDX` TDR. Output: `RCX` page, bit 62 the Dynamic PAMT hint. Op states:
/// all from INITIALIZED but MEM_IMPORT and STATE_IMPORT. Entry MAPPED, BLOCKED, BLOCKEDW or one of their PENDING
/// forms; blocked and tracked while the TD runs. It becomes FREE (REMOVED during import). Tree lock shared.
///
/// The page still has the TD's cache lines and data: [`phymem::page_wbinvd`](crate::phymem::page_wbinvd) each
/// 4 KiB, then overwrite.
///
/// # Errors
///
/// The common errors, then `OPERAND_BUSY|RCX` without an entry (the page's PAMT lock; also for an unblocked page),
/// `GPA_RANGE_NOT_BLOCKED|RCX` with the entry, `TLB_TRACKING_NOT_DONE|RCX`.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.REMOVE.
#[inline]
pub fn page_remove<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<Removed, SeamcallError> {
    invoke_at(t, Leaf::MEM_PAGE_REMOVE, at, mapping(td, at)).map(|out| Removed::from_register(out.rcx))
}

/// TDH.MEM.PAGE.RELOCATE (5): moves the page at the 4K entry `at` to `page`, content kept.
///
/// Operands: `RCX` entry (4K), `RDX` TDR, `R8` new page. Output: `RCX` old page. Entry in any leaf state; blocked
/// and tracked while the TD runs; unblocked afterwards. Tree lock shared. Op states as PAGE.REMOVE but FAILED_IMPORT.
///
/// # Errors
///
/// The new page comes back. The common errors, then `OPERAND_INVALID|R8` (the same page), `OPERAND_BUSY|RCX`
/// without an entry (PAMT lock of the old page), `GPA_RANGE_NOT_BLOCKED|RCX` with the entry,
/// `TLB_TRACKING_NOT_DONE|RCX`, page errors on `R8`.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.RELOCATE.
#[inline]
pub fn page_relocate<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Frame,
) -> Result<Removed, Returned<SeamcallError, Frame>> {
    let leaf = Leaf::MEM_PAGE_RELOCATE;
    let regs = Regs { r8: page.hpa().raw(), ..mapping(td, at) };
    match require_level(&page, Level::L4K, leaf, Operand::R8).and_then(|()| invoke_at(t, leaf, at, regs)) {
        Ok(out) => Ok(Removed::from_register(out.rcx)),
        Err(error) => Err(Returned { error, held: page }),
    }
}
