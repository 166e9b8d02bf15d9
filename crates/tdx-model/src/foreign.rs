//! Locks held by "another logical processor": contention to order, one call at a time.

use sept_core::{Gpa, Hpa, Level};

use crate::lock::Mode;
use crate::machine::Machine;
use crate::sept;
use crate::state::State;
use crate::td::Td;

/// How a foreign lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

impl From<Access> for Mode {
    fn from(access: Access) -> Self {
        match access {
            Access::Shared => Self::Shared,
            Access::Exclusive => Self::Exclusive,
        }
    }
}

/// A lock of a TD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TdLock {
    /// The S-EPT tree lock.
    SeptTree,
    /// The operation-state lock.
    OpState,
    /// The epoch lock.
    Epoch,
}

/// A foreign lock to be given back with [`Machine::release`]. Dropping it leaves the lock held.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold(pub(crate) u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Page { hpa: u64, level: u8 },
    Td { td: usize, lock: TdLock },
    Entry { table: u32, index: usize },
}

/// A lock in foreign hands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignHold {
    pub(crate) id: u64,
    pub(crate) target: Target,
    pub(crate) mode: Mode,
}

impl State {
    fn note_hold(&mut self, target: Target, mode: Mode) -> Hold {
        let id = self.foreign.iter().map(|hold| hold.id + 1).max().unwrap_or(0);
        self.foreign.push(ForeignHold { id, target, mode });
        Hold(id)
    }

    /// Walks to the page as an explicit operand; returns the level where it stopped.
    pub(crate) fn hold_page(&mut self, hpa: u64, level: u8, mode: Mode) -> Option<(Hold, u8)> {
        if !self.cfg.tdmrs.iter().any(|tdmr| tdmr.usable(hpa)) {
            return None;
        }
        let found = self.mem.pamt_walk(&self.cfg, hpa, level, mode).ok()?;
        Some((self.note_hold(Target::Page { hpa, level: found.level }, mode), found.level))
    }

    pub(crate) fn hold_td(&mut self, td: usize, lock: TdLock, mode: Mode) -> Option<Hold> {
        let taken = td_lock(self.td_mut(td), lock).acquire(mode);
        taken.then(|| self.note_hold(Target::Td { td, lock }, mode))
    }

    /// Takes an entry's lock for a host that found it whether or not its parents are blocked.
    pub(crate) fn hold_entry(&mut self, td: usize, gpa: u64, level: u8) -> Option<Hold> {
        let (table, index) = self.walk_tables(self.td(td), gpa, level)?;
        let bit = self.lock_bit();
        let entry = &mut self.mem.table_mut(table)[index];
        if *entry & bit != 0 {
            *entry |= sept::HOST_PRIORITY;
            return None;
        }
        *entry = (*entry | bit) & !sept::HOST_PRIORITY;
        Some(self.note_hold(Target::Entry { table, index }, Mode::Exclusive))
    }

    /// Table and index of the entry, whether or not the tables on the way are blocked.
    pub(crate) fn walk_tables(&self, td: &Td, gpa: u64, level: u8) -> Option<(u32, usize)> {
        let (mut at, mut table) = (td.root_level, td.root);
        while at > level {
            let entry = self.mem.table(table)[Td::index(gpa, at)];
            if !sept::state_of(entry).is_in(sept::TABLES) {
                return None;
            }
            table = self.mem.table_at(entry & self.cfg.address_mask())?;
            at -= 1;
        }
        Some((table, Td::index(gpa, at)))
    }

    pub(crate) fn drop_hold(&mut self, hold: Hold) {
        let Some(position) = self.foreign.iter().position(|held| held.id == hold.0) else { return };
        let ForeignHold { target, mode, .. } = self.foreign.remove(position);
        match target {
            Target::Page { hpa, level } => self.mem.pamt_unwalk(&self.cfg, hpa, level, mode),
            Target::Td { td, lock } => td_lock(self.td_mut(td), lock).release(mode),
            Target::Entry { table, index } => {
                let bit = self.lock_bit();
                self.mem.table_mut(table)[index] &= !bit;
            }
        }
    }
}

const fn td_lock(td: &mut Td, lock: TdLock) -> &mut crate::lock::Lock {
    match lock {
        TdLock::SeptTree => &mut td.tree_lock,
        TdLock::OpState => &mut td.op_lock,
        TdLock::Epoch => &mut td.epoch_lock,
    }
}

impl Machine {
    /// Another logical processor is inside a SEAMCALL with this page as an operand.
    pub fn hold_page(&self, page: Hpa, level: Level, access: Access) -> Option<Hold> {
        self.with(|s| s.hold_page(page.raw(), level.raw(), access.into()).map(|(hold, _)| hold))
    }

    /// Another logical processor holds a lock of the TD.
    pub fn hold_td(&self, tdr: Hpa, lock: TdLock, access: Access) -> Option<Hold> {
        self.with(|s| {
            let td = s.td_of(tdr.raw())?;
            s.hold_td(td, lock, access.into())
        })
    }

    /// Another logical processor holds the lock of an S-EPT entry.
    pub fn hold_entry(&self, tdr: Hpa, gpa: Gpa, level: Level) -> Option<Hold> {
        self.with(|s| {
            let td = s.td_of(tdr.raw())?;
            s.hold_entry(td, gpa.raw(), level.raw())
        })
    }

    /// The other logical processor is done.
    pub fn release(&self, hold: Hold) {
        self.with(|s| s.drop_hold(hold));
    }
}
