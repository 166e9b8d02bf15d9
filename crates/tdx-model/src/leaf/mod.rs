//! The leaves, and the dispatcher in front of them.
//!
//! The dispatcher checks RAX, then clears the outputs that a leaf clears before its first check, then runs the leaf.
//! Every lock the leaf took is given back when it returns. (TDX module ABI, "SEAMCALL calling convention".)

mod debug;
mod dpamt;
mod export;
mod metadata;
mod mng;
mod page;
mod phymem;
#[cfg(test)]
mod random_tests;
mod range;
mod resize;
mod sept;
mod sys;
pub(crate) mod sysinit;
#[cfg(test)]
mod table_tests;
mod tdmr;
pub(crate) mod vp;

use seamcall::Regs;

use crate::abi::{Leaf, NULL_PA, Operand, Status};
use crate::call::Ctx;
use crate::config::ModuleVersion;
use crate::session::Session;
use crate::state::{Answer, State};
use sysinit::SysState;

/// Bits 31:24 and 63:32 of RAX must be zero. (Bit 63 names the loader, which is not here.)
const RAX_RESERVED: u64 = !0x00FF_FFFF;

impl Session<'_> {
    /// Executes one SEAMCALL on logical processor `lp`.
    pub(crate) fn seamcall(&mut self, lp: u32, regs: Regs) -> Regs {
        let mut c = Ctx::new(lp, regs);
        if self.is_halted() {
            c.out.rax = Status::VM_FAIL_INVALID.0;
            return c.out;
        }
        self.meet_faults(&regs);
        let status = match self.dispatch(&mut c) {
            Ok(()) => Status::SUCCESS,
            Err(status) => status,
        };
        self.release(&mut c);
        c.out.rax = status.0;
        self.counters.note(c.leaf, status);
        c.out
    }

    fn dispatch(&mut self, c: &mut Ctx) -> Answer {
        let invalid = Status::OPERAND_INVALID.of(Operand::Rax);
        let leaf = Leaf::from_number(c.leaf);
        let several_versions = leaf.is_some_and(|leaf| self.multi_version(leaf));
        if c.regs.rax & RAX_RESERVED != 0 || c.version != 0 && !several_versions {
            return Err(invalid);
        }
        self.admit(leaf)?;
        let leaf = leaf.ok_or(invalid)?;
        if let Some(status) = self.faults.strike(c.leaf) {
            if status != Status::INTERRUPTED_RESTARTABLE {
                clear_outputs(c, leaf);
            }
            return Err(status);
        }
        clear_outputs(c, leaf);
        if !self.knows_processor(c.lp, leaf) {
            return Err(Status::SYS_LP_INIT_NOT_DONE);
        }
        if c.version > 1 {
            return Err(invalid);
        }
        self.run(c, leaf)
    }

    /// LP.INIT was made on the processor, or is not needed.
    fn knows_processor(&self, lp: u32, leaf: Leaf) -> bool {
        matches!(leaf, Leaf::SysInit | Leaf::SysLpInit | Leaf::SysLpShutdown) || self.system.knows(lp)
    }

    /// The module is in a state in which it executes the leaf. It looks at that before it finds that it has no such leaf.
    fn admit(&self, leaf: Option<Leaf>) -> Answer {
        let always = matches!(
            leaf,
            Some(
                Leaf::SysInfo
                    | Leaf::SysRd
                    | Leaf::SysInit
                    | Leaf::SysLpInit
                    | Leaf::SysConfig
                    | Leaf::SysKeyConfig
                    | Leaf::SysLpShutdown
            )
        );
        match self.system.state {
            SysState::Ready => {}
            SysState::Shutdown if leaf != Some(Leaf::SysLpShutdown) => return Err(Status::SYS_SHUTDOWN),
            _ if !always => return Err(Status::SYS_NOT_READY),
            _ => {}
        }
        Ok(())
    }

    fn multi_version(&self, leaf: Leaf) -> bool {
        match leaf {
            Leaf::PagePromote | Leaf::SeptAdd | Leaf::SeptRemove | Leaf::MngRd | Leaf::VpRd => true,
            Leaf::VpInit | Leaf::SysInit => self.cfg.profile.version == ModuleVersion::V2_0_08,
            _ => false,
        }
    }

    fn run(&mut self, c: &mut Ctx, leaf: Leaf) -> Answer {
        match leaf {
            Leaf::VpEnter => vp::enter(self, c),
            Leaf::MngAddCx => mng::add_cx(self, c),
            Leaf::PageAdd => page::add(self, c),
            Leaf::SeptAdd => sept::add(self, c),
            Leaf::VpAddCx => vp::add_cx(self, c),
            Leaf::PageRelocate => page::relocate(self, c),
            Leaf::PageAug => page::aug(self, c),
            Leaf::RangeBlock => range::block(self, c),
            Leaf::MngKeyConfig => mng::key_config(self, c),
            Leaf::MngCreate => mng::create(self, c),
            Leaf::VpCreate => vp::create(self, c),
            Leaf::MngRd => metadata::td(self, c, false),
            Leaf::MngWr => metadata::td(self, c, true),
            Leaf::VpRd => metadata::vcpu(self, c, false),
            Leaf::VpWr => metadata::vcpu(self, c, true),
            Leaf::MemRd => debug::rd(self, c),
            Leaf::MemWr => debug::wr(self, c),
            Leaf::MngKeyReclaimId => mng::reclaim_id(self, c),
            Leaf::ExportBlockw => export::blockw(self, c),
            Leaf::ExportUnblockw => export::unblockw(self, c),
            Leaf::SysKeyConfig => sysinit::key_config(self, c),
            Leaf::SysInit => sysinit::init(self, c),
            Leaf::SysLpInit => sysinit::lp_init(self, c),
            Leaf::SysTdmrInit => sysinit::tdmr_init(self, c),
            Leaf::SysLpShutdown => sysinit::lp_shutdown(),
            Leaf::SysConfig => sysinit::config(self, c),
            Leaf::SysShutdown => sysinit::shutdown(self, c),
            Leaf::PageDemote => resize::demote(self, c),
            Leaf::MrExtend => mng::mr_extend(self, c),
            Leaf::MrFinalize => mng::mr_finalize(self, c),
            Leaf::VpFlush => vp::flush(self, c),
            Leaf::MngVpFlushDone => mng::vp_flush_done(self, c),
            Leaf::MngKeyFreeId => mng::key_free_id(self, c),
            Leaf::MngInit => mng::init(self, c),
            Leaf::VpInit => vp::init(self, c),
            Leaf::PagePromote => resize::promote(self, c),
            Leaf::PhymemPageRdmd => phymem::rdmd(self, c),
            Leaf::SeptRd => sept::rd(self, c),
            Leaf::PhymemPageReclaim => phymem::reclaim(self, c),
            Leaf::PageRemove => page::remove(self, c),
            Leaf::SeptRemove => sept::remove(self, c),
            Leaf::SysInfo => sys::info(self, c),
            Leaf::SysRd => sys::rd(self, c),
            Leaf::MemTrack => range::track(self, c),
            Leaf::RangeUnblock => range::unblock(self, c),
            Leaf::PhymemCacheWb => phymem::cache_wb(self, c),
            Leaf::PhymemPageWbinvd => phymem::page_wbinvd(self, c),
            Leaf::PhymemPamtAdd => dpamt::add(self, c),
            Leaf::PhymemPamtRemove => dpamt::remove(self, c),
        }
    }
}

/// Outputs that a leaf clears before its first check, and that stay cleared when it fails.
const fn clear_outputs(c: &mut Ctx, leaf: Leaf) {
    match leaf {
        Leaf::PhymemPageRdmd | Leaf::PhymemPageReclaim => {
            c.out.rcx = 0;
            c.out.rdx = 0;
            c.out.r8 = 0;
            c.out.r9 = 0;
            c.out.r10 = 0;
            c.out.r11 = 0;
        }
        Leaf::MemRd | Leaf::MemWr | Leaf::SysLpInit => {
            c.out.rcx = 0;
            c.out.rdx = 0;
            c.out.r8 = 0;
        }
        Leaf::SysInit => {
            c.out.rcx = 0;
            c.out.rdx = 0;
            c.out.r8 = 0;
            c.out.r9 = 0;
            c.out.r10 = 0;
        }
        Leaf::SysTdmrInit => c.out.rdx = 0,
        // Only a refused CPUID configuration puts something there.
        Leaf::MngInit => c.out.rcx = 0,
        Leaf::SysInfo => {
            c.out.rdx = 0;
            c.out.r9 = 0;
        }
        Leaf::SysRd => {
            c.out.rdx = NULL_PA;
            c.out.r8 = 0;
        }
        Leaf::SeptAdd
        | Leaf::SeptRd
        | Leaf::SeptRemove
        | Leaf::PageAdd
        | Leaf::PageAug
        | Leaf::PageRemove
        | Leaf::PageRelocate
        | Leaf::PageDemote
        | Leaf::PagePromote
        | Leaf::RangeBlock
        | Leaf::RangeUnblock
        | Leaf::MrExtend
        | Leaf::ExportUnblockw => {
            c.out.rcx = 0;
            c.out.rdx = 0;
        }
        _ => {}
    }
    if matches!(leaf, Leaf::MngRd | Leaf::MngWr | Leaf::VpRd | Leaf::VpWr) {
        c.out.r8 = 0;
        if c.version > 0 {
            c.out.rdx = NULL_PA;
        }
    }
    if c.version > 0 && matches!(leaf, Leaf::PagePromote | Leaf::SeptRemove) {
        c.out.r9 = NULL_PA;
        c.out.r10 = NULL_PA;
        c.out.r11 = NULL_PA;
    }
}

/// Reserved bits of the operand that carries a TDR and a flag in bit 0.
const HANDLE_RESERVED: u64 = !0x000F_FFFF_FFFF_F001;

/// Splits "TD handle and flags" into the TDR and the flag.
fn handle_and_flag(rdx: u64) -> Answer<(u64, bool)> {
    if rdx & HANDLE_RESERVED != 0 {
        return Err(Status::OPERAND_INVALID.of(Operand::Rdx));
    }
    Ok((rdx & !1, rdx & 1 != 0))
}

/// The register in which the page of L2 VM `vm` comes back.
const fn l2_output(c: &mut Ctx, vm: usize) -> &mut u64 {
    match vm {
        1 => &mut c.out.r9,
        2 => &mut c.out.r10,
        _ => &mut c.out.r11,
    }
}

/// Bit 62 of a returned page: its PAMT page pair has no more use.
const EMPTY_PAIR_HINT: u64 = 1 << 62;

impl State {
    /// Whether the module has stopped for good.
    pub(crate) fn is_halted(&self) -> bool {
        self.system.state == SysState::Halted
    }

    /// The module meets what must not be. It answers nothing any more: SEAMCALL ends with VMfailInvalid.
    fn halt(&mut self) -> Status {
        self.system.state = SysState::Halted;
        Status::VM_FAIL_INVALID
    }

    /// Frees the page in the PAMT and returns its address as the host is told it.
    fn free_page(&mut self, leaf: Leaf, hpa: u64, level: u8) -> u64 {
        let cfg = self.cfg.clone();
        if !cfg.tracking_enforced {
            self.taken.insert(hpa, (leaf, self.counters.total()));
        }
        let empty = self.mem.pamt_free(&cfg, hpa, level);
        if empty && cfg.profile.removed_page_hint { hpa | EMPTY_PAIR_HINT } else { hpa }
    }

    /// Frees the page of a table of the TD.
    fn free_table(&mut self, leaf: Leaf, td: usize, page: u64) -> u64 {
        self.mem.drop_table(page);
        self.td_mut(td).chldcnt -= 1;
        self.free_page(leaf, page, 0)
    }
}
