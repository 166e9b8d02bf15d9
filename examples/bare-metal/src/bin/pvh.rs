//! The image for `qemu -kernel`.
#![no_std]
#![no_main]

use bare_metal as _;

core::arch::global_asm!(include_str!("../../boot/pvh.s"), options(att_syntax));
