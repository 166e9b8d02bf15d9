//! TDH.MNG.*: life of a TD.
//!
//! ```text
//! create -> key_config (once per package) -> addcx (6 pages or more) -> init -> ... -> mr::finalize
//! vp::flush (every vCPU) -> vpflushdone -> phymem::cache_wb (once per package) -> key_freeid -> phymem::page_reclaim
//! ```
//!
//! ```
//! use seamcall::{Hkid, SeamcallError, TdParams, Tdr, Transport, mem, mng, vp};
//! use sept_core::{Frame, Hpa, Returned};
//!
//! /// A TD with its key on one package, ready for its first pages. `params` holds a [`TdParams`].
//! fn build<T: Transport>(
//!     t: &T,
//!     hkid: Hkid,
//!     params: Hpa,
//!     mut page: impl FnMut() -> Frame,
//! ) -> Result<Tdr, SeamcallError> {
//!     // A host that cares gives `held` back to its allocator.
//!     let refused = |back: Returned<SeamcallError, Frame>| back.error;
//!     let control = |back: Returned<SeamcallError, mem::MaybeTainted>| back.error;
//!     let td = mng::create(t, page(), hkid).map_err(control)?;
//!     mng::key_config(t, td)?;
//!     for _ in 0..6 {
//!         mng::addcx(t, td, page()).map_err(control)?;
//!     }
//!     mng::init(t, td, params)?;
//!     let vcpu = vp::create(t, td, page()).map_err(refused)?;
//!     for _ in 0..5 {
//!         vp::addcx(t, vcpu, page()).map_err(refused)?;
//!     }
//!     vp::init(t, vcpu, 0)?;
//!     Ok(td)
//! }
//! ```
//!
//! All but [`rd`], [`rd_next`], [`read`] and [`wr`] lock the TDR exclusively, so a running vCPU (which holds it
//! shared) makes them busy.

use crate::operand::{give_page, invoke};
use crate::{FieldId, FieldValue, Hkid, Leaf, Operand, Regs, SeamcallError, Status, TdField, Tdr, Transport};
use crate::{error::require_level, mem::MaybeTainted};
use sept_core::{Frame, Hpa, Level, Returned};

/// TDH.MNG.CREATE (9): makes `page` the root of a new TD that owns `hkid`.
///
/// Operands: `RCX` page, `RDX` HKID. The page is zeroed under the module's global key; lifecycle HKID_ASSIGNED.
///
/// # Errors
///
/// The page comes back, after `RND_NO_ENTROPY` as tainted: the module has zeroed it under its global key by then. In
/// check order: `OPERAND_INVALID|RDX` (not a private HKID); for the page `OPERAND_INVALID|RCX`,
/// `OPERAND_ADDR_RANGE_ERROR|RCX`, `OPERAND_BUSY|RCX`, `PAGE_METADATA_INCORRECT|RCX`, `MISSING_PAMT_PAGE_PAIR|RCX`;
/// `OPERAND_BUSY|KOT`; `HKID_NOT_FREE`; `RND_NO_ENTROPY`.
///
/// Source: TDX module ABI, TDH.MNG.CREATE; `tdh_mng_create.c` of module 1.5.01.
#[inline]
pub fn create<T: Transport + ?Sized>(
    t: &T,
    page: Frame,
    hkid: Hkid,
) -> Result<Tdr, Returned<SeamcallError, MaybeTainted>> {
    let leaf = Leaf::MNG_CREATE;
    let regs = Regs { rcx: page.hpa().raw(), rdx: hkid.raw().into(), ..Regs::new() };
    match require_level(&page, Level::L4K, leaf, Operand::RCX).and_then(|()| invoke(t, leaf, regs)) {
        Ok(_) => Ok(Tdr::of_page(page.hpa())),
        Err(error) => {
            let written = error.status.is(Status::RND_NO_ENTROPY);
            Err(Returned { error, held: MaybeTainted::new(page, written) })
        }
    }
}

/// What TDH.MNG.KEY.CONFIG or TDH.SYS.KEY.CONFIG found.
///
/// Source: TDX module ABI, TDH.MNG.KEY.CONFIG, TDH.SYS.KEY.CONFIG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KeyConfig {
    /// This package now has the key.
    Configured,
    /// This package had it already (`KEY_CONFIGURED`, informational).
    Already,
}

impl KeyConfig {
    pub(crate) const fn from_output(out: &Regs) -> Self {
        if Status::from_raw(out.rax).is(Status::KEY_CONFIGURED) { Self::Already } else { Self::Configured }
    }
}

/// TDH.MNG.KEY.CONFIG (8): gives the TD its key on the package of the calling CPU. Call once on each package.
///
/// Operand: `RCX` TDR. Lifecycle HKID_ASSIGNED; the last package makes it KEYS_CONFIGURED.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `TD_FATAL`; `LIFECYCLE_STATE_INCORRECT` unless HKID_ASSIGNED;
/// `OPERAND_BUSY|KET`; `KEY_GENERATION_FAILED` (retry). A package that has its key is [`KeyConfig::Already`], before the
/// last two.
///
/// Source: TDX module ABI, TDH.MNG.KEY.CONFIG; `tdh_mng_key_config.c` of module 1.5.01.
#[inline]
pub fn key_config<T: Transport + ?Sized>(t: &T, td: Tdr) -> Result<KeyConfig, SeamcallError> {
    invoke(t, Leaf::MNG_KEY_CONFIG, on_tdr(td)).map(|out| KeyConfig::from_output(&out))
}

/// TDH.MNG.ADDCX (1): adds one page to the TD's control structure (TDCS). Six, and one more for each L2 VM.
///
/// Operands: `RCX` page, `RDX` TDR. Lifecycle KEYS_CONFIGURED, op state UNINITIALIZED. The fourth page is the root of
/// the S-EPT.
///
/// # Errors
///
/// The page comes back, after `RND_NO_ENTROPY` or `OP_STATE_INCORRECT` as tainted: the module fills it before these
/// checks. In check order: TDR page errors on `RDX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`; `TDCX_NUM_INCORRECT` (nine
/// there already); page errors on `RCX` as for [`create`]; `RND_NO_ENTROPY` (sixth page); `OP_STATE_INCORRECT` (seventh
/// page and up).
///
/// Source: TDX module ABI, TDH.MNG.ADDCX.
#[inline]
pub fn addcx<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    page: Frame,
) -> Result<(), Returned<SeamcallError, MaybeTainted>> {
    give_page(t, Leaf::MNG_ADDCX, page, td.hpa()).map_err(|Returned { error, held }| {
        let written = error.status.is(Status::RND_NO_ENTROPY) || error.status.is(Status::OP_STATE_INCORRECT);
        Returned { error, held: MaybeTainted::new(held, written) }
    })
}

/// TDH.MNG.INIT (21): reads TD_PARAMS from `params` and initialises the TD.
///
/// Operands: `RCX` TDR, `RDX` address of [`TdParams`](crate::TdParams) in shared memory, 1024-byte aligned. Op state
/// UNINITIALIZED becomes INITIALIZED.
///
/// # Errors
///
/// In check order: `LIMIT_CPUID_MAXVAL_SET`; TDR page errors on `RCX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`;
/// `TDCS_NOT_ALLOCATED`; `OP_STATE_INCORRECT`; `OPERAND_INVALID|RDX`; then `OPERAND_INVALID` with the field as
/// operand: `ATTRIBUTES`, `XFAM`, `MAX_VCPUS`, `NUM_L2_VMS` (and `TDCS_NOT_ALLOCATED` for too few pages), `RDX`
/// ([`TdParams::reserved_0`](crate::TdParams::reserved_0)), `CONFIG_FLAGS`, `EPTP_CONTROLS`, `TSC_FREQUENCY` (and
/// `INCONSISTENT_MSR`), `RDX` (the other reserved fields), `CPUID_CONFIG` with the leaf in `RCX`
/// ([`SeamcallError::registers`]; `INCORRECT_MSR_VALUE` for TSX that the CPU cannot switch off), `RDX` (values of leaves
/// that are not there), `IA32_ARCH_CAPABILITIES_CONFIG`, `RDX` (fields that do not go together).
///
/// Source: TDX module ABI, TDH.MNG.INIT; `tdh_mng_init.c` of modules 1.5.01 and 2.0.08. Event filters, which 2.0 takes
/// from `R8` if bit 0 of `RCX` asks for it, are not offered.
#[inline]
pub fn init<T: Transport + ?Sized>(t: &T, td: Tdr, params: Hpa) -> Result<(), SeamcallError> {
    invoke(t, Leaf::MNG_INIT, Regs { rdx: params.raw(), ..on_tdr(td) }).map(drop)
}

/// TDH.MNG.VPFLUSHDONE (19): begins teardown. From now on every S-EPT leaf answers `TD_KEYS_NOT_CONFIGURED`.
///
/// Operand: `RCX` TDR. Lifecycle HKID_ASSIGNED or KEYS_CONFIGURED becomes BLOCKED.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `OPERAND_BUSY|KOT`; `LIFECYCLE_STATE_INCORRECT`; `FLUSHVP_NOT_DONE` while
/// a vCPU is still associated with a CPU: [`vp::flush`](crate::vp::flush) it there.
///
/// Source: TDX module ABI, TDH.MNG.VPFLUSHDONE; `tdh_mng_vpflushdone.c` of module 1.5.01.
#[inline]
pub fn vpflushdone<T: Transport + ?Sized>(t: &T, td: Tdr) -> Result<(), SeamcallError> {
    invoke(t, Leaf::MNG_VPFLUSHDONE, on_tdr(td)).map(drop)
}

/// TDH.MNG.KEY.FREEID (20): frees the TD's key id; lifecycle BLOCKED becomes TEARDOWN.
///
/// Operand: `RCX` TDR. Lifecycle BLOCKED.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `LIFECYCLE_STATE_INCORRECT`; `OPERAND_BUSY|KOT`;
/// `WBCACHE_NOT_COMPLETE` until [`phymem::cache_wb`](crate::phymem::cache_wb) has run on every package.
///
/// Source: TDX module ABI, TDH.MNG.KEY.FREEID.
#[inline]
pub fn key_freeid<T: Transport + ?Sized>(t: &T, td: Tdr) -> Result<(), SeamcallError> {
    invoke(t, Leaf::MNG_KEY_FREEID, on_tdr(td)).map(drop)
}

/// TDH.MNG.RD (11), version 0: reads a metadata field of the TD.
///
/// Operands: `RCX` TDR (locked shared), `RDX` field id. Output: `R8`. Lifecycle KEYS_CONFIGURED, control pages there. Op
/// states: all from INITIALIZED.
///
/// # Errors
///
/// In check order: TDR page errors on `RCX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`; `TDCS_NOT_ALLOCATED`;
/// `OPERAND_BUSY|OP_STATE`; `OP_STATE_INCORRECT`; `METADATA_FIELD_ID_INCORRECT`; `METADATA_FIELD_NOT_READABLE`.
///
/// Source: TDX module ABI, TDH.MNG.RD; `tdh_mng_rd_wr.c` of module 1.5.01.
#[inline]
pub fn rd<T: Transport + ?Sized>(t: &T, td: Tdr, field: FieldId) -> Result<u64, SeamcallError> {
    invoke(t, Leaf::MNG_RD, Regs { rdx: field.raw(), ..on_tdr(td) }).map(|out| out.r8)
}

/// TDH.MNG.RD (11), version 1: reads a metadata field, and says which comes next (`None` after the last).
///
/// Operands: `RCX` TDR, `RDX` field id. Outputs: `R8`, `RDX`. State as [`rd`]. [`FieldId::NONE`] asks for the first
/// field (`METADATA_FIRST_FIELD_ID_IN_CONTEXT`, informational): the value is 0.
///
/// # Errors
///
/// As [`rd`].
///
/// Source: TDX module ABI, TDH.MNG.RD; `tdh_mng_rd_wr.c` of module 1.5.01.
#[inline]
pub fn rd_next<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    field: FieldId,
) -> Result<(u64, Option<FieldId>), SeamcallError> {
    let out = invoke(t, Leaf::MNG_RD.version(1), Regs { rdx: field.raw(), ..on_tdr(td) })?;
    Ok((out.r8, FieldId::next(out.rdx)))
}

/// TDH.MNG.RD (11) of a field that this crate knows, as the type of its value.
///
/// Operands: `RCX` TDR, `RDX` field id. Output: `R8`. State as [`rd`].
///
/// # Errors
///
/// As [`rd`].
///
/// ```
/// use seamcall::{SeamcallError, TdField, Tdr, Transport, mng};
///
/// /// Whether what is taken from the TD has to be blocked and tracked first.
/// fn runs<T: Transport>(t: &T, td: Tdr) -> Result<bool, SeamcallError> {
///     Ok(mng::read(t, td, TdField::OP_STATE)?.is_tracked())
/// }
/// ```
///
/// Source: TDX module ABI, TDH.MNG.RD.
#[inline]
pub fn read<T: Transport + ?Sized, V: FieldValue>(
    t: &T,
    td: Tdr,
    field: TdField<V>,
) -> Result<V, SeamcallError> {
    rd(t, td, field.id()).map(V::from_register)
}

/// TDH.MNG.WR (13): writes the bits of a metadata field that `mask` selects; returns what was there.
///
/// Operands: `RCX` TDR (locked shared), `RDX` field id, `R8` value, `R9` mask. Output: `R8`. State as [`rd`], but not
/// PAUSED_EXPORT and POST_EXPORT.
///
/// # Errors
///
/// In check order: as [`rd`], then `METADATA_FIELD_NOT_WRITABLE` (none of the bits is), `METADATA_FIELD_VALUE_NOT_VALID`
/// (a bit that may not change), `METADATA_WR_MASK_NOT_VALID` (a field that is written whole),
/// `METADATA_FIELD_VALUE_NOT_VALID` (the value).
///
/// Source: TDX module ABI, TDH.MNG.WR; `tdh_mng_rd_wr.c` of module 1.5.01.
#[inline]
pub fn wr<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    field: FieldId,
    value: u64,
    mask: u64,
) -> Result<u64, SeamcallError> {
    let regs = Regs { rdx: field.raw(), r8: value, r9: mask, ..on_tdr(td) };
    invoke(t, Leaf::MNG_WR, regs).map(|out| out.r8)
}

/// `RCX` = TDR.
pub(crate) const fn on_tdr(td: Tdr) -> Regs {
    let mut regs = Regs::new();
    regs.rcx = td.hpa().raw();
    regs
}
