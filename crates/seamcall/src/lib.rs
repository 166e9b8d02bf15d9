//! Typed host-side SEAMCALL wrappers for Intel TDX.
//!
//! A SEAMCALL takes a register file and gives one back. Here each leaf is a function instead: addresses are aligned
//! by construction, pages move in as [`Frame`](sept_core::Frame) and come back when the call fails, and a failure is
//! a [`SeamcallError`] that names the operand, the entry the module stopped at, and
//! [what to do about it](sept_core::Class).
//!
//! | Module | Leaves |
//! |---|---|
//! | [`sys`] | TDH.SYS.*: the module |
//! | [`mng`], [`vp`], [`mr`] | TDH.MNG.*, TDH.VP.*, TDH.MR.*: life of a TD and its vCPUs, measurement |
//! | [`mem`] | TDH.MEM.*: secure EPT and private pages |
//! | [`phymem`] | TDH.PHYMEM.*: page metadata, caches, Dynamic PAMT |
//! | [`export`] | TDH.EXPORT.BLOCKW, UNBLOCKW: write-blocking for migration |
//! | [`ranges`] | loops over leaves: write-back, reclaim, build, resumption |
//! | [`dpamt`] | which regions have a Dynamic PAMT page pair |
//! | [`exit`] | what a guest asks for: the exits of [`vp::enter`] |
//! | [`adapter`] | transports around a transport: entropy retry, missing features, recording, faults |
//!
//! Every function takes a [`Transport`]: the instruction, a model of the module, or an adapter around either.
//! [`vp::enter`] takes a [`VpEnter`], a transport that can exchange all registers with a guest.
//!
//! # Before any leaf
//!
//! The module looks at three things before it comes to the leaf; the documentation of a wrapper begins after them, and
//! no register but `RAX` changes:
//!
//! | Check | Status |
//! |---|---|
//! | it knows the leaf in this version | `OPERAND_INVALID\|RAX` (a number it does not know: after the other two) |
//! | it was not shut down; SYS.LP.SHUTDOWN is always taken | `SYS_SHUTDOWN` |
//! | it is ready; else only SYS.INIT, LP.INIT, CONFIG, KEY.CONFIG, UPDATE, INFO, RD, RDALL, LP.SHUTDOWN are taken | `SYS_NOT_READY` |
//!
//! Source: `src/vmm_dispatcher/tdx_vmm_dispatcher.c` of module 1.5.01.
//!
//! # A TD behind a page table
//!
//! [`Td`] is one TD as sept-core's hook trait ([`External`](sept_core::External)): hand it to a
//! `SecurePageTable` and every change of the table is made in the S-EPT first.
//!
//! * [`TdDescription`] says what the TD is: TDR, key ids and where they sit in an address, depth of the S-EPT,
//!   whether Dynamic PAMT is enabled, whether PROMOTE takes the tree lock exclusively, and the [`RetryBudget`].
//! * BUSY and INTERRUPTED_RESTARTABLE are retried under the budget, with the same operands; then the error comes out,
//!   of class `Retry` or `Quiesce`. Before it comes out, an entry whose lock was not got is read with SEPT.RD, under the
//!   same budget: the module otherwise keeps the guest from accepting it ([`SeamcallError::is_entry_busy`]). Where even
//!   that was busy, `probe` the entry until it succeeds.
//! * A change that is given up is undone by its caller: `unblock`, and again later.
//! * `fence` is TRACK and a shootdown; it is started, and polled with `fenced`.
//! * `map` with `Fill::Copy` is PAGE.ADD; measure the content with [`Td::measure`], close with [`Td::finalize`].
//! * Permissions are not changed (`protect`): write-blocking for migration is [`export`], by lists of pages.
//! * `scatter` writes back and scrubs pages that a failed DEMOTE may have written. [`Observe`] hears of what a `Td`
//!   settled by itself: retries, blocks that found the entry blocked, pages that could not be given back.
//!
//! ```
//! use seamcall::{Hkid, KeyIdBits, TablePages, Td, TdDescription, Tdr, TdError, Transport};
//! use sept_core::{External, GpaEntry, Hpa, Returned, Shootdown, TdxConfig, TreeLock};
//!
//! fn describe(tdr: Tdr, hkid: Hkid) -> Option<TdDescription> {
//!     let keys = KeyIdBits::new(46, 6)?; // from CPUID and IA32_TME_ACTIVATE
//!     Some(TdDescription::new(tdr, hkid, Hkid::new(32), keys, TdxConfig::LEVELS_4).with_dynamic_pamt(true))
//! }
//!
//! /// Splits a page that was blocked before the fence. On failure the pages come back.
//! fn split<T: Transport, S: Shootdown, L: TreeLock>(
//!     td: &Td<T, S, L>,
//!     at: GpaEntry,
//!     pages: TablePages,
//! ) -> Result<(), Returned<TdError, TablePages>> {
//!     td.split(at, pages)
//! }
//! ```
//!
//! # What does not compile
//!
//! A page that was given away cannot be used again:
//!
//! ```compile_fail,E0382
//! # use seamcall::{Tdr, Transport, mem};
//! # use sept_core::{Frame, GpaEntry};
//! fn twice<T: Transport>(t: &T, td: Tdr, one: GpaEntry, two: GpaEntry, page: Frame) {
//!     let _ = mem::page_aug(t, td, one, page);
//!     let _ = mem::page_aug(t, td, two, page);
//! }
//! ```
//!
//! A page that another key wrote cannot be given away, and neither can a guest address stand for a host address:
//!
//! ```compile_fail,E0308
//! # use seamcall::{Tdr, Transport, mem};
//! # use sept_core::{Frame, GpaEntry, Tainted};
//! fn stale<T: Transport>(t: &T, td: Tdr, at: GpaEntry, page: Frame<Tainted>) {
//!     let _ = mem::page_aug(t, td, at, page);
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use seamcall::{Transport, phymem};
//! # use sept_core::Gpa;
//! fn confused<T: Transport>(t: &T, gpa: Gpa) {
//!     let _ = phymem::page_reclaim(t, gpa);
//! }
//! ```
//!
//! Registers do not become a call without `unsafe`:
//!
//! ```compile_fail,E0133
//! # use seamcall::{Call, Regs, Transport};
//! fn raw<T: Transport>(t: &T, regs: Regs) -> Regs {
//!     t.call(Call::from_regs(regs))
//! }
//! ```
//!
//! A list that the module writes cannot be given up while it does:
//!
//! ```compile_fail,E0505
//! # use seamcall::{Tdr, Transport, export};
//! # use sept_core::{Frame, FrameKind, FrameSource};
//! fn early<T: Transport>(t: &T, td: Tdr, mut page: Frame, pool: &dyn FrameSource) {
//!     let list = export::GpaList::new(&mut page, 0, 511).unwrap();
//!     pool.give(FrameKind::Vmemmap, page);
//!     let _ = export::blockw(t, td, list);
//! }
//! ```
#![no_std]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        reason = "a test may fail by panicking"
    )
)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod adapter;
pub mod dpamt;
mod enter;
mod entry;
mod error;
pub mod exit;
pub mod export;
mod features;
#[cfg(test)]
mod golden;
#[cfg(target_arch = "x86_64")]
mod instruction;
mod layout;
mod leaf;
pub mod mem;
mod metadata;
pub mod mng;
pub mod mr;
mod operand;
pub mod phymem;
#[cfg(test)]
mod properties;
pub mod ranges;
mod status;
pub mod sys;
mod td;
#[cfg(test)]
mod testing;
mod transport;
pub mod vp;

pub use enter::{EnterCall, EnterFlags, GuestRegs, VpEnter};
pub use entry::{EntryInfo, SeptState};
pub use error::SeamcallError;
pub use exit::{EptViolation, ExitReason, MapGpa};
pub use features::Features0;
#[cfg(target_arch = "x86_64")]
pub use instruction::Instruction;
pub use layout::{
    Attributes, CmrInfo, ConfigFlags, CpuidValue, EptpControls, FatalErrorConfig, FatalInfo,
    FatalNotification, GpaListEntry, GpaListFlags, GpaListInfo, GpaListOperation, GpaListPage, GpaListStatus,
    PageType, PamtEntry, ReservedArea, SeptLayout, TdParams, TdmrInfo, pamt_sizes,
};
pub use leaf::Leaf;
pub use metadata::{FieldContext, FieldId, FieldValue, LifecycleState, OpState, PlatformField, TdField};
pub use operand::{Hkid, KeyIdBits, NULL_PA, Removed, Tdr, Tdvpr};
pub use status::{Detail, Operand, Status};
pub use td::{Notice, Observe, RetryBudget, Stopped, TablePages, Td, TdDescription, TdError};
pub use transport::{Call, Regs, Transport};
