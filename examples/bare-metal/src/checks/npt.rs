//! AMD nested paging: the physical memory of a guest in SVM is our table.

use super::{second_level, translations::Mmu};
use crate::{
    space::{TableFrame, X86},
    svm::Svm,
};

/// Error codes: bit 1 write, bit 2 user (all guest accesses are), bit 32 it happened at the guest's final address.
const NPT: Mmu = Mmu {
    name: "NPT",
    accessed: 1 << 5,
    dirty: 1 << 6,
    read_of_hole: 1 << 32 | 1 << 2,
    write_to_hole: 1 << 32 | 1 << 2 | 1 << 1,
};

/// Checks nested paging.
pub fn run(tables: &mut [TableFrame; 64]) {
    second_level::run::<X86, Svm>(&NPT, tables, |_, _| {});
}
