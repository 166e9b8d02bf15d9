//! A transport cannot keep a call and make it later, when its page may be another's.
use core::cell::RefCell;
use seamcall::{Call, Regs, Transport};

struct Keeper<T> {
    inner: T,
    kept: RefCell<Vec<Call<'static>>>,
}

impl<T: Transport> Transport for Keeper<T> {
    fn call(&self, call: Call<'_>) -> Regs {
        self.kept.borrow_mut().push(call);
        Regs::new()
    }
}

fn main() {}
