//! Page metadata.

use core::fmt;
use sept_core::Hpa;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $raw:literal, $text:literal;)*) => {
        /// What the module uses a page for.
        ///
        /// Source: `include/tdx_api_defs.h` of the module (page types of TDH.PHYMEM.PAGE.RDMD).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum PageType {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know.
            Other(u8),
        }

        impl PageType {
            /// Every type with a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The type with this number.
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

        impl fmt::Display for PageType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.pad($text),)*
                    Self::Other(raw) => write!(f, "PT_{raw}"),
                }
            }
        }
    };
}

types! {
    /// Not assigned: free, as far as the module is concerned.
    NotAssigned = 0, "PT_NDA";
    /// In a reserved area of its TDMR.
    Reserved = 1, "PT_RSVD";
    /// Private memory of a TD.
    Regular = 3, "PT_REG";
    /// Root of a TD.
    Tdr = 4, "PT_TDR";
    /// Control page of a TD or vCPU.
    Tdcx = 5, "PT_TDCX";
    /// Root of a vCPU.
    Tdvpr = 6, "PT_TDVPR";
    /// Table page of a secure EPT, its root excepted.
    Ept = 8, "PT_EPT";
    /// Device interface control structure, root (2.0).
    DevifcsRoot = 9, "PT_DEVIFCS_R";
    /// Device interface control structure, not root (2.0).
    DevifcsNonRoot = 10, "PT_DEVIFCS_NR";
    /// Metadata of an IOMMU (2.0).
    IommuMt = 11, "PT_IOMMU_MT";
    /// Metadata of device memory (2.0).
    MmioMt = 12, "PT_MMIO_MT";
    /// Metadata of device interfaces (2.0).
    DevifMt = 13, "PT_DEVIF_MT";
    /// 2 MiB entry that points to a Dynamic PAMT page pair.
    Pamt = 15, "PT_PAMT";
}

/// A PAMT entry as it lies in memory, 16 bytes. Only the module reads and writes it; models and dumps do too.
///
/// | Bits | Field |
/// |---|---|
/// | 15:0 | lock: 0 exclusive, 1 host priority, 15:2 readers |
/// | 20:16 | page type (8 bits in 1.5.01) |
/// | 63:24 | `HPA[51:12]` of the owner's TDR |
/// | 127:64 | epoch of the last block |
///
/// A 2 MiB entry of type [`PageType::Pamt`] holds a page pair instead: `HPA[47:12]` of page 0 in 63:28, the number of
/// pages in use in 73:64, `HPA[47:12]` of page 1 in 127:92.
///
/// Source: `src/common/memory_handlers/pamt_manager.h` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct PamtEntry {
    /// Lock, type, owner or first page.
    pub control: u64,
    /// Epoch of the last block, or count and second page.
    pub block_epoch: u64,
}

const_assert_eq!(size_of::<PamtEntry>(), 16);
const_assert_eq!(align_of::<PamtEntry>(), 16);

impl PamtEntry {
    /// What the page is used for.
    #[must_use]
    pub const fn page_type(&self) -> PageType {
        let [_, _, kind, ..] = self.control.to_le_bytes();
        PageType::from_raw(kind & 0x1f)
    }

    /// The TDR the page belongs to; stale if the page is not assigned.
    #[must_use]
    pub const fn owner(&self) -> Hpa {
        Hpa::truncate((self.control >> 24) << 12)
    }

    /// Whether somebody has the entry to itself.
    #[must_use]
    pub const fn is_exclusive(&self) -> bool {
        self.control & 1 != 0
    }

    /// The page pair and how many of the region's pages are in use, if the entry holds that.
    #[must_use]
    pub fn pair(&self) -> Option<([Hpa; 2], u16)> {
        const COUNT: u64 = 0x3ff;
        let [low, high, ..] = (self.block_epoch & COUNT).to_le_bytes();
        let page = |word: u64| Hpa::truncate((word >> 28) << 12);
        (self.page_type() == PageType::Pamt)
            .then(|| ([page(self.control), page(self.block_epoch)], u16::from_le_bytes([low, high])))
    }
}
