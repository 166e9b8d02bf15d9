//! A field of a TD is not read from the platform.
use seamcall::{OpState, TdField, Transport, sys};

fn confused<T: Transport>(t: &T) -> Option<OpState> {
    sys::read(t, TdField::OP_STATE).ok()
}

fn main() {}
