//! A trust domain: what its TDR, TDCS and TDVPS pages say, and TLB tracking.
//!
//! Tracking: BLOCK stamps a page with the TD's epoch, TRACK advances the epoch, VP.ENTER counts a vCPU into the epoch
//! it sees and a TD exit counts it out. A page is tracked when no vCPU that entered in its epoch or before can still
//! be inside. (TDX module ABI, "TLB tracking".)

use crate::abi::{Lifecycle, op_state};
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
    pub(crate) debug: bool,
    /// An access to a pending page makes the vCPU exit instead of raising #VE.
    pub(crate) pending_ve_disable: bool,
    pub(crate) max_vcpus: u16,
    pub(crate) measurement: u64,
    pub(crate) vcpus: Vec<Vcpu>,
}

/// A vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpu {
    pub(crate) tdvpr: u64,
    pub(crate) tdcx: Vec<u64>,
    pub(crate) initialized: bool,
    pub(crate) epoch: u64,
    /// Logical processor it is associated with.
    pub(crate) lp: Option<u32>,
    /// In guest mode.
    pub(crate) inside: bool,
    /// In the middle of a guest call, and to leave when that is over.
    pub(crate) executing: bool,
    pub(crate) kicked: bool,
    /// ACCEPTs in a row that host priority refused.
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
/// Pages of a vCPU besides its TDVPR.
pub(crate) const VCPU_TDCX: usize = 5;

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
            debug: false,
            pending_ve_disable: false,
            max_vcpus: 0,
            measurement: 0,
            vcpus: Vec::new(),
        }
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
