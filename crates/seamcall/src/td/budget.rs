//! How long a refused call is repeated.

use crate::{SeamcallError, Status};

/// How often a call is repeated before its refusal is the caller's to deal with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(clippy::exhaustive_structs, reason = "one number for each status that is worth a repetition")]
pub struct RetryBudget {
    /// After `OPERAND_BUSY` and `SYS_BUSY`, and TRACK after `PREVIOUS_TLB_EPOCH_BUSY`.
    pub busy: u32,
    /// After `INTERRUPTED_RESTARTABLE`.
    pub restartable: u32,
}

impl RetryBudget {
    /// Enough for what other CPUs do in passing.
    pub const DEFAULT: Self = Self { busy: 64, restartable: 64 };

    /// Every refusal comes out at once; but a [`Td`](crate::Td) that has made half of a change still tries to make the other.
    pub const NONE: Self = Self { busy: 0, restartable: 0 };

    /// Whether the call that `error` refused is worth making once more with the same operands; takes one repetition
    /// out of the budget.
    ///
    /// That is so after `OPERAND_BUSY`, `SYS_BUSY` and `INTERRUPTED_RESTARTABLE`. After `PREVIOUS_TLB_EPOCH_BUSY` vCPUs
    /// have to be kicked first; `INTERRUPTED_RESUMABLE` and `INTERRUPTED_BUSY` need other operands, see
    /// [`ranges`](crate::ranges).
    ///
    /// ```
    /// use seamcall::{RetryBudget, SeamcallError, Tdr, Transport, mem};
    /// use sept_core::GpaEntry;
    ///
    /// fn unblock<T: Transport>(t: &T, td: Tdr, at: GpaEntry, mut budget: RetryBudget) -> Result<(), SeamcallError> {
    ///     loop {
    ///         match mem::range_unblock(t, td, at) {
    ///             Err(error) if budget.spend(&error) => core::hint::spin_loop(),
    ///             result => return result,
    ///         }
    ///     }
    /// }
    /// ```
    #[must_use = "a budget that is used up says so here"]
    pub const fn spend(&mut self, error: &SeamcallError) -> bool {
        let budget = match error.status.code() {
            Status::OPERAND_BUSY | Status::SYS_BUSY => &mut self.busy,
            Status::INTERRUPTED_RESTARTABLE => &mut self.restartable,
            _ => return false,
        };
        match budget.checked_sub(1) {
            Some(rest) => {
                *budget = rest;
                true
            }
            None => false,
        }
    }
}

impl RetryBudget {
    pub(super) const fn at_least(self, floor: Self) -> Self {
        const fn larger(a: u32, b: u32) -> u32 {
            if a > b { a } else { b }
        }
        Self { busy: larger(self.busy, floor.busy), restartable: larger(self.restartable, floor.restartable) }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::DEFAULT
    }
}
