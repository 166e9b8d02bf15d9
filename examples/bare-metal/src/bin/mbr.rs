//! The image for a disk that a BIOS boots from.
#![no_std]
#![no_main]

use bare_metal as _;

core::arch::global_asm!(include_str!("../../boot/mbr.s"), options(att_syntax));
