//! HugeTLB vmemmap optimization across folio splits: exact needs, reserved pages, a remap that cannot fail.
//!
//! A `struct page` exists for every page of memory. Those of a large folio are all alike after the first ones, so a
//! host lets them share a read-only page and saves 1.6 % of its memory (Linux: HVO, mm/hugetlb_vmemmap.c). When the
//! folio is split, each piece needs a head of its own again. Linux then restores all 4,095 pages of a 1 GiB folio,
//! with allocations that may fail half way. This crate takes the pages that the new layout really needs, 518 or 12
//! for one shared page, says so before, and changes the mapping directly from one layout to the other.
//!
//! # The protocol
//!
//! 1. *Once per zone*: [`install_templates`]. Once per block: [`install_tables`], and [`optimize`] under a freeze.
//! 2. *Plan*: [`VmemmapNeeds::plan`]. *Reserve*: [`reserve`], into storage of the caller's choice. The last point at
//!    which memory can be short.
//! 3. *Commit*, for each change of the transition, [`split_atom`] or [`merge_atom`]: freeze, change the mapping, flush,
//!    thaw. Or their parts, [`apply_split`] and [`apply_merge`], where one flush serves several blocks.
//! 4. *Release*: replaced pages stay with the backend until [`VmemmapBackend::flush`] has given a proof, and go back
//!    with [`VmemmapBackend::release`]. [`merge_atom`] does that by itself.
//!
//! # Formulas
//!
//! With V(layout) the vmemmap pages that are a layout's own ([`Geometry::own_pages`]), splits take V(between) -
//! V(before) and merges give V(between) - V(after), where *between* is the layout of the union of both page sets. For
//! a 1 GiB block that holds a small page, 64-byte `struct page`s and one page kept per folio:
//!
//! | orders | V | saved |
//! |---|---|---|
//! | 18, 9, 0 | 512 + 7 m_9 | 3584 - 7 m_9 |
//! | all | 1 + sum of m_o, o = 7 to 18 | 4095 - the same sum |
//!
//! # Features
//!
//! `test-util`: [`model`](https://docs.rs/vmemmap-prealloc/latest/vmemmap_prealloc/model/), a host in memory that
//! reads every `struct page` back. Needs std.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "test-util")]
extern crate std;

mod atom;
mod backend;
mod commit;
mod geometry;
mod needs;
mod register;
mod walk;

#[cfg(feature = "test-util")]
pub mod model;

pub use atom::{AtomDone, AtomError, merge_atom, split_atom};
pub use backend::{NoVmemmap, VmemmapBackend, VmemmapPage};
pub use commit::{
    Applied, ApplyError, apply_merge, apply_split, optimize, pages_to_restore, pages_to_split, restore,
};
pub use geometry::{Geometry, GeometryError, Tail, TailScheme};
pub use needs::{BlockState, Savings, VmemmapNeeds};
pub use register::{RegisterError, give_back, install_tables, install_templates, reserve, templates};
