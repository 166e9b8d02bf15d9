//! The other crates, each used as its documentation says.
//!
//! None of them touches a TLB here: flushes are empty, tokens ignored, tables inactive.

mod aarch64;
mod generic;
mod multiarch;
mod x86;

pub(crate) use aarch64::Aarch64;
pub(crate) use generic::Generic;
pub(crate) use multiarch::Multiarch;
pub(crate) use x86::X86;
