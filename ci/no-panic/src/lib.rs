//! Proves that nothing sept-core does to a table can panic, nor a plan or a commit of folio-split and vmemmap-prealloc.
//!
//! Each public operation is exported once for each format, with and without a TEE behind it. If the optimizer cannot
//! show that a panic is out of reach, the panicking machinery of `core` is linked in, and `ci/no-panic.sh` finds it.
#![no_std]

mod calls;
mod folios;
mod tee;

use sept_core::{Direct, Ept, Exclusive, LinearMap, Rtt, SecurePageTable, TdxMirror, X86};
use tee::{Flush, Tee};

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A table as a host would have it.
type Table<F, X> = SecurePageTable<F, LinearMap, X>;

macro_rules! secure {
    ($($name:ident: $format:ty, $external:ty;)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name(table: &Table<$format, $external>, with: &mut calls::With<$external>) -> u64 {
            calls::secure(table, with)
        })*
    };
}

macro_rules! walked {
    ($($name:ident: $format:ty;)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name(
            table: &mut Table<$format, Direct<Flush>>,
            with: &mut calls::With<Direct<Flush>>,
        ) -> u64 {
            calls::walked(table, with)
        })*
    };
}

secure! {
    tdx_tee: TdxMirror, Tee;
    rtt_tee: Rtt, Tee;
    ept_direct: Ept, Direct<Flush>;
    x86_direct: X86, Direct<Flush>;
}

walked! {
    ept_walked: Ept;
    x86_walked: X86;
}
