//! A guest runs on the host's CPU only where the caller vouches for what it may do.

use seamcall::{EnterFlags, GuestRegs, Tdvpr, VpEnter, vp};

fn run<T: VpEnter>(t: &T, vcpu: Tdvpr) -> GuestRegs {
    vp::enter(t, vcpu, EnterFlags::empty(), GuestRegs::new())
}

fn main() {}
