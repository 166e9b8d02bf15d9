//! The address of a removed page is not the page: it has to be written back, scrubbed and minted.
use seamcall::{Tdr, Transport, mem};
use sept_core::{Frame, GpaEntry};

fn reused<T: Transport>(t: &T, td: Tdr, at: GpaEntry) -> Option<Frame> {
    mem::page_remove(t, td, at).ok()
}

fn main() {}
