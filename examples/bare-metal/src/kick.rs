//! The shootdown: makes the CPU that runs a guest forget what it cached of the guest's table.

use crate::cpu::{apic, second};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sept_core::Shootdown;

/// The shootdown of one guest, whose only virtual CPU runs on either CPU. As in KVM, a flush is requested by number
/// and served before the next entry; a guest that is inside is kicked out for it.
///
/// That a kick is missing shows in both emulators, since a guest that stays inside keeps what it cached. That only the
/// flush is missing does not: they forget everything at each entry, which hardware need not do.
#[derive(Debug)]
pub struct Kick {
    /// The latest flush that was asked for.
    wanted: AtomicU64,
    /// The latest flush that was served before the guest was entered, or `OUTSIDE`.
    inside: AtomicU64,
    careless: AtomicBool,
}

const OUTSIDE: u64 = u64::MAX;

impl Kick {
    /// No flush was asked for yet.
    pub const fn new() -> Self {
        Self { wanted: AtomicU64::new(0), inside: AtomicU64::new(OUTSIDE), careless: AtomicBool::new(false) }
    }

    /// To be called before the guest is entered, with interrupts off. Returns the number of the latest flush that was
    /// asked for: unless the guest was entered after it before, flush first.
    pub fn enter(&self) -> u64 {
        // Either `start` sees that the guest is inside, or this sees what `start` wants.
        let mut wanted = self.wanted.load(Ordering::SeqCst);
        loop {
            self.inside.store(wanted, Ordering::SeqCst);
            let latest = self.wanted.load(Ordering::SeqCst);
            if latest == wanted {
                return wanted;
            }
            wanted = latest;
        }
    }

    /// To be called after the guest was left.
    pub fn leave(&self) {
        self.inside.store(OUTSIDE, Ordering::SeqCst);
    }

    /// Breaks the promise of [`Shootdown`] while `body` runs: a shootdown ends at once and nothing is flushed, as in a
    /// hypervisor that forgot it.
    ///
    /// # Safety
    ///
    /// What the guest may still reach is not used for anything else before a later shootdown has ended.
    pub unsafe fn carelessly<R>(&self, body: impl FnOnce() -> R) -> R {
        self.careless.store(true, Ordering::Relaxed);
        let result = body();
        self.careless.store(false, Ordering::Relaxed);
        result
    }
}

impl Default for Kick {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY:
// * `done` says true when the guest is outside, which is entered again only after a flush, or inside since that flush;
// * only the first CPU walks tables in software, and it does not ask in the middle of a walk;
// * who makes it careless answers for what follows.
unsafe impl Shootdown for Kick {
    type Ticket = u64;

    fn start(&self) -> u64 {
        if self.careless.load(Ordering::Relaxed) {
            return 0;
        }
        let ticket = self.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        if self.inside.load(Ordering::SeqCst) != OUTSIDE {
            apic::kick(second::ID);
        }
        ticket
    }

    fn done(&self, ticket: u64) -> bool {
        // Outside is the largest number.
        self.inside.load(Ordering::SeqCst) >= ticket
    }
}
