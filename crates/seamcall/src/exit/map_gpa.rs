//! The hypercall that asks to convert memory.

use super::{TDCALL, has_reason};
use crate::Regs;
use sept_core::{Gpa, GpaRange, TdxConfig};

/// Why the operands of a [`MapGpa`] are refused. Answer [`MapGpaReply::INVALID`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("MapGPA of {size:#x} bytes at {gpa:#x}: not whole pages of one kind inside the TD's address space")]
#[non_exhaustive]
pub struct MapGpaError {
    /// `R12`.
    pub gpa: u64,
    /// `R13`.
    pub size: u64,
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
        let shared = 1_u64 << config.shared_bit();
        let error = MapGpaError { gpa: out.r12, size: out.r13 };
        let Some(start) = Gpa::new(out.r12 & !shared) else { return Some(Err(error)) };
        Some(match GpaRange::new(start, out.r13) {
            Some(range) if range.end() <= shared => {
                let shared = out.r12 & shared;
                Ok(Self { range, to_shared: shared != 0, shared })
            }
            _ => Err(error),
        })
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
        MapGpaReply { r10: 1, r11: next | self.shared }
    }
}

/// The answer to a [`MapGpa`]. One that was carried out in part is answered by [`MapGpa::converted_until`].
///
/// Source: Guest-Host-Communication Interface, TDG.VP.VMCALL leaf 0x10001.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapGpaReply {
    r10: u64,
    r11: u64,
}

impl MapGpaReply {
    /// All of it was converted.
    pub const DONE: Self = Self { r10: 0, r11: 0 };

    /// The operands make no sense.
    pub const INVALID: Self = Self { r10: 1 << 63, r11: 0 };

    /// `R10` and `R11` for the next TDH.VP.ENTER.
    #[must_use]
    pub const fn registers(self) -> (u64, u64) {
        (self.r10, self.r11)
    }
}
