//! Memory regions: what BIOS offers (CMR), and what the host makes of it (TDMR).

use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A convertible memory range, as TDH.SYS.INFO lists it. Empty ones end the list.
///
/// Source: TDX module ABI, CMR_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct CmrInfo {
    /// First address, 4 KiB aligned.
    pub base: u64,
    /// Bytes, a multiple of 4 KiB.
    pub size: u64,
}

/// A hole in a TDMR: memory that the module does not manage.
///
/// Source: TDX module ABI, TDMR_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct ReservedArea {
    /// Start, from the TDMR's base; 4 KiB aligned.
    pub offset: u64,
    /// Bytes, a multiple of 4 KiB; 0 ends the list.
    pub size: u64,
}

/// A trust domain memory region, for [`sys::config`](crate::sys::config). In shared memory, 512-byte aligned.
///
/// Source: TDX module ABI, TDMR_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(512))]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct TdmrInfo {
    /// First address, 1 GiB aligned.
    pub base: u64,
    /// Bytes, a multiple of 1 GiB.
    pub size: u64,
    /// Memory for the metadata of 1 GiB pages.
    pub pamt_1g_base: u64,
    /// Its size.
    pub pamt_1g_size: u64,
    /// Memory for the metadata of 2 MiB pages.
    pub pamt_2m_base: u64,
    /// Its size.
    pub pamt_2m_size: u64,
    /// Memory for the metadata of 4 KiB pages; with Dynamic PAMT, for the bitmap.
    pub pamt_4k_base: u64,
    /// Its size.
    pub pamt_4k_size: u64,
    /// Holes, in ascending order.
    pub reserved_areas: [ReservedArea; 16],
    /// Fills the structure up to its alignment.
    pub padding: [u64; 24],
}

const_assert_eq!(size_of::<CmrInfo>(), 16);
const_assert_eq!(size_of::<ReservedArea>(), 16);
const_assert_eq!(size_of::<TdmrInfo>(), 512);
const_assert_eq!(align_of::<TdmrInfo>(), 512);
const_assert_eq!(core::mem::offset_of!(TdmrInfo, pamt_1g_base), 16);
const_assert_eq!(core::mem::offset_of!(TdmrInfo, pamt_2m_base), 32);
const_assert_eq!(core::mem::offset_of!(TdmrInfo, pamt_4k_base), 48);
const_assert_eq!(core::mem::offset_of!(TdmrInfo, reserved_areas), 64);
const_assert_eq!(core::mem::offset_of!(TdmrInfo, padding), 320);

impl TdmrInfo {
    /// A region without holes and without memory for metadata.
    #[must_use]
    pub const fn new(base: u64, size: u64) -> Self {
        Self {
            base,
            size,
            pamt_1g_base: 0,
            pamt_1g_size: 0,
            pamt_2m_base: 0,
            pamt_2m_size: 0,
            pamt_4k_base: 0,
            pamt_4k_size: 0,
            reserved_areas: [ReservedArea { offset: 0, size: 0 }; 16],
            padding: [0; 24],
        }
    }
}

/// Bytes of metadata memory that a TDMR needs, for pages of 1 GiB, 2 MiB and 4 KiB.
///
/// Each is rounded up to whole 4 KiB pages. With Dynamic PAMT the last is the bitmap.
///
/// ```
/// use seamcall::pamt_sizes;
/// // 64 GiB, 16-byte entries.
/// assert_eq!(pamt_sizes(64 << 30, [16, 16, 16], false), Some([4096, 512 << 10, 256 << 20]));
/// assert_eq!(pamt_sizes(64 << 30, [16, 16, 1], true), Some([4096, 512 << 10, 2 << 20]));
/// ```
///
/// `entry` holds the three entry sizes in bytes (the last in bits for the bitmap), from the metadata fields.
/// `None` if `bytes` is so large that the result overflows.
#[must_use]
pub fn pamt_sizes(bytes: u64, entry: [u16; 3], dynamic: bool) -> Option<[u64; 3]> {
    let [size_1g, size_2m, size_4k] = entry.map(u64::from);
    let whole_pages = |bytes: u64| bytes.checked_add(0xfff).map(|bytes| bytes & !0xfff);
    let small = (bytes >> 12).checked_mul(size_4k)?;
    let small = if dynamic { small.div_ceil(8) } else { small };
    Some([
        whole_pages((bytes >> 30).checked_mul(size_1g)?)?,
        whole_pages((bytes >> 21).checked_mul(size_2m)?)?,
        whole_pages(small)?,
    ])
}
