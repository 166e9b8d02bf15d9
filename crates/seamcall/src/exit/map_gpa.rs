//! The hypercall that asks to convert memory.

use super::{TDCALL, has_reason};
use crate::Regs;
use sept_core::{Gpa, GpaRange, Level, TdxConfig};

// Statuses of TDG.VP.VMCALL.
const RETRY: u64 = 1;
const INVALID_OPERAND: u64 = 1 << 63;
const GPA_INUSE: u64 = 1 << 63 | 1;
const ALIGN_ERROR: u64 = 1 << 63 | 2;

/// Why the operands of a [`MapGpa`] are refused. Answer [`MapGpaError::reply`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("MapGPA of {size:#x} bytes at {gpa:#x}: not whole pages of one kind inside the TD's address space")]
#[non_exhaustive]
pub struct MapGpaError {
    /// `R12`.
    pub gpa: u64,
    /// `R13`.
    pub size: u64,
    /// All that is wrong is that they are not multiples of 4 KiB.
    pub misaligned: bool,
}

impl MapGpaError {
    /// What the guest is told: `ALIGN_ERROR` or `INVALID_OPERAND`, and the address it gave.
    #[must_use]
    pub const fn reply(&self) -> MapGpaReply {
        MapGpaReply { r10: if self.misaligned { ALIGN_ERROR } else { INVALID_OPERAND }, r11: self.gpa }
    }
}

/// TDG.VP.VMCALL&lt;MapGPA&gt;: the guest asks to make a range shared or private.
///
/// ```
/// use seamcall::{MapGpa, Regs, exit::MapGpaReply};
/// use sept_core::{Gpa, TdxConfig};
/// // 2 MiB at 1 GiB are to become shared, and the first 4 KiB were converted.
/// let out = Regs { rax: 77, r11: MapGpa::LEAF, r12: 1 << 47 | 0x4000_0000, r13: 0x20_0000, ..Regs::new() };
/// let request = MapGpa::decode(&out, TdxConfig::LEVELS_4).unwrap().unwrap();
/// let reply = request.converted_until(Gpa::new(0x4000_1000).unwrap());
/// assert_eq!(reply.registers(), (1, 1 << 47 | 0x4000_1000));
/// assert_eq!(request.converted_until(Gpa::new(0x4020_0000).unwrap()), MapGpaReply::DONE);
/// ```
///
/// Source: Guest-Host-Communication Interface, TDG.VP.VMCALL leaf 0x10001.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MapGpa {
    /// The range, without the shared bit.
    pub range: GpaRange,
    /// Whether it is to become shared.
    pub to_shared: bool,
    /// The bit that made it so, in the guest's address.
    shared: u64,
}

impl MapGpa {
    /// The hypercall's leaf, in `R11`.
    pub const LEAF: u64 = 0x10001;

    /// Reads `R10` to `R13`; `None` if `out` is no MapGPA.
    ///
    /// # Errors
    ///
    /// The operands are not page-aligned, empty, or leave the half (shared or private) that the address is in.
    #[must_use]
    pub const fn decode(out: &Regs, config: TdxConfig) -> Option<Result<Self, MapGpaError>> {
        if !has_reason(out, TDCALL) || out.r10 != 0 || out.r11 != Self::LEAF {
            return None;
        }
        let (half, size) = (1_u64 << config.shared_bit(), out.r13);
        let (start, shared) = (out.r12 & !half, out.r12 & half);
        let within = match start.checked_add(size) {
            Some(end) => start < end && end <= half,
            None => false,
        };
        if within
            && let Some(start) = Gpa::new(start)
            && let Some(range) = GpaRange::new(start, size)
        {
            return Some(Ok(Self { range, to_shared: shared != 0, shared }));
        }
        Some(Err(MapGpaError { gpa: out.r12, size, misaligned: within }))
    }

    /// The answer when everything before `next` was converted: the guest asks again from there, or is done if that is
    /// the end of the range. An address before the range counts as its start.
    #[must_use]
    pub const fn converted_until(&self, next: Gpa) -> MapGpaReply {
        let (next, start) = (next.raw(), self.range.start().raw());
        if next >= self.range.end() {
            return MapGpaReply::DONE;
        }
        let next = if next < start { start } else { next };
        MapGpaReply { r10: RETRY, r11: next | self.shared }
    }

    /// The answer when the page at `at` will not be converted, and asking again does not help (`INVALID_OPERAND`):
    /// there is no memory, say. What comes before it was converted.
    #[must_use]
    pub const fn refused_at(&self, at: Gpa) -> MapGpaReply {
        MapGpaReply { r10: INVALID_OPERAND, r11: self.page(at) }
    }

    /// The answer when the page at `at` is in use and cannot be converted (`GPA_INUSE`). What comes before it was
    /// converted.
    #[must_use]
    pub const fn in_use_at(&self, at: Gpa) -> MapGpaReply {
        MapGpaReply { r10: GPA_INUSE, r11: self.page(at) }
    }

    /// The page of the range that is nearest to `at`, as the guest names it.
    const fn page(&self, at: Gpa) -> u64 {
        let (at, start) = (at.align_down(Level::L4K).raw(), self.range.start().raw());
        let last = self.range.end().saturating_sub(Level::L4K.size());
        let at = if at < start { start } else { at };
        (if at > last { last } else { at }) | self.shared
    }
}

/// The answer to a [`MapGpa`]. One that was carried out in part is answered by [`MapGpa::converted_until`],
/// [`MapGpa::refused_at`] or [`MapGpa::in_use_at`]; one that makes no sense by [`MapGpaError::reply`].
///
/// `R10` is a status of the interface, `R11` the address that it is about.
///
/// Source: Guest-Host-Communication Interface, TDG.VP.VMCALL leaf 0x10001; its status codes: Linux, QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapGpaReply {
    r10: u64,
    r11: u64,
}

impl MapGpaReply {
    /// All of it was converted.
    pub const DONE: Self = Self { r10: 0, r11: 0 };

    /// `R10` and `R11` for the next TDH.VP.ENTER.
    #[must_use]
    pub const fn registers(self) -> (u64, u64) {
        (self.r10, self.r11)
    }
}
