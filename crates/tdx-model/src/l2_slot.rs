//! The entries of L2 VMs beside an L1 entry: the walk to them, what the host is told, what happens to all of them.

use crate::abi::Status;
use crate::call::Ctx;
use crate::l2;
use crate::slot::Slot;
use crate::state::State;
use crate::td::Td;

/// An entry of an L2 tree that a walk reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L2Slot {
    pub(crate) vm: usize,
    pub(crate) level: u8,
    pub(crate) table: u32,
    pub(crate) index: usize,
    pub(crate) entry: u64,
}

impl State {
    /// The flag in an L1 entry that says that L2 VM `vm` has an entry there too.
    pub(crate) fn alias_bit(&self, vm: usize) -> u64 {
        1 << self.cfg.profile.alias_bits[vm - 1]
    }

    /// The L2 VMs with an entry beside this one.
    pub(crate) fn aliases(&self, slot: &Slot) -> Vec<usize> {
        let vms = 1..=usize::from(self.td(slot.td).num_l2_vms);
        vms.filter(|&vm| slot.entry & self.alias_bit(vm) != 0).collect()
    }

    /// Walks the tree of L2 VM `vm` towards `level`; the slot says how far it came.
    ///
    /// Tables that are blocked stop the host, not the guest.
    pub(crate) fn l2_walk(&self, td: usize, vm: usize, gpa: u64, level: u8, by_guest: bool) -> L2Slot {
        let domain = self.td(td);
        let (mut at, mut table) = (domain.root_level, domain.l2_roots[vm - 1]);
        loop {
            let index = Td::index(gpa, at);
            let entry = self.mem.table(table)[index];
            let goes_on = if by_guest { l2::walkable_by_guest(entry) } else { l2::walkable(entry) };
            if at > level
                && goes_on
                && let Some(next) = self.mem.table_at(entry & self.cfg.address_mask())
            {
                (at, table) = (at - 1, next);
                continue;
            }
            return L2Slot { vm, level: at, table, index, entry };
        }
    }

    /// The entry of `vm` at the place of `slot`.
    pub(crate) fn l2_beside(&self, slot: &Slot, vm: usize) -> L2Slot {
        self.l2_walk(slot.td, vm, slot.gpa, slot.level, false)
    }

    /// Sets the flag of `vm` in the L1 entry as it stands.
    pub(crate) fn set_alias(&mut self, slot: &Slot, vm: usize) {
        let bit = self.alias_bit(vm);
        self.mem.table_mut(slot.table)[slot.index] |= bit;
    }

    /// Clears it.
    pub(crate) fn clear_alias(&mut self, slot: &Slot, vm: usize) {
        let bit = self.alias_bit(vm);
        self.mem.table_mut(slot.table)[slot.index] &= !bit;
    }

    pub(crate) fn set_l2_entry(&mut self, slot: &L2Slot, entry: u64) {
        self.mem.table_mut(slot.table)[slot.index] = entry;
    }

    /// Changes the entry of every L2 VM that has one beside `slot`.
    pub(crate) fn for_aliases(&mut self, slot: &Slot, change: impl Fn(u64) -> u64) {
        for vm in self.aliases(slot) {
            let beside = self.l2_beside(slot, vm);
            self.set_l2_entry(&beside, change(beside.entry));
        }
    }

    /// Puts what the L2 entry looks like into RCX and RDX; the status names VM and level.
    pub(crate) fn l2_details(&self, c: &mut Ctx, td: usize, slot: &L2Slot, status: Status) -> Status {
        c.out.rcx = l2::shown(&self.cfg, slot.entry, self.td(td).debug());
        let state = u64::from(l2::state_of(slot.entry).public());
        c.out.rdx = u64::from(slot.level) | state << 8 | (slot.vm as u64) << 16;
        status.detail((slot.vm as u32) << 16 | u32::from(slot.level))
    }
}
