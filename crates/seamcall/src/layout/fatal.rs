//! How a module tells of an error that ends it.

use sept_core::Hpa;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the other CPUs get when the module meets an error that ends it.
///
/// Source: `src/common/helpers/fatal_info.h`, `tdh_sys_init.c` of module 2.0.08.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[expect(clippy::exhaustive_enums, reason = "two bits")]
pub enum FatalNotification {
    /// Nothing.
    #[default]
    None,
    /// An interrupt with this vector, 16 to 255.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A system management interrupt.
    Smi,
}

/// How the module is to tell of an error that ends it: the operand of [`sys::init_v1`](crate::sys::init_v1).
///
/// | Bits | Field |
/// |---|---|
/// | 51:6 | address of a [`FatalInfo`] in shared memory; all ones for none |
/// | 55:54 | notification: 0 none, 1 interrupt, 2 NMI, 3 SMI |
/// | 63:56 | vector of the interrupt |
///
/// ```
/// use seamcall::{FatalErrorConfig, FatalNotification};
/// use sept_core::Hpa;
/// let info = Hpa::new(0x4000_0040);
/// assert_eq!(FatalErrorConfig::new(info, FatalNotification::Nmi).unwrap().raw(), 0x0080_0000_4000_0040);
/// assert_eq!(FatalErrorConfig::new(info, FatalNotification::Interrupt(3)), None);
/// ```
///
/// Source: `src/common/helpers/fatal_info.h` of module 2.0.08.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FatalErrorConfig(u64);

impl FatalErrorConfig {
    const NO_INFO: u64 = 0x000f_ffff_ffff_ffc0;

    /// `None` if `info` is not 64-byte aligned, or a vector is below 16.
    #[must_use]
    pub const fn new(info: Option<Hpa>, notification: FatalNotification) -> Option<Self> {
        let address = match info {
            Some(hpa) if hpa.raw() & !Self::NO_INFO != 0 || hpa.raw() == Self::NO_INFO => return None,
            Some(hpa) => hpa.raw(),
            None => Self::NO_INFO,
        };
        let (kind, vector) = match notification {
            FatalNotification::None => (0, 0),
            FatalNotification::Interrupt(vector) if vector < 16 => return None,
            FatalNotification::Interrupt(vector) => (1, vector),
            FatalNotification::Nmi => (2, 0),
            FatalNotification::Smi => (3, 0),
        };
        Some(Self(address | kind << 54 | (vector as u64) << 56))
    }

    /// The 64 bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// What the module, or the SEAM loader, writes about an error that ends it. In shared memory, 64-byte aligned; all
/// zeroes before [`sys::init_v1`](crate::sys::init_v1).
///
/// `details`, by `format`:
///
/// | Format | Words |
/// |---|---|
/// | 0 | none |
/// | 1 | 0: TDR |
/// | 2 | 0: TDR in 51:12, VM in 53:52; 1: level in 2:0, GPA in 51:12; 2: S-EPT entry |
/// | 3 | 0: EPT pointer; 1, 2: as format 2 |
/// | 4 | 0: page; byte 8: its size |
/// | 6 | byte 0: exception vector |
/// | 7 | 0: as format 2; 1: VMX exit reason in 31:0, more about it in 63:32 |
///
/// Source: `src/common/helpers/fatal_info.h` of module 2.0.08.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct FatalInfo {
    /// [`FatalInfo::EMPTY`], [`FatalInfo::BEING_WRITTEN`], [`FatalInfo::BY_SEAM_LOADER`] or [`FatalInfo::BY_MODULE`].
    pub state: u8,
    /// What `details` holds.
    pub format: u8,
    /// 0.
    pub reserved: u16,
    /// The CPU that met the error.
    pub x2apic_id: u32,
    /// The place in the module's sources, by a number of their own.
    pub error_id: u64,
    /// More about it.
    pub details: [u64; 6],
}

const_assert_eq!(size_of::<FatalInfo>(), 64);
const_assert_eq!(align_of::<FatalInfo>(), 64);
const_assert_eq!(core::mem::offset_of!(FatalInfo, format), 1);
const_assert_eq!(core::mem::offset_of!(FatalInfo, x2apic_id), 4);
const_assert_eq!(core::mem::offset_of!(FatalInfo, error_id), 8);
const_assert_eq!(core::mem::offset_of!(FatalInfo, details), 16);

impl FatalInfo {
    /// [`FatalInfo::state`]: nothing was written.
    pub const EMPTY: u8 = 0;
    /// [`FatalInfo::state`]: look again.
    pub const BEING_WRITTEN: u8 = 1;
    /// [`FatalInfo::state`]: the SEAM loader wrote it.
    pub const BY_SEAM_LOADER: u8 = 0xfe;
    /// [`FatalInfo::state`]: the module wrote it.
    pub const BY_MODULE: u8 = 0xff;
}
