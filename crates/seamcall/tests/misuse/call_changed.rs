//! Nor can the registers of a call be changed: a retry sends what it was given.
use seamcall::Call;

fn changed(mut call: Call) -> Call {
    call.regs.rcx = 0;
    call
}

fn main() {}
