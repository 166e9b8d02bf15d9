//! TDG.MEM.PAGE.ACCEPT: a pending page is zeroed and becomes the guest's.

use seamcall::Regs;

use super::exit::Violation;
use super::{TdCall, returned};
use crate::abi::{Operand, PAGE, Status, size_of_level};
use crate::call::{Ctx, Held};
use crate::l2;
use crate::memory::FANOUT;
use crate::sept::{self, EntryState};
use crate::session::{Point, Session};
use crate::slot::Slot;
use crate::state::State;

/// Type of the exit in RDX.
const ACCEPT_EXIT: u64 = 1;

impl Session<'_> {
    pub(super) fn accept(&mut self, td: usize, vcpu: usize, regs: Regs) -> TdCall {
        self.counters.accepts += 1;
        let (gpa, level) = (regs.rcx & !0xFFF, (regs.rcx & 7) as u8);
        let misaligned = gpa % size_of_level(level.min(1)) != 0;
        if regs.rcx & 0xFF8 != 0 || level > 1 || misaligned || !self.td(td).is_private(gpa) {
            return returned(Status::OPERAND_INVALID.of(Operand::Rcx), regs);
        }
        let slot = self.walk(td, gpa, level);
        // "Leaf" is what the first look says, the state what the look under the lock says.
        let (seen_state, is_leaf) = (slot.state(), slot.entry & sept::LEAF != 0);
        let already = returned(Status::PAGE_ALREADY_ACCEPTED.detail(u32::from(slot.level)), regs);
        if slot.level > level {
            return if seen_state.guest_accessible() {
                already
            } else {
                self.accept_exit(td, vcpu, &slot, gpa, level)
            };
        }
        if let Err(status) = self.lock_entry_for_guest(slot.table, slot.index) {
            return returned(status, regs);
        }
        if slot.state() != EntryState::Free && !is_leaf {
            self.unlock_entry(&slot);
            return returned(Status::PAGE_SIZE_MISMATCH.detail(u32::from(slot.level)), regs);
        }
        if slot.state().guest_accessible() {
            self.unlock_entry(&slot);
            return already;
        }
        if !State::is_acceptable(&slot) {
            self.unlock_entry(&slot);
            return self.accept_exit(td, vcpu, &slot, gpa, level);
        }
        self.zero_and_map(td, vcpu, &slot, regs)
    }

    /// Under the guest's lock on the entry, which others find taken meanwhile.
    fn zero_and_map(&mut self, td: usize, vcpu: usize, slot: &Slot, regs: Regs) -> TdCall {
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.executing = true;
        let mut c = Ctx::of_guest(cpu.lp.unwrap_or(0));
        c.hold(Held::Entry(slot.table, slot.index));
        self.pause(&c, Point::Commit);
        let outcome = self.accept_pending(slot, regs);
        self.release(&mut c);
        let cpu = &mut self.td_mut(td).vcpus[vcpu];
        cpu.executing = false;
        if cpu.kicked {
            self.exit_vcpu(td, vcpu);
        }
        outcome
    }
}

impl State {
    pub(super) fn unlock_entry(&mut self, slot: &Slot) {
        let bit = self.lock_bit();
        self.mem.table_mut(slot.table)[slot.index] &= !bit;
    }

    fn accept_exit(&mut self, td: usize, vcpu: usize, slot: &Slot, gpa: u64, level: u8) -> TdCall {
        TdCall::Exit(self.exit_for(td, vcpu, Violation::at(slot, ACCEPT_EXIT, gpa, level)))
    }

    /// Zeroes the page chunk by chunk; an interrupt after any chunk but the last leaves the rest for later.
    fn accept_pending(&mut self, slot: &Slot, regs: Regs) -> TdCall {
        let key = self.td(slot.td).hkid;
        let page = sept::address(&self.cfg, slot.entry, slot.level);
        if slot.level == 0 {
            self.mem.write(page, 0, key);
        } else {
            let done = sept::accept_counter(slot.entry);
            let left = FANOUT as u64 - done;
            if let Some(passed) = self.faults.guest_polls(left - 1) {
                let chunks = passed + 1;
                self.mem.fill(page + done * PAGE, chunks, 0, key, false);
                self.set_entry(slot, sept::with_counter(slot.entry, done + chunks));
                return TdCall::Interrupted;
            }
            self.mem.fill(page + done * PAGE, left, 0, key, false);
        }
        self.for_aliases(slot, l2::unblocked);
        self.set_entry(slot, sept::accepted(sept::without_counter(slot.entry, slot.level)));
        returned(Status::SUCCESS, regs)
    }
}
