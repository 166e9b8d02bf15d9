//! What is checked. Each check panics if it does not hold.

pub mod ept;
pub mod npt;
pub mod paging;
pub mod second_level;
pub mod translations;

use crate::{guest::Virtualization, memory, print, println, space::Tables, svm::Svm, vmx::Vmx};
use static_cell::ConstStaticCell;

/// Memory for tables.
static TABLES: ConstStaticCell<Tables> = ConstStaticCell::new(Tables::new());

/// Checks every MMU that this machine has and prints which.
pub fn run() {
    let tables = TABLES.take();
    paging::run(tables);
    if Svm::available() {
        npt::run(tables);
    }
    if Vmx::available() {
        ept::run(tables);
    }
    assert_eq!(memory::lent(), 0, "pages that did not come back");
    let svm = if Svm::available() { ", NPT" } else { "" };
    let vmx = if Vmx::available() { ", EPT" } else { "" };
    println!("all held: paging{svm}{vmx}");
}

/// One check: prints what it is about, and that it held if `body` returns.
pub fn check(mmu: &str, claim: &str, body: impl FnOnce()) {
    print!("{mmu:7} {claim} .. ");
    body();
    println!("held");
}
