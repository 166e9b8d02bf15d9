//! TDH.MEM.*: the secure EPT and the pages behind it.
//!
//! All leaves about an entry begin with the same checks. In order (first failure wins):
//!
//! | Check | Status |
//! |---|---|
//! | flags operand has reserved bits (SEPT.ADD, DEMOTE) | `OPERAND_INVALID\|RDX` |
//! | TDR: format, in an initialised TDMR, lock, type | `OPERAND_INVALID`, `OPERAND_ADDR_RANGE_ERROR`, `OPERAND_BUSY`, `PAGE_METADATA_INCORRECT`, each `\|RDX` |
//! | TD not fatal, keys configured, control pages there | `TD_FATAL`, `TD_KEYS_NOT_CONFIGURED`, `TDCS_NOT_ALLOCATED` |
//! | op state: lock, value | `OPERAND_BUSY\|OP_STATE`, `OP_STATE_INCORRECT` |
//! | 1.5.34: the TD may have been exported in another way than the module is configured for | `INCOMPATIBLE_EXPORT_MODE_TD_NON_ACCESSIBLE`, and the TD is fatal |
//! | entry operand: level of the leaf's range, GPA private and within the TD's width | `OPERAND_INVALID\|RCX` |
//! | S-EPT tree lock | `OPERAND_BUSY\|SEPT_TREE` |
//! | walk to the level | `EPT_WALK_FAILED\|RCX`, with the entry that stopped it |
//! | lock of the entry | `OPERAND_BUSY\|RCX`, with the entry |
//! | state of the entry | `EPT_ENTRY_STATE_INCORRECT\|RCX`, with the entry |
//!
//! These are "the common errors" below; each wrapper names what follows. A *page error on* a register is, in order:
//! `OPERAND_INVALID`, `OPERAND_ADDR_RANGE_ERROR`, `OPERAND_BUSY`, `PAGE_METADATA_INCORRECT` (Dynamic PAMT: or
//! `MISSING_PAMT_PAGE_PAIR`).
//!
//! "Tracked" below means: the entry was blocked, then [`track`] succeeded, then every vCPU that had entered before has
//! left. It is asked for in the op states RUNNABLE, LIVE_EXPORT and LIVE_IMPORT only
//! ([`OpState::is_tracked`](crate::OpState::is_tracked)). Where devices have access to the TD (2.0),
//! `TLB_TRACKING_NOT_DONE` may be `IOMMU_IOTLB_TRACKING_NOT_DONE` instead.
//!
//! Source: TDX module ABI; `src/common/helpers/helpers.c` of the module.

mod page;
mod range;
mod rw;
mod sept;
mod split;

pub use page::{page_add, page_aug, page_relocate, page_remove};
pub(crate) use page::{page_add_at, page_aug_at};
pub use range::{Blocked, range_block, range_unblock, track};
pub use rw::{rd, wr};
pub(crate) use sept::sept_add_at;
pub use sept::{
    L2Attributes, RemovedTable, SeptPages, sept_add, sept_add_v1, sept_rd, sept_rd_l2, sept_remove,
    sept_remove_v1,
};
pub(crate) use split::page_demote_at;
pub use split::{DemotePages, L2Mode, MaybeTainted, Promoted, page_demote, page_promote, page_promote_v1};
