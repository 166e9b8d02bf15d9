//! Why a TD did not make a change.

use crate::{EntryInfo, SeamcallError};
use sept_core::{Class, Classify, GpaEntry, Hpa};

/// Why a [`Td`](crate::Td) did not make a change, or made half of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TdError {
    /// The module refused; nothing changed.
    #[error(transparent)]
    Seamcall(#[from] SeamcallError),
    /// The module removed another page than the mirror named: mirror and S-EPT disagree.
    #[error("{at}: removed page {found:#x} where the mirror names {expected:#x}")]
    WrongPage {
        /// The entry.
        at: GpaEntry,
        /// The mirror's page.
        expected: Hpa,
        /// The module's.
        found: Hpa,
    },
    /// The change takes two calls, the second was refused, and the first could not be undone.
    #[error("{at}: half done: {cause}")]
    Torn {
        /// The entry.
        at: GpaEntry,
        /// Why the second call was refused.
        cause: SeamcallError,
    },
    /// The module reports a state that this crate does not know.
    #[error("{at}: unknown entry {entry}")]
    UnknownState {
        /// The entry.
        at: GpaEntry,
        /// What the module said.
        entry: EntryInfo,
    },
}

impl Classify for TdError {
    fn class(&self) -> Class {
        match self {
            Self::Seamcall(error) => error.class(),
            Self::WrongPage { .. } | Self::Torn { .. } => Class::Fatal,
            Self::UnknownState { .. } => Class::Caller,
        }
    }
}
