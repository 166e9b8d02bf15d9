//! The wrappers, the adapters and [`Td`](seamcall::Td) against a software TDX module.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

mod adapters;
mod bench;
mod dpamt;
mod enter;
mod life;
#[cfg(feature = "std")]
mod line;
mod rules;
