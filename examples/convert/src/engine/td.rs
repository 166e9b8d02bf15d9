//! A TD's life outside of its memory: created, finalized and torn down through the typed SEAMCALLs.

use std::cell::Cell;

use seamcall::{
    Attributes, Call, Regs, SeamcallError, TdParams, Tdr, Tdvpr, Transport, mng, mr,
    phymem::{self, CacheWb},
    vp,
};
use sept_core::test_util::RamLedger;
use sept_core::{Frame, Hpa, Level, TdxConfig};
use tdx_model::{Lp, Machine};
use zerocopy::IntoBytes;

use super::machine::{CONTROL, CONTROL_PAGES, HKID, PARAMS};

/// Pages of a TDCS without L2 VMs, and of a TDVPS beside its TDVPR.
const TDCX_PAGES: usize = 6;
const TDVPX_PAGES: usize = 5;

/// Counts the calls that go through it.
#[derive(Debug)]
pub(super) struct Counted<'m> {
    lp: Lp<'m>,
    calls: Cell<u64>,
}

impl<'m> Counted<'m> {
    /// Counts calls made on `lp`.
    pub(super) fn new(lp: Lp<'m>) -> Self {
        Self { lp, calls: Cell::new(0) }
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.get()
    }
}

impl Transport for Counted<'_> {
    fn call(&self, call: Call) -> Regs {
        self.calls.set(self.calls.get() + 1);
        self.lp.call(call)
    }
}

/// A TD that has been created, and the pages that make it.
#[derive(Debug)]
pub(super) struct Control {
    /// The TD.
    pub tdr: Tdr,
    /// Its vCPUs.
    pub vcpus: Vec<Tdvpr>,
    taken: u64,
}

impl Control {
    /// Creates a TD with `vcpus` vCPUs. vCPU `n` runs on logical processor `n + 1`.
    pub(super) fn create(machine: &Machine, config: TdxConfig, vcpus: u32) -> Result<Self, SeamcallError> {
        let t = &machine.lp(0);
        let ledger = RamLedger::new(CONTROL, CONTROL_PAGES);
        let mut taken = 0;
        let mut page = || next_page(&ledger, &mut taken);
        let tdr = mng::create(t, page(), HKID).map_err(|refused| refused.error)?;
        mng::key_config(t, tdr)?;
        for _ in 0..TDCX_PAGES {
            mng::addcx(t, tdr, page()).map_err(|refused| refused.error)?;
        }
        let max_vcpus = u16::try_from(vcpus).unwrap_or(u16::MAX);
        let params = TdParams::new(config, Attributes::SEPT_VE_DISABLE, max_vcpus);
        machine.host_write_bytes(PARAMS, params.as_bytes());
        mng::init(t, tdr, PARAMS)?;
        let mut control = Vec::new();
        for number in 0..vcpus {
            let vcpu = vp::create(t, tdr, page()).map_err(|refused| refused.error)?;
            for _ in 0..TDVPX_PAGES {
                vp::addcx(t, vcpu, page()).map_err(|refused| refused.error)?;
            }
            vp::init(&machine.lp(number + 1), vcpu, 0)?;
            control.push(vcpu);
        }
        Ok(Self { tdr, vcpus: control, taken })
    }

    /// Ends the build: from here on vCPUs may enter.
    pub(super) fn finalize<T: Transport>(&self, t: &T) -> Result<(), SeamcallError> {
        mr::finalize(t, self.tdr)
    }

    /// Takes the TD's key away: after this its pages can be reclaimed and nothing else.
    pub(super) fn retire(&self, machine: &Machine) -> Result<(), SeamcallError> {
        let t = &machine.lp(0);
        for (vcpu, lp) in self.vcpus.iter().zip(1..) {
            match vp::flush(&machine.lp(lp), *vcpu) {
                // A vCPU that never ran is associated with no processor.
                Err(error) if error.status.is(seamcall::Status::VCPU_NOT_ASSOCIATED) => {}
                result => result?,
            }
        }
        mng::vpflushdone(t, self.tdr)?;
        let mut command = CacheWb::Start;
        while let Err(error) = phymem::cache_wb(t, command) {
            if !error.status.is(seamcall::Status::INTERRUPTED_RESUMABLE) {
                return Err(error);
            }
            command = CacheWb::Resume;
        }
        mng::key_freeid(t, self.tdr)
    }

    /// Reclaims the control pages, the TDR last. Everything else must be reclaimed before.
    pub(super) fn reclaim<T: Transport>(&self, t: &T) -> Result<(), SeamcallError> {
        for page in (1..self.taken).rev().chain([0]) {
            phymem::page_reclaim(t, Hpa::truncate(CONTROL.raw() + (page << Level::L4K.shift())))?;
        }
        Ok(())
    }
}

/// The next page of the control window. It has room for the largest TD.
fn next_page(ledger: &RamLedger, taken: &mut u64) -> Frame {
    loop {
        let page = Hpa::truncate(CONTROL.raw() + (*taken << Level::L4K.shift()));
        *taken += 1;
        if let Some(frame) = ledger.lend(page, Level::L4K) {
            return frame;
        }
    }
}
