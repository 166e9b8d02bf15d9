//! A trust domain: what its TDR, TDCS and TDVPS pages say, and TLB tracking.
//!
//! Tracking: BLOCK stamps a page with the TD's epoch, TRACK advances the epoch, VP.ENTER counts a vCPU into the epoch
//! it sees and a TD exit counts it out. A page is tracked when no vCPU that entered in its epoch or before can still
//! be inside. (TDX module ABI, "TLB tracking".)

use crate::abi::{Lifecycle, op_state};
use crate::l2;
use crate::lock::Lock;
use crate::translations::Translations;

/// Bit 63 of BEPOCH: the field holds a migration epoch instead.
const MIGRATION_EPOCH: u64 = 1 << 63;

/// A TD.
#[derive(Clone, Debug)]
pub(crate) struct Td {
    pub(crate) tdr: u64,
    pub(crate) hkid: u16,
    pub(crate) fatal: bool,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) chldcnt: u64,
    pub(crate) tdcx: Vec<u64>,
    /// Packages on which the key is configured, one bit each.
    pub(crate) keyed_packages: u32,
    pub(crate) op_state: u8,
    pub(crate) op_lock: Lock,
    pub(crate) tree_lock: Lock,
    pub(crate) epoch_lock: Lock,
    pub(crate) td_epoch: u64,
    pub(crate) refcount: [u16; 2],
    /// GPA width 52 instead of 48.
    pub(crate) gpaw: bool,
    /// Level of the entries in the S-EPT root: 3 or 4.
    pub(crate) root_level: u8,
    pub(crate) root: u32,
    pub(crate) num_l2_vms: u8,
    /// Roots of the trees of the L2 VMs.
    pub(crate) l2_roots: [u32; l2::MAX_VMS],
    pub(crate) controls: Controls,
    pub(crate) migration: Migration,
    pub(crate) measurement: u64,
    /// vCPUs that VP.INIT has initialised.
    pub(crate) num_vcpus: u32,
    pub(crate) vcpus: Vec<Vcpu>,
}

/// What TD_PARAMS and later writes say of the TD.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Controls {
    pub(crate) attributes: u64,
    pub(crate) xfam: u64,
    pub(crate) max_vcpus: u32,
    pub(crate) tsc_frequency: u16,
    pub(crate) config_flags: u64,
    /// Bit 0: an access to a pending page makes the vCPU exit instead of raising #VE.
    pub(crate) td_ctls: u64,
    /// By VM: bit 0, a failed walk in ATTR.WR is an exit.
    pub(crate) vm_ctls: [u64; 4],
    pub(crate) notify_enables: u64,
    /// Microseconds.
    pub(crate) hp_lock_timeout: u64,
}

/// What the leaves that are modelled look at of a migration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Migration {
    /// Goes into REMOVED entries.
    pub(crate) epoch: u32,
    /// The TD's epoch when a page was last blocked for writing.
    pub(crate) block_write_epoch: u64,
    /// Exported pages that have changed since.
    pub(crate) dirty_count: u64,
}

/// ATTRIBUTES: the host may look into the TD.
pub(crate) const ATTRIBUTE_DEBUG: u64 = 1;
/// ATTRIBUTES: no #VE for pending pages.
pub(crate) const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

/// A vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpu {
    pub(crate) tdvpr: u64,
    pub(crate) tdcx: Vec<u64>,
    pub(crate) initialized: bool,
    /// Order of its initialisation.
    pub(crate) index: u32,
    pub(crate) x2apic_id: Option<u32>,
    /// It consumed what it cannot recover from.
    pub(crate) disabled: bool,
    /// Its last exit came after the instruction: the host may say whether to try again.
    pub(crate) left_by_trap: bool,
    pub(crate) epoch: u64,
    /// Logical processor it is associated with.
    pub(crate) lp: Option<u32>,
    /// In guest mode.
    pub(crate) inside: bool,
    /// In the middle of a guest call, and to leave when that is over.
    pub(crate) executing: bool,
    pub(crate) kicked: bool,
    /// The page whose access made it exit last, how often in a row, and the pages noted as stepped.
    pub(crate) fault_page: Option<u64>,
    pub(crate) faults: u8,
    pub(crate) stepped_pages: Vec<u64>,
    /// Calls in a row that host priority refused.
    pub(crate) refused: u32,
    /// A kick does not reach it (fault plan).
    pub(crate) stuck: bool,
    pub(crate) translations: Translations,
}

/// Index of the TDCX page that is the S-EPT root.
pub(crate) const ROOT_TDCX: usize = 3;
/// TDCX pages a TD without L2 VMs needs, and the most there can be.
pub(crate) const MIN_TDCX: usize = 6;
/// Most TDCX pages a TD can have.
pub(crate) const MAX_TDCX: usize = 9;
/// Pages of a vCPU besides its TDVPR, without L2 VMs and with the most of them, and for each L2 VM.
pub(crate) const VCPU_TDCX: usize = 5;
pub(crate) const MAX_VCPU_TDCX: usize = 14;
pub(crate) const VCPU_TDCX_PER_L2_VM: usize = 3;

impl Td {
    pub(crate) fn new(tdr: u64, hkid: u16) -> Self {
        Self {
            tdr,
            hkid,
            fatal: false,
            lifecycle: Lifecycle::HkidAssigned,
            chldcnt: 0,
            tdcx: Vec::new(),
            keyed_packages: 0,
            op_state: op_state::UNINITIALIZED,
            op_lock: Lock::default(),
            tree_lock: Lock::default(),
            epoch_lock: Lock::default(),
            td_epoch: 0,
            refcount: [0; 2],
            gpaw: false,
            root_level: 3,
            root: 0,
            num_l2_vms: 0,
            l2_roots: [0; l2::MAX_VMS],
            controls: Controls::default(),
            migration: Migration::default(),
            measurement: 0,
            num_vcpus: 0,
            vcpus: Vec::new(),
        }
    }

    /// The host may look into the TD.
    pub(crate) const fn debug(&self) -> bool {
        self.controls.attributes & ATTRIBUTE_DEBUG != 0
    }

    /// An access to a pending page makes the vCPU exit instead of raising #VE.
    pub(crate) const fn pending_ve_disable(&self) -> bool {
        self.controls.td_ctls & 1 != 0
    }

    /// Whether the vCPU has all the pages that the TD's VMs need.
    pub(crate) fn has_pages(&self, vcpu: usize) -> bool {
        let needed = VCPU_TDCX + VCPU_TDCX_PER_L2_VM * usize::from(self.num_l2_vms);
        self.vcpus[vcpu].tdcx.len() >= needed
    }

    /// Blocking and tracking are enforced.
    pub(crate) fn is_tracked(&self) -> bool {
        op_state::within(self.op_state, op_state::TRACKED)
    }

    /// Whether no translation from before a block at `bepoch` can be in use.
    pub(crate) fn tracking_done(&self, bepoch: u64) -> bool {
        bepoch & MIGRATION_EPOCH == 0
            && (bepoch + 1 < self.td_epoch
                || bepoch + 1 == self.td_epoch && self.refcount[(bepoch & 1) as usize] == 0)
    }

    /// Whether TRACK may advance: nobody is left from the epoch before this one.
    pub(crate) fn previous_epoch_empty(&self) -> bool {
        self.refcount[(self.td_epoch.wrapping_sub(1) & 1) as usize] == 0
    }

    /// Whether `gpa` is private and within the guest's width.
    pub(crate) fn is_private(&self, gpa: u64) -> bool {
        let width = if self.gpaw { 51 } else { 47 };
        gpa >> width == 0
    }

    /// The access bits of the tree: index of `gpa` in a table of `level`.
    pub(crate) const fn index(gpa: u64, level: u8) -> usize {
        (gpa >> (12 + 9 * level as u32)) as usize & 0x1FF
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn td(td_epoch: u64, refcount: [u16; 2]) -> Td {
        Td { td_epoch, refcount, ..Td::new(0, 33) }
    }

    /// tracked(B) = B < E-1, or B = E-1 and nobody of that parity is inside.
    #[test]
    fn tracked_as_in_the_table() {
        assert!(!td(5, [0, 0]).tracking_done(5), "the current epoch never is, even with no vCPU");
        assert!(td(6, [3, 0]).tracking_done(5));
        assert!(!td(6, [0, 1]).tracking_done(5));
        assert!(td(7, [0, 1]).tracking_done(5), "two epochs later whoever is inside is newer");
        assert!(!td(9, [0, 0]).tracking_done(1 << 63));
    }

    #[test]
    fn track_looks_at_the_previous_epoch_only() {
        assert!(td(6, [4, 0]).previous_epoch_empty());
        assert!(!td(6, [0, 1]).previous_epoch_empty());
    }
}
