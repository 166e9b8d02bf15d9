//! A vCPU's root page is no TD's.
use seamcall::{Tdvpr, Transport, mem};

fn confused<T: Transport>(t: &T, vcpu: Tdvpr) {
    let _ = mem::track(t, vcpu);
}

fn main() {}
