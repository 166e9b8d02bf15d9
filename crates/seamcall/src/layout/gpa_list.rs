//! Page lists: what EXPORT.BLOCKW and the other leaves of migration work through.

use bitflags::bitflags;
use core::fmt;
use sept_core::{Gpa, GpaEntry, Hpa, Level};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names a list of GPAs and which of its entries to work on: the operand of the leaves that take one.
///
/// | Bits | Field |
/// |---|---|
/// | 2:0 | format: 0, GPAs only |
/// | 11:3 | first entry; moves on when the leaf is interrupted |
/// | 51:12 | address of the list, a 4 KiB page of shared memory |
/// | 63:55 | last entry |
///
/// Source: `include/tdx_api_defs.h` of the module, `gpa_list_info_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GpaListInfo(u64);

const FIRST: u64 = 0x1ff << 3;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl GpaListInfo {
    /// Entries `first` to `last` of the list at `list`; `None` if that is none, or not in a 4 KiB page.
    #[must_use]
    pub const fn new(list: Hpa, first: u16, last: u16) -> Option<Self> {
        if first > last || last > 511 || !list.is_aligned(Level::L4K) {
            return None;
        }
        Some(Self(list.raw() | (first as u64) << 3 | (last as u64) << 55))
    }

    /// The operand with these bits.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The first entry.
    #[must_use]
    pub const fn first(self) -> u16 {
        nine_bits(self.0 >> 3)
    }

    /// The last entry.
    #[must_use]
    pub const fn last(self) -> u16 {
        nine_bits(self.0 >> 55)
    }

    /// Where the list is.
    #[must_use]
    pub const fn list(self) -> Hpa {
        Hpa::truncate(self.0 & ADDRESS)
    }

    /// The same list, from the entry on that `out` names as the first: what `RCX` holds after a call. An `out` that
    /// names another list changes nothing: a transport cannot make the module write elsewhere.
    #[must_use]
    pub const fn resumed(self, out: u64) -> Self {
        if (out ^ self.0) & !FIRST == 0 { Self(out) } else { self }
    }
}

const fn nine_bits(raw: u64) -> u16 {
    let [low, high, ..] = (raw & 0x1ff).to_le_bytes();
    u16::from_le_bytes([low, high])
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $raw:literal;)*) => {
        /// What became of one entry of a list.
        ///
        /// Source: `include/tdx_api_defs.h` of the module, `gpa_list_entry_status_t`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum GpaListStatus {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know.
            Other(u8),
        }

        impl GpaListStatus {
            /// Every status with a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The status with this number.
            #[must_use]
            pub const fn from_raw(raw: u8) -> Self {
                match raw {
                    $($raw => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// The number.
            #[must_use]
            pub const fn raw(self) -> u8 {
                match self {
                    $(Self::$name => $raw,)*
                    Self::Other(raw) => raw,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Success = 0;
    /// There was nothing to do.
    Skipped = 1;
    /// The walk to the 4 KiB entry failed.
    SeptWalkFailed = 2;
    /// The entry was locked; the host has priority now.
    SeptEntryBusyHostPriority = 3;
    /// The entry is in a state that the leaf does not take.
    SeptEntryStateIncorrect = 4;
    /// Write-blocking is not tracked yet.
    TlbTrackingNotDone = 5;
    /// The TD is in a state that does not allow it.
    OpStateIncorrect = 6;
    /// The page was migrated in this epoch already.
    MigratedInCurrentEpoch = 7;
    /// No migration buffer was given.
    MigBufferNotAvailable = 8;
    /// No new page was given.
    NewPageNotAvailable = 9;
    /// The page's MAC is wrong.
    InvalidPageMac = 10;
    /// The page was removed; it cannot be imported over.
    DisallowedImportOverRemoved = 11;
    /// The page is locked; the host has priority now.
    TdPageBusyHostPriority = 12;
    /// The walk of an L2 S-EPT failed.
    L2SeptWalkFailed = 13;
    /// The entry of the attributes list is malformed.
    AttrListEntryInvalid = 14;
    /// This entry is malformed.
    GpaListEntryInvalid = 15;
}

/// What is to be done with the page of an entry.
///
/// Source: `include/tdx_api_defs.h` of the module, `gpa_list_entry_operation_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(clippy::exhaustive_enums, reason = "two bits")]
pub enum GpaListOperation {
    /// Nothing; what the module leaves in an entry that failed.
    Nop,
    /// Migrate it (BLOCKW: write-block it).
    Migrate,
    /// Undo.
    Cancel,
    /// Migrate it once more.
    Remigrate,
}

bitflags! {
    /// Flags of a list entry.
    ///
    /// Source: `include/tdx_api_defs.h` of the module, `gpa_list_entry_t`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct GpaListFlags: u64 {
        /// The page waits for acceptance.
        const PENDING = 1 << 2;
        /// L2 VM 1 maps it.
        const L2_VM1 = 1 << 7;
        /// L2 VM 2 maps it.
        const L2_VM2 = 1 << 8;
        /// L2 VM 3 maps it.
        const L2_VM3 = 1 << 9;
    }
}

/// One entry of a list.
///
/// | Bits | Field |
/// |---|---|
/// | 1:0 | level |
/// | 2, 9:7 | [`GpaListFlags`] |
/// | 11:10 | migration type: 0, a 4 KiB page |
/// | 51:12 | GPA |
/// | 53:52 | [`GpaListOperation`] |
/// | 60:56 | [`GpaListStatus`] |
///
/// Source: `include/tdx_api_defs.h` of the module, `gpa_list_entry_t`; read in 1.5.01.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GpaListEntry(u64);

/// A whole list, as it fills its page.
pub type GpaListPage = [GpaListEntry; 512];

const_assert_eq!(size_of::<GpaListInfo>(), 8);
const_assert_eq!(size_of::<GpaListEntry>(), 8);
const_assert_eq!(align_of::<GpaListEntry>(), 8);
const_assert_eq!(size_of::<GpaListPage>(), 4096);

impl GpaListEntry {
    /// An entry for the page at `at` to be given to a leaf; `None` for a level that its two bits do not hold. The
    /// modules of the sources below take 4 KiB only.
    #[must_use]
    pub const fn new(at: GpaEntry, operation: GpaListOperation) -> Option<Self> {
        if at.level().raw() > 0b11 {
            return None;
        }
        let operation = match operation {
            GpaListOperation::Nop => 0,
            GpaListOperation::Migrate => 1,
            GpaListOperation::Cancel => 2,
            GpaListOperation::Remigrate => 3,
        };
        Some(Self(at.gpa().raw() | at.level().raw() as u64 | operation << 52))
    }

    /// The entry with these bits.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Level of the page.
    #[must_use]
    pub const fn level(self) -> Option<Level> {
        let [low, ..] = self.0.to_le_bytes();
        Level::new(low & 0b11)
    }

    /// The page.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa::truncate(self.0 & ADDRESS)
    }

    /// The flags.
    #[must_use]
    pub const fn flags(self) -> GpaListFlags {
        GpaListFlags::from_bits_truncate(self.0)
    }

    /// What is to be done.
    #[must_use]
    pub const fn operation(self) -> GpaListOperation {
        match (self.0 >> 52) & 0b11 {
            0 => GpaListOperation::Nop,
            1 => GpaListOperation::Migrate,
            2 => GpaListOperation::Cancel,
            _ => GpaListOperation::Remigrate,
        }
    }

    /// What became of it.
    #[must_use]
    pub const fn status(self) -> GpaListStatus {
        let [.., top] = self.0.to_le_bytes();
        GpaListStatus::from_raw(top & 0x1f)
    }
}

impl fmt::Debug for GpaListEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gpa, operation, status) = (self.gpa(), self.operation(), self.status());
        write!(f, "GpaListEntry({gpa:#x}, {operation:?}, {status:?}, {:#x})", self.0)
    }
}
