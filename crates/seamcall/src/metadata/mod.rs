//! Metadata field ids for SYS.RD, MNG.RD and VP.RD.

#[cfg(test)]
mod tests;

use core::fmt;

/// Names a metadata field.
///
/// | Bits | Field |
/// |---|---|
/// | 23:0 | field code |
/// | 33:32 | log2 of the element's size in bytes |
/// | 37:34 | number of elements - 1 |
/// | 54:52 | context: 0 platform, 1 TD, 2 vCPU |
/// | 61:56 | class |
/// | 63 | not architectural |
///
/// Source: TDX module ABI, MD_FIELD_ID.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldId(u64);

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $raw:literal;)*) => {
        impl FieldId {
            $($(#[$doc])* pub const $name: Self = Self($raw);)*

            /// Every named field.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }

        impl fmt::Debug for FieldId {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($raw => f.write_str(stringify!($name)),)*
                    raw => write!(f, "FieldId({raw:#018x})"),
                }
            }
        }
    };
}

fields! {
    /// Platform: module version, update part.
    UPDATE_VERSION = 0x0800_0001_0000_0005;
    /// Platform: module version, minor part.
    MINOR_VERSION = 0x0800_0001_0000_0003;
    /// Platform: module version, major part.
    MAJOR_VERSION = 0x0800_0001_0000_0004;
    /// Platform: number of TDX_FEATURES words.
    NUM_TDX_FEATURES = 0x0a00_0000_0000_0001;
    /// Platform: [`Features0`](crate::Features0).
    TDX_FEATURES0 = 0x0a00_0003_0000_0008;
    /// Platform: number of convertible memory ranges.
    NUM_CMRS = 0x9000_0001_0000_0000;
    /// Platform: most TDMRs.
    MAX_TDMRS = 0x9100_0001_0000_0008;
    /// Platform: most reserved areas of a TDMR.
    MAX_RESERVED_PER_TDMR = 0x9100_0001_0000_0009;
    /// Platform: bytes of a PAMT entry for a 4 KiB page.
    PAMT_4K_ENTRY_SIZE = 0x9100_0001_0000_0010;
    /// Platform: bytes of a PAMT entry for a 2 MiB page.
    PAMT_2M_ENTRY_SIZE = 0x9100_0001_0000_0011;
    /// Platform: bytes of a PAMT entry for a 1 GiB page.
    PAMT_1G_ENTRY_SIZE = 0x9100_0001_0000_0012;
    /// Platform: Dynamic PAMT, bits of the bitmap for a 4 KiB page.
    PAMT_PAGE_BITMAP_ENTRY_BITS = 0x9100_0001_0000_0013;
    /// Platform: Dynamic PAMT, least number of key id bits.
    PAMT_MIN_HKID_BITS = 0x9100_0001_0000_0014;
    /// Platform: bytes of the TD control structure without L2 VMs.
    TDCS_BASE_SIZE = 0x9800_0001_0000_0100;
    /// Platform: bytes of the vCPU control structure without L2 VMs.
    TDVPS_BASE_SIZE = 0x9800_0001_0000_0200;
    /// TD: the FATAL flag.
    FATAL = 0x8010_0000_0000_0001;
    /// TD: number of control pages.
    NUM_TDCX = 0x8010_0002_0000_0002;
    /// TD: number of pages it owns.
    CHLDCNT = 0x8010_0003_0000_0004;
    /// TD: lifecycle state.
    LIFECYCLE_STATE = 0x8010_0002_0000_0005;
    /// TD: key id.
    HKID = 0x8110_0001_0000_0001;
    /// TD: op state.
    OP_STATE = 0x9010_0002_0000_0004;
    /// TD: number of L2 VMs.
    NUM_L2_VMS = 0x9010_0001_0000_0005;
    /// TD: width of guest physical addresses.
    GPAW = 0x1110_0000_0000_0003;
    /// TD: the EPT pointer.
    EPTP = 0x1110_0003_0000_0004;
    /// TD: [`ConfigFlags`](crate::ConfigFlags).
    CONFIG_FLAGS = 0x1110_0003_0000_0016;
    /// TD: controls the guest may change.
    TD_CTLS = 0x1110_0003_0000_0017;
    /// TD: the present epoch.
    TD_EPOCH = 0x9210_0003_0000_0000;
    /// TD: number of vCPUs inside that entered in an even epoch; the next element is for odd ones.
    REFCOUNT = 0x9210_0001_0000_0001;
}

/// What a metadata field belongs to.
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
