//! TDH.VP.*: life of a vCPU.
//!
//! ```
//! use seamcall::exit::{Exit, MapGpaReply};
//! use seamcall::{EnterFlags, GuestRegs, MapGpa, Tdvpr, VpEnter, vp};
//! use sept_core::TdxConfig;
//!
//! /// Runs a vCPU until something other than a request to convert memory comes up.
//! ///
//! /// # Safety
//! ///
//! /// See [`vp::enter`].
//! unsafe fn run<T: VpEnter>(
//!     t: &T,
//!     vcpu: Tdvpr,
//!     config: TdxConfig,
//!     mut convert: impl FnMut(MapGpa) -> MapGpaReply,
//! ) -> (Exit, GuestRegs) {
//!     let mut guest = GuestRegs::new();
//!     loop {
//!         // SAFETY: the caller vouches for the guest, the extended state and the MSRs.
//!         let out = unsafe { vp::enter(t, vcpu, EnterFlags::empty(), guest) };
//!         guest = match Exit::decode(&out.regs(), config) {
//!             // What the guest did not choose is 0 in `out`, and is not read.
//!             Exit::MapGpa(request) => out.with_reply(convert(request)),
//!             Exit::BadMapGpa(error) => out.with_reply(error.reply()),
//!             exit => return (exit, out),
//!         };
//!     }
//! }
//! ```

use crate::operand::{give_page, invoke};
use crate::{
    EnterCall, EnterFlags, FieldId, GuestRegs, Leaf, Operand, Regs, SeamcallError, Tdr, Tdvpr, Transport,
    VpEnter, error::require_level,
};
use sept_core::{Frame, Level, Returned};

/// TDH.VP.CREATE (10): makes `page` the root of a new vCPU.
///
/// Operands: `RCX` page, `RDX` TDR. Op states INITIALIZED, STATE_IMPORT.
///
/// # Errors
///
/// The page comes back. In check order: TDR page errors on `RDX`; `TD_FATAL`; `TD_KEYS_NOT_CONFIGURED`;
/// `TDCS_NOT_ALLOCATED`; `OPERAND_BUSY|OP_STATE`; `OP_STATE_INCORRECT`; page errors on `RCX`.
///
/// Source: TDX module ABI, TDH.VP.CREATE.
#[inline]
pub fn create<T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    page: Frame,
) -> Result<Tdvpr, Returned<SeamcallError, Frame>> {
    let leaf = Leaf::VP_CREATE;
    let regs = Regs { rcx: page.hpa().raw(), rdx: td.hpa().raw(), ..Regs::new() };
    match require_level(&page, Level::L4K, leaf, Operand::RCX).and_then(|()| invoke(t, leaf, regs)) {
        Ok(_) => Ok(Tdvpr::of_page(page.hpa())),
        Err(error) => Err(Returned { error, held: page }),
    }
}

/// TDH.VP.ADDCX (4): adds one page to the vCPU's control structure (TDVPS). Five, and three more for each L2 VM.
///
/// Operands: `RCX` page, `RDX` TDVPR. Op states INITIALIZED, STATE_IMPORT.
///
/// # Errors
///
/// The page comes back. In check order: TDVPR page errors on `RDX`; `OPERAND_BUSY|TDR`; TD state errors;
/// `VCPU_STATE_INCORRECT`; `TDCX_NUM_INCORRECT`; page errors on `RCX`.
///
/// Source: TDX module ABI, TDH.VP.ADDCX.
#[inline]
pub fn addcx<T: Transport + ?Sized>(
    t: &T,
    vcpu: Tdvpr,
    page: Frame,
) -> Result<(), Returned<SeamcallError, Frame>> {
    give_page(t, Leaf::VP_ADDCX, page, vcpu.hpa())
}

/// TDH.VP.INIT (22), version 0: initialises the vCPU; the guest finds `rcx` in its RCX and R8.
///
/// Operands: `RCX` TDVPR, `RDX` initial value. Op state INITIALIZED.
///
/// # Errors
///
/// In check order: TDVPR page errors on `RCX`; `OPERAND_BUSY|TDR`; TD state errors; `TDCX_NUM_INCORRECT`;
/// `VCPU_STATE_INCORRECT`; `MAX_VCPUS_EXCEEDED`; `INCONSISTENT_MSR` (on newer modules first of all).
///
/// Source: TDX module ABI, TDH.VP.INIT; `tdh_vp_init.c` of module 1.5.01.
#[inline]
pub fn init<T: Transport + ?Sized>(t: &T, vcpu: Tdvpr, rcx: u64) -> Result<(), SeamcallError> {
    invoke(t, Leaf::VP_INIT, Regs { rdx: rcx, ..on_tdvpr(vcpu) }).map(drop)
}

/// TDH.VP.INIT (22), version 1: as [`init`], and sets the vCPU's x2APIC id.
///
/// Operands: `RCX` TDVPR, `RDX` initial value, `R8` x2APIC id. Op state INITIALIZED. Unlike [`init`], it locks the TDR
/// exclusively. A vCPU initialised by version 0 takes topology enumeration from the whole TD.
///
/// # Errors
///
/// As [`init`], and after them `X2APIC_ID_NOT_UNIQUE` with the id. A module without version 1 answers
/// `OPERAND_INVALID|RAX` first.
///
/// Source: TDX module ABI, TDH.VP.INIT; `tdh_vp_init.c` of module 2.0.08.
#[inline]
pub fn init_x2apic<T: Transport + ?Sized>(
    t: &T,
    vcpu: Tdvpr,
    rcx: u64,
    x2apic_id: u32,
) -> Result<(), SeamcallError> {
    let regs = Regs { rdx: rcx, r8: x2apic_id.into(), ..on_tdvpr(vcpu) };
    invoke(t, Leaf::VP_INIT.version(1), regs).map(drop)
}

/// TDH.VP.FLUSH (18): takes the vCPU off the calling CPU, so that another may enter it or the TD can be torn down.
///
/// Operand: `RCX` TDVPR, locked exclusively. Any op state.
///
/// # Errors
///
/// In check order: TDVPR page errors on `RCX`; `OPERAND_BUSY|TDR`; `TD_KEYS_NOT_CONFIGURED`; `TDCX_NUM_INCORRECT`;
/// `VCPU_NOT_ASSOCIATED` if the vCPU is not on this CPU (it may never have been entered): nothing to do.
///
/// Source: TDX module ABI, TDH.VP.FLUSH; `tdh_vp_flush.c` of module 1.5.01.
#[inline]
pub fn flush<T: Transport + ?Sized>(t: &T, vcpu: Tdvpr) -> Result<(), SeamcallError> {
    invoke(t, Leaf::VP_FLUSH, on_tdvpr(vcpu)).map(drop)
}

/// TDH.VP.RD (26), version 0: reads a metadata field of the vCPU.
///
/// Operands: `RCX` TDVPR (locked shared), `RDX` field id. Output: `R8`. Op states: all from INITIALIZED. State: all
/// control pages there, the vCPU initialised; it becomes associated with the calling CPU.
///
/// # Errors
///
/// In check order: TDVPR page errors on `RCX`; `OPERAND_BUSY|TDR`; TD state errors; `TDCX_NUM_INCORRECT`; what keeps
/// the vCPU off this CPU (`VCPU_STATE_INCORRECT`, `VCPU_ASSOCIATED` with another one); `METADATA_FIELD_ID_INCORRECT`;
/// `METADATA_FIELD_NOT_READABLE`.
///
/// Source: TDX module ABI, TDH.VP.RD; `tdh_vp_rd_wr.c` of module 1.5.01.
#[inline]
pub fn rd<T: Transport + ?Sized>(t: &T, vcpu: Tdvpr, field: FieldId) -> Result<u64, SeamcallError> {
    invoke(t, Leaf::VP_RD, Regs { rdx: field.raw(), ..on_tdvpr(vcpu) }).map(|out| out.r8)
}

/// TDH.VP.RD (26), version 1: reads a metadata field, and says which comes next (`None` after the last).
///
/// Operands: `RCX` TDVPR, `RDX` field id. Outputs: `R8`, `RDX`. State as [`rd`]. [`FieldId::NONE`] asks for the first
/// field (`METADATA_FIRST_FIELD_ID_IN_CONTEXT`, informational): the value is 0.
///
/// # Errors
///
/// As [`rd`].
///
/// Source: TDX module ABI, TDH.VP.RD; `tdh_vp_rd_wr.c` of module 1.5.01.
#[inline]
pub fn rd_next<T: Transport + ?Sized>(
    t: &T,
    vcpu: Tdvpr,
    field: FieldId,
) -> Result<(u64, Option<FieldId>), SeamcallError> {
    let out = invoke(t, Leaf::VP_RD.version(1), Regs { rdx: field.raw(), ..on_tdvpr(vcpu) })?;
    Ok((out.r8, FieldId::next(out.rdx)))
}

/// TDH.VP.WR (43): writes the bits of a metadata field that `mask` selects; returns what was there.
///
/// Operands: `RCX` TDVPR (locked shared), `RDX` field id, `R8` value, `R9` mask. Output: `R8`. State as [`rd`], but not
/// PAUSED_EXPORT and POST_EXPORT, nor a vCPU that is lost.
///
/// # Errors
///
/// In check order: as [`rd`], then `METADATA_FIELD_NOT_WRITABLE` (none of the bits is), `METADATA_FIELD_VALUE_NOT_VALID`,
/// `TD_VMCS_FIELD_NOT_INITIALIZED` with the field of the VMCS: posted interrupts before their vector or descriptor.
///
/// Source: TDX module ABI, TDH.VP.WR; `tdh_vp_rd_wr.c` of module 1.5.01.
#[inline]
pub fn wr<T: Transport + ?Sized>(
    t: &T,
    vcpu: Tdvpr,
    field: FieldId,
    value: u64,
    mask: u64,
) -> Result<u64, SeamcallError> {
    let regs = Regs { rdx: field.raw(), r8: value, r9: mask, ..on_tdvpr(vcpu) };
    invoke(t, Leaf::VP_WR, regs).map(|out| out.r8)
}

/// TDH.VP.ENTER (0): runs the guest on the calling CPU until it exits.
///
/// Operands: `RCX` TDVPR and `flags`, the other registers of `guest` as the [protocol](crate::GuestRegs) says; its
/// `rax` and `rcx` are not used. Outputs: all of them. Op states RUNNABLE, LIVE_EXPORT, LIVE_IMPORT; vCPU initialised,
/// and on this CPU or none. The TDR and the TDVPR are locked shared while the guest is inside.
///
/// What comes back is no `Result`: most entries end in a TD exit, which is a success with a reason. Hand it to
/// [`Exit::decode`](crate::exit::Exit::decode).
///
/// # Errors
///
/// As [`Exit::Status`](crate::exit::Exit::Status), with nothing but `RAX` changed. In check order:
/// `LIMIT_CPUID_MAXVAL_SET`; `OPERAND_INVALID|RCX`; TDVPR page errors on `RCX`; `OPERAND_BUSY|TDR`; TD state errors;
/// `TDCX_NUM_INCORRECT`; `VCPU_STATE_INCORRECT`; `VCPU_ASSOCIATED` with another CPU; `OPERAND_INVALID|RCX` (a flag
/// that does not fit the last exit); `INCONSISTENT_MSR`, `TSC_ROLLBACK`, `INCORRECT_MSR_VALUE`;
/// `OPERAND_BUSY|TD_EPOCH` (a TRACK is under way: enter again); `OPERAND_BUSY|SEPT_TREE` (the module looks into
/// repeated faults: enter again).
///
/// # Safety
///
/// * While the guest runs it reads and writes what is mapped for it as shared memory, like a device that does DMA.
/// * Afterwards the extended state that the TD's XFAM covers is as after a reset (but the `XMM` registers that the
///   guest chose in TDG.VP.VMCALL), and so are the debug registers and the MSRs that the ABI lists as not preserved.
///   The caller needs none of them, or has saved them and restores them before anything relies on them.
/// * Before a TDG.VP.VMCALL is answered, what is in `guest` and in the `XMM` registers may be shown to the guest.
///
/// Source: TDX module ABI, TDH.VP.ENTER; `tdh_vp_enter.c` of module 1.5.01.
#[inline]
#[must_use = "the guest has exited, and its registers say why"]
#[expect(
    unsafe_code,
    reason = "a guest runs on this CPU, and its extended state and MSRs are gone afterwards"
)]
pub unsafe fn enter<T: VpEnter + ?Sized>(
    t: &T,
    vcpu: Tdvpr,
    flags: EnterFlags,
    guest: GuestRegs,
) -> GuestRegs {
    t.enter(EnterCall::new(GuestRegs { rax: Leaf::VP_ENTER.rax(), rcx: enter_operand(vcpu, flags), ..guest }))
}

/// `RCX` of TDH.VP.ENTER, for a host that enters by its own code.
///
/// Source: TDX module ABI, TDH.VP.ENTER.
#[must_use]
pub const fn enter_operand(vcpu: Tdvpr, flags: EnterFlags) -> u64 {
    vcpu.hpa().raw() | flags.bits()
}

/// `RCX` = TDVPR.
const fn on_tdvpr(vcpu: Tdvpr) -> Regs {
    let mut regs = Regs::new();
    regs.rcx = vcpu.hpa().raw();
    regs
}
