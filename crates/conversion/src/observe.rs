//! What a commit or promotion tells as it goes.

use crate::Needs;
use folio_split::PfnBlock;
use sept_core::{GpaEntry, Level};

/// One thing that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An entry was hidden from the guest. `outside` if it maps memory beyond the request too: a blocked window.
    Blocked {
        /// The entry.
        at: GpaEntry,
        /// Whether memory outside the request is hidden with it.
        outside: bool,
    },
    /// A fence was started.
    Fenced,
    /// A page became a table of 512 smaller ones.
    Split(GpaEntry),
    /// A table of 512 pages became one page.
    Merged(GpaEntry),
    /// A table was added.
    Linked(GpaEntry),
    /// An empty table was taken out.
    Unlinked(GpaEntry),
    /// A page was mapped.
    Mapped(GpaEntry),
    /// A page was removed; its content is lost.
    Removed(GpaEntry),
    /// The folios of a block have a new layout.
    Relaid {
        /// The block.
        block: PfnBlock,
        /// Folios that were split.
        splits: u64,
        /// Folios that were merged together.
        merges: u64,
    },
    /// An entry could not be merged now and stays a candidate.
    Declined {
        /// The entry.
        at: GpaEntry,
        /// Level of the 512 pages that stay apart.
        pages: Level,
    },
    /// Frames went back to the page source.
    Released(Needs),
    /// The operation was turned round and everything that could be undone is.
    RolledBack,
}

/// Receives [`Event`]s. `()` ignores them; a closure will do.
///
/// A blocked window of the guest begins with [`Event::Blocked`] `{ outside: true, .. }` and ends with the `Split`, `Merged`
/// or `Declined` of the same entry, or with the end of a cancelled commit: number and length are the observer's to count.
pub trait Observer {
    /// `event` has happened. Called inside a step; must not wait.
    fn event(&mut self, event: Event);
}

impl Observer for () {
    fn event(&mut self, _: Event) {}
}

impl<F: FnMut(Event)> Observer for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}
