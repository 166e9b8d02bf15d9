//! What every error of the family has: a class that says what to do about it.

use core::error::Error;

/// What the caller should do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Contention or a transient condition: the same call may succeed later.
    Retry,
    /// The same call can succeed only after vCPUs (or whoever holds the resource) were made to leave.
    Quiesce,
    /// The caller's mistake, or a request that the present state does not allow. Nothing changed.
    Caller,
    /// The TD or the platform is lost for this operation; no further call will help.
    Fatal,
}

/// An error that knows its [`Class`].
pub trait Classify: Error {
    /// What to do about this error.
    fn class(&self) -> Class;
}

impl Classify for core::convert::Infallible {
    fn class(&self) -> Class {
        match *self {}
    }
}

/// A call that took owned values failed: the error, and the values back.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "callers take both parts out by pattern")]
pub struct Returned<E, T> {
    /// Why the call failed.
    pub error: E,
    /// What was handed in, as far as it is still the caller's.
    pub held: T,
}

impl<E, T> Returned<E, T> {
    /// The same values with another error.
    pub fn map_error<F>(self, into: impl FnOnce(E) -> F) -> Returned<F, T> {
        Returned { error: into(self.error), held: self.held }
    }
}
