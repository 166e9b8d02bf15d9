//! TDH.SYS.*: the module itself.
//!
//! ```text
//! init (once) -> lp_init (every CPU) -> config (once) -> key_config (every package) -> tdmr_init (until all is done)
//! ```

use crate::operand::invoke;
use crate::{FieldId, Leaf, Regs, SeamcallError, Transport};

/// TDH.SYS.RD (34): reads a metadata field of the platform, and says which comes next (`None` after the last).
///
/// Operand: `RDX` field id. Outputs: `R8` value, `RDX` next field id. Any module state.
///
/// # Errors
///
/// In check order: `SYS_SHUTDOWN`, `METADATA_FIELD_ID_INCORRECT`, `METADATA_FIELD_NOT_READABLE`.
///
/// Source: TDX module ABI, TDH.SYS.RD.
#[inline]
pub fn rd<T: Transport + ?Sized>(t: &T, field: FieldId) -> Result<(u64, Option<FieldId>), SeamcallError> {
    let out = invoke(t, Leaf::SYS_RD, Regs { rdx: field.raw(), ..Regs::new() })?;
    Ok((out.r8, FieldId::next(out.rdx)))
}
