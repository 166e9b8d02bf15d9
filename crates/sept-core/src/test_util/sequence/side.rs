//! What differs between formats, and between a table with a TEE and one without.

use super::{Op, trial::Trial};
use crate::{
    Direct, Ept, External, Format, HardwareWalked, LeafState, Level, Permissions, Rtt, SecurePageTable,
    Shootdown, TdxMirror, X86,
    test_util::{Arena, MockTee},
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a format's document says that the operations depend on.
pub(super) trait Rules: Format {
    /// Bits that the MMU sets in a leaf: accessed and dirty.
    const TOUCHED: [u64; 2];
    /// Whether a page that is taken away leaves a trace.
    const DESTROYS: bool;

    /// What a page is that was mapped just now.
    fn when_mapped(copied: bool, destroyed: bool) -> LeafState;

    /// Whether an entry can say these permissions.
    fn can_say(permissions: Permissions) -> bool;
}

/// Intel SDM volume 3, format of an EPT entry that maps a page: accessed is bit 8, dirty bit 9; write without read is a
/// misconfiguration.
impl Rules for Ept {
    const TOUCHED: [u64; 2] = [1 << 8, 1 << 9];
    const DESTROYS: bool = false;

    fn when_mapped(_: bool, _: bool) -> LeafState {
        LeafState::Mapped
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ)
    }
}

/// AMD APM volume 2, section 5.4: accessed is bit 5, dirty bit 6; a present page can be read.
impl Rules for X86 {
    const TOUCHED: [u64; 2] = [1 << 5, 1 << 6];
    const DESTROYS: bool = false;

    fn when_mapped(_: bool, _: bool) -> LeafState {
        LeafState::Mapped
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ)
    }
}

/// Arm DEN0137: data that is destroyed while its RIPAS is RAM leaves DESTROYED behind, and so does a destroyed table.
impl Rules for Rtt {
    const TOUCHED: [u64; 2] = [0; 2];
    const DESTROYS: bool = true;

    fn when_mapped(_: bool, destroyed: bool) -> LeafState {
        if destroyed { LeafState::Destroyed } else { LeafState::Pending }
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.is_all()
    }
}

/// A page is pending after TDH.MEM.PAGE.AUG and mapped after TDH.MEM.PAGE.ADD.
impl Rules for TdxMirror {
    const TOUCHED: [u64; 2] = [0; 2];
    const DESTROYS: bool = false;

    fn when_mapped(copied: bool, _: bool) -> LeafState {
        if copied { LeafState::Mapped } else { LeafState::Pending }
    }

    fn can_say(permissions: Permissions) -> bool {
        permissions.contains(Permissions::READ | Permissions::EXECUTE)
    }
}

pub(super) type Table<'m, F, X> = SecurePageTable<F, &'m Arena, X>;

/// The TEE, or none.
pub(super) trait Side<F: Rules>: External + Sized {
    fn new(top: Level, metadata: bool) -> Self;

    /// Makes fences last until they are let go.
    fn hold(&self, hold: bool);

    fn tee(&self) -> Option<&MockTee> {
        None
    }

    /// Carries out what only a table without a TEE can do.
    fn without_tee(trial: &mut Trial<'_, F, Self>, op: &Op) {
        let _ = (trial, op);
    }

    /// Carries out operations that need the table alone, without a TEE.
    fn alone(trial: &mut Trial<'_, F, Self>, ops: &[Op]) {
        let _ = (trial, ops);
    }
}

impl<F: Rules> Side<F> for MockTee {
    fn new(top: Level, metadata: bool) -> Self {
        let tee = Self::new(top);
        if metadata { tee.with_metadata() } else { tee }
    }

    fn hold(&self, hold: bool) {
        self.hold_fences(hold);
    }

    fn tee(&self) -> Option<&MockTee> {
        Some(self)
    }
}

/// A shootdown that ends at once unless it is held.
#[derive(Debug, Default)]
pub(super) struct Beat {
    started: AtomicU64,
    ended: AtomicU64,
    held: AtomicBool,
}

impl Beat {
    fn end(&self) {
        self.ended.store(self.started.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: frames of the modelled machine name no real memory, and the one thread that walks does not poll inside a walk.
unsafe impl Shootdown for Beat {
    type Ticket = u64;

    fn start(&self) -> u64 {
        let ticket = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.held.load(Ordering::Relaxed) {
            self.end();
        }
        ticket
    }

    fn done(&self, ticket: u64) -> bool {
        ticket <= self.ended.load(Ordering::Relaxed)
    }
}

impl<F: HardwareWalked + Rules> Side<F> for Direct<Beat> {
    fn new(_: Level, _: bool) -> Self {
        Self::new(Beat::default())
    }

    fn hold(&self, hold: bool) {
        self.shootdown().held.store(hold, Ordering::Relaxed);
        if !hold {
            self.shootdown().end();
        }
    }

    fn without_tee(trial: &mut Trial<'_, F, Self>, op: &Op) {
        trial.step_without_tee(op);
    }

    fn alone(trial: &mut Trial<'_, F, Self>, ops: &[Op]) {
        trial.run_alone(ops);
    }
}
