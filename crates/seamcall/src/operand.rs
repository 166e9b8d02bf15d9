//! What the leaves take: handles, key ids, addresses with key id bits.

use crate::error::require_level;
use crate::{Leaf, Operand, Regs, SeamcallError, Status, Transport, transport::Call};
use core::fmt;
use sept_core::{ADDRESS_BITS, Frame, GpaEntry, Hpa, Level, Returned};

/// "No page" in an operand or an output.
pub const NULL_PA: u64 = u64::MAX;

/// Set in the address of a removed page when the Dynamic PAMT page pair of its 2 MiB region has become idle.
pub(crate) const PAIR_IDLE: u64 = 1 << 62;

/// Set in the register of an L1 or L2 table page that a call did not need.
pub(crate) const UNUSED: u64 = 1 << 63;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub struct $name(Hpa);

        impl $name {
            /// The handle at `hpa`, or `None` if that is not the address of a 4 KiB page.
            ///
            /// Naming a page that is no such root is harmless: the module answers `PAGE_METADATA_INCORRECT`.
            #[must_use]
            pub const fn new(hpa: Hpa) -> Option<Self> {
                if hpa.is_aligned(Level::L4K) { Some(Self(hpa)) } else { None }
            }

            /// For a page whose size was checked.
            pub(crate) const fn of_page(hpa: Hpa) -> Self {
                Self(hpa.align_down(Level::L4K))
            }

            /// Physical address of the root page.
            #[must_use]
            pub const fn hpa(self) -> Hpa {
                self.0
            }
        }
    };
}

handle! {
    /// Names a TD by its root page (TDR).
    Tdr
}
handle! {
    /// Names a vCPU by its root page (TDVPR).
    Tdvpr
}

/// A host key id (HKID).
///
/// Source: TDX module ABI, "Host key id".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hkid(u16);

impl Hkid {
    /// The key id `raw`.
    #[must_use]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Hkid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hkid({})", self.0)
    }
}

/// Where key ids sit in a physical address: its topmost implemented bits. A property of the platform.
///
/// ```
/// use seamcall::{Hkid, KeyIdBits};
/// use sept_core::Hpa;
/// let bits = KeyIdBits::new(46, 6).unwrap();
/// let page = Hpa::new(0x8000_0000).unwrap();
/// assert_eq!(bits.tag(page, Hkid::new(33)), Some(33 << 40 | 0x8000_0000));
/// assert_eq!(bits.tag(page, Hkid::new(64)), None);
/// ```
///
/// Source: Intel SDM, IA32_TME_ACTIVATE; TDX module ABI, TDH.PHYMEM.PAGE.WBINVD.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KeyIdBits {
    shift: u8,
    bits: u8,
}

impl KeyIdBits {
    /// `bits` key id bits below bit `max_pa` (the platform's physical address width).
    ///
    /// `None` unless `max_pa` is at most 52, `bits` at most 16, and address bits are left above the page offset.
    #[must_use]
    pub const fn new(max_pa: u8, bits: u8) -> Option<Self> {
        if max_pa as u32 > ADDRESS_BITS || bits > 16 {
            return None;
        }
        match max_pa.checked_sub(bits) {
            Some(shift) if shift > 12 => Some(Self { shift, bits }),
            _ => None,
        }
    }

    /// Lowest key id bit of an address: all address bits of a page are below it.
    #[must_use]
    pub const fn shift(self) -> u8 {
        self.shift
    }

    /// The bits below the key id.
    pub(crate) const fn address(self) -> u64 {
        !(u64::MAX << self.shift)
    }

    /// `page` with `key` in its upper bits; `None` if one of them does not fit.
    #[must_use]
    pub const fn tag(self, page: Hpa, key: Hkid) -> Option<u64> {
        if page.raw() >> self.shift != 0 || (key.0 as u64) >> self.bits != 0 {
            return None;
        }
        Some(page.raw() | (key.0 as u64) << self.shift)
    }
}

/// A page that a leaf took out of a TD. The address only: whoever kept account of the page makes it a frame again.
///
/// Source: TDX module ABI, TDH.MEM.PAGE.REMOVE; the hint: module 2.0.08.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the page is the host's again"]
#[non_exhaustive]
pub struct Removed {
    /// The page.
    pub hpa: Hpa,
    /// Dynamic PAMT: nothing in the page's 2 MiB region is in use at 4 KiB any more; its page pair can be removed.
    pub pair_idle: bool,
}

impl Removed {
    /// Takes the hint out of an output register.
    pub(crate) const fn from_register(raw: u64) -> Self {
        Self { hpa: Hpa::truncate(raw & !PAIR_IDLE).align_down(Level::L4K), pair_idle: raw & PAIR_IDLE != 0 }
    }
}

/// The page in an output register; `None` for NULL_PA.
pub(crate) const fn optional_page(raw: u64) -> Option<Removed> {
    if raw == NULL_PA { None } else { Some(Removed::from_register(raw)) }
}

/// `RCX` and `RDX` of a leaf that works on one S-EPT entry.
pub(crate) const fn mapping(td: Tdr, at: GpaEntry) -> Regs {
    let mut regs = Regs::new();
    regs.rcx = at.gpa().raw() | at.level().raw() as u64;
    regs.rdx = td.hpa().raw();
    regs
}

/// Makes a call that is not about an entry.
#[inline]
pub(crate) fn invoke<T: Transport + ?Sized>(t: &T, leaf: Leaf, regs: Regs) -> Result<Regs, SeamcallError> {
    finish(leaf, None, t.call(Call::new(Regs { rax: leaf.rax(), ..regs })))
}

/// Makes a call about the entry `at`.
#[inline]
pub(crate) fn invoke_at<T: Transport + ?Sized>(
    t: &T,
    leaf: Leaf,
    at: GpaEntry,
    regs: Regs,
) -> Result<Regs, SeamcallError> {
    finish(leaf, Some(at), t.call(Call::new(Regs { rax: leaf.rax(), ..regs })))
}

#[inline]
fn finish(leaf: Leaf, at: Option<GpaEntry>, out: Regs) -> Result<Regs, SeamcallError> {
    if Status::from_raw(out.rax).is_success() {
        Ok(out)
    } else {
        Err(SeamcallError::from_output(leaf, at, &out))
    }
}

/// A leaf that takes a control page in `RCX` for the TD or vCPU whose root page is in `RDX`.
#[inline]
pub(crate) fn give_page<T: Transport + ?Sized>(
    t: &T,
    leaf: Leaf,
    page: Frame,
    root: Hpa,
) -> Result<(), Returned<SeamcallError, Frame>> {
    let regs = Regs { rcx: page.hpa().raw(), rdx: root.raw(), ..Regs::new() };
    match require_level(&page, Level::L4K, leaf, Operand::RCX).and_then(|()| invoke(t, leaf, regs)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Returned { error, held: page }),
    }
}
