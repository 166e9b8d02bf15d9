//! The system calls that change mappings: made, counted, recorded and made again.

use super::MmapHost;
use sept_core::Frame;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// One change of a mapping, as it was asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    entry: u64,
    offset: u64,
    writable: bool,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    made: AtomicU64,
    recorded: Mutex<Option<Vec<Call>>>,
}

impl MmapHost {
    /// Shows a page in an entry of the window.
    pub(super) fn map(&self, entry: u64, frame: &Frame, writable: bool) {
        self.calls.made.fetch_add(1, Ordering::Relaxed);
        let call = Call { entry, offset: frame.hpa().raw(), writable };
        if let Some(calls) = &mut *self.calls.recorded.lock().unwrap_or_else(PoisonError::into_inner) {
            calls.push(call);
        }
        self.call(call);
    }

    fn call(&self, call: Call) {
        // The number of mappings was checked, and replacing a page of the window takes no other memory.
        if let Err(error) = self.memory.map(call.entry, call.offset, call.writable) {
            panic!("entry {} of the window cannot be mapped: {error}", call.entry);
        }
    }

    /// Mappings changed so far: system calls.
    #[must_use]
    pub fn map_calls(&self) -> u64 {
        self.calls.made.load(Ordering::Relaxed)
    }

    /// Records the changes of mappings from now on.
    pub fn record(&self) {
        *self.calls.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Ends the recording and returns it.
    #[must_use]
    pub fn recorded(&self) -> Vec<Call> {
        self.calls.recorded.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// Makes the same system calls, and does nothing else: what the changes cost without us.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, or the recording is of a host of another size.
    pub fn replay(&self, calls: &[Call]) {
        calls.iter().for_each(|&call| self.call(call));
    }
}
