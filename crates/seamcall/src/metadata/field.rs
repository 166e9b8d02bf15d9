//! Fields that know what their value is, and where it can be read.

use super::{FieldId, LifecycleState, OpState};
use crate::{Attributes, ConfigFlags, Features0, Hkid};
use core::{fmt, marker::PhantomData};

/// What the value of a metadata field is read as.
pub trait FieldValue: Sized {
    /// The value in an output register. Bits above those of the field are 0 there, and ignored.
    fn from_register(raw: u64) -> Self;
}

impl FieldValue for bool {
    fn from_register(raw: u64) -> Self {
        raw != 0
    }
}

impl FieldValue for u8 {
    fn from_register(raw: u64) -> Self {
        let [value, ..] = raw.to_le_bytes();
        value
    }
}

impl FieldValue for u16 {
    fn from_register(raw: u64) -> Self {
        let [b0, b1, ..] = raw.to_le_bytes();
        Self::from_le_bytes([b0, b1])
    }
}

impl FieldValue for u32 {
    fn from_register(raw: u64) -> Self {
        let [b0, b1, b2, b3, ..] = raw.to_le_bytes();
        Self::from_le_bytes([b0, b1, b2, b3])
    }
}

impl FieldValue for u64 {
    fn from_register(raw: u64) -> Self {
        raw
    }
}

impl FieldValue for Hkid {
    fn from_register(raw: u64) -> Self {
        Self::new(u16::from_register(raw))
    }
}

impl FieldValue for OpState {
    fn from_register(raw: u64) -> Self {
        Self::from_raw(u32::from_register(raw))
    }
}

impl FieldValue for LifecycleState {
    fn from_register(raw: u64) -> Self {
        Self::from_raw(u32::from_register(raw))
    }
}

macro_rules! flags {
    ($($flags:ident)*) => {
        $(
            impl FieldValue for $flags {
                fn from_register(raw: u64) -> Self {
                    Self::from_bits_retain(raw)
                }
            }
        )*
    };
}

flags! { Features0 Attributes ConfigFlags }

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name<V> {
            id: FieldId,
            value: PhantomData<fn() -> V>,
        }

        impl<V> $name<V> {
            pub(super) const fn new(id: FieldId) -> Self {
                Self { id, value: PhantomData }
            }

            /// The field's id.
            #[must_use]
            pub const fn id(self) -> FieldId {
                self.id
            }

            /// The element `index` of a field that has several.
            #[must_use]
            pub const fn element(self, index: u16) -> Self {
                Self::new(self.id.element(index))
            }
        }

        impl<V> Clone for $name<V> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<V> Copy for $name<V> {}

        impl<V> fmt::Debug for $name<V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.id, f)
            }
        }
    };
}

field! {
    /// A field of the platform: [`sys::read`](crate::sys::read).
    PlatformField
}
field! {
    /// A field of a TD: [`mng::read`](crate::mng::read).
    TdField
}
