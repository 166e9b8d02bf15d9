//! Faults to order: answers without execution, interrupts, memory errors.

use std::collections::BTreeSet;

use crate::abi::{Leaf, Status};

/// "The n-th call answers this without being executed."
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Only calls of this leaf count; `None` counts every call.
    pub leaf: Option<Leaf>,
    /// Calls that pass before the fault strikes.
    pub after: u64,
    /// How many calls in a row it strikes.
    pub times: u64,
    /// The answer.
    pub status: Status,
}

impl Fault {
    /// The `n`-th call of `leaf` from now (the first is 1) answers `status`.
    #[must_use]
    pub const fn nth(leaf: Leaf, n: u64, status: Status) -> Self {
        Self { leaf: Some(leaf), after: n.saturating_sub(1), times: 1, status }
    }

    /// The `n`-th call of any leaf from now answers `status`.
    #[must_use]
    pub const fn nth_call(n: u64, status: Status) -> Self {
        Self { leaf: None, after: n.saturating_sub(1), times: 1, status }
    }
}

/// Polls of the interrupt-pending register that a call makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interrupts {
    /// Polls that see nothing before the events become visible.
    pub after: u64,
    /// The events: bit 0 INTR, bit 1 NMI, bit 2 SMI, others.
    pub events: u64,
    /// The host's RFLAGS.IF: without it INTR does not count on the host side.
    pub host_interruptible: bool,
}

impl Interrupts {
    /// An NMI that becomes pending after `polls` polls.
    #[must_use]
    pub const fn nmi_after(polls: u64) -> Self {
        Self { after: polls, events: 2, host_interruptible: true }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FaultPlan {
    faults: Vec<Fault>,
    interrupts: Option<Interrupts>,
    pub(crate) poison: BTreeSet<u64>,
    /// TDVPR pages of vCPUs that no interrupt reaches.
    pub(crate) stuck: BTreeSet<u64>,
}

impl FaultPlan {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.faults.clear();
    }

    /// The answer ordered for this call, if one is.
    pub(crate) fn strike(&mut self, leaf: u16) -> Option<Status> {
        if self.faults.is_empty() {
            return None;
        }
        let mut answer = None;
        for fault in &mut self.faults {
            if fault.leaf.is_some_and(|wanted| wanted as u16 != leaf) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if answer.is_none() && fault.times > 0 {
                fault.times -= 1;
                answer = Some(fault.status);
            }
        }
        self.faults.retain(|fault| fault.times > 0);
        answer
    }

    pub(crate) fn set_interrupts(&mut self, interrupts: Option<Interrupts>) {
        self.interrupts = interrupts;
    }

    /// One poll on the host side.
    pub(crate) fn host_poll(&mut self) -> bool {
        let masked = self.interrupts.is_some_and(|line| !line.host_interruptible);
        let events = self.poll();
        if masked { events & !1 != 0 } else { events != 0 }
    }

    /// Up to `polls` polls on the guest side: how many pass before one sees an event.
    pub(crate) fn guest_polls(&mut self, polls: u64) -> Option<u64> {
        let line = self.interrupts.as_mut()?;
        if line.events == 0 || line.after >= polls {
            line.after = line.after.saturating_sub(polls);
            return None;
        }
        Some(core::mem::take(&mut line.after))
    }

    fn poll(&mut self) -> u64 {
        match &mut self.interrupts {
            Some(line) if line.after > 0 => {
                line.after -= 1;
                0
            }
            Some(line) => line.events,
            None => 0,
        }
    }
}
