//! EXPORT.BLOCKW and EXPORT.UNBLOCKW: write access is taken from 4 KiB pages of a TD that is exported, and given back.
//!
//! BLOCKW works through a list of up to 512 entries in ordinary memory and writes into each how it went; the epoch of the
//! block is one for the whole TD. L2 entries are not touched.

use crate::abi::{Operand, PAGE, Status, op_state};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::operand::Prologue;
use crate::sept;
use crate::session::{Point, Session};
use crate::state::{Answer, State};

const BLOCKW: Prologue =
    Prologue { tdr: Mode::Shared, op_states: op_state::BLOCKW, levels: (0, 0), tree: Some(Mode::Shared) };
const UNBLOCKW: Prologue = Prologue { op_states: op_state::UNBLOCKW, ..BLOCKW };

/// GPA_LIST_INFO: format 2:0, first entry 11:3, page 51:12, last entry 63:55.
#[derive(Clone, Copy)]
struct ListInfo(u64);

impl ListInfo {
    const FIRST: u64 = 0x1FF << 3;

    const fn first(self) -> u64 {
        (self.0 & Self::FIRST) >> 3
    }

    const fn last(self) -> u64 {
        self.0 >> 55
    }

    const fn page(self) -> u64 {
        self.0 & 0x000F_FFFF_FFFF_F000
    }

    const fn well_formed(self) -> bool {
        self.0 & 7 == 0 && self.0 >> 52 & 7 == 0 && self.first() <= self.last()
    }

    const fn from(self, entry: u64) -> u64 {
        self.0 & !Self::FIRST | entry << 3 & Self::FIRST
    }
}

/// How an entry of the list went.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum EntryStatus {
    Success = 0,
    Skipped = 1,
    SeptWalkFailed = 2,
    SeptEntryBusyHostPriority = 3,
    SeptEntryStateIncorrect = 4,
    GpaListEntryInvalid = 15,
}

/// An entry of the list: level 1:0, pending 2, L2 map 9:7, type 11:10, GPA 51:12, operation 53:52, status 60:56.
mod entry {
    pub(super) const OPERATION: u64 = 3 << 52;
    pub(super) const MIGRATE: u64 = 1 << 52;
    pub(super) const STATUS_SHIFT: u32 = 56;
    pub(super) const STATUS: u64 = 0x1F << STATUS_SHIFT;
    /// Bits that must be zero, the level among them.
    pub(super) const RESERVED: u64 = 3 | 0xF << 3 | 3 << 54 | 7 << 61;
}

/// TDH.EXPORT.BLOCKW: RCX list, RDX TDR. RCX comes back with the next entry to do.
pub(super) fn blockw(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let td = s.open_td(c, c.regs.rdx, &BLOCKW)?;
    s.lock_tree(c, td, Mode::Shared)?;
    let info = ListInfo(c.regs.rcx);
    if !info.well_formed() || !s.cfg.shared_operand(info.page(), PAGE) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.pause(c, Point::Commit);
    let mut problems = 0;
    for number in info.first()..=info.last() {
        c.out.rcx = info.from(number);
        let at = info.page() + number * 8;
        let item = s.read_shared(at);
        let status = block_one(s, td, item);
        let failed = if status == EntryStatus::Success { 0 } else { entry::OPERATION };
        s.write_shared(at, item & !(entry::STATUS | failed) | (status as u64) << entry::STATUS_SHIFT);
        match status {
            EntryStatus::GpaListEntryInvalid => return Err(Status::OPERAND_INVALID.of(Operand::GpaListEntry)),
            EntryStatus::Success | EntryStatus::Skipped => {}
            _ => problems += 1,
        }
        c.out.rcx = info.from(number + 1);
        if number < info.last() && s.faults.host_poll() {
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
    if problems == 0 { Ok(()) } else { Err(Status::SUCCESS.detail(problems)) }
}

/// Blocks the page that one entry of the list names.
fn block_one(s: &mut State, td: usize, item: u64) -> EntryStatus {
    let gpa = item & 0x000F_FFFF_FFFF_F000;
    let skip = item & entry::MIGRATE == 0;
    if item & entry::RESERVED != 0 || !skip && !s.td(td).is_private(gpa) {
        return EntryStatus::GpaListEntryInvalid;
    }
    if skip {
        return EntryStatus::Skipped;
    }
    let slot = s.walk(td, gpa, 0);
    if slot.level != 0 {
        return EntryStatus::SeptWalkFailed;
    }
    let Some(slot) = s.try_entry(&slot) else {
        return EntryStatus::SeptEntryBusyHostPriority;
    };
    if !slot.state().is_in(sept::BLOCKW) {
        return EntryStatus::SeptEntryStateIncorrect;
    }
    s.set_entry(&slot, sept::write_blocked(slot.entry));
    let domain = s.td_mut(td);
    domain.migration.block_write_epoch = domain.td_epoch;
    EntryStatus::Success
}

/// TDH.EXPORT.UNBLOCKW: RCX GPA, RDX TDR. A busy entry is not described.
pub(super) fn unblockw(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let slot = s.open_entry(c, &UNBLOCKW).inspect_err(|&status| {
        if status == Status::OPERAND_BUSY.of(Operand::Rcx) {
            (c.out.rcx, c.out.rdx) = (0, 0);
        }
    })?;
    s.pause(c, Point::Locked);
    s.allow_state(c, &slot, sept::WRITE_BLOCKED)?;
    s.set_entry(&slot, sept::write_unblocked(slot.entry));
    let clean = slot.state().exported_and_clean();
    s.td_mut(slot.td).migration.dirty_count += u64::from(clean);
    Ok(())
}
