//! Metadata fields for SYS.RD, MNG.RD and VP.RD: by id, and with the type of their value.

mod field;
mod state;
#[cfg(test)]
mod tests;

pub use field::{FieldValue, PlatformField, TdField};
pub use state::{LifecycleState, OpState};

use crate::{Attributes, ConfigFlags, Features0, Hkid};
use core::fmt;

/// Names a metadata field.
///
/// | Bits | Field |
/// |---|---|
/// | 23:0 | field code |
/// | 33:32 | log2 of the element's size in bytes |
/// | 37:34 | number of elements - 1; 0 to read or write one |
/// | 46:38 | number of fields in a sequence - 1; 0 to read or write one |
/// | 50, 51 | in lists: step between codes, a write mask follows |
/// | 54:52 | context: 0 platform, 1 TD, 2 vCPU |
/// | 61:56 | class |
/// | 63 | not architectural |
///
/// Source: TDX module ABI, MD_FIELD_ID.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldId(u64);

macro_rules! fields {
    ($($kind:ident { $($(#[$doc:meta])* $name:ident: $value:ty = $raw:literal;)* })*) => {
        impl FieldId {
            $($($(#[$doc])* pub const $name: Self = Self($raw);)*)*

            /// Every named field.
            pub const ALL: &[Self] = &[$($(Self::$name),*),*];
        }

        $($(
            impl $kind<$value> {
                $(#[$doc])*
                pub const $name: Self = Self::new(FieldId::$name);
            }
        )*)*

        impl fmt::Debug for FieldId {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($($raw => f.write_str(stringify!($name)),)*)*
                    raw => write!(f, "FieldId({raw:#018x})"),
                }
            }
        }

        /// Name, id and bytes of the value's type, of every field.
        #[cfg(test)]
        const TYPED: &[(&str, FieldId, usize)] = &[$($((stringify!($name), FieldId::$name, size_of::<$value>())),*),*];
    };
}

fields! {
    PlatformField {
        /// Module version, update part.
        UPDATE_VERSION: u16 = 0x0800_0001_0000_0005;
        /// Module version, minor part.
        MINOR_VERSION: u16 = 0x0800_0001_0000_0003;
        /// Module version, major part.
        MAJOR_VERSION: u16 = 0x0800_0001_0000_0004;
        /// Module build number.
        BUILD_NUM: u16 = 0x8800_0001_0000_0002;
        /// Module build date, as decimal digits `yyyymmdd`.
        BUILD_DATE: u32 = 0x8800_0002_0000_0001;
        /// Hand-off version that the module writes: the operand of [`sys::shutdown`](crate::sys::shutdown).
        MODULE_HV: u16 = 0x8900_0001_0000_0000;
        /// Oldest hand-off version that the module takes over from.
        MIN_UPDATE_HV: u16 = 0x8900_0001_0000_0001;
        /// Number of TDX_FEATURES words.
        NUM_TDX_FEATURES: u8 = 0x0a00_0000_0000_0001;
        /// What the module can do.
        TDX_FEATURES0: Features0 = 0x0a00_0003_0000_0008;
        /// Number of convertible memory ranges.
        NUM_CMRS: u16 = 0x9000_0001_0000_0000;
        /// Base of the first convertible memory range; one element for each.
        CMR_BASE: u64 = 0x9000_0003_0000_0080;
        /// Size of the first convertible memory range; one element for each.
        CMR_SIZE: u64 = 0x9000_0003_0000_0100;
        /// Most TDMRs.
        MAX_TDMRS: u16 = 0x9100_0001_0000_0008;
        /// Most reserved areas of a TDMR.
        MAX_RESERVED_PER_TDMR: u16 = 0x9100_0001_0000_0009;
        /// Bytes of a PAMT entry for a 4 KiB page.
        PAMT_4K_ENTRY_SIZE: u16 = 0x9100_0001_0000_0010;
        /// Bytes of a PAMT entry for a 2 MiB page.
        PAMT_2M_ENTRY_SIZE: u16 = 0x9100_0001_0000_0011;
        /// Bytes of a PAMT entry for a 1 GiB page.
        PAMT_1G_ENTRY_SIZE: u16 = 0x9100_0001_0000_0012;
        /// Dynamic PAMT: bits of the bitmap for a 4 KiB page.
        PAMT_PAGE_BITMAP_ENTRY_BITS: u16 = 0x9100_0001_0000_0013;
        /// Dynamic PAMT: least number of key id bits.
        PAMT_MIN_HKID_BITS: u16 = 0x9100_0001_0000_0014;
        /// Bytes of the TD control structure without L2 VMs.
        TDCS_BASE_SIZE: u16 = 0x9800_0001_0000_0100;
        /// Bytes more for each L2 VM.
        TDCS_SIZE_PER_L2_VM: u16 = 0x9800_0001_0000_0101;
        /// Bytes of the vCPU control structure without L2 VMs.
        TDVPS_BASE_SIZE: u16 = 0x9800_0001_0000_0200;
        /// Bytes more for each L2 VM.
        TDVPS_SIZE_PER_L2_VM: u16 = 0x9800_0001_0000_0201;
        /// Attributes that may be 1.
        ATTRIBUTES_FIXED0: Attributes = 0x1900_0003_0000_0000;
        /// Attributes that must be 1.
        ATTRIBUTES_FIXED1: Attributes = 0x1900_0003_0000_0001;
        /// Bits of XFAM that may be 1.
        XFAM_FIXED0: u64 = 0x1900_0003_0000_0002;
        /// Bits of XFAM that must be 1.
        XFAM_FIXED1: u64 = 0x1900_0003_0000_0003;
        /// Flags that may be 1.
        CONFIG_FLAGS_FIXED0: ConfigFlags = 0x9900_0003_0000_0006;
        /// Flags that must be 1.
        CONFIG_FLAGS_FIXED1: ConfigFlags = 0x9900_0003_0000_0007;
        /// Number of CPUID leaves that can be configured.
        NUM_CPUID_CONFIG: u16 = 0x9900_0001_0000_0004;
    }
    TdField {
        /// The FATAL flag.
        FATAL: bool = 0x8010_0000_0000_0001;
        /// Number of control pages.
        NUM_TDCX: u32 = 0x8010_0002_0000_0002;
        /// Number of pages the TD owns.
        CHLDCNT: u64 = 0x8010_0003_0000_0004;
        /// Lifecycle state.
        LIFECYCLE_STATE: LifecycleState = 0x8010_0002_0000_0005;
        /// Key id.
        HKID: Hkid = 0x8110_0001_0000_0001;
        /// Op state.
        OP_STATE: OpState = 0x9010_0002_0000_0004;
        /// Number of L2 VMs.
        NUM_L2_VMS: u16 = 0x9010_0001_0000_0005;
        /// Width of guest physical addresses: 52 bits, else 48.
        GPAW: bool = 0x1110_0000_0000_0003;
        /// The EPT pointer.
        EPTP: u64 = 0x1110_0003_0000_0004;
        /// Controls that are not part of the measurement.
        CONFIG_FLAGS: ConfigFlags = 0x1110_0003_0000_0016;
        /// Controls the guest may change.
        TD_CTLS: u64 = 0x1110_0003_0000_0017;
        /// The present epoch.
        TD_EPOCH: u64 = 0x9210_0003_0000_0000;
        /// Number of vCPUs inside that entered in an even epoch; the next element is for odd ones.
        REFCOUNT: u16 = 0x9210_0001_0000_0001;
    }
}

/// What a metadata field belongs to.
///
/// Source: TDX module ABI, MD_FIELD_ID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum FieldContext {
    /// The platform: [`sys::rd`](crate::sys::rd).
    Platform,
    /// A TD: [`mng::rd`](crate::mng::rd).
    Td,
    /// A vCPU: [`vp::rd`](crate::vp::rd).
    Vcpu,
    /// A number that this crate does not know.
    Other(u8),
}

impl FieldId {
    /// The field with this id.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Names no field: the answer after the last, and the question for the first.
    pub const NONE: Self = Self(u64::MAX);

    /// A "next field" output: all ones after the last.
    pub(crate) const fn next(raw: u64) -> Option<Self> {
        if raw == u64::MAX { None } else { Some(Self(raw)) }
    }

    /// The id.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The field `index` elements or fields further on in its sequence.
    #[must_use]
    pub const fn element(self, index: u16) -> Self {
        Self(self.0.wrapping_add(index as u64))
    }

    /// Bytes of one element: 1, 2, 4 or 8.
    #[must_use]
    pub const fn element_size(self) -> u8 {
        1 << ((self.0 >> 32) & 0b11)
    }

    /// What the field belongs to.
    #[must_use]
    pub const fn context(self) -> FieldContext {
        let [.., byte_6, _] = self.0.to_le_bytes();
        match (byte_6 >> 4) & 0b111 {
            0 => FieldContext::Platform,
            1 => FieldContext::Td,
            2 => FieldContext::Vcpu,
            other => FieldContext::Other(other),
        }
    }

    /// Class number, bits 61:56.
    #[must_use]
    pub const fn class(self) -> u8 {
        let [.., byte_7] = self.0.to_le_bytes();
        byte_7 & 0x3f
    }
}
