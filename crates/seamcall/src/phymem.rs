//! TDH.PHYMEM.*: pages and caches, whoever owns them.
//!
//! ```
//! use seamcall::{SeamcallError, Status, Tdr, Tdvpr, Transport, mng, ranges, vp};
//!
//! /// Teardown up to the point where pages can be reclaimed, on a machine with one package.
//! fn tear_down<T: Transport>(t: &T, td: Tdr, vcpus: &[Tdvpr]) -> Result<(), SeamcallError> {
//!     for &vcpu in vcpus {
//!         match vp::flush(t, vcpu) {
//!             // Nothing of it is on this CPU.
//!             Err(error) if error.status.is(Status::VCPU_NOT_ASSOCIATED) => {}
//!             result => result?,
//!         }
//!     }
//!     mng::vpflushdone(t, td)?;
//!     ranges::cache_wb_to_end(t, 1000)?;
//!     mng::key_freeid(t, td)
//! }
//! ```

use crate::operand::invoke;
use crate::{
    Hkid, KeyIdBits, Leaf, Operand, PageType, Regs, SeamcallError, Status, Tdr, Transport,
    error::require_level,
};
use sept_core::{Frame, Hpa, Level, Returned};

/// What the module's page metadata (PAMT) says about a page.
///
/// Source: TDX module ABI, TDH.PHYMEM.PAGE.RDMD, TDH.PHYMEM.PAGE.RECLAIM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PageInfo {
    /// What the page is used for.
    pub page_type: PageType,
    /// The TD it belongs to, if any. Of a page that is not assigned, the last one: never proof of ownership.
    pub owner: Option<Tdr>,
    /// Size the page is used at; `None` for a number that is no page size.
    pub level: Option<Level>,
    /// Epoch of the last block, of data and table pages (RDMD).
    pub block_epoch: u64,
    /// [`page_rdmd_at`]: there is metadata of smaller pages below this entry.
    pub has_children: bool,
    /// [`page_rdmd_at`]: the page pair that describes the 2 MiB region.
    pub pair: Option<[Hpa; 2]>,
    /// RECLAIM with Dynamic PAMT: nothing in the 2 MiB region is in use at 4 KiB any more.
    pub pair_idle: bool,
}

impl PageInfo {
    const NON_LEAF: u64 = 1 << 63;

    fn from_output(out: &Regs) -> Self {
        let [kind, ..] = out.rcx.to_le_bytes();
        let [level, ..] = out.r8.to_le_bytes();
        let page = |raw| Hpa::truncate(raw).align_down(Level::L4K);
        Self {
            page_type: PageType::from_raw(kind),
            owner: if out.rdx == 0 { None } else { Some(Tdr::of_page(page(out.rdx))) },
            level: Level::new(level & 0b111),
            block_epoch: out.r9,
            has_children: out.rcx & Self::NON_LEAF != 0,
            pair: if out.r10 == 0 { None } else { Some([page(out.r10), page(out.r11)]) },
            pair_idle: false,
        }
    }
}

/// TDH.PHYMEM.PAGE.RECLAIM (28): takes a page of a TD in teardown back; its TDR goes last.
///
/// Operand: `RCX` page. Outputs: `RCX` type, `RDX` owner, `R8` size, `R9` bit 62 the Dynamic PAMT hint. A page that
/// was used at 2 MiB or 1 GiB is reclaimed whole, by its first address. Neither the S-EPT nor the content matters.
///
/// # Errors
///
/// In check order: `OPERAND_INVALID|RCX` (format), `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`,
/// `PAGE_METADATA_INCORRECT|RCX` (not in use), `OPERAND_INVALID|RCX` (inside a larger page), `OPERAND_BUSY|TDR`,
/// `LIFECYCLE_STATE_INCORRECT` (not in teardown), `TD_ASSOCIATED_PAGES_EXIST` (a TDR that is not the last page).
///
/// Source: TDX module ABI, TDH.PHYMEM.PAGE.RECLAIM.
#[inline]
pub fn page_reclaim<T: Transport + ?Sized>(t: &T, page: Hpa) -> Result<PageInfo, SeamcallError> {
    let out = invoke(t, Leaf::PHYMEM_PAGE_RECLAIM, on_page(page.raw()))?;
    let pair_idle = out.r9 & crate::operand::PAIR_IDLE != 0;
    Ok(PageInfo { pair_idle, block_epoch: 0, pair: None, ..PageInfo::from_output(&out) })
}

/// TDH.PHYMEM.PAGE.RDMD (24): reads the metadata of a page, at the size it is used at.
///
/// Operand: `RCX` page. Outputs: `RCX` type, `RDX` owner, `R8` size, `R9` block epoch.
///
/// # Errors
///
/// `NOT_ISSUED|RCX` unless `page` is 4 KiB aligned. In check order: `OPERAND_INVALID|RCX`,
/// `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`. Any type will do.
///
/// Source: TDX module ABI, TDH.PHYMEM.PAGE.RDMD; `tdh_phymem_page_rdmd.c` of module 1.5.01.
#[inline]
pub fn page_rdmd<T: Transport + ?Sized>(t: &T, page: Hpa) -> Result<PageInfo, SeamcallError> {
    page_rdmd_at(t, page, Level::L4K)
}

/// TDH.PHYMEM.PAGE.RDMD (24) with Dynamic PAMT: as [`page_rdmd`], but stops at the entry of `at_least`. So a region shows
/// its page pair at 2 MiB, where [`page_rdmd`] reads what the pair says about one page.
///
/// Operand: `RCX` page, and `at_least` in bits 2:0 (2M or 1G). Outputs: as [`page_rdmd`], and `RCX` bit 63 whether there
/// are smaller pages below, `R10` and `R11` the page pair.
///
/// # Errors
///
/// As [`page_rdmd`]; without Dynamic PAMT `OPERAND_INVALID|RCX` for any level but 4K. Any type will do.
///
/// Source: TDX module ABI, TDH.PHYMEM.PAGE.RDMD; module 2.0.08.
#[inline]
pub fn page_rdmd_at<T: Transport + ?Sized>(
    t: &T,
    page: Hpa,
    at_least: Level,
) -> Result<PageInfo, SeamcallError> {
    let leaf = Leaf::PHYMEM_PAGE_RDMD;
    // The module would take the lowest bits of an address for a level.
    if !page.is_aligned(Level::L4K) {
        return Err(SeamcallError::refused(leaf, None, Operand::RCX));
    }
    invoke(t, leaf, on_page(page.raw() | u64::from(at_least.raw()))).map(|out| PageInfo::from_output(&out))
}

/// TDH.PHYMEM.PAGE.WBINVD (41): writes back and invalidates the cache lines of one 4 KiB page under `key`.
///
/// Operand: `RCX` page with the key id in its upper bits. The page must not be assigned: call after removal. The key
/// is the TD's for its data and table pages, the module's global one for a TDR and for Dynamic PAMT pages.
///
/// # Errors
///
/// `NOT_ISSUED|RCX` if page or key do not fit `bits`. In check order: `OPERAND_INVALID|RCX`,
/// `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`, `PAGE_METADATA_INCORRECT|RCX` (still in use).
///
/// Source: TDX module ABI, TDH.PHYMEM.PAGE.WBINVD.
#[inline]
pub fn page_wbinvd<T: Transport + ?Sized>(
    t: &T,
    page: Hpa,
    key: Hkid,
    bits: KeyIdBits,
) -> Result<(), SeamcallError> {
    let leaf = Leaf::PHYMEM_PAGE_WBINVD;
    let Some(operand) = bits.tag(page, key) else {
        return Err(SeamcallError::refused(leaf, None, Operand::RCX));
    };
    invoke(t, leaf, on_page(operand)).map(drop)
}

/// Whether a [`cache_wb`] begins or goes on.
///
/// Source: TDX module ABI, TDH.PHYMEM.CACHE.WB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the leaf knows these two commands")]
pub enum CacheWb {
    /// Begin.
    Start,
    /// Go on after `INTERRUPTED_RESUMABLE`.
    Resume,
}

/// What TDH.PHYMEM.CACHE.WB did.
///
/// Source: TDX module ABI, TDH.PHYMEM.CACHE.WB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum CacheWritten {
    /// The caches of this package were written back and invalidated.
    Done,
    /// No key id was waiting for it (`NO_HKID_READY_TO_WBCACHE`, informational).
    NothingToDo,
}

/// TDH.PHYMEM.CACHE.WB (40): writes back the caches of the calling CPU's package for all key ids being torn down.
///
/// Operand: `RCX` 0 to begin, 1 to resume. Lifecycle BLOCKED of the TDs concerned: call once on each package between
/// [`mng::vpflushdone`](crate::mng::vpflushdone) and [`mng::key_freeid`](crate::mng::key_freeid).
///
/// # Errors
///
/// In check order: `OPERAND_BUSY|WBCACHE`, `OPERAND_BUSY|KOT`, `WBCACHE_RESUME_ERROR` (nothing to resume, or another
/// package), `INTERRUPTED_RESUMABLE`: call again with [`CacheWb::Resume`].
///
/// Source: TDX module ABI, TDH.PHYMEM.CACHE.WB; `tdh_phymem_cache_wb.c` of module 1.5.01.
#[inline]
pub fn cache_wb<T: Transport + ?Sized>(t: &T, command: CacheWb) -> Result<CacheWritten, SeamcallError> {
    let operand = match command {
        CacheWb::Start => 0,
        CacheWb::Resume => 1,
    };
    let out = invoke(t, Leaf::PHYMEM_CACHE_WB, on_page(operand))?;
    Ok(if Status::from_raw(out.rax).is(Status::NO_HKID_READY_TO_WBCACHE) {
        CacheWritten::NothingToDo
    } else {
        CacheWritten::Done
    })
}

/// TDH.PHYMEM.PAMT.ADD (58): gives the 2 MiB region at `region` a page pair, so that its pages can be used at 4 KiB.
///
/// Operands: `RCX` region and level 1, `RDX` first page (describes pages 0 to 255), `R8` second page. Both are
/// overwritten under the global key. They may lie anywhere in a TDMR and need no pair themselves.
///
/// # Errors
///
/// The pages come back. `NOT_ISSUED|RCX` unless `region` is 2 MiB aligned. In check order: `OPERAND_INVALID|RAX`
/// (Dynamic PAMT is not enabled), `OPERAND_INVALID|RCX`, for each page `OPERAND_INVALID` and
/// `OPERAND_ADDR_RANGE_ERROR` (`|RDX`, `|R8`), `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`,
/// `HPA_RANGE_NOT_FREE|RCX` (has a pair already, or is in use at 2 MiB or 1 GiB), for each page `OPERAND_BUSY` and
/// `PAGE_NOT_FREE`.
///
/// Source: TDX module ABI, TDH.PHYMEM.PAMT.ADD; modules 1.5.20 and 2.0.08.
#[inline]
pub fn pamt_add<T: Transport + ?Sized>(
    t: &T,
    region: Hpa,
    pair: [Frame; 2],
) -> Result<(), Returned<SeamcallError, [Frame; 2]>> {
    let leaf = Leaf::PHYMEM_PAMT_ADD;
    let [first, second] = &pair;
    let result = require_level(first, Level::L4K, leaf, Operand::RDX)
        .and_then(|()| require_level(second, Level::L4K, leaf, Operand::R8))
        .and_then(|()| pamt_add_at(t, region, [first.hpa(), second.hpa()]));
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(Returned { error, held: pair }),
    }
}

#[inline]
pub(crate) fn pamt_add_at<T: Transport + ?Sized>(
    t: &T,
    region: Hpa,
    [first, second]: [Hpa; 2],
) -> Result<(), SeamcallError> {
    let leaf = Leaf::PHYMEM_PAMT_ADD;
    let regs = Regs { rdx: first.raw(), r8: second.raw(), ..on_region(leaf, region)? };
    invoke(t, leaf, regs).map(drop)
}

/// TDH.PHYMEM.PAMT.REMOVE (59): takes the page pair of the 2 MiB region at `region` back.
///
/// Operand: `RCX` region and level 1, none of whose pages is in use at 4 KiB. Outputs: `RDX` and `R8` the pages. They
/// have cache lines under the global key: [`page_wbinvd`] and overwrite them.
///
/// # Errors
///
/// `NOT_ISSUED|RCX` unless `region` is 2 MiB aligned. In check order: `OPERAND_INVALID|RAX` (Dynamic PAMT is not
/// enabled), `OPERAND_INVALID|RCX`, `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`, `NO_PAMT_PAGE_PAIR|RCX`,
/// `PAMT_PAGE_NOT_EMPTY` with which page of the pair has entries in use.
///
/// Source: TDX module ABI, TDH.PHYMEM.PAMT.REMOVE; modules 1.5.20 and 2.0.08.
#[inline]
pub fn pamt_remove<T: Transport + ?Sized>(t: &T, region: Hpa) -> Result<[Hpa; 2], SeamcallError> {
    let leaf = Leaf::PHYMEM_PAMT_REMOVE;
    let out = invoke(t, leaf, on_region(leaf, region)?)?;
    Ok([out.rdx, out.r8].map(|raw| Hpa::truncate(raw).align_down(Level::L4K)))
}

const fn on_page(rcx: u64) -> Regs {
    let mut regs = Regs::new();
    regs.rcx = rcx;
    regs
}

const fn on_region(leaf: Leaf, region: Hpa) -> Result<Regs, SeamcallError> {
    if region.is_aligned(Level::L2M) {
        Ok(on_page(region.raw() | Level::L2M.raw() as u64))
    } else {
        Err(SeamcallError::refused(leaf, None, Operand::RCX))
    }
}
