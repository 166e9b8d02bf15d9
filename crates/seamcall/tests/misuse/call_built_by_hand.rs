//! A call cannot be put together from its fields.
use seamcall::{Call, Regs};

fn forged(regs: Regs) -> Call<'static> {
    Call { regs }
}

fn main() {}
