//! The completion status a SEAMCALL leaves in `RAX`.

mod codes;
mod detail;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

pub use detail::{Detail, Operand};

use core::fmt;
use sept_core::Class;

const ERROR: u64 = 1 << 63;
const NON_RECOVERABLE: u64 = 1 << 62;
const FATAL: u64 = 1 << 61;
const CODE: u64 = 0xffff_ffff_0000_0000;
const SOFTWARE_CLASS: u8 = 0xff;

/// A completion status: a code in bits 63:32, a detail in bits 31:0.
///
/// | Bits | Field |
/// |---|---|
/// | 63, 62, 61 | error, non-recoverable, fatal |
/// | 60 | host recoverability hint (TD exits) |
/// | 47:40, 39:32 | class, code within the class |
/// | 31:0 | [`Detail`]: an operand id for most codes |
///
/// Any 64-bit value is a status; an unknown one keeps all its bits. A status may be neither zero nor an error:
/// see [`Status::is_informational`].
///
/// ```
/// use seamcall::{Detail, Operand, Status};
/// let status = Status::from_raw(0xc000_0100_0000_0008);
/// assert_eq!(status.code(), Status::OPERAND_INVALID);
/// assert_eq!(status.detail(), Detail::Operand(Operand::R8));
/// assert_eq!(status.to_string(), "TDX_OPERAND_INVALID|R8 (0xc000010000000008)");
/// assert!(Status::from_raw(0x0000_0b07_0000_0001).is_success());
/// ```
///
/// Source: TDX module ABI, "Function Completion Status".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u64);

impl Status {
    /// VMfailInvalid: the module is not loaded, or SEAMCALL cannot be used in this mode. Made by the transport.
    pub const VM_FAIL_INVALID: Self = Self(0x8000_ff00_ffff_0000);
    /// `#GP(0)`: the BIOS did not enable TDX. Made by the transport.
    pub const TRAP_GP: Self = Self(0x8000_ff00_0000_000d);
    /// `#UD`: the CPU is not in VMX root operation. Made by the transport.
    pub const TRAP_UD: Self = Self(0x8000_ff00_0000_0006);
    /// A wrapper refused its operands and made no call; the detail is the [`Operand`].
    pub const NOT_ISSUED: Self = Self(0xc000_ff01_0000_0000);

    /// The status with these bits.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// All 64 bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The status without its detail, to be compared with the named codes.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE)
    }

    /// Whether [`Status::code`] is that of `other`.
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// This code with `detail` in bits 31:0.
    #[must_use]
    pub const fn with_detail(self, detail: Detail) -> Self {
        Self(self.code().0 | detail.raw() as u64)
    }

    /// Class number, bits 47:40.
    #[must_use]
    pub const fn class_number(self) -> u8 {
        let [_, _, _, _, _, class, ..] = self.0.to_le_bytes();
        class
    }

    /// Whether the call did what it was asked for: success, or a success with something to say.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & (ERROR | NON_RECOVERABLE | FATAL) == 0
    }

    /// A success that is not plain: "already blocked", "already initialised", and the like. Neither error nor silence.
    #[must_use]
    pub const fn is_informational(self) -> bool {
        self.is_success() && self.code().0 != 0
    }

    /// Whether repeating the same call can ever succeed, by the module's own bits.
    ///
    /// [`Status::class`] is the better question: `TD_KEYS_NOT_CONFIGURED`, for one, is "recoverable" and never
    /// recovers.
    #[must_use]
    pub const fn is_recoverable(self) -> bool {
        self.0 & NON_RECOVERABLE == 0
    }

    /// What to do about the status; `None` if it is no error.
    ///
    /// * [`Class::Retry`]: no entropy, a lock that only another SEAMCALL can hold, an interruption.
    /// * [`Class::Quiesce`]: a lock that a running vCPU may hold, tracking that is not complete.
    /// * [`Class::Fatal`]: the fatal and TD-is-lost codes, a module that is shut down or not there.
    /// * [`Class::Caller`]: everything else, known or not, that has the non-recoverable bit.
    #[must_use]
    pub const fn class(self) -> Option<Class> {
        if self.is_success() {
            return None;
        }
        Some(match self.code() {
            Self::OPERAND_BUSY => self.busy_class(),
            Self::PREVIOUS_TLB_EPOCH_BUSY
            | Self::TLB_TRACKING_NOT_DONE
            | Self::IOMMU_IOTLB_TRACKING_NOT_DONE
            | Self::FLUSHVP_NOT_DONE
            | Self::VCPU_ASSOCIATED => Class::Quiesce,
            // Recoverable by another call, never by the same one.
            Self::TD_KEYS_NOT_CONFIGURED
            | Self::VCPU_NOT_ASSOCIATED
            | Self::WBCACHE_NOT_COMPLETE
            | Self::MISSING_PAMT_PAGE_PAIR
            | Self::INTERRUPTED_PAMT
            | Self::BLOCKED_MEMORY_EXISTS
            | Self::MEM_SCAN_FAILED_BLOCKED_RANGE
            | Self::MEM_SCAN_FAILED_OTHER_THREAD
            | Self::MEM_SCAN_CONFIG_REQUIRED
            | Self::MEM_SCAN_ALREADY_SUCCESSFUL
            | Self::MEM_SCAN_DCHECK_NOT_DONE
            | Self::UNEXPORTED_MEMORY_REMAINS
            | Self::IOMMU_ECMD_ERROR => Class::Caller,
            Self::SYS_SHUTDOWN => Class::Fatal,
            _ if self.class_number() == SOFTWARE_CLASS => {
                if self.is(Self::NOT_ISSUED) {
                    Class::Caller
                } else {
                    Class::Fatal
                }
            }
            _ if self.0 & FATAL != 0 || self.0 & ERROR == 0 => Class::Fatal,
            _ if self.0 & NON_RECOVERABLE != 0 => Class::Caller,
            _ => Class::Retry,
        })
    }

    /// A vCPU inside the TD holds its TDR, its TDVPR and, in an ACCEPT, the entry; it leaves only when kicked. One that
    /// enters holds the epoch, and entries may follow each other. The other locks are held for the length of one
    /// SEAMCALL.
    const fn busy_class(self) -> Class {
        match Operand::new(self.low()) {
            Operand::RCX | Operand::RDX | Operand::TDR | Operand::TDVPR | Operand::TD_EPOCH => Class::Quiesce,
            _ => Class::Retry,
        }
    }

    /// Bits 31:0, unread. Unlike [`Status::detail`] it does not need the table of names.
    pub(crate) const fn low(self) -> u32 {
        let [b0, b1, b2, b3, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([b0, b1, b2, b3])
    }

    const fn software_name(self) -> Option<&'static str> {
        match self {
            Self::VM_FAIL_INVALID => Some("SEAMCALL_VMFAILINVALID"),
            Self::TRAP_GP => Some("SEAMCALL_GP"),
            Self::TRAP_UD => Some("SEAMCALL_UD"),
            _ if self.is(Self::NOT_ISSUED) => Some("NOT_ISSUED"),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.software_name(), self.name()) {
            (Some(name), _) if !self.is(Self::NOT_ISSUED) => write!(f, "{name} ({:#018x})", self.0),
            (_, Some(name)) => write!(f, "{name}{} ({:#018x})", self.detail(), self.0),
            (_, None) => write!(f, "{:#018x}", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
