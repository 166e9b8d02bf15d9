//! Table pages: SEPT.ADD, SEPT.RD, SEPT.REMOVE.

use crate::operand::{Removed, UNUSED, invoke_at, mapping, optional_page};
use crate::{EntryInfo, Leaf, NULL_PA, Operand, Regs, SeamcallError, Tdr, Transport, error::require_level};
use bitflags::bitflags;
use sept_core::{Frame, GpaEntry, Hpa, Level, Returned};

const ALLOW_EXISTING: u64 = 1;
const READ_L2: u64 = 1;

/// TDH.MEM.SEPT.ADD (3), version 0: hangs an empty table into the free entry `at`.
///
/// Operands: `RCX` entry (2M and up: the parent's level), `RDX` TDR, `R8` page. Op states INITIALIZED, RUNNABLE,
/// LIVE_EXPORT, MEM_IMPORT, STATE_IMPORT, POST_IMPORT, LIVE_IMPORT. Entry FREE; it becomes NL_MAPPED. Tree lock
/// shared. The flag ALLOW_EXISTING is not offered: version 0 cannot say whether it took the page.
///
/// # Errors
///
/// The page comes back. The common errors, then page errors on `R8`.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.ADD.
#[inline]
pub fn sept_add<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Frame,
) -> Result<(), Returned<SeamcallError, Frame>> {
    match require_level(&page, Level::L4K, Leaf::MEM_SEPT_ADD, Operand::R8)
        .and_then(|()| sept_add_at(t, td, at, page.hpa()))
    {
        Ok(()) => Ok(()),
        Err(error) => Err(Returned { error, held: page }),
    }
}

#[inline]
pub(crate) fn sept_add_at<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    page: Hpa,
) -> Result<(), SeamcallError> {
    invoke_at(t, Leaf::MEM_SEPT_ADD, at, Regs { r8: page.raw(), ..mapping(td, at) }).map(drop)
}

/// Pages for TDH.MEM.SEPT.ADD version 1: for the L1 table, and for those of L2 VMs 1 to 3.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.ADD.
#[derive(Debug, Default)]
#[must_use = "dropping frames leaks their memory"]
#[expect(clippy::exhaustive_structs, reason = "the operands of the leaf; callers build it and take it apart")]
pub struct SeptPages {
    /// Page for the L1 table; `None` if it is there already.
    pub l1: Option<Frame>,
    /// Pages for the tables of L2 VMs 1, 2 and 3.
    pub l2: [Option<Frame>; 3],
}

impl SeptPages {
    /// The pages that are left over: those that their register still names, with or without the flag "not needed". One
    /// that was consumed reads NULL_PA.
    fn unconsumed(self, out: &Regs) -> Self {
        let [l2_1, l2_2, l2_3] = self.l2;
        let keep =
            |page: Option<Frame>, register: u64| page.filter(|page| register & !UNUSED == page.hpa().raw());
        Self { l1: keep(self.l1, out.r8), l2: [keep(l2_1, out.r9), keep(l2_2, out.r10), keep(l2_3, out.r11)] }
    }
}

fn register(page: Option<&Frame>) -> u64 {
    page.map_or(NULL_PA, |page| page.hpa().raw())
}

/// TDH.MEM.SEPT.ADD (3), version 1: as [`sept_add`], for the tables of L2 VMs too.
///
/// Operands: `RCX` entry, `RDX` TDR and bit 0 ALLOW_EXISTING, `R8` L1 page, `R9` to `R11` L2 pages, NULL_PA for none.
/// Entry FREE or NL_MAPPED; without an L1 page, NL_MAPPED. With `allow_existing`, a table that is there already is
/// no error, and its page is left over.
///
/// Returns the pages that were not needed.
///
/// # Errors
///
/// Comes with the pages that were not consumed. The common errors; `EPT_ENTRY_STATE_INCORRECT|RCX` (no L1 page and
/// no table, or a table and no `allow_existing`); page errors on `R8`; for each L2 VM in order: `OPERAND_INVALID`
/// (no such VM), `L2_SEPT_WALK_FAILED`, page errors, `L2_SEPT_ENTRY_NOT_FREE`. `INTERRUPTED_RESUMABLE`: some pages
/// were taken; call again with what came back.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.ADD.
pub fn sept_add_v1<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    allow_existing: bool,
    pages: SeptPages,
) -> Result<SeptPages, Returned<SeamcallError, SeptPages>> {
    let leaf = Leaf::MEM_SEPT_ADD.version(1);
    let [l2_1, l2_2, l2_3] = &pages.l2;
    let operands =
        [(&pages.l1, Operand::R8), (l2_1, Operand::R9), (l2_2, Operand::R10), (l2_3, Operand::R11)];
    let fits = operands.into_iter().try_for_each(|(page, operand)| match page {
        Some(page) => require_level(page, Level::L4K, leaf, operand),
        None => Ok(()),
    });
    if let Err(error) = fits {
        return Err(Returned { error, held: pages });
    }
    let base = mapping(td, at);
    let regs = Regs {
        rax: leaf.rax(),
        rdx: base.rdx | if allow_existing { ALLOW_EXISTING } else { 0 },
        r8: register(pages.l1.as_ref()),
        r9: register(l2_1.as_ref()),
        r10: register(l2_2.as_ref()),
        r11: register(l2_3.as_ref()),
        ..base
    };
    let out = t.call(crate::transport::Call::new(regs));
    let held = pages.unconsumed(&out);
    if crate::Status::from_raw(out.rax).is_success() {
        Ok(held)
    } else {
        Err(Returned { error: SeamcallError::from_output(leaf, Some(at), &out), held })
    }
}

/// TDH.MEM.SEPT.RD (25): reads the entry `at`, in any state.
///
/// Operands: `RCX` entry (any level), `RDX` TDR. Outputs: `RCX`, `RDX`. Op states: all from INITIALIZED. Takes the
/// lock of the entry, and so clears the host-priority flag that an earlier refused call left there. Tree lock shared.
///
/// # Errors
///
/// The common errors but the last: any state will do.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.RD.
#[inline]
pub fn sept_rd<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<EntryInfo, SeamcallError> {
    invoke_at(t, Leaf::MEM_SEPT_RD, at, mapping(td, at)).map(|out| EntryInfo::new(out.rcx, out.rdx))
}

bitflags! {
    /// Attributes of a page for one L2 VM. Unknown bits are kept.
    ///
    /// Source: TDX module ABI, GPA_ATTR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct L2Attributes: u16 {
        /// Read.
        const R = 1 << 0;
        /// Write.
        const W = 1 << 1;
        /// Fetch in supervisor mode.
        const XS = 1 << 2;
        /// Fetch in user mode.
        const XU = 1 << 3;
        /// Verify guest paging.
        const VGP = 1 << 4;
        /// Paging-write access.
        const PWA = 1 << 5;
        /// Supervisor shadow stack.
        const SSS = 1 << 6;
        /// Suppress #VE.
        const SVE = 1 << 7;
        /// The VM has an entry here.
        const VALID = 1 << 15;
        const _ = !0;
    }
}

/// TDH.MEM.SEPT.RD (25) of a debug TD: reads the entry and the attributes for L2 VMs 1 to 3.
///
/// Operands: `RCX` entry, `RDX` TDR and bit 0. Outputs: `RCX`, `RDX`, `R8`. State as [`sept_rd`], of a debug TD.
///
/// # Errors
///
/// As [`sept_rd`]; `OPERAND_INVALID|RDX` after the op state if the TD is not a debug TD.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.RD.
#[inline]
pub fn sept_rd_l2<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
) -> Result<(EntryInfo, [L2Attributes; 3]), SeamcallError> {
    let base = mapping(td, at);
    let out = invoke_at(t, Leaf::MEM_SEPT_RD, at, Regs { rdx: base.rdx | READ_L2, ..base })?;
    let [_, _, a0, a1, b0, b1, c0, c1] = out.r8.to_le_bytes();
    let vms =
        [[a0, a1], [b0, b1], [c0, c1]].map(|bytes| L2Attributes::from_bits_retain(u16::from_le_bytes(bytes)));
    Ok((EntryInfo::new(out.rcx, out.rdx), vms))
}

/// TDH.MEM.SEPT.REMOVE (30), version 0: takes the empty table out of `at`.
///
/// Operands: `RCX` entry (2M and up: the parent's level), `RDX` TDR. Output: `RCX` page. Op states: all from
/// INITIALIZED. Entry NL_BLOCKED and tracked while the TD runs, else also NL_MAPPED; it becomes FREE. Tree lock
/// exclusive. Tables of L2 VMs go with it and are not reported: use [`sept_remove_v1`] for a partitioned TD.
///
/// The page has the TD's cache lines: [`phymem::page_wbinvd`](crate::phymem::page_wbinvd) and overwrite it.
///
/// # Errors
///
/// The common errors, then `OPERAND_BUSY|RCX` without an entry (PAMT lock of the page), `GPA_RANGE_NOT_BLOCKED|RCX`
/// with the entry, `TLB_TRACKING_NOT_DONE|RCX`, `EPT_PAGE_NOT_FREE|RCX` with the entry `at`.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.REMOVE.
#[inline]
pub fn sept_remove<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<Removed, SeamcallError> {
    invoke_at(t, Leaf::MEM_SEPT_REMOVE, at, mapping(td, at)).map(|out| Removed::from_register(out.rcx))
}

/// The pages of a table that was removed.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.REMOVE, TDH.MEM.PAGE.PROMOTE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the pages are the host's again"]
#[non_exhaustive]
pub struct RemovedTable {
    /// Page of the L1 table.
    pub l1: Removed,
    /// Pages of the tables of L2 VMs 1, 2 and 3.
    pub l2: [Option<Removed>; 3],
}

impl RemovedTable {
    pub(super) const fn from_output(out: &Regs) -> Self {
        Self {
            l1: Removed::from_register(out.rcx),
            l2: [optional_page(out.r9), optional_page(out.r10), optional_page(out.r11)],
        }
    }
}

/// TDH.MEM.SEPT.REMOVE (30), version 1: as [`sept_remove`], and reports the pages of L2 tables.
///
/// Operands: `RCX` entry, `RDX` TDR. Outputs: `RCX`, `R9` to `R11`. State as [`sept_remove`].
///
/// # Errors
///
/// As [`sept_remove`], then `OPERAND_BUSY|RCX` for a page of an L2 table.
///
/// Source: TDX module ABI, TDH.MEM.SEPT.REMOVE.
#[inline]
pub fn sept_remove_v1<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
) -> Result<RemovedTable, SeamcallError> {
    let out = invoke_at(t, Leaf::MEM_SEPT_REMOVE.version(1), at, mapping(td, at))?;
    Ok(RemovedTable::from_output(&out))
}
