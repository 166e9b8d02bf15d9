//! Registers do not become a call without `unsafe`.
use seamcall::{Call, Regs, Transport};

fn raw<T: Transport>(t: &T, regs: Regs) -> Regs {
    t.call(Call::from_regs(regs))
}

fn main() {}
