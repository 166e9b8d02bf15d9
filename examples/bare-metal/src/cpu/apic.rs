//! The local APIC: messages from one CPU to another.
//!
//! Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller": register addresses, interrupt
//! command register.

use core::hint::spin_loop;

/// Where the registers are after reset.
const BASE: u64 = 0xfee0_0000;
const SPURIOUS_VECTOR: u64 = BASE + 0xf0;
const COMMAND_LOW: u64 = BASE + 0x300;
const COMMAND_HIGH: u64 = BASE + 0x310;
/// Written to when an interrupt was handled.
pub(super) const END_OF_INTERRUPT: u64 = BASE + 0xb0;

/// The vector of a kick.
pub const KICK_VECTOR: u8 = 0x40;

const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const PENDING: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;

fn read(register: u64) -> u32 {
    // SAFETY: `register` is one of the constants above, which are mapped and can be read without side effects.
    unsafe { (register as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: `register` is one of the constants above; none of them changes memory by itself.
    unsafe { (register as *mut u32).write_volatile(value) };
}

/// Lets this CPU receive interrupts.
pub fn enable() {
    write(SPURIOUS_VECTOR, 0x1ff);
}

fn send(cpu: u32, command: u32) {
    write(COMMAND_HIGH, cpu << 24);
    write(COMMAND_LOW, command | ASSERT);
    while read(COMMAND_LOW) & PENDING != 0 {
        spin_loop();
    }
}

/// Resets `cpu`: it waits for a start-up message.
pub(super) fn reset(cpu: u32) {
    send(cpu, DELIVERY_INIT);
}

/// Starts `cpu` in real mode in `page`, unless it runs already.
pub(super) fn start(cpu: u32, page: u8) {
    send(cpu, DELIVERY_STARTUP | u32::from(page));
}

/// Makes `cpu` leave its guest.
pub fn kick(cpu: u32) {
    send(cpu, u32::from(KICK_VECTOR));
}
