//! Structures in memory and packed words, exactly as the module reads and writes them.

mod pamt;
mod params;
mod tdmr;

pub use pamt::PageType;
pub use params::{Attributes, ConfigFlags, CpuidValue, EptpControls, TdParams};
pub use tdmr::{CmrInfo, ReservedArea, TdmrInfo, pamt_sizes};
