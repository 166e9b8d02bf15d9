//! AMD nested paging: the physical memory of a guest in SVM is our table.

use super::{second_level, translations::Mmu};
use crate::{space::Tables, svm::Svm};
use sept_core::{X86, X86Config};

// Error codes. Source: AMD APM volume 2, section "Nested Versus Guest Page Faults, Fault Ordering".
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// All accesses of a guest are a user's.
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;
/// It happened at the address that the guest accessed, not in a page table of the guest's.
const FINAL: u64 = 1 << 32;

const NPT: Mmu = Mmu {
    name: "NPT",
    accessed: 1 << 5,
    dirty: 1 << 6,
    read_of_hole: FINAL | USER,
    write_to_hole: FINAL | USER | WRITE,
    write_denied: FINAL | USER | WRITE | PRESENT,
};

const FETCH_DENIED: u64 = FINAL | USER | FETCH | PRESENT;

/// Checks nested paging.
pub fn run(tables: &mut Tables) {
    second_level::run::<X86, Svm>(&NPT, FETCH_DENIED, X86Config::NESTED_4, tables, |_, _| {});
}
