//! A transport cannot make a call again without saying why it may.
use seamcall::{Call, Regs, Transport};

struct Twice<T>(T);

impl<T: Transport> Transport for Twice<T> {
    fn call(&self, call: Call<'_>) -> Regs {
        self.0.call(call);
        self.0.call(call)
    }
}

fn main() {}
