//! Output and the end of the run. Both emulators have a console at port 0xe9 (QEMU: `isa-debugcon`); each has its
//! own port for leaving, and each ignores the other's.

use core::fmt::{self, Write};
use x86_64::instructions::{hlt, port::PortWriteOnly};

/// The console.
#[derive(Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: a byte for the console has no effect on memory.
            unsafe { PortWriteOnly::new(0xe9).write(byte) };
        }
        Ok(())
    }
}

/// Prints without a newline.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = write!($crate::console::Console, $($arg)*);
    }};
}

/// Prints with a newline.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::print!("{}\n", format_args!($($arg)*)) };
}

/// Switches the machine off. QEMU (`isa-debug-exit`) ends with status 33 after a pass, 35 after a failure; Bochs has
/// one status for both.
pub fn power_off(passed: bool) -> ! {
    let code: u32 = if passed { 0x10 } else { 0x11 };
    // SAFETY: QEMU ends here; nothing else answers to this port.
    unsafe { PortWriteOnly::new(0xf4).write(code) };
    for byte in *b"Shutdown" {
        // SAFETY: Bochs ends at the last letter.
        unsafe { PortWriteOnly::new(0x8900).write(byte) };
    }
    loop {
        hlt();
    }
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAILED: {info}");
    power_off(false)
}
