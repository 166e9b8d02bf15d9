//! Page metadata.

use core::fmt;

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
    /// 2 MiB entry that points to a Dynamic PAMT page pair.
    Pamt = 15, "PT_PAMT";
}
