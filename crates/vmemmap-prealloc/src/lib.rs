//! HugeTLB vmemmap optimization across folio splits.
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

#[cfg(feature = "test-util")]
pub mod model;

pub use atom::{AtomDone, AtomError, merge_atom, split_atom};
pub use backend::{NoVmemmap, VmemmapBackend, VmemmapPage};
pub use commit::{Applied, ApplyError, apply_merge, apply_split, optimize, pages_to_split};
pub use geometry::{Geometry, GeometryError, Tail, TailScheme};
pub use needs::{BlockState, Savings, VmemmapNeeds};
pub use register::{RegisterError, give_back, install_tables, install_templates, reserve, templates};
