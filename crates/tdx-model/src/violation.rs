//! What a host or a guest did that hardware would punish later, or silently.

use crate::abi::Leaf;

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ViolationKind {
    /// The host read memory that is private or serves the module.
    HostReadPrivate,
    /// The host read memory last written with another key: it saw ciphertext.
    HostReadCiphertext,
    /// The host wrote memory that is private or serves the module.
    HostWritePrivate,
    /// The host wrote freed memory of which lines under another key were not written back.
    HostWriteUnflushed,
    /// A page was given to the module while lines written by the host were still in a cache.
    DonatedUnflushed,
    /// A page changed keys while lines under its old key were still in a cache.
    ReassignedUnflushed,
    /// A guest read memory that was not written with its key.
    GuestReadForeign,
    /// A guest used a translation to a page it no longer owns.
    StaleTranslation,
    /// The module read ordinary memory that was written with another key than the address says: it worked with noise.
    ModuleReadCiphertext,
    /// The module read a frame with a memory error.
    ModuleReadPoison,
}

/// A translation that outlived its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// The guest page.
    pub gpa: u64,
    /// Epoch in which the vCPU entered.
    pub entered: u64,
    /// The TD's epoch now.
    pub epoch: u64,
    /// The call that took the page away, and its number. Known on a machine that does not enforce tracking.
    pub taken_by: Option<(Leaf, u64)>,
}

/// One recorded event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What went wrong.
    pub kind: ViolationKind,
    /// The page.
    pub hpa: u64,
    /// The key concerned: of the stale lines, or of the content's writer.
    pub key: u16,
    /// Number of SEAMCALLs made before.
    pub call: u64,
    /// What a stale translation was about.
    pub stale: Option<Stale>,
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} at {:#x} (key id {}, after {} calls)", self.kind, self.hpa, self.key, self.call)?;
        let Some(stale) = self.stale else { return Ok(()) };
        write!(f, ": guest page {:#x}, vCPU of epoch {} in epoch {}", stale.gpa, stale.entered, stale.epoch)?;
        match stale.taken_by {
            Some((leaf, call)) => write!(f, ", taken by {} (call {call})", leaf.name()),
            None => Ok(()),
        }
    }
}

/// All violations, and the first ones in full.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    count: u64,
    first: Vec<Violation>,
}

impl Log {
    const KEPT: usize = 1024;

    pub(crate) fn record(&mut self, violation: Violation) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(violation);
        }
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn first(&self) -> &[Violation] {
        &self.first
    }
}
