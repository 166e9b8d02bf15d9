//! Register images of every leaf, in and out. The expected values are the operand tables of the ABI, written out.

mod documented;
mod life;
mod mem;
mod phymem;
mod selectors;
mod system;

use crate::testing::{Script, hpa};
use crate::{Regs, SeamcallError, Tdr, Tdvpr};

const TDR: u64 = 0x100_0000;
const TDVPR: u64 = 0x200_3000;

fn tdr() -> Tdr {
    Tdr::new(hpa(TDR)).unwrap()
}

fn tdvpr() -> Tdvpr {
    Tdvpr::new(hpa(TDVPR)).unwrap()
}

/// Runs a wrapper against a script, checks the one register image it sent, and gives its result.
#[track_caller]
fn sends<R>(script: Script, expected: Regs, call: impl FnOnce(&Script) -> R) -> R {
    let result = call(&script);
    assert_eq!(script.only(), expected);
    result
}

#[track_caller]
fn refused<R>(result: Result<R, SeamcallError>) -> u64 {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.status.raw(),
    }
}
