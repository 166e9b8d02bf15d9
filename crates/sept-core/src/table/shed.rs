//! What leaves a table at once, when only one thread can reach it: pages, and tables that hold nothing any more.
//!
//! An entry is cleared with one store and the count of its table goes down with another. A table that this leaves empty goes,
//! and so does the one above it that has nothing else. What the MMU may have cached stays owed: pages as
//! [`Unmapped`], tables in the [`Obligation`].

use super::{Fenced, Obligation, SecurePageTable, walk::Slot};
use crate::{
    Entry, External, Format, Frame, GpaEntry, HardwareWalked, HostOwned, Hpa, Level, SideWord, TableMemory,
    Word,
};
use core::sync::atomic::Ordering;

/// A page that was unmapped and that a CPU may still reach until a fence has ended: [`SecurePageTable::take`].
///
/// ```compile_fail,E0277
/// use sept_core::{Frames, Unmapped};
/// fn reuse(page: Unmapped) -> Frames {
///     Frames::from(page) // not before the fence
/// }
/// ```
#[derive(Debug)]
#[must_use = "dropping it leaks the page"]
pub struct Unmapped {
    root: Hpa,
    hpa: Hpa,
    level: Level,
    /// Fences with this number or a later one began after the page was unmapped.
    stamp: u64,
}

impl Unmapped {
    /// Where the page is.
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Size of the page.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl<F: HardwareWalked, M: TableMemory, X: HostOwned> SecurePageTable<F, M, X> {
    /// The page, once `fence` has ended that was started after it was unmapped.
    ///
    /// # Errors
    ///
    /// The fence is another table's or was started too early; the page comes back.
    pub fn take(&self, page: Unmapped, fence: &Fenced) -> Result<Frame, Unmapped> {
        let quiet = fence.quiet();
        if quiet.root == self.root && page.root == self.root && quiet.stamp >= page.stamp {
            Ok(Frame::from_ledger(page.hpa, page.level))
        } else {
            Err(page)
        }
    }
}

impl<F: Format, M: TableMemory, X: External> SecurePageTable<F, M, X> {
    /// Changes the live count without an atomic update and says what it is now.
    #[inline]
    pub(super) fn adjust_live(&self, table: Hpa, change: i64) -> u64 {
        let live = self.side(table, SideWord::Live).wrapping_add(change.cast_unsigned());
        self.set_side(table, SideWord::Live, live);
        live
    }

    /// Takes a page out of the table `holder`, of which nothing is to be kept, and says how many entries are left.
    #[inline]
    pub(super) fn clear(&self, at: GpaEntry, holder: Hpa) -> u64 {
        let free = F::encode(self.config, at.level(), Entry::Free);
        let word = Word::Entry(at.level().index(at.gpa()));
        self.memory.store(holder, word, free, Ordering::Release);
        self.adjust_live(holder, -1)
    }

    /// A page that was just unmapped, by the only thread that could start a fence meanwhile.
    #[inline]
    pub(super) fn unmapped(&self, at: GpaEntry, hpa: Hpa) -> Unmapped {
        Unmapped { root: self.root, hpa, level: at.level(), stamp: self.epoch.load(Ordering::Relaxed) }
    }

    /// Takes the table `child` out of `slot` with everything below it, and the tables above that this leaves empty.
    pub(super) fn detach(&self, at: GpaEntry, slot: &Slot, child: Hpa, into: &mut Obligation) {
        self.publish(at, slot, Entry::Free);
        self.shed(child, at.child(0), true, into);
        if self.adjust_live(slot.table, -1) == 0 {
            self.shed_empty(at, into);
        }
    }

    /// Takes out the tables above `at` that hold nothing, the lowest first. The root stays.
    #[cold]
    pub(super) fn shed_empty(&self, at: GpaEntry, into: &mut Obligation) {
        for level in Level::ALL.into_iter().filter(|level| *level > at.level()) {
            let above = GpaEntry::containing(at.gpa(), level);
            let Ok(slot) = self.slot(above, true) else { return };
            let (Entry::Table { hpa, .. } | Entry::Closed { hpa, .. }) = slot.entry else { return };
            if self.side(hpa, SideWord::Live) != 0 {
                return;
            }
            self.publish(above, &slot, Entry::Free);
            self.shed(hpa, None, true, into);
            self.adjust_live(slot.table, -1);
        }
    }
}
