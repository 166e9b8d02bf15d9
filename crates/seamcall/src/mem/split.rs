//! Changing the size of a mapping: DEMOTE, PROMOTE.

use super::RemovedTable;
use crate::operand::{Removed, UNUSED, invoke_at, mapping};
use crate::{Leaf, NULL_PA, Operand, Regs, SeamcallError, Status, Tdr, Transport};
use sept_core::{Frame, GpaEntry, Hpa, Level, Returned, Tainted};

/// Which L2 VMs get a table when a page is split.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.DEMOTE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum L2Mode {
    /// Each VM that a page is given for.
    #[default]
    All,
    /// Only the VMs that map the page; the other pages are left over.
    Sparse,
}

/// A frame that a failed call may have written.
#[derive(Debug)]
#[must_use = "dropping a frame leaks its memory"]
#[expect(clippy::exhaustive_enums, reason = "a frame is clean or it is not")]
pub enum MaybeTainted {
    /// Untouched.
    Clean(Frame),
    /// Written under the TD's key (by MNG.CREATE under the module's global one): write back its cache lines and
    /// overwrite it before other use.
    Tainted(Frame<Tainted>),
}

impl MaybeTainted {
    pub(crate) const fn new(frame: Frame, tainted: bool) -> Self {
        if tainted { Self::Tainted(frame.taint()) } else { Self::Clean(frame) }
    }
}

/// Pages for TDH.MEM.PAGE.DEMOTE. Come back whole from a failed call, and can be passed again.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.DEMOTE; `tdh_mem_page_demote.c` of modules 1.5.01 and 1.5.34.
#[derive(Debug)]
#[must_use = "dropping frames leaks their memory"]
pub struct DemotePages {
    table: Frame,
    l2: [Option<Frame>; 3],
    pair: Option<[Frame; 2]>,
    /// Bit n: what is given for `R8` + n cannot be an operand.
    unfit: u8,
    tainted: bool,
}

impl DemotePages {
    /// A page for the new L1 table.
    pub const fn new(table: Frame) -> Self {
        let unfit = is_larger(&table) as u8;
        Self { table, l2: [const { None }; 3], pair: None, unfit, tainted: false }
    }

    /// Adds pages for the tables of L2 VMs 1, 2 and 3 of a TD that has `vms` of them
    /// ([`TdField::NUM_L2_VMS`](crate::TdField::NUM_L2_VMS)); those given before are dropped (and so leaked).
    ///
    /// A page for a VM that the TD does not have is refused when the call is to be made: the module would neither take
    /// nor return it.
    pub fn with_l2(self, vms: u8, l2: [Option<Frame>; 3]) -> Self {
        let mut unfit = self.unfit & !0b1110;
        for ((index, page), bit) in (0..).zip(&l2).zip([0b10, 0b100, 0b1000]) {
            let fits = page.as_ref().is_none_or(|page| index < vms && !is_larger(page));
            unfit |= if fits { 0 } else { bit };
        }
        Self { l2, unfit, ..self }
    }

    /// Adds the Dynamic PAMT page pair that a 2 MiB page needs; one given before is dropped (and so leaked).
    pub fn with_pair(self, pair: [Frame; 2]) -> Self {
        let [first, second] = &pair;
        let of = |page, bit| if is_larger(page) { bit } else { 0 };
        let unfit = self.unfit & 0b1111 | of(first, 0b1_0000) | of(second, 0b10_0000);
        Self { pair: Some(pair), unfit, ..self }
    }

    /// Whether a failed call may have written the table pages.
    #[must_use]
    pub const fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// The pages: L1 table, L2 tables, page pair. The pair is never tainted: the module writes it last.
    pub fn into_parts(self) -> (MaybeTainted, [Option<MaybeTainted>; 3], Option<[Frame; 2]>) {
        let wrap = |frame| MaybeTainted::new(frame, self.tainted);
        (wrap(self.table), self.l2.map(|page| page.map(wrap)), self.pair)
    }

    #[inline]
    fn check(&self, leaf: Leaf, at: GpaEntry) -> Result<(), SeamcallError> {
        // Elsewhere the module does not look at the pair, and it would be lost.
        if self.pair.is_some() && at.level() != Level::L2M {
            return Err(SeamcallError::refused(leaf, Some(at), Operand::R12));
        }
        match self.unfit {
            0 => Ok(()),
            bits => {
                let operand = Operand::R8.id().saturating_add(bits.trailing_zeros());
                Err(SeamcallError::refused(leaf, Some(at), Operand::new(operand)))
            }
        }
    }
}

const fn is_larger(page: &Frame) -> bool {
    page.level().raw() != Level::L4K.raw()
}

/// TDH.MEM.PAGE.DEMOTE (15): splits the page at `at` into 512 of the next lower level, content kept.
///
/// Operands: `RCX` entry (2M or 1G: the level of the page that is split), `RDX` TDR and bit 0 the L2 mode, `R8` page
/// for the new table, `R9` to `R11` pages for those of L2 VMs or NULL_PA, `R12` and `R13` the Dynamic PAMT page pair
/// of the region (2M only). Op states: all from INITIALIZED but imports before POST_IMPORT and FAILED_IMPORT. Entry
/// MAPPED, BLOCKED, PENDING or PENDING_BLOCKED; blocked and tracked while the TD runs. Afterwards it is NL_MAPPED
/// and the children are MAPPED or PENDING: nothing is left to unblock. Tree lock shared.
///
/// Returns the L2 pages that were not needed.
///
/// # Errors
///
/// The pages come back, as tainted: the module fills the table before its last checks. `NOT_ISSUED|R12` for a pair
/// with a page that is not 2M, `NOT_ISSUED` (`|R9` to `|R11`) for the page of a VM that is not there: no call was made.
/// The common errors, then `GPA_RANGE_NOT_BLOCKED|RCX` with the entry,
/// `TLB_TRACKING_NOT_DONE|RCX`, page errors on `R8`; for each L2 VM `L2_SEPT_PAGE_NOT_PROVIDED` or page errors; *from
/// here on the pages have been written*: `L2_SEPT_WALK_FAILED`, `INTERRUPTED_RESTARTABLE`, `OPERAND_BUSY|RCX` without
/// an entry (PAMT lock of the page that is split), page errors and `PAGE_NOT_FREE` on `R12` and `R13`.
///
/// ```
/// use seamcall::{SeamcallError, Status, Tdr, Transport, mem::{self, DemotePages, L2Mode}};
/// use sept_core::{GpaEntry, Returned};
///
/// /// Splits a page that is blocked and tracked, trying again after an interruption.
/// fn split<T: Transport>(
///     t: &T,
///     td: Tdr,
///     at: GpaEntry,
///     mut pages: DemotePages,
///     attempts: u32,
/// ) -> Result<(), Returned<Option<SeamcallError>, DemotePages>> {
///     for _ in 0..attempts {
///         match mem::page_demote(t, td, at, L2Mode::All, pages) {
///             Ok(_) => return Ok(()),
///             Err(back) if back.error.status.is(Status::INTERRUPTED_RESTARTABLE) => pages = back.held,
///             Err(back) => return Err(back.map_error(Some)),
///         }
///     }
///     Err(Returned { error: None, held: pages }) // unblock it; the pages are tainted
/// }
/// ```
///
/// Source: TDX module ABI, TDH.MEM.PAGE.DEMOTE; `src/vmm_dispatcher/api_calls/tdh_mem_page_demote.c`.
#[inline]
pub fn page_demote<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    mode: L2Mode,
    mut pages: DemotePages,
) -> Result<[Option<Frame>; 3], Returned<SeamcallError, DemotePages>> {
    if let Err(error) = pages.check(Leaf::MEM_PAGE_DEMOTE, at) {
        return Err(Returned { error, held: pages });
    }
    let l2 = pages.l2.each_ref().map(|page| page.as_ref().map_or(NULL_PA, |page| page.hpa().raw()));
    let pair = pages.pair.as_ref().map(|pair| pair.each_ref().map(Frame::hpa));
    match page_demote_at(t, td, at, mode, pages.table.hpa(), l2, pair) {
        Ok(out) => {
            let [one, two, three] = pages.l2;
            // Exactly: a page that is given back by mistake would have two owners.
            let unused = |page: Option<Frame>, register: u64| {
                page.filter(|page| register == page.hpa().raw() | UNUSED)
            };
            Ok([unused(one, out.r9), unused(two, out.r10), unused(three, out.r11)])
        }
        Err(error) => {
            pages.tainted |= !error.status.is(Status::NOT_ISSUED);
            Err(Returned { error, held: pages })
        }
    }
}

#[inline]
pub(crate) fn page_demote_at<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
    mode: L2Mode,
    table: Hpa,
    [r9, r10, r11]: [u64; 3],
    pair: Option<[Hpa; 2]>,
) -> Result<Regs, SeamcallError> {
    let base = mapping(td, at);
    let flags = match mode {
        L2Mode::All => 0,
        L2Mode::Sparse => 1,
    };
    let (r12, r13) = pair.map_or((0, 0), |[first, second]| (first.raw(), second.raw()));
    let regs = Regs { rdx: base.rdx | flags, r8: table.raw(), r9, r10, r11, r12, r13, ..base };
    invoke_at(t, Leaf::MEM_PAGE_DEMOTE, at, regs)
}

/// The pages that a merge made free.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.PROMOTE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the pages are the host's again"]
#[non_exhaustive]
pub struct Promoted {
    /// Page of the L1 table.
    pub table: Removed,
    /// Dynamic PAMT, merged to 2 MiB: the page pair of the region.
    pub pair: Option<[Hpa; 2]>,
}

impl Promoted {
    fn from_output(out: &Regs, at: GpaEntry) -> Self {
        let page = |raw| Hpa::truncate(raw).align_down(Level::L4K);
        // Both went in as 0, and come out so where they are no outputs.
        let pair = at.level() == Level::L2M && (out.r12 | out.r13) != 0;
        Self {
            table: Removed::from_register(out.rcx),
            pair: if pair { Some([page(out.r12), page(out.r13)]) } else { None },
        }
    }
}

/// TDH.MEM.PAGE.PROMOTE (23), version 0: merges the 512 pages of the table at `at` into one, content kept.
///
/// Operands: `RCX` entry (2M or 1G: the level of the merged page), `RDX` TDR. Outputs: `RCX` page of the table; `R12`
/// and `R13` the page pair, with Dynamic PAMT and if the merged page is 2 MiB. Op states as [`page_demote`]. Entry
/// NL_BLOCKED and tracked while the TD runs, else also NL_MAPPED; the children all MAPPED or all PENDING, contiguous
/// and aligned. Afterwards it is MAPPED or PENDING: nothing is left to unblock. Tree lock shared; exclusive on newer
/// modules. For a partitioned TD use [`page_promote_v1`]: version 0 does not report pages of L2 tables.
///
/// # Errors
///
/// The common errors, then `OPERAND_BUSY|RCX` without an entry (PAMT lock of the table page),
/// `GPA_RANGE_NOT_BLOCKED|RCX` with the entry, `TLB_TRACKING_NOT_DONE|RCX`, `OPERAND_BUSY|RCX` with the entry (a
/// child is locked), `EPT_INVALID_PROMOTE_CONDITIONS|RCX` with the entry, `INTERRUPTED_RESTARTABLE`,
/// `OPERAND_BUSY|RCX` without an entry (PAMT lock of the merged page).
///
/// Source: TDX module ABI, TDH.MEM.PAGE.PROMOTE; `src/vmm_dispatcher/api_calls/tdh_mem_page_promote.c`.
#[inline]
pub fn page_promote<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<Promoted, SeamcallError> {
    let out = invoke_at(t, Leaf::MEM_PAGE_PROMOTE, at, mapping(td, at))?;
    Ok(Promoted::from_output(&out, at))
}

/// TDH.MEM.PAGE.PROMOTE (23), version 1: as [`page_promote`], and reports the pages of L2 tables.
///
/// Operands: `RCX` entry, `RDX` TDR. Outputs: `RCX`, `R9` to `R11`, and `R12`, `R13`. State as [`page_promote`].
///
/// # Errors
///
/// As [`page_promote`]; L2 tables are checked after the children and before the interruption.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.PROMOTE.
#[inline]
pub fn page_promote_v1<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    at: GpaEntry,
) -> Result<(Promoted, [Option<Removed>; 3]), SeamcallError> {
    let out = invoke_at(t, Leaf::MEM_PAGE_PROMOTE.version(1), at, mapping(td, at))?;
    Ok((Promoted::from_output(&out, at), RemovedTable::from_output(&out).l2))
}
