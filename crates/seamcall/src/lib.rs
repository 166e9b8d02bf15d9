//! Typed host-side SEAMCALL wrappers for Intel TDX.
#![no_std]

mod entry;
mod error;
pub mod exit;
mod features;
mod layout;
mod leaf;
pub mod mem;
mod metadata;
pub mod mng;
pub mod mr;
mod operand;
pub mod phymem;
mod status;
pub mod sys;
mod td;
mod transport;
pub mod vp;

pub use entry::{EntryInfo, SeptState};
pub use error::SeamcallError;
pub use exit::{EptViolation, MapGpa};
pub use features::Features0;
pub use layout::{Attributes, ConfigFlags, CpuidValue, EptpControls, PageType, TdParams};
pub use leaf::Leaf;
pub use metadata::{FieldContext, FieldId};
pub use operand::{Hkid, KeyIdBits, NULL_PA, Removed, Tdr, Tdvpr};
pub use status::{Detail, Operand, Status};
pub use td::{Notice, Observe, RetryBudget, Stopped, TablePages, Td, TdDescription, TdError};
pub use transport::{Call, Regs, Transport};
