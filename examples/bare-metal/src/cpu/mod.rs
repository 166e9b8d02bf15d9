//! What each CPU needs before it can run Rust safely: segments, a task state with a stack for faults, and gates.

pub mod apic;
pub mod fault;
pub mod second;

use static_cell::ConstStaticCell;
use x86_64::{
    VirtAddr,
    instructions::{interrupts, port::PortWriteOnly, tables::load_tss},
    registers::segmentation::{CS, SS, Segment},
    structures::{
        gdt::{Descriptor, GlobalDescriptorTable},
        idt::InterruptDescriptorTable,
        tss::TaskStateSegment,
    },
};

/// Tables of the CPU that boots.
pub static FIRST: ConstStaticCell<Tables> = ConstStaticCell::new(Tables::new());
/// Tables of the CPU that it starts.
pub static SECOND: ConstStaticCell<Tables> = ConstStaticCell::new(Tables::new());

/// The stack of every gate: compiled code may have data below its stack pointer (the red zone).
const FAULT_STACK: u16 = 0;

/// The descriptor tables of one CPU.
#[derive(Debug)]
pub struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    idt: InterruptDescriptorTable,
    stack: [u128; 512],
}

impl Tables {
    const fn new() -> Self {
        Self {
            gdt: GlobalDescriptorTable::new(),
            tss: TaskStateSegment::new(),
            idt: InterruptDescriptorTable::new(),
            stack: [0; 512],
        }
    }

    /// Makes them the tables of this CPU.
    pub fn load(&'static mut self) {
        let Self { gdt, tss, idt, stack } = self;
        tss.interrupt_stack_table[usize::from(FAULT_STACK)] = VirtAddr::from_ptr(stack.as_ptr_range().end);
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        let task = gdt.append(Descriptor::tss_segment(tss));
        gdt.load();
        // SAFETY: `code` is a 64-bit code segment of the table just loaded.
        unsafe { CS::set_reg(code) };
        // SAFETY: `data` is a writable data segment of that table.
        unsafe { SS::set_reg(data) };
        // SAFETY: `task` is the descriptor of a task state that lives for ever.
        unsafe { load_tss(task) };
        fault::set_gates(idt);
        idt.load();
    }
}

/// Keeps the devices of the machine from interrupting: the firmware may have left its timer on.
pub fn mask_devices() {
    for mask in [0x21, 0xa1] {
        // SAFETY: it changes nothing but which interrupts the PICs pass on.
        unsafe { PortWriteOnly::new(mask).write(0xff_u8) };
    }
}

/// Takes the interrupts that came while they were off.
pub fn take_interrupts() {
    interrupts::enable();
    // The CPU takes them after the next instruction only.
    x86_64::instructions::nop();
    interrupts::disable();
}
