//! An entry cannot be made of an address and a level without looking at both.
use seamcall::{Tdr, Transport, mem};
use sept_core::{Gpa, Level};

fn unaligned<T: Transport>(t: &T, td: Tdr, gpa: Gpa) {
    let _ = mem::range_block(t, td, (gpa, Level::L2M));
}

fn main() {}
