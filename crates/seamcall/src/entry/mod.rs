//! What the module tells about an S-EPT entry: the values SEPT.RD and many errors leave in `RCX` and `RDX`.

#[cfg(test)]
mod tests;

use core::fmt;
use sept_core::{Hpa, LeafState, Level, Observed};

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $public:literal, $text:literal;)*) => {
        /// State of an S-EPT entry, as the module reports it in `RDX` bits 15:8.
        ///
        /// Source: `include/auto_gen/sept_state_lookup.h` of the module.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum SeptState {
            $($(#[$doc])* $name,)*
            /// A code that this crate does not know.
            Other(u8),
        }

        impl SeptState {
            /// Every state with a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The state with this public code.
            #[must_use]
            pub const fn from_public(code: u8) -> Self {
                match code {
                    $($public => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// The public code.
            #[must_use]
            pub const fn public(self) -> u8 {
                match self {
                    $(Self::$name => $public,)*
                    Self::Other(code) => code,
                }
            }
        }

        impl fmt::Display for SeptState {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.pad($text),)*
                    Self::Other(code) => write!(f, "state {code}"),
                }
            }
        }
    };
}

states! {
    /// Maps nothing.
    Free = 0, "FREE";
    /// Was removed while the TD is being imported; maps nothing.
    Removed = 5, "REMOVED";
    /// Points to a table.
    NlMapped = 132, "NL_MAPPED";
    /// Points to a table, hidden.
    NlBlocked = 129, "NL_BLOCKED";
    /// Maps a page.
    Mapped = 4, "MAPPED";
    /// Maps a page, hidden.
    Blocked = 1, "BLOCKED";
    /// Write-blocked for export.
    BlockedW = 8, "BLOCKEDW";
    /// Exported, write-blocked.
    ExportedBlockedW = 9, "EXPORTED_BLOCKEDW";
    /// Exported, written since.
    ExportedDirty = 11, "EXPORTED_DIRTY";
    /// Exported, written since, write-blocked again.
    ExportedDirtyBlockedW = 12, "EXPORTED_DIRTY_BLOCKEDW";
    /// Waits for the guest to accept it.
    Pending = 2, "PENDING";
    /// Waits for acceptance, hidden.
    PendingBlocked = 3, "PENDING_BLOCKED";
    /// Waits for acceptance, write-blocked.
    PendingBlockedW = 16, "PENDING_BLOCKEDW";
    /// Waits for acceptance, exported, write-blocked.
    PendingExportedBlockedW = 17, "PENDING_EXPORTED_BLOCKEDW";
    /// Waits for acceptance, exported, changed since.
    PendingExportedDirty = 19, "PENDING_EXPORTED_DIRTY";
    /// Waits for acceptance, exported, changed since, write-blocked again.
    PendingExportedDirtyBlockedW = 20, "PENDING_EXPORTED_DIRTY_BLOCKEDW";
    /// Maps device memory (2.0).
    MmioMapped = 32, "MMIO_MAPPED";
    /// Maps device memory, hidden (2.0).
    MmioBlocked = 33, "MMIO_BLOCKED";
    /// Device memory that waits for acceptance (2.0).
    MmioPending = 34, "MMIO_PENDING";
    /// An L2 entry that maps nothing.
    L2Free = 64, "L2_FREE";
    /// An L2 entry that points to a table.
    L2NlMapped = 196, "L2_NL_MAPPED";
    /// An L2 entry that points to a table, hidden.
    L2NlBlocked = 193, "L2_NL_BLOCKED";
    /// An L2 entry that maps a page.
    L2Mapped = 68, "L2_MAPPED";
    /// An L2 entry that maps a page, hidden.
    L2Blocked = 65, "L2_BLOCKED";
    /// An L2 entry that maps device memory (2.0).
    L2MmioMapped = 96, "L2_MMIO_MAPPED";
    /// An L2 entry that maps device memory, hidden (2.0).
    L2MmioBlocked = 97, "L2_MMIO_BLOCKED";
}

impl SeptState {
    /// Whether the entry is hidden from the guest by RANGE.BLOCK.
    #[must_use]
    pub const fn is_blocked(self) -> bool {
        matches!(
            self,
            Self::NlBlocked
                | Self::Blocked
                | Self::PendingBlocked
                | Self::L2NlBlocked
                | Self::L2Blocked
                | Self::MmioBlocked
                | Self::L2MmioBlocked
        )
    }

    /// Whether the guest has yet to accept the page.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        matches!(
            self,
            Self::Pending
                | Self::PendingBlocked
                | Self::PendingBlockedW
                | Self::PendingExportedBlockedW
                | Self::PendingExportedDirty
                | Self::PendingExportedDirtyBlockedW
                | Self::MmioPending
        )
    }

    /// Whether the entry points to a table.
    #[must_use]
    pub const fn is_table(self) -> bool {
        matches!(self, Self::NlMapped | Self::NlBlocked | Self::L2NlMapped | Self::L2NlBlocked)
    }

    /// Whether the entry maps nothing.
    #[must_use]
    pub const fn is_free(self) -> bool {
        matches!(self, Self::Free | Self::Removed | Self::L2Free)
    }

    /// What a page table wants to know; `None` for a code this crate does not know.
    #[must_use]
    pub const fn observed(self) -> Option<Observed> {
        match self {
            Self::Other(_) => None,
            _ if self.is_free() => Some(Observed::Free),
            _ if self.is_table() => Some(Observed::Table),
            _ if self.is_pending() => Some(Observed::Leaf(LeafState::Pending)),
            _ => Some(Observed::Leaf(LeafState::Mapped)),
        }
    }
}

/// One S-EPT entry as the module shows it: `RCX` and `RDX` of SEPT.RD, or of an error.
///
/// Keeps all bits of both registers.
///
/// ```
/// use seamcall::{EntryInfo, SeptState};
/// use sept_core::{Hpa, Level};
/// let info = EntryInfo::new(0x8000_0000_8000_00f7, 0x0401);
/// assert_eq!(info.state(), SeptState::Mapped);
/// assert_eq!(info.level(), Some(Level::L2M));
/// assert_eq!(info.hpa(), Hpa::new(0x8000_0000));
/// ```
///
/// Source: TDX module ABI, "Secure EPT entry information returned by TDX module functions".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryInfo {
    rcx: u64,
    rdx: u64,
}

impl EntryInfo {
    const LEAF: u64 = 1 << 7;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// Reads the two registers.
    #[must_use]
    pub const fn new(rcx: u64, rdx: u64) -> Self {
        Self { rcx, rdx }
    }

    /// The architectural entry, `RCX`. Of a table, only the permission bits are shown.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.rcx
    }

    /// Level and state, `RDX`.
    #[must_use]
    pub const fn raw_info(self) -> u64 {
        self.rdx
    }

    /// Level of the entry, `RDX` bits 2:0. After a failed walk, the level where it stopped.
    #[must_use]
    pub const fn level(self) -> Option<Level> {
        let [low, ..] = self.rdx.to_le_bytes();
        Level::new(low & 0b111)
    }

    /// State of the entry, `RDX` bits 15:8.
    #[must_use]
    pub const fn state(self) -> SeptState {
        let [_, state, ..] = self.rdx.to_le_bytes();
        SeptState::from_public(state)
    }

    /// The VM the entry belongs to, `RDX` bits 17:16: 0 for the L1 table, 1 to 3 for those of L2 VMs.
    #[must_use]
    pub const fn vm(self) -> u8 {
        let [_, _, vm, ..] = self.rdx.to_le_bytes();
        vm & 0b11
    }

    /// The page a leaf maps, at the alignment of its level.
    ///
    /// The progress of an interrupted 2 MiB ACCEPT, which shows up in `RCX` bits 20:12, is cut off.
    #[must_use]
    pub const fn hpa(self) -> Option<Hpa> {
        if self.rcx & Self::LEAF == 0 || self.state().is_free() || self.state().is_table() {
            return None;
        }
        match self.level() {
            Some(level) => Some(Hpa::truncate(self.rcx & Self::ADDRESS).align_down(level)),
            None => None,
        }
    }
}

impl fmt::Display for EntryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level() {
            Some(level) => write!(f, "{level} {}", self.state())?,
            None => write!(f, "level {} {}", self.rdx & 0b111, self.state())?,
        }
        if let Some(hpa) = self.hpa() {
            write!(f, " {hpa}")?;
        }
        match self.vm() {
            0 => Ok(()),
            vm => write!(f, " (VM {vm})"),
        }
    }
}

impl fmt::Debug for EntryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryInfo({self}, {:#x}, {:#x})", self.rcx, self.rdx)
    }
}
