//! Reads and writes of the guest: cached translations, the walk, faults, foreign content.

use super::GuestFault;
use super::exit::{EPT_VIOLATION, Violation};
use crate::abi::{PAGE, size_of_level};
use crate::sept;
use crate::state::State;
use crate::td::Td;
use crate::violation::ViolationKind;

/// Type of the exit in RDX: an access to a page that is pending.
const PENDING_EXIT: u64 = 6;

impl State {
    /// The host page behind a guest address, through cached translations or a walk.
    pub(super) fn guest_page(
        &mut self,
        td: usize,
        vcpu: usize,
        gpa: u64,
        write: bool,
    ) -> Result<u64, GuestFault> {
        let page = gpa & !(PAGE - 1);
        if !self.td(td).is_private(gpa) {
            return Err(GuestFault::NotPrivate);
        }
        let needed = if write { 2 } else { 1 };
        if let Some((cached, permissions)) = self.td(td).vcpus[vcpu].translations.get(page)
            && permissions & needed != 0
        {
            if self.page_behind(td, page) != Some(cached) {
                self.violate_stale(td, vcpu, page, cached);
            }
            self.made_progress(td, vcpu);
            return Ok(cached);
        }
        let slot = self.walk(td, page, 0);
        if slot.entry & sept::LEAF != 0 && slot.entry & needed != 0 {
            let offset = page & (size_of_level(slot.level) - 1);
            let target = sept::address(&self.cfg, slot.entry, slot.level) + offset;
            self.td_mut(td).vcpus[vcpu].translations.insert(page, target, slot.entry & sept::RWX);
            self.made_progress(td, vcpu);
            return Ok(target);
        }
        if self.td(td).fatal {
            return Err(GuestFault::Exit(self.exit_from_lost_td(td, vcpu, EPT_VIOLATION)));
        }
        let pending = Self::is_acceptable(&slot);
        if pending && !self.td(td).pending_ve_disable() {
            self.made_progress(td, vcpu);
            return Err(GuestFault::Pending);
        }
        self.log_fault(td, vcpu, page);
        let violation = Violation {
            kind: if pending { PENDING_EXIT } else { 0 },
            gpa,
            qualification: needed | (slot.entry & sept::RWX) << 3,
            info: 0,
        };
        Err(GuestFault::Exit(self.exit_for(td, vcpu, violation)))
    }

    /// The page that the guest has accepted at the address. Blocked it is still the guest's, as is one under a blocked table.
    fn page_behind(&self, td: usize, page: u64) -> Option<u64> {
        let domain = self.td(td);
        let (mut level, mut table) = (domain.root_level, domain.root);
        loop {
            let entry = self.mem.table(table)[Td::index(page, level)];
            if entry & sept::LEAF != 0 {
                let offset = page & (size_of_level(level) - 1);
                let accepted = !sept::state_of(entry).any_pending();
                return accepted.then(|| sept::address(&self.cfg, entry, level) + offset);
            }
            if level == 0 || !sept::state_of(entry).is_in(sept::TABLES) {
                return None;
            }
            table = self.mem.table_at(entry & self.cfg.address_mask())?;
            level -= 1;
        }
    }

    pub(super) fn guest_read(&mut self, td: usize, vcpu: usize, page: u64) -> Result<u64, GuestFault> {
        let (cell, key) = (self.mem.cell(page), self.td(td).hkid);
        let poisoned = self.faults.poison.contains(&page);
        if cell.key() == key && !poisoned {
            return Ok(self.mem.pattern(page));
        }
        if !poisoned {
            self.violate(ViolationKind::GuestReadForeign, page, cell.key());
        }
        self.td_mut(td).fatal = true;
        self.exit_vcpu(td, vcpu);
        Err(GuestFault::Fatal)
    }
}
