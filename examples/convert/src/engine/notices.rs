//! What happened beside the results: retries, blocks that were there already, lost pages.

use std::cell::RefCell;

use seamcall::{Notice, Observe};
use sept_core::GpaEntry;

/// Collects what a TD has to say.
#[derive(Debug, Default)]
pub struct Notices {
    lost: RefCell<Vec<String>>,
}

impl Notices {
    /// A page of guest memory came back that was not lent.
    pub fn lost(&self, at: GpaEntry) {
        self.lost.borrow_mut().push(format!("the page at {at} came back and was not lent"));
    }

    /// Everything that was lost since the last call.
    pub fn take_lost(&self) -> Vec<String> {
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
