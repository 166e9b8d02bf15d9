//! The way to an S-EPT entry, its lock, and what the host is told about it.
//!
//! A walk reads entries as they are and stops at the one asked for, at a leaf, or where there is no access. The lock of the
//! entry is taken afterwards, and the entry read again. (TDX module ABI, "Common prologue of S-EPT leaves".)

use crate::abi::{Operand, Status, size_of_level};
use crate::call::{Ctx, Held};
use crate::lock::Mode;
use crate::operand::Prologue;
use crate::sept;
use crate::state::{Answer, State};
use crate::td::Td;

/// An S-EPT entry that a walk reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) td: usize,
    pub(crate) gpa: u64,
    pub(crate) level: u8,
    pub(crate) table: u32,
    pub(crate) index: usize,
    /// The entry without its lock bit.
    pub(crate) entry: u64,
}

impl Slot {
    pub(crate) fn state(&self) -> sept::EntryState {
        sept::state_of(self.entry)
    }

    /// The entry with access given back, if it was taken away.
    pub(crate) fn unblocked(&self) -> u64 {
        if self.state().any_blocked() { sept::unblocked(self.entry) } else { self.entry }
    }

    /// The working copy that DEMOTE and REMOVE make: progress of an interrupted ACCEPT is forgotten in it.
    pub(crate) fn without_counter(self) -> Self {
        Self { entry: sept::without_counter(self.entry, self.level), ..self }
    }
}

impl State {
    /// The GPA-and-level operand, the tree lock, the walk.
    pub(crate) fn locate(&mut self, c: &mut Ctx, td: usize, p: &Prologue) -> Answer<Slot> {
        let (gpa, level) = self.gpa_operand(c.regs.rcx, td, p.levels)?;
        if let Some(mode) = p.tree {
            self.lock_tree(c, td, mode)?;
        }
        let slot = self.walk(td, gpa, level);
        if slot.level != level {
            return Err(self.details(c, &slot, Status::EPT_WALK_FAILED));
        }
        Ok(slot)
    }

    /// The whole prologue of a leaf that locks the entry it works on.
    pub(crate) fn open_entry(&mut self, c: &mut Ctx, p: &Prologue) -> Answer<Slot> {
        let td = self.open_td(c, c.regs.rdx, p)?;
        self.open_entry_of(c, td, p)
    }

    /// [`Self::open_entry`] from the GPA operand on.
    pub(crate) fn open_entry_of(&mut self, c: &mut Ctx, td: usize, p: &Prologue) -> Answer<Slot> {
        let slot = self.locate(c, td, p)?;
        self.lock_entry(c, slot)
    }

    fn gpa_operand(&self, rcx: u64, td: usize, levels: (u8, u8)) -> Answer<(u64, u8)> {
        let (gpa, level) = (rcx & !0xFFF, (rcx & 7) as u8);
        let td = self.td(td);
        let well_formed = rcx & 0xFF8 == 0
            && (levels.0..=levels.1.min(td.root_level)).contains(&level)
            && gpa % size_of_level(level) == 0
            && td.is_private(gpa);
        if well_formed { Ok((gpa, level)) } else { Err(Status::OPERAND_INVALID.of(Operand::Rcx)) }
    }

    pub(crate) fn lock_tree(&mut self, c: &mut Ctx, td: usize, mode: Mode) -> Answer {
        if !self.td_mut(td).tree_lock.acquire(mode) {
            return Err(Status::OPERAND_BUSY.of(Operand::SeptTree));
        }
        c.hold(Held::Tree(td, mode));
        Ok(())
    }

    /// Walks towards `level`; the slot says how far it came.
    pub(crate) fn walk(&self, td: usize, gpa: u64, level: u8) -> Slot {
        let domain = self.td(td);
        let (mut at, mut table) = (domain.root_level, domain.root);
        let mask = self.cfg.address_mask();
        loop {
            let index = Td::index(gpa, at);
            let entry = self.mem.table(table)[index];
            if at > level
                && sept::walkable(entry)
                && let Some(next) = self.mem.table_at(entry & mask)
            {
                (at, table) = (at - 1, next);
                continue;
            }
            return Slot { td, gpa, level: at, table, index, entry: entry & !self.lock_bit() };
        }
    }

    /// Walks to the leaf that maps `gpa`, of whatever size; it must be one that the guest can use.
    pub(crate) fn walk_to_leaf(&self, c: &mut Ctx, td: usize, gpa: u64) -> Answer<Slot> {
        let slot = self.walk(td, gpa, 0);
        if slot.entry & sept::LEAF == 0 || slot.entry & sept::RWX == 0 {
            return Err(self.details(c, &slot, Status::EPT_ENTRY_NOT_PRESENT));
        }
        Ok(slot)
    }

    /// Takes the lock of the entry for the host and gives it back when what follows at once is done; `None` if another has
    /// it.
    pub(crate) fn try_entry(&mut self, slot: &Slot) -> Option<Slot> {
        let bit = self.lock_bit();
        let entry = &mut self.mem.table_mut(slot.table)[slot.index];
        if *entry & bit != 0 {
            *entry |= sept::HOST_PRIORITY;
            return None;
        }
        *entry &= !sept::HOST_PRIORITY;
        Some(Slot { entry: *entry, ..*slot })
    }

    /// Takes the lock of the entry for the host and reads the entry again.
    pub(crate) fn lock_entry(&mut self, c: &mut Ctx, slot: Slot) -> Answer<Slot> {
        let bit = self.lock_bit();
        let entry = &mut self.mem.table_mut(slot.table)[slot.index];
        if *entry & bit != 0 {
            *entry |= sept::HOST_PRIORITY;
            return Err(self.details(c, &slot, Status::OPERAND_BUSY));
        }
        *entry = (*entry | bit) & !sept::HOST_PRIORITY;
        let entry = *entry & !bit;
        c.hold(Held::Entry(slot.table, slot.index));
        Ok(Slot { entry, ..slot })
    }

    /// Puts what the entry looks like into RCX and RDX.
    pub(crate) fn details(&self, c: &mut Ctx, slot: &Slot, status: Status) -> Status {
        c.out.rcx = sept::shown(&self.cfg, slot.entry);
        c.out.rdx = sept::shown_info(slot.entry, slot.level);
        status.of(Operand::Rcx)
    }

    /// The entry is in one of the `states`.
    pub(crate) fn allow_state(&self, c: &mut Ctx, slot: &Slot, states: u16) -> Answer {
        if slot.state().is_in(states) {
            return Ok(());
        }
        Err(self.details(c, slot, Status::EPT_ENTRY_STATE_INCORRECT))
    }

    /// In a tracked operation state: the entry is blocked and its epoch retired.
    pub(crate) fn require_tracking(&self, c: &mut Ctx, slot: &Slot, page: u64, page_level: u8) -> Answer {
        if !self.cfg.tracking_enforced || !self.td(slot.td).is_tracked() || !slot.state().needs_tracking() {
            return Ok(());
        }
        if !slot.state().any_blocked() {
            return Err(self.details(c, slot, Status::GPA_RANGE_NOT_BLOCKED));
        }
        let bepoch = self.mem.entry(page, page_level).bepoch;
        if !self.td(slot.td).tracking_done(bepoch) {
            return Err(Status::TLB_TRACKING_NOT_DONE.of(Operand::Rcx));
        }
        Ok(())
    }

    /// Writes the entry; the call's lock on it stays.
    pub(crate) fn set_entry(&mut self, slot: &Slot, entry: u64) {
        let bit = self.lock_bit();
        let word = &mut self.mem.table_mut(slot.table)[slot.index];
        *word = entry | *word & bit;
    }

    /// The page the entry names, and the level of its PAMT entry.
    pub(crate) fn page_of(&self, slot: &Slot) -> (u64, u8) {
        let level = if slot.entry & sept::LEAF != 0 { slot.level } else { 0 };
        (sept::address(&self.cfg, slot.entry, slot.level), level)
    }
}
