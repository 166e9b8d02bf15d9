//! What happened beside the results: retries, blocks that were there already, lost pages.

use std::cell::RefCell;

use seamcall::{Notice, Observe};
use sept_core::{Gpa, GpaEntry};

/// Collects what a TD has to say.
#[derive(Debug, Default)]
pub(super) struct Notices {
    lost: RefCell<Vec<String>>,
}

impl Notices {
    /// A page of guest memory came back that was not lent.
    pub(super) fn lost(&self, at: GpaEntry) {
        self.lost.borrow_mut().push(format!("the page at {at} came back and was not lent"));
    }

    /// The `struct page` of the page at `gpa` refused a reference or a mark.
    pub(super) fn not_counted(&self, gpa: Gpa) {
        self.lost.borrow_mut().push(format!("the struct page of {gpa:#x} refused a change"));
    }

    /// Everything that was lost since the last call.
    pub(super) fn take_lost(&self) -> Vec<String> {
        self.lost.take()
    }
}

impl Observe for Notices {
    fn notice(&self, notice: Notice) {
        if let Notice::Lost { page, kind } = notice {
            self.lost.borrow_mut().push(format!("{kind} {page:#x} could not be given back"));
        }
    }
}
