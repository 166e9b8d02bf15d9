//! TDG.MEM.PAGE.ATTR.RD and ATTR.WR: what the L1 guest lets its L2 VMs do with a page.
//!
//! RDX holds four sets of 16 bits, one a VM; those of the L1 guest itself (bits 15:0) are zero. In R8 of ATTR.WR the same
//! places say which attributes are written, and bit 15 asks for a flush of the VM's translations.

use seamcall::Regs;

use super::exit::Violation;
use super::{TdCall, returned};
use crate::abi::{Operand, PAGE, Status, size_of_level};
use crate::l2::{self, MAX_VMS, attributes};
use crate::l2_slot::L2Slot;
use crate::sept::{self, EntryState};
use crate::session::Session;
use crate::slot::Slot;
use crate::state::State;

/// Types of exits in RDX.
const GPA_DETAILS_EXIT: u64 = 2;
const ATTR_WR_EXIT: u64 = 5;
/// Bit of RCX out: the page is pending.
const PENDING: u64 = 1 << 62;

const fn of_vm(sets: u64, vm: usize) -> u16 {
    (sets >> (16 * vm)) as u16
}

const fn placed(set: u16, vm: usize) -> u64 {
    (set as u64) << (16 * vm)
}

/// What ATTR.WR does to one VM: the attributes it will have, and the entry that holds them.
#[derive(Clone, Copy)]
struct Change {
    vm: usize,
    attributes: u16,
    aliased: bool,
    beside: L2Slot,
}

/// Why ATTR.WR stops.
enum Stop {
    Status(Status),
    /// Illegal attributes; RDX says what there is.
    Invalid(u64),
    Exit(Violation),
}

impl Session<'_> {
    /// RCX GPA. Out: RCX the page with its level in bits 2:0, RDX the attributes.
    pub(super) fn read_attributes(&mut self, td: usize, vcpu: usize, regs: Regs) -> TdCall {
        let fail = |status: Status| returned(status, Regs { rcx: 0, rdx: 0, ..regs });
        let gpa = regs.rcx;
        if !self.td(td).is_private(gpa) {
            return fail(Status::OPERAND_INVALID.of(Operand::Rcx));
        }
        let slot = self.walk(td, gpa, 0);
        if let Err(status) = self.lock_entry_for_guest(slot.table, slot.index) {
            return fail(status);
        }
        self.unlock_entry(&slot);
        if !slot.state().is_in(sept::ATTR_RD) {
            return TdCall::Exit(self.exit_for(td, vcpu, Violation { gpa, ..Violation::default() }));
        }
        let mut sets = 0;
        for vm in self.aliases(&slot) {
            let entry = self.l2_walk(td, vm, gpa, slot.level, true).entry;
            sets |= placed(attributes::of(entry, slot.state().any_write_blocked()), vm);
        }
        let page = gpa & !(size_of_level(slot.level) - 1);
        let pending = if slot.state().any_pending() { PENDING } else { 0 };
        returned(Status::SUCCESS, Regs { rcx: page | u64::from(slot.level) | pending, rdx: sets, ..regs })
    }

    /// RCX GPA and level, RDX attributes, R8 masks.
    pub(super) fn write_attributes(&mut self, td: usize, vcpu: usize, regs: Regs) -> TdCall {
        let fail = |status: Status| returned(status, Regs { rcx: 0, rdx: 0, ..regs });
        let (gpa, level) = (regs.rcx & !0xFFF, (regs.rcx & 7) as u8);
        if let Err(operand) = self.check_attribute_operands(td, regs) {
            return fail(Status::OPERAND_INVALID.of(operand));
        }
        let slot = self.walk(td, gpa, level);
        if slot.level != level {
            return TdCall::Exit(self.exit_for(td, vcpu, Violation::at(&slot, ATTR_WR_EXIT, gpa, level)));
        }
        if let Err(status) = self.lock_entry_for_guest(slot.table, slot.index) {
            return fail(status);
        }
        self.unlock_entry(&slot);
        if slot.entry & sept::LEAF == 0 && slot.state() != EntryState::Free {
            return fail(Status::PAGE_SIZE_MISMATCH.detail(u32::from(level)));
        }
        if !slot.state().is_in(sept::ATTR_WR) {
            return TdCall::Exit(self.exit_for(td, vcpu, Violation::at(&slot, ATTR_WR_EXIT, gpa, level)));
        }
        match self.plan_attributes(&slot, regs) {
            Ok((changes, sets)) => {
                let sets = self.apply_attributes(&slot, &changes, sets);
                let pending = if slot.state().any_pending() { PENDING } else { 0 };
                returned(Status::SUCCESS, Regs { rcx: regs.rcx | pending, rdx: sets, ..regs })
            }
            Err(Stop::Status(status)) => fail(status),
            Err(Stop::Invalid(sets)) => {
                returned(Status::PAGE_ATTR_INVALID, Regs { rcx: 0, rdx: sets, ..regs })
            }
            Err(Stop::Exit(violation)) => TdCall::Exit(self.exit_for(td, vcpu, violation)),
        }
    }
}

impl State {
    fn check_attribute_operands(&self, td: usize, regs: Regs) -> Result<(), Operand> {
        let vms = usize::from(self.td(td).num_l2_vms);
        for vm in 0..=MAX_VMS {
            let (set, mask) = (of_vm(regs.rdx, vm), of_vm(regs.r8, vm));
            let exists = (1..=vms).contains(&vm);
            if set != 0 && (!exists || set & attributes::VALID == 0) {
                return Err(Operand::Rdx);
            }
            if mask != 0 && !exists {
                return Err(Operand::R8);
            }
        }
        let (gpa, level) = (regs.rcx & !0xFFF, (regs.rcx & 7) as u8);
        let well_formed = regs.rcx & 0xFF8 == 0
            && level <= 2
            && gpa % size_of_level(level) == 0
            && self.td(td).is_private(gpa);
        if well_formed { Ok(()) } else { Err(Operand::Rcx) }
    }

    /// What each VM will have; nothing is written yet.
    fn plan_attributes(&self, slot: &Slot, regs: Regs) -> Result<(Vec<Change>, u64), Stop> {
        let (mut changes, mut sets, mut illegal) = (Vec::new(), regs.rdx & !0xFFFF, false);
        for vm in 1..=usize::from(self.td(slot.td).num_l2_vms) {
            let mask = of_vm(regs.r8, vm) | attributes::VALID;
            let wanted = of_vm(regs.rdx, vm) & mask;
            if wanted & attributes::VALID == 0 {
                continue;
            }
            let aliased = slot.entry & self.alias_bit(vm) != 0;
            let mut set = wanted;
            let mut keep = 0;
            if aliased {
                let entry = self.l2_walk(slot.td, vm, slot.gpa, slot.level, true).entry;
                keep = attributes::of(entry, slot.state().any_write_blocked());
                set |= keep & !mask;
            }
            let refused = attributes::present(set) && !attributes::legal(set);
            illegal |= refused;
            if refused {
                set = keep;
            }
            if aliased || !refused && attributes::present(set) {
                sets = sets & !placed(u16::MAX, vm) | placed(set, vm);
            } else if refused {
                sets &= !placed(u16::MAX, vm);
            }
            if !aliased && (refused || !attributes::present(set)) {
                continue;
            }
            let beside = self.l2_walk(slot.td, vm, slot.gpa, slot.level, true);
            if beside.level != slot.level {
                return Err(self.l2_walk_stop(slot, &beside));
            }
            changes.push(Change { vm, attributes: set, aliased, beside });
        }
        if illegal { Err(Stop::Invalid(sets)) } else { Ok((changes, sets)) }
    }

    /// A table of the L2 VM is missing: the guest is told, or the host, as the TD has chosen.
    fn l2_walk_stop(&self, slot: &Slot, beside: &L2Slot) -> Stop {
        let vm = beside.vm;
        if self.td(slot.td).controls.vm_ctls[vm] & 1 == 0 {
            let detail = (vm as u32) << 16 | u32::from(beside.level);
            return Stop::Status(Status::L2_SEPT_WALK_FAILED.detail(detail));
        }
        let permissions = (beside.entry & sept::RWX) << 3 | (beside.entry >> 10 & 1) << 6;
        Stop::Exit(Violation {
            kind: GPA_DETAILS_EXIT,
            gpa: slot.gpa & !(PAGE - 1),
            qualification: 2 | permissions,
            info: u64::from(beside.level) << 3 | (vm as u64) << 20,
        })
    }

    /// Writes the entries; returns the attributes that the guest is told.
    fn apply_attributes(&mut self, slot: &Slot, changes: &[Change], mut sets: u64) -> u64 {
        let (page, key) = (self.page_of(slot).0, self.entry_key(slot.td));
        let pending = slot.state().any_pending();
        for change in changes {
            let Change { vm, attributes: set, aliased, beside } = *change;
            if !aliased {
                self.set_l2_entry(&beside, attributes::leaf(set, page | key, pending));
                self.set_alias(slot, vm);
            } else if attributes::present(set) {
                self.set_l2_entry(&beside, attributes::replace(beside.entry, set));
            } else {
                self.set_l2_entry(&beside, l2::FREE);
                self.clear_alias(slot, vm);
                sets = sets & !placed(u16::MAX, vm) | placed(attributes::VALID, vm);
            }
        }
        sets
    }
}
