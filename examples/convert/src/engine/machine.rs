//! The modelled machine: what lies where in its physical memory.
//!
//! | from | what |
//! |---|---|
//! | 1 GiB | ordinary memory: TD parameters, pages that the image is copied from |
//! | 4 GiB | control pages of the TD, and PAMT pages of the host's own pools |
//! | 5 GiB | the page pool |
//! | after | guest RAM, in the order of its guest addresses, each region 1 GiB aligned |

use seamcall::{Hkid, KeyIdBits, phymem};
use sept_core::test_util::RamLedger;
use sept_core::{Hpa, Level};
use tdx_model::{HkidLayout, Lp, Machine, ModuleVersion};

use crate::options::Module;
use crate::scenario::{PAGE, Scenario};

const GIB: u64 = 1 << 30;

/// Where TD_PARAMS are put for MNG.INIT.
pub(super) const PARAMS: Hpa = Hpa::truncate(GIB);
/// Where a page is put for PAGE.ADD.
pub(super) const SOURCE: Hpa = Hpa::truncate(GIB + 16 * PAGE);
/// Control pages of the TD.
pub(super) const CONTROL: Hpa = Hpa::truncate(4 * GIB);
/// Room for a TDR, a TDCS and 64 vCPUs.
pub(super) const CONTROL_PAGES: u64 = 512;
/// PAMT pages for memory that the host keeps in 4 KiB pieces itself, right after the control pages.
const PAMT_PAGES: Hpa = Hpa::truncate(4 * GIB + CONTROL_PAGES * PAGE);
const PAMT_ROOM: u64 = GIB / PAGE - CONTROL_PAGES;
/// The page pool.
pub(super) const POOL: Hpa = Hpa::truncate(5 * GIB);

/// Key ids: the TD's, the module's own, and where they sit in an address.
pub(super) const HKID: Hkid = Hkid::new(33);
/// The module's own key id.
pub(super) const GLOBAL_HKID: Hkid = Hkid::new(32);
const MAX_PA: u8 = 52;
const HKID_BITS: u8 = 6;

/// Where key id bits sit.
pub(super) const KEY_ID_BITS: KeyIdBits = KeyIdBits::new(MAX_PA, HKID_BITS).expect("six of 52 address bits");

/// What lies where for one scenario.
#[derive(Clone, Debug)]
pub(super) struct Map {
    /// Frames in the page pool.
    pub pool_frames: u64,
    /// Base of each RAM region of the scenario, in the same order.
    pub ram: Vec<Hpa>,
    gib: u64,
}

impl Map {
    /// Lays out memory for `scenario`.
    pub(super) fn of(scenario: &Scenario) -> Self {
        let ram_gib = scenario.ram.iter().map(|region| region.len.div_ceil(GIB) + 1).sum::<u64>();
        // The most a block can take: 4095 vmemmap pages, a mirror, an S-EPT and two PAMT pages for each 2 MiB.
        let pool_frames = (4 + 2 * ram_gib) * 4096;
        let pool_gib = (pool_frames * PAGE).div_ceil(GIB);
        let mut next = POOL.raw() + pool_gib * GIB;
        let mut ram = Vec::new();
        for region in &scenario.ram {
            // The same offset into a GiB as in guest memory, so that large pages are aligned on both sides.
            ram.push(Hpa::truncate(next + region.start % GIB));
            next += (region.start % GIB + region.len).div_ceil(GIB) * GIB;
        }
        Self { pool_frames, ram, gib: next / GIB - 4 }
    }

    /// A machine with that memory.
    pub(super) fn build(&self, module: Module) -> Machine {
        let version = match module {
            Module::V1_5_01 => ModuleVersion::V1_5_01,
            Module::V1_5_28 => ModuleVersion::V1_5_28,
            Module::V2_0_08 => ModuleVersion::V2_0_08,
        };
        let start_bit = u32::from(MAX_PA - HKID_BITS);
        let hkid = HkidLayout {
            start_bit,
            bits: u32::from(HKID_BITS),
            private_min: 32,
            private_max: 63,
            global: GLOBAL_HKID.raw(),
        };
        Machine::builder()
            .version(version)
            .addresses(u32::from(MAX_PA), hkid)
            .memory(4 * GIB, self.gib)
            .build()
    }
}

/// Gives PAMT page pairs to memory that the host uses in 4 KiB pieces, before it does: `bytes` from `start`.
///
/// That is what a page source does on a platform with Dynamic PAMT: its pages come ready.
pub(super) fn back_with_pamt(
    lp: Lp<'_>,
    ledger: &RamLedger,
    next: &mut u64,
    start: Hpa,
    bytes: u64,
) -> Result<(), String> {
    let mut page = || {
        let hpa = Hpa::truncate(PAMT_PAGES.raw() + *next * PAGE);
        *next += 1;
        ledger.lend(hpa, Level::L4K)
    };
    let size = Level::L2M.size();
    for region in
        (start.raw() & !Level::L2M.mask()..start.raw() + bytes).step_by(usize::try_from(size).unwrap_or(1))
    {
        let (Some(first), Some(second)) = (page(), page()) else {
            return Err("no room for PAMT pages".into());
        };
        phymem::pamt_add(&lp, Hpa::truncate(region), [first, second])
            .map_err(|refused| format!("PAMT for {region:#x}: {}", refused.error))?;
    }
    Ok(())
}

/// The memory that PAMT pages of the host's own pools come from.
pub(super) fn pamt_ledger() -> RamLedger {
    RamLedger::new(PAMT_PAGES, PAMT_ROOM)
}
