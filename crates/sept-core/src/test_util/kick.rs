//! A shootdown made of two functions.

use crate::Shootdown;
use core::fmt;
use std::boxed::Box;

/// Makes the vCPUs of a modelled machine leave the guest, and says whether they have.
///
/// Software walks of a single thread are over whenever `done` is asked, so only vCPUs count. A program with several
/// threads has to answer for both in `done`.
pub struct Kick<'a> {
    start: Box<dyn Fn() + 'a>,
    done: Box<dyn Fn() -> bool + 'a>,
}

impl<'a> Kick<'a> {
    /// `start` kicks every vCPU, `done` says whether all that were inside have left since.
    #[must_use]
    pub fn new(start: impl Fn() + 'a, done: impl Fn() -> bool + 'a) -> Self {
        Self { start: Box::new(start), done: Box::new(done) }
    }
}

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: frames minted on a modelled machine name no real memory; that `done` tells the truth about the modelled
// vCPUs is checked by the model, which reports a guest that uses a stale translation.
unsafe impl Shootdown for Kick<'_> {
    type Ticket = ();

    fn start(&self) {
        (self.start)();
    }

    fn done(&self, (): ()) -> bool {
        (self.done)()
    }
}

impl fmt::Debug for Kick<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}
