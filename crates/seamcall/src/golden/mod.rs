//! Register images of every leaf, in and out. The expected values are the operand tables of the ABI, written out.

mod documented;
mod life;
mod mem;
mod phymem;
mod selectors;
mod split;
mod system;

use crate::testing::{Script, entry, hpa};
use crate::{Regs, SeamcallError, Tdr, Tdvpr};
use sept_core::{GpaEntry, Level};

const TDR: u64 = 0x100_0000;
const TDVPR: u64 = 0x200_3000;
const NULL: u64 = 0xffff_ffff_ffff_ffff;

fn tdr() -> Tdr {
    Tdr::new(hpa(TDR)).unwrap()
}

fn tdvpr() -> Tdvpr {
    Tdvpr::new(hpa(TDVPR)).unwrap()
}

/// `RCX` for 2 MiB at 1 GiB, `RDX`.
fn at_2m(leaf: u64) -> Regs {
    Regs { rax: leaf, rcx: 0x4000_0001, rdx: TDR, ..Regs::new() }
}

fn two_mib() -> GpaEntry {
    entry(0x4000_0000, Level::L2M)
}

fn one_page() -> GpaEntry {
    entry(0x1000, Level::L4K)
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
