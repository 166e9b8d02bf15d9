//! A page that was given away cannot be given again.
use seamcall::{Tdr, Transport, mem};
use sept_core::{Frame, GpaEntry};

fn twice<T: Transport>(t: &T, td: Tdr, one: GpaEntry, two: GpaEntry, page: Frame) {
    let _ = mem::page_aug(t, td, one, page);
    let _ = mem::page_aug(t, td, two, page);
}

fn main() {}
