//! TDH.SYS.*: the module itself.
//!
//! ```text
//! init (once) -> lp_init (every CPU) -> config (once) -> key_config (every package) -> tdmr_init (until all is done)
//! ```
//!
//! ```
//! use seamcall::{Hkid, SeamcallError, Transport, sys, sys::TdmrProgress};
//! use sept_core::Hpa;
//!
//! /// Makes the module ready on a machine with one CPU and two memory regions that begin at `bases`. `tdmrs` is where
//! /// the two addresses of their [`seamcall::TdmrInfo`] stand.
//! ///
//! /// # Safety
//! ///
//! /// See [`sys::config`].
//! unsafe fn make_ready<T: Transport>(t: &T, tdmrs: Hpa, bases: [Hpa; 2], key: Hkid) -> Result<(), SeamcallError> {
//!     sys::init(t)?;
//!     sys::lp_init(t)?;
//!     // SAFETY: the caller vouches for the structures and the memory that they name.
//!     unsafe { sys::config(t, tdmrs, 2, key, false) }?;
//!     sys::key_config(t)?;
//!     for base in bases {
//!         while sys::tdmr_init(t, base)? != TdmrProgress::Done {}
//!     }
//!     Ok(())
//! }
//! ```

mod config;
mod life;
mod read;

pub use config::{TdmrProgress, config, config_v1, key_config, tdmr_init};
pub use life::{init, init_v1, lp_init, lp_shutdown, shutdown, update, update_v1};
pub use read::{CMR_OFFSET, InfoSizes, info, rd, rd_all, read};
