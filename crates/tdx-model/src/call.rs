//! One call in progress: registers in and out, locks held.

use seamcall::Regs;

use crate::abi::{Leaf, Operand, Status};
use crate::lock::Mode;
use crate::state::{Answer, State};

/// A lock taken during a call and given back at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Held {
    /// An explicit page operand with its parents.
    Path(u64, u8, Mode),
    /// One PAMT entry.
    Page(u64, u8, Mode),
    OpState(usize),
    Epoch(usize, Mode),
    KeyTable(Mode),
    WriteBack(usize),
    /// The TDMR at this address.
    Tdmr(u64),
    Tree(usize, Mode),
    Entry(u32, usize),
}

/// Locks of one call, in the order they were taken.
pub(crate) type HeldLocks = [Option<Held>; 16];

/// One SEAMCALL in progress.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) lp: u32,
    pub(crate) leaf: u16,
    pub(crate) version: u8,
    pub(crate) regs: Regs,
    pub(crate) out: Regs,
    from_guest: bool,
    held: HeldLocks,
    count: usize,
}

impl Ctx {
    pub(crate) fn new(lp: u32, regs: Regs) -> Self {
        Self {
            lp,
            leaf: regs.rax as u16,
            version: (regs.rax >> 16) as u8,
            regs,
            out: regs,
            from_guest: false,
            held: [None; 16],
            count: 0,
        }
    }

    /// A guest's call on the logical processor its vCPU runs on.
    pub(crate) fn of_guest(lp: u32) -> Self {
        Self { from_guest: true, ..Self::new(lp, Regs::new()) }
    }

    /// The leaf, if the model knows it; a guest's call has none.
    pub(crate) const fn known_leaf(&self) -> Option<Leaf> {
        if self.from_guest { None } else { Leaf::from_number(self.leaf) }
    }

    pub(crate) const fn hold(&mut self, lock: Held) {
        self.held[self.count] = Some(lock);
        self.count += 1;
    }

    /// The locks taken so far.
    pub(crate) const fn held(&self) -> HeldLocks {
        self.held
    }

    /// Keeps the page locks taken so far beyond the end of the call; other locks are given back.
    pub(crate) fn keep_pages(&mut self) {
        for held in &mut self.held[..self.count] {
            if matches!(held, Some(Held::Path(..) | Held::Page(..))) {
                *held = None;
            }
        }
    }

    /// Ends a call that lost its work to an interrupt: RCX and RDX as they came.
    pub(crate) fn interrupted(&mut self) -> Status {
        self.out.rcx = self.regs.rcx;
        self.out.rdx = self.regs.rdx;
        Status::INTERRUPTED_RESTARTABLE
    }
}

impl State {
    /// Gives back every lock of the call.
    pub(crate) fn release(&mut self, c: &mut Ctx) {
        while c.count > 0 {
            c.count -= 1;
            match c.held[c.count].take() {
                Some(Held::Path(hpa, level, mode)) => self.mem.pamt_unwalk(&self.cfg, hpa, level, mode),
                Some(Held::Page(hpa, level, mode)) => self.mem.pamt_unlock(&self.cfg, hpa, level, mode),
                Some(Held::OpState(td)) => self.td_mut(td).op_lock.release(Mode::Shared),
                Some(Held::Epoch(td, mode)) => self.td_mut(td).epoch_lock.release(mode),
                Some(Held::KeyTable(mode)) => self.key_table_lock.release(mode),
                Some(Held::WriteBack(package)) => self.write_back_locks[package].release(Mode::Exclusive),
                Some(Held::Tdmr(base)) => self.tdmr_locks.retain(|&locked| locked != base),
                Some(Held::Tree(td, mode)) => self.td_mut(td).tree_lock.release(mode),
                Some(Held::Entry(table, index)) => {
                    let bit = self.lock_bit();
                    self.mem.table_mut(table)[index] &= !bit;
                }
                None => {}
            }
        }
    }

    /// Takes the lock of the TD's epoch.
    pub(crate) fn lock_epoch(&mut self, c: &mut Ctx, td: usize, mode: Mode) -> Answer {
        if !self.td_mut(td).epoch_lock.acquire(mode) {
            return Err(Status::OPERAND_BUSY.of(Operand::TdEpoch));
        }
        c.hold(Held::Epoch(td, mode));
        Ok(())
    }

    /// Takes the lock of the key ownership table.
    pub(crate) fn lock_key_table(&mut self, c: &mut Ctx, mode: Mode) -> Answer {
        if !self.key_table_lock.acquire(mode) {
            return Err(Status::OPERAND_BUSY.of(Operand::KeyTable));
        }
        c.hold(Held::KeyTable(mode));
        Ok(())
    }

    /// Takes the lock of the TDMR at `base`.
    pub(crate) fn lock_tdmr(&mut self, c: &mut Ctx, base: u64) -> Answer {
        if self.tdmr_locks.contains(&base) {
            return Err(Status::OPERAND_BUSY.of(Operand::Rcx));
        }
        self.tdmr_locks.push(base);
        c.hold(Held::Tdmr(base));
        Ok(())
    }

    /// Takes the write-back lock of a package.
    pub(crate) fn lock_write_back(&mut self, c: &mut Ctx, package: usize) -> Answer {
        if !self.write_back_locks[package].acquire(Mode::Exclusive) {
            return Err(Status::OPERAND_BUSY.of(Operand::WbCache));
        }
        c.hold(Held::WriteBack(package));
        Ok(())
    }
}
