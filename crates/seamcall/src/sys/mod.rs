//! TDH.SYS.*: the module itself.
//!
//! ```text
//! init (once) -> lp_init (every CPU) -> config (once) -> key_config (every package) -> tdmr_init (until all is done)
//! ```

mod config;
mod life;
mod read;

pub use config::{TdmrProgress, config, config_v1, key_config, tdmr_init};
pub use life::{init, init_v1, lp_init, lp_shutdown, shutdown, update, update_v1};
pub use read::{CMR_OFFSET, InfoSizes, info, rd, rd_all, read};
