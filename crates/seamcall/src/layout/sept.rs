//! Secure EPT entries as they lie in memory. The host never sees them; models, dumps and tests do.

use crate::{KeyIdBits, SeptState};
use sept_core::{Hpa, Level};

/// Where a module version keeps the software bits of an L1 S-EPT entry, and whether it keeps the key id there.
///
/// ```
/// use seamcall::{SeptLayout, SeptState};
/// use sept_core::Hpa;
/// let page = Hpa::new(0x8000_0000).unwrap();
/// assert_eq!(SeptLayout::encode(SeptState::Mapped, page), Some(0x8000_0000_8000_00f7));
/// assert_eq!(SeptLayout::state(0x80e0_0000_0000_0000), Some(SeptState::Free));
/// ```
///
/// Source: `src/common/x86_defs/x86_defs.h`, `src/common/memory_handlers/sept_manager.h` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SeptLayout {
    lock: u8,
    aliases: [u8; 3],
    key_id: bool,
}

const R: u64 = 1 << 0;
const W: u64 = 1 << 1;
const X: u64 = 1 << 2;
const WRITE_BACK: u64 = 6 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const DIRTY: u64 = 1 << 9;
const HOST_PRIORITY: u64 = 1 << 52;
const EXPORTED: u64 = 1 << 53;
const WRITE_BLOCKED: u64 = 1 << 54;
const BLOCKED: u64 = 1 << 55;
const PENDING: u64 = 1 << 56;
const SUPPRESS_VE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const STATE: u64 = IGNORE_PAT | LEAF | DIRTY | EXPORTED | WRITE_BLOCKED | BLOCKED | PENDING;

impl SeptLayout {
    /// Module 1.5.01: lock bit 11, alias flags 58 to 60.
    pub const V1_5_01: Self = Self { lock: 11, aliases: [58, 59, 60], key_id: false };
    /// Module 1.5.28: as 1.5.01, and the TD's key id in the upper bits of the address.
    pub const V1_5_28: Self = Self { key_id: true, ..Self::V1_5_01 };
    /// Module 2.0.08: lock bit 59, alias flags 57, 58 and 60, the key id as in 1.5.28.
    pub const V2_0_08: Self = Self { lock: 59, aliases: [57, 58, 60], key_id: true };

    /// What a new table page is filled with: free entries. Not zero: an all-zero entry is a table without access.
    pub const FREE: u64 = SUPPRESS_VE | BLOCKED | WRITE_BLOCKED | EXPORTED;

    /// The state bits of a state; `None` for one that an L1 entry of these versions cannot have.
    #[must_use]
    pub const fn state_bits(state: SeptState) -> Option<u64> {
        const PAGE: u64 = LEAF | IGNORE_PAT;
        Some(match state {
            SeptState::Free => BLOCKED | WRITE_BLOCKED | EXPORTED,
            SeptState::Removed => BLOCKED | WRITE_BLOCKED,
            SeptState::NlMapped => 0,
            SeptState::NlBlocked => BLOCKED,
            SeptState::Mapped => PAGE,
            SeptState::Blocked => PAGE | BLOCKED,
            SeptState::BlockedW => PAGE | WRITE_BLOCKED,
            SeptState::ExportedBlockedW => PAGE | WRITE_BLOCKED | EXPORTED,
            SeptState::ExportedDirty => PAGE | EXPORTED | DIRTY,
            SeptState::ExportedDirtyBlockedW => PAGE | WRITE_BLOCKED | EXPORTED | DIRTY,
            SeptState::Pending => PAGE | PENDING,
            SeptState::PendingBlocked => PAGE | PENDING | BLOCKED,
            SeptState::PendingBlockedW => PAGE | PENDING | WRITE_BLOCKED,
            SeptState::PendingExportedBlockedW => PAGE | PENDING | WRITE_BLOCKED | EXPORTED,
            SeptState::PendingExportedDirty => PAGE | PENDING | EXPORTED | DIRTY,
            SeptState::PendingExportedDirtyBlockedW => PAGE | PENDING | WRITE_BLOCKED | EXPORTED | DIRTY,
            SeptState::MmioMapped => LEAF,
            SeptState::MmioBlocked => LEAF | BLOCKED,
            SeptState::MmioPending => LEAF | PENDING,
            _ => return None,
        })
    }

    /// The state of an entry; `None` for a combination of bits that is no state.
    #[must_use]
    pub fn state(raw: u64) -> Option<SeptState> {
        SeptState::ALL.iter().copied().find(|state| Self::state_bits(*state) == Some(raw & STATE))
    }

    /// The entry of a new mapping, table or hole: its state, permissions, memory type and address.
    #[must_use]
    pub const fn encode(state: SeptState, hpa: Hpa) -> Option<u64> {
        let Some(bits) = Self::state_bits(state) else { return None };
        let address = if state.is_free() { 0 } else { hpa.raw() & ADDRESS };
        let memory_type = if bits & IGNORE_PAT == 0 { 0 } else { WRITE_BACK };
        let access = match state {
            SeptState::NlMapped | SeptState::Mapped | SeptState::ExportedDirty => R | W | X,
            SeptState::BlockedW | SeptState::ExportedBlockedW | SeptState::ExportedDirtyBlockedW => R | X,
            _ => 0,
        };
        Some(SUPPRESS_VE | bits | address | memory_type | access)
    }

    /// What SEPT.RD shows of a leaf: neither state, software bits nor key id. Of a table or hole, only the permissions.
    #[must_use]
    pub const fn shown(self, raw: u64, keys: KeyIdBits) -> u64 {
        const LEAF_BITS: u64 = R | W | X | 7 << 3 | IGNORE_PAT | LEAF | ADDRESS | SUPPRESS_VE;
        if raw & STATE == Self::FREE & STATE {
            SUPPRESS_VE
        } else if raw & LEAF != 0 {
            raw & LEAF_BITS & if self.key_id { !(ADDRESS & !keys.address()) } else { !0 }
        } else {
            raw & (R | W | X | LEAF)
        }
    }

    /// Whether the entry is locked.
    #[must_use]
    pub const fn is_locked(self, raw: u64) -> bool {
        raw >> self.lock & 1 != 0
    }

    /// Whether a host call was refused the lock, and has not got it since.
    #[must_use]
    pub const fn has_host_priority(raw: u64) -> bool {
        raw & HOST_PRIORITY != 0
    }

    /// Whether L2 VMs 1, 2 and 3 have an entry here.
    #[must_use]
    pub fn aliases(self, raw: u64) -> [bool; 3] {
        self.aliases.map(|bit| raw >> bit & 1 != 0)
    }

    /// 4 KiB chunks that an interrupted ACCEPT of a pending 2 MiB page has zeroed.
    #[must_use]
    pub fn accepted_chunks(raw: u64, level: Level) -> Option<u16> {
        let pending = matches!(Self::state(raw), Some(SeptState::Pending));
        let [low, high, ..] = (raw >> 12 & 0x1ff).to_le_bytes();
        (pending && level == Level::L2M).then(|| u16::from_le_bytes([low, high]))
    }
}
