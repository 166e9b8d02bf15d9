//! Bringing up a TD with plain SEAMCALLs: what a test or an example needs before its own work begins.

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{Leaf, Status};
use crate::machine::{Lp, Machine};
use crate::td::{MIN_TDCX, VCPU_TDCX, VCPU_TDCX_PER_L2_VM};

/// What TD to create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdSpec {
    /// Key id.
    pub hkid: u16,
    /// Levels of the S-EPT: 4 or 5.
    pub sept_levels: u8,
    /// Guest address width 52 instead of 48 (needs 5 levels).
    pub wide_gpa: bool,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// vCPUs that the TD may have in the end; those that are created at least.
    pub max_vcpus: u16,
    /// Number of L2 VMs, up to 3 (TD partitioning).
    pub l2_vms: u8,
    /// ATTRIBUTES.DEBUG.
    pub debug: bool,
    /// ATTRIBUTES.SEPT_VE_DISABLE: an access to a pending page is a TD exit, not #VE.
    pub sept_ve_disable: bool,
    /// End the build with MR.FINALIZE, so that vCPUs may run.
    pub finalize: bool,
    /// Ordinary shared memory for TD_PARAMS, outside of every TDMR.
    pub params: u64,
}

impl Default for TdSpec {
    fn default() -> Self {
        Self {
            hkid: 33,
            sept_levels: 4,
            wide_gpa: false,
            vcpus: 1,
            max_vcpus: 1,
            l2_vms: 0,
            debug: false,
            sept_ve_disable: false,
            finalize: true,
            params: 0x4000_0000,
        }
    }
}

/// The pages of a TD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TdPages {
    /// TDR.
    pub tdr: Hpa,
    /// TDVPR of each vCPU.
    pub vcpus: Vec<Hpa>,
    /// Every other control page.
    pub control: Vec<Hpa>,
}

/// Makes one call with RCX, RDX, R8, R9.
///
/// # Errors
///
/// Any status that is not zero.
pub fn call(lp: &Lp<'_>, leaf: Leaf, operands: [u64; 4]) -> Result<Regs, Status> {
    let [rcx, rdx, r8, r9] = operands;
    let out = lp.raw(Regs { rax: leaf as u64, rcx, rdx, r8, r9, ..Regs::default() });
    if out.rax == 0 { Ok(out) } else { Err(Status(out.rax)) }
}

/// The bytes of TD_PARAMS for `spec`.
#[must_use]
pub fn td_params(spec: &TdSpec) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    let mut put = |at: usize, value: u64, size: usize| {
        bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    };
    put(0, u64::from(spec.debug) | u64::from(spec.sept_ve_disable) << 28, 8);
    put(8, 3, 8);
    put(16, u64::from(spec.vcpus.max(spec.max_vcpus)), 2);
    put(18, u64::from(spec.l2_vms), 1);
    put(24, 6 | u64::from(spec.sept_levels - 1) << 3, 8);
    put(32, u64::from(spec.wide_gpa), 8);
    put(40, 100, 2);
    bytes
}

/// Creates a TD: MNG.CREATE, KEY.CONFIG on package 0, ADDCX, MNG.INIT, the vCPUs, and MR.FINALIZE if wanted.
///
/// vCPU `n` is initialised on logical processor `n`; the frames come from `frames`.
///
/// # Errors
///
/// The first status that is not zero.
///
/// # Panics
///
/// When `frames` ends.
pub fn create(
    lp: &Lp<'_>,
    machine: &Machine,
    spec: &TdSpec,
    frames: &mut impl Iterator<Item = Hpa>,
) -> Result<TdPages, Status> {
    let mut next = || frames.next().expect("enough frames for the control pages");
    let tdr = next();
    let mut pages = TdPages { tdr, vcpus: Vec::new(), control: Vec::new() };
    call(lp, Leaf::MngCreate, [tdr.raw(), u64::from(spec.hkid), 0, 0])?;
    call(lp, Leaf::MngKeyConfig, [tdr.raw(), 0, 0, 0])?;
    let l2_vms = usize::from(spec.l2_vms);
    for _ in 0..MIN_TDCX + l2_vms {
        let page = next();
        call(lp, Leaf::MngAddCx, [page.raw(), tdr.raw(), 0, 0])?;
        pages.control.push(page);
    }
    machine.host_write_bytes(Hpa::truncate(spec.params), &td_params(spec));
    call(lp, Leaf::MngInit, [tdr.raw(), spec.params, 0, 0])?;
    for number in 0..spec.vcpus {
        let tdvpr = next();
        call(lp, Leaf::VpCreate, [tdvpr.raw(), tdr.raw(), 0, 0])?;
        for _ in 0..VCPU_TDCX + VCPU_TDCX_PER_L2_VM * l2_vms {
            let page = next();
            call(lp, Leaf::VpAddCx, [page.raw(), tdvpr.raw(), 0, 0])?;
            pages.control.push(page);
        }
        call(&machine.lp(u32::from(number)), Leaf::VpInit, [tdvpr.raw(), 0, 0, 0])?;
        pages.vcpus.push(tdvpr);
    }
    if spec.finalize {
        call(lp, Leaf::MrFinalize, [tdr.raw(), 0, 0, 0])?;
    }
    Ok(pages)
}

/// SEPT.ADD for every table still missing above an entry of `level` at `gpa`.
///
/// # Errors
///
/// The first status other than "exists".
///
/// # Panics
///
/// When `frames` ends.
pub fn map_tables(
    lp: &Lp<'_>,
    td: &TdPages,
    gpa: Gpa,
    level: Level,
    frames: &mut impl Iterator<Item = Hpa>,
) -> Result<(), Status> {
    for parent in [Level::L256T, Level::L512G, Level::L1G, Level::L2M] {
        let entry = gpa.align_down(parent).raw() | u64::from(parent.raw());
        if parent <= level
            || call(lp, Leaf::SeptRd, [entry, td.tdr.raw(), 0, 0]).is_ok_and(|out| out.rdx >> 8 == 0x84)
        {
            continue;
        }
        let out = lp.raw(Regs { rax: Leaf::SeptRd as u64, rcx: entry, rdx: td.tdr.raw(), ..Regs::default() });
        if Status(out.rax) == Status::OPERAND_INVALID.of(crate::Operand::Rcx) {
            continue;
        }
        let page = frames.next().expect("enough frames for the tables");
        call(lp, Leaf::SeptAdd, [entry, td.tdr.raw(), page.raw(), 0])?;
    }
    Ok(())
}

/// PAGE.AUG.
///
/// # Errors
///
/// Any status that is not zero.
pub fn aug(lp: &Lp<'_>, td: &TdPages, gpa: Gpa, level: Level, page: Hpa) -> Result<(), Status> {
    call(lp, Leaf::PageAug, [gpa.raw() | u64::from(level.raw()), td.tdr.raw(), page.raw(), 0]).map(drop)
}
