//! Operation sequences on x86-64 and nested page tables, against an oracle that knows nothing of tables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sept_core::test_util::sequence::{self, Op};

fuzz_target!(|input: (u8, Vec<Op>)| {
    let (choice, ops) = input;
    sequence::x86(choice, &ops);
});
