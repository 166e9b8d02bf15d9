//! Transports around a transport.
//!
//! An adapter repeats, records or refuses calls. Retries of BUSY, RESTARTABLE and
//! RESUMABLE are not for adapters: they belong to whoever can make vCPUs leave and knows when to give up
//! ([`Td`](crate::Td) does both).

mod entropy;
mod gate;
#[cfg(any(test, feature = "test-util"))]
mod inject;
#[cfg(feature = "std")]
mod record;
#[cfg(test)]
mod tests;

pub use entropy::EntropyRetry;
pub use gate::Gate;
#[cfg(any(test, feature = "test-util"))]
pub use inject::{Fault, Inject};
#[cfg(feature = "std")]
pub use record::Recorder;
