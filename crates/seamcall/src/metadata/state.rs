//! The states of a TD, as its fields tell them.

macro_rules! states {
    ($(#[$type_doc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $raw:literal;)* }) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know.
            Other(u32),
        }

        impl $type {
            /// Every state with a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The state with this number.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Self {
                match raw {
                    $($raw => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// The number.
            #[must_use]
            pub const fn raw(self) -> u32 {
                match self {
                    $(Self::$name => $raw,)*
                    Self::Other(raw) => raw,
                }
            }
        }
    };
}

states! {
    /// What may be done with a TD (OP_STATE).
    ///
    /// Source: `include/auto_gen/op_state_lookup.h` of the module.
    OpState {
        /// No TD_PARAMS yet.
        Uninitialized = 0;
        /// Being built.
        Initialized = 1;
        /// Built: vCPUs may be entered.
        Runnable = 2;
        /// Runs while it is exported.
        LiveExport = 3;
        /// Stopped for the last part of its export.
        PausedExport = 4;
        /// Exported; cannot run.
        PostExport = 5;
        /// Its memory is being imported.
        MemoryImport = 6;
        /// Its state is being imported.
        StateImport = 7;
        /// Imported, and not committed.
        PostImport = 8;
        /// Runs while the rest of its memory is imported.
        LiveImport = 9;
        /// The import failed; can only be torn down.
        FailedImport = 10;
    }
}

impl OpState {
    /// Whether a vCPU may be inside, and so hold translations: what is taken away must be blocked and tracked first.
    #[must_use]
    pub const fn is_tracked(self) -> bool {
        matches!(self, Self::Runnable | Self::LiveExport | Self::LiveImport)
    }
}

states! {
    /// How far a TD's key is (LIFECYCLE_STATE).
    ///
    /// Source: TDX module ABI, "TD life cycle".
    LifecycleState {
        /// Made by MNG.CREATE: it owns a key id.
        HkidAssigned = 0;
        /// Every package has its key.
        KeysConfigured = 1;
        /// MNG.VPFLUSHDONE began its teardown.
        Blocked = 2;
        /// MNG.KEY.FREEID gave its key id back: its pages can be reclaimed.
        Teardown = 3;
    }
}
