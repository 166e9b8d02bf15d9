//! The operands that leaves have in common: pages, the TD, its state. The order of the checks is that of the ABI.

use crate::abi::{Lifecycle, Operand, PageType, Status, op_state, size_of_level};
use crate::call::{Ctx, Held};
use crate::lock::Mode;
use crate::state::{Answer, State};
use crate::td::MIN_TDCX;

/// What differs in the common prologue of the S-EPT leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prologue {
    pub(crate) tdr: Mode,
    pub(crate) op_states: u16,
    pub(crate) levels: (u8, u8),
    pub(crate) tree: Option<Mode>,
}

/// Highest level a leaf takes: bounded by the depth of the tree.
pub(crate) const TOP: u8 = 4;

impl State {
    /// Checks the form of an explicit page operand: alignment, key id, width; then that the module may use it.
    pub(crate) fn page_format(&self, hpa: u64, level: u8, op: Operand) -> Answer {
        if !hpa.is_multiple_of(size_of_level(level)) || !self.cfg.plain(hpa) {
            return Err(Status::OPERAND_INVALID.of(op));
        }
        self.page_range(hpa, op)
    }

    pub(crate) fn page_range(&self, hpa: u64, op: Operand) -> Answer {
        if self.cfg.tdmrs.iter().any(|tdmr| tdmr.usable(hpa)) {
            return Ok(());
        }
        Err(Status::OPERAND_ADDR_RANGE_ERROR.of(op))
    }

    /// Walks to an explicit page operand and holds the path; says what was found.
    pub(crate) fn page_walk(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        mode: Mode,
    ) -> Answer<crate::pamt::Found> {
        let walk = self.mem.pamt_walk(&self.cfg, hpa, level, mode);
        let found = walk.map_err(|_| Status::OPERAND_BUSY.of(op))?;
        c.hold(Held::Path(hpa, found.level, mode));
        Ok(found)
    }

    /// The whole check of a page operand that must be of `kind`.
    pub(crate) fn page_operand(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        kind: PageType,
        mode: Mode,
    ) -> Answer {
        self.page_format(hpa, level, op)?;
        let found = self.page_walk(c, hpa, level, op, mode)?;
        let dynamic = self.cfg.profile.dynamic_pamt;
        if dynamic && kind == PageType::Nda && level == 0 {
            if found.level == 1 && found.entry.kind() == PageType::Nda {
                return Err(Status::MISSING_PAMT_PAGE_PAIR.of(op));
            }
            if self.mem.is_pamt_page(&self.cfg, hpa) {
                return Err(Status::PAGE_METADATA_INCORRECT.of(op));
            }
        }
        if found.level != level || found.entry.kind() != kind {
            return Err(Status::PAGE_METADATA_INCORRECT.of(op));
        }
        Ok(())
    }

    /// A free 4 KiB page that the call takes over.
    pub(crate) fn new_page(&mut self, c: &mut Ctx, hpa: u64, op: Operand) -> Answer {
        self.page_operand(c, hpa, 0, op, PageType::Nda, Mode::Exclusive)
    }

    /// Locks the PAMT entry of a page that the call found by itself.
    pub(crate) fn implicit_page(
        &mut self,
        c: &mut Ctx,
        hpa: u64,
        level: u8,
        op: Operand,
        mode: Mode,
    ) -> Answer {
        let lock = self.mem.pamt_lock(&self.cfg, hpa, level, mode);
        lock.map_err(|_| Status::OPERAND_BUSY.of(op))?;
        c.hold(Held::Page(hpa, level, mode));
        Ok(())
    }

    /// A TDR page operand.
    pub(crate) fn tdr_operand(&mut self, c: &mut Ctx, hpa: u64, op: Operand, mode: Mode) -> Answer<usize> {
        self.page_operand(c, hpa, 0, op, PageType::Tdr, mode)?;
        Ok(self.mem.cell(hpa).value() as usize)
    }

    /// The TD can be worked on: not fatal, its key configured.
    pub(crate) fn keyed(&self, td: usize) -> Answer {
        let td = self.td(td);
        if td.fatal {
            return Err(Status::TD_FATAL);
        }
        if td.lifecycle != Lifecycle::KeysConfigured {
            return Err(Status::TD_KEYS_NOT_CONFIGURED);
        }
        Ok(())
    }

    /// The TD has its control structure.
    pub(crate) fn ready(&self, td: usize) -> Answer {
        self.keyed(td)?;
        if self.td(td).tdcx.len() < MIN_TDCX {
            return Err(Status::TDCS_NOT_ALLOCATED);
        }
        Ok(())
    }

    pub(crate) fn allow_op_state(&self, td: usize, allowed: u16) -> Answer {
        if op_state::within(self.td(td).op_state, allowed) { Ok(()) } else { Err(Status::OP_STATE_INCORRECT) }
    }

    /// Takes the operation-state lock and checks the state.
    pub(crate) fn lock_op_state(&mut self, c: &mut Ctx, td: usize, allowed: u16) -> Answer {
        if !self.td_mut(td).op_lock.acquire(Mode::Shared) {
            return Err(Status::OPERAND_BUSY.of(Operand::OpState));
        }
        c.hold(Held::OpState(td));
        self.allow_op_state(td, allowed)
    }

    /// The TD operand of an S-EPT leaf, up to the check of its operation state.
    pub(crate) fn open_td(&mut self, c: &mut Ctx, hpa: u64, p: &Prologue) -> Answer<usize> {
        let td = self.tdr_operand(c, hpa, Operand::Rdx, p.tdr)?;
        self.ready(td)?;
        match p.tdr {
            Mode::Shared => self.lock_op_state(c, td, p.op_states)?,
            Mode::Exclusive => self.allow_op_state(td, p.op_states)?,
        }
        Ok(td)
    }
}
