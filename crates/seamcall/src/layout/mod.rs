//! Structures in memory and packed words, exactly as the module reads and writes them.

mod pamt;
mod params;
mod sept;
mod tdmr;
#[cfg(test)]
mod tests;

pub use pamt::{PageType, PamtEntry};
pub use params::{Attributes, ConfigFlags, CpuidValue, EptpControls, TdParams};
pub use sept::SeptLayout;
pub use tdmr::{CmrInfo, ReservedArea, TdmrInfo, pamt_sizes};
