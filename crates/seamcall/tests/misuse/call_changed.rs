//! Nor can the registers of a call be changed: a retry sends what it was given.
use seamcall::Call;

fn changed(mut call: Call<'_>) -> Call<'_> {
    call.regs.rcx = 0;
    call
}

fn main() {}
