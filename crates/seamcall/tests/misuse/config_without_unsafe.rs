//! SYS.CONFIG gives away memory that only its structures name.
use seamcall::{Hkid, Transport, sys};
use sept_core::Hpa;

fn configured<T: Transport>(t: &T, tdmrs: Hpa) {
    let _ = sys::config(t, tdmrs, 1, Hkid::new(32), false);
}

fn main() {}
