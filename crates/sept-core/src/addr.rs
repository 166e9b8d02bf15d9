//! Addresses, levels and ranges.
//!
//! [`Gpa`] and [`Hpa`] are byte addresses below 2^52; they never mix. A [`GpaEntry`] is one page-table entry's
//! worth of guest memory: an address aligned to its [`Level`]. A [`GpaRange`] is half open and made of 4 KiB pages.

mod range;

pub use range::{GpaEntry, GpaRange};

use core::fmt;

/// Number of address bits an entry can name (bits 51:12 plus the page offset).
pub const ADDRESS_BITS: u32 = 52;

const ADDRESS_LIMIT: u64 = 1 << ADDRESS_BITS;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// The address `raw`, or `None` at or above 2^52.
            #[must_use]
            pub const fn new(raw: u64) -> Option<Self> {
                if raw < ADDRESS_LIMIT { Some(Self(raw)) } else { None }
            }

            /// The address whose bits above 51 are cleared.
            #[must_use]
            pub const fn truncate(raw: u64) -> Self {
                Self(raw & (ADDRESS_LIMIT - 1))
            }

            /// The address in bytes.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of the page size of `level`.
            #[must_use]
            pub const fn is_aligned(self, level: Level) -> bool {
                self.0 & level.mask() == 0
            }

            /// The start of the page of `level` that holds this address.
            #[must_use]
            pub const fn align_down(self, level: Level) -> Self {
                Self(self.0 & !level.mask())
            }

            /// This address plus `bytes`, or `None` at or above 2^52.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Self::new(raw),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A guest physical address in bytes, below 2^52.
    ///
    /// ```
    /// use sept_core::{Gpa, Level};
    /// let gpa = Gpa::new(0x1234_5678).unwrap();
    /// assert_eq!(gpa.align_down(Level::L2M).raw(), 0x1220_0000);
    /// assert_eq!(Gpa::new(1 << 52), None);
    /// ```
    Gpa
}
address! {
    /// A host physical address in bytes, below 2^52, without key id bits.
    Hpa
}

/// The level of an entry, and so the size of the page a leaf there maps.
///
/// Numbered as in the TDX module ABI: 0 is the 4 KiB level. It prints as its size, never as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(
    clippy::exhaustive_enums,
    reason = "x86 and Arm with 4 KiB granules have these five levels and no more"
)]
pub enum Level {
    /// 4 KiB (PT).
    L4K = 0,
    /// 2 MiB (PD).
    L2M = 1,
    /// 1 GiB (PDPT).
    L1G = 2,
    /// 512 GiB (PML4): tables only.
    L512G = 3,
    /// 256 TiB (PML5): tables only.
    L256T = 4,
}

impl Level {
    /// All levels, smallest first.
    pub const ALL: [Self; 5] = [Self::L4K, Self::L2M, Self::L1G, Self::L512G, Self::L256T];

    /// The level with the ABI number `raw` (0 to 4).
    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::L4K),
            1 => Some(Self::L2M),
            2 => Some(Self::L1G),
            3 => Some(Self::L512G),
            4 => Some(Self::L256T),
            _ => None,
        }
    }

    /// The number of this level in the TDX module ABI, 0 to 4.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            Self::L4K => 0,
            Self::L2M => 1,
            Self::L1G => 2,
            Self::L512G => 3,
            Self::L256T => 4,
        }
    }

    /// Lowest address bit that selects an entry of this level: 12, 21, 30, 39 or 48.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::L4K => 12,
            Self::L2M => 21,
            Self::L1G => 30,
            Self::L512G => 39,
            Self::L256T => 48,
        }
    }

    /// Bytes that one entry of this level covers.
    #[must_use]
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// The address bits inside a page of this level.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.size().wrapping_sub(1)
    }

    /// 4 KiB pages that one entry of this level covers.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << self.order()
    }

    /// Folio order of a page of this level: 0, 9, 18, 27 or 36.
    #[must_use]
    pub const fn order(self) -> u8 {
        match self {
            Self::L4K => 0,
            Self::L2M => 9,
            Self::L1G => 18,
            Self::L512G => 27,
            Self::L256T => 36,
        }
    }

    /// Index of `gpa` in a table of entries of this level, 0 to 511.
    #[must_use]
    pub const fn index(self, gpa: Gpa) -> u16 {
        let [low, high, ..] = ((gpa.0 >> self.shift()) & 0x1ff).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The level below, or `None` at 4K.
    #[must_use]
    pub const fn child(self) -> Option<Self> {
        match self {
            Self::L4K => None,
            Self::L2M => Some(Self::L4K),
            Self::L1G => Some(Self::L2M),
            Self::L512G => Some(Self::L1G),
            Self::L256T => Some(Self::L512G),
        }
    }

    /// The level above, or `None` at 256T.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::L4K => Some(Self::L2M),
            Self::L2M => Some(Self::L1G),
            Self::L1G => Some(Self::L512G),
            Self::L512G => Some(Self::L256T),
            Self::L256T => None,
        }
    }

    /// The largest level whose page is not larger than a folio of `order`, at most `L1G`.
    #[must_use]
    pub const fn within_order(order: u8) -> Self {
        match order {
            0..=8 => Self::L4K,
            9..=17 => Self::L2M,
            _ => Self::L1G,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::L4K => "4K",
            Self::L2M => "2M",
            Self::L1G => "1G",
            Self::L512G => "512G",
            Self::L256T => "256T",
        })
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
