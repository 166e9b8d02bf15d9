//! A guest address cannot stand for a host address.
use seamcall::{Transport, phymem};
use sept_core::Gpa;

fn confused<T: Transport>(t: &T, gpa: Gpa) {
    let _ = phymem::page_reclaim(t, gpa);
}

fn main() {}
