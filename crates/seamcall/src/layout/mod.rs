//! Structures in memory and packed words, exactly as the module reads and writes them.

mod fatal;
mod gpa_list;
mod pamt;
mod params;
mod sept;
mod tdmr;
#[cfg(test)]
mod tests;

pub use fatal::{FatalErrorConfig, FatalInfo, FatalNotification};
pub use gpa_list::{GpaListEntry, GpaListFlags, GpaListInfo, GpaListOperation, GpaListPage, GpaListStatus};
pub use pamt::{PageType, PamtEntry};
pub use params::{Attributes, ConfigFlags, CpuidValue, EptpControls, TdParams};
pub use sept::SeptLayout;
pub use tdmr::{CmrInfo, ReservedArea, TdmrInfo, pamt_sizes};
