//! A page that another key wrote cannot be given away.
use seamcall::{Tdr, Transport, mem};
use sept_core::{Frame, GpaEntry, Tainted};

fn stale<T: Transport>(t: &T, td: Tdr, at: GpaEntry, page: Frame<Tainted>) {
    let _ = mem::page_aug(t, td, at, page);
}

fn main() {}
