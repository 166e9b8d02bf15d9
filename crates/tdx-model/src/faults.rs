//! Faults to order: answers without execution, interrupts, vCPUs that stay, page pairs that vanish, machine checks.
//!
//! A plan is given to [`MachineBuilder::faults`](crate::MachineBuilder::faults) or
//! [`Machine::order`](crate::Machine::order) and counts from there. Everything in it is deterministic: the same calls meet the
//! same faults.
//!
//! ```
//! use tdx_model::{FaultPlan, Leaf, Machine, MachineCheck, Operand};
//! use sept_core::Hpa;
//!
//! let page = Hpa::new(0x1_1000_0000).unwrap();
//! let plan = FaultPlan::new()
//!     .busy(Leaf::PageDemote, 2, Operand::SeptTree)
//!     .interrupt_after_chunks(3)
//!     .vcpu_stays(2)
//!     .page_pair_missing(page)
//!     .machine_check(page, 100, MachineCheck::Consumed);
//! let machine = Machine::builder().memory(0x1_0000_0000, 1).faults(plan).build();
//! ```

use std::collections::BTreeSet;

use seamcall::Regs;
use sept_core::Hpa;

use crate::abi::{Leaf, Operand, PAGE, PageType, Status};
use crate::memory::CHUNK;
use crate::state::State;

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

    /// The same for `times` calls in a row.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
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

    /// An NMI that is seen when `chunks` chunks are done: leaves that work in chunks poll after each.
    #[must_use]
    pub const fn nmi_after_chunks(chunks: u64) -> Self {
        Self::nmi_after(chunks.saturating_sub(1))
    }
}

/// What becomes of a memory error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineCheck {
    /// Somebody is told of it (by a scrubber, say). Who reads the frame later consumes it.
    Announced,
    /// The owner of the frame reads it: its TD becomes fatal, its vCPUs leave the guest, every leaf answers TD_FATAL.
    /// Without an owner it is announced only.
    Consumed,
}

/// Faults that are ordered together. See the module's example.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultPlan {
    answers: Vec<Fault>,
    interrupts: Option<Interrupts>,
    staying: BTreeSet<u32>,
    missing_pairs: BTreeSet<u64>,
    /// Page, calls that pass before, what becomes of it.
    checks: Vec<(u64, u64, MachineCheck)>,
}

impl FaultPlan {
    /// No fault.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A call answers without being executed.
    #[must_use]
    pub fn answer(mut self, fault: Fault) -> Self {
        self.answers.push(fault);
        self
    }

    /// The `n`-th call of `leaf` (the first is 1) finds a lock of `operand` taken and answers OPERAND_BUSY.
    #[must_use]
    pub fn busy(self, leaf: Leaf, n: u64, operand: Operand) -> Self {
        self.answer(Fault::nth(leaf, n, Status::OPERAND_BUSY.of(operand)))
    }

    /// The interrupt-pending register shows these, from the given poll on.
    #[must_use]
    pub const fn interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = Some(interrupts);
        self
    }

    /// An NMI is pending when `chunks` chunks of interruptible work are done, on whatever processor. It stays pending until
    /// [`Machine::set_interrupts`](crate::Machine::set_interrupts) takes it away.
    #[must_use]
    pub const fn interrupt_after_chunks(self, chunks: u64) -> Self {
        self.interrupts(Interrupts::nmi_after_chunks(chunks))
    }

    /// vCPU `number` of each TD (in the order of creation, from 0) ignores interrupts and stays in the guest.
    #[must_use]
    pub fn vcpu_stays(mut self, number: u32) -> Self {
        self.staying.insert(number);
        self
    }

    /// The PAMT page pair of the 2 MiB region that holds `page` is gone when a call next names a page of the region, once,
    /// as if another processor had removed it. That happens only while no page of the region is in use. (Dynamic PAMT.)
    #[must_use]
    pub fn page_pair_missing(mut self, page: Hpa) -> Self {
        self.missing_pairs.insert(page.raw() & !(CHUNK - 1));
        self
    }

    /// A memory error on the frame that holds `page`, right before the `n`-th SEAMCALL (the first is 1).
    #[must_use]
    pub fn machine_check(mut self, page: Hpa, n: u64, check: MachineCheck) -> Self {
        self.checks.push((page.raw() & !(PAGE - 1), n.saturating_sub(1), check));
        self
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.interrupts = other.interrupts.or(self.interrupts);
        self.staying.extend(other.staying);
        self.missing_pairs.extend(other.missing_pairs);
        self.checks.extend(other.checks);
    }
}

/// What is ordered and has not struck yet, and the frames that have errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    plan: FaultPlan,
    pub(crate) poison: BTreeSet<u64>,
}

impl Faults {
    pub(crate) fn order(&mut self, plan: FaultPlan) {
        self.plan.add(plan);
    }

    /// Withdraws all that was ordered. Frames keep their errors.
    pub(crate) fn clear(&mut self) {
        self.plan = FaultPlan::default();
    }

    /// The machine checks that come before this call.
    pub(crate) fn due_checks(&mut self) -> Vec<(u64, MachineCheck)> {
        let mut due = Vec::new();
        self.plan.checks.retain_mut(|&mut (page, ref mut after, check)| {
            if *after == 0 {
                due.push((page, check));
                return false;
            }
            *after -= 1;
            true
        });
        due
    }

    /// The answer ordered for this call, if one is.
    pub(crate) fn strike(&mut self, leaf: u16) -> Option<Status> {
        if self.plan.answers.is_empty() {
            return None;
        }
        let mut answer = None;
        for fault in &mut self.plan.answers {
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
        self.plan.answers.retain(|fault| fault.times > 0);
        answer
    }

    pub(crate) fn stays(&self, vcpu: usize) -> bool {
        u32::try_from(vcpu).is_ok_and(|number| self.plan.staying.contains(&number))
    }

    /// Whether page pairs are to vanish.
    pub(crate) fn has_missing_pairs(&self) -> bool {
        !self.plan.missing_pairs.is_empty()
    }

    /// Whether the page pair of the region is to vanish.
    pub(crate) fn is_pair_missing(&self, region: u64) -> bool {
        self.plan.missing_pairs.contains(&region)
    }

    pub(crate) fn pair_vanished(&mut self, region: u64) {
        self.plan.missing_pairs.remove(&region);
    }

    pub(crate) fn set_interrupts(&mut self, interrupts: Option<Interrupts>) {
        self.plan.interrupts = interrupts;
    }

    /// One poll on the host side.
    pub(crate) fn host_poll(&mut self) -> bool {
        let masked = self.plan.interrupts.is_some_and(|line| !line.host_interruptible);
        let events = self.poll();
        if masked { events & !1 != 0 } else { events != 0 }
    }

    /// Up to `polls` polls on the guest side: how many pass before one sees an event.
    pub(crate) fn guest_polls(&mut self, polls: u64) -> Option<u64> {
        let line = self.plan.interrupts.as_mut()?;
        if line.events == 0 || line.after >= polls {
            line.after = line.after.saturating_sub(polls);
            return None;
        }
        Some(core::mem::take(&mut line.after))
    }

    fn poll(&mut self) -> u64 {
        match &mut self.plan.interrupts {
            Some(line) if line.after > 0 => {
                line.after -= 1;
                0
            }
            Some(line) => line.events,
            None => 0,
        }
    }
}

impl State {
    /// What the plan has before this call.
    pub(crate) fn meet_faults(&mut self, regs: &Regs) {
        for (page, check) in self.faults.due_checks() {
            self.faults.poison.insert(page);
            if check == MachineCheck::Consumed {
                self.consume_machine_check(page);
            }
        }
        if self.faults.has_missing_pairs() {
            let operands = [regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13];
            operands.into_iter().for_each(|operand| self.lose_page_pair(operand & !(CHUNK - 1)));
        }
    }

    fn lose_page_pair(&mut self, region: u64) {
        let entry = self.mem.entry(region, 1);
        if self.faults.is_pair_missing(region)
            && entry.kind() == PageType::Pamt
            && entry.lock().holders() == (0, false)
            && self.mem.region_empty(&self.cfg, region)
        {
            self.mem.detach_pair(region);
            self.faults.pair_vanished(region);
            // The call that comes is not to blame for it.
            let broken = self.check_changes(false);
            assert!(broken.is_empty(), "invariants broken: {broken:#?}");
        }
    }
}
