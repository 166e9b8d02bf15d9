//! Code that runs in the middle of a call, to stand for what another thread does meanwhile.

use super::{MockOp, MockTee};
use core::fmt;
use std::{boxed::Box, collections::BTreeMap};

/// Something to run once.
type Hook = Box<dyn FnOnce() + Send>;

/// Hooks by call, number of the call, and whether they run after it.
#[derive(Default)]
pub(super) struct Hooks(BTreeMap<(MockOp, u64, bool), Hook>);

impl Hooks {
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl MockTee {
    /// Runs `hook` once inside the `nth` call of `op` from now on (1 is the next one), before the TEE looks at it.
    pub fn before(&self, op: MockOp, nth: u64, hook: impl FnOnce() + Send + 'static) {
        self.plan_hook(op, nth, false, Box::new(hook));
    }

    /// The same, after the TEE made the change or refused it and before the call returns.
    pub fn after(&self, op: MockOp, nth: u64, hook: impl FnOnce() + Send + 'static) {
        self.plan_hook(op, nth, true, Box::new(hook));
    }

    fn plan_hook(&self, op: MockOp, nth: u64, after: bool, hook: Hook) {
        let number = self.calls(op).saturating_add(nth);
        self.state().hooks.0.insert((op, number, after), hook);
    }

    /// Runs the hooks of this call: one now, the other when the result is dropped.
    pub(super) fn around(&self, op: MockOp) -> Around<'_> {
        self.run_hook(op, self.calls(op).saturating_add(1), false);
        Around { tee: self, op }
    }

    fn run_hook(&self, op: MockOp, number: u64, after: bool) {
        let hook = self.state().hooks.0.remove(&(op, number, after));
        if let Some(hook) = hook {
            hook();
        }
    }
}

pub(super) struct Around<'a> {
    tee: &'a MockTee,
    op: MockOp,
}

impl Drop for Around<'_> {
    fn drop(&mut self) {
        self.tee.run_hook(self.op, self.tee.calls(self.op), true);
    }
}
