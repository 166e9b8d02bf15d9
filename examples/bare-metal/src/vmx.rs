//! A virtual CPU by Intel's VMX, with EPT.
//!
//! Source: Intel SDM volume 3, part "Virtual Machine Extensions": chapters "VM Entries" (checks on the state), "VM
//! Exits" and "VMX Instruction Reference", appendices A (capabilities), B (fields) and C (exit reasons).

mod fields;

use crate::{
    cpu::take_interrupts,
    guest::{Exit, Fault, Registers, Vcpu, Virtualization},
};
use core::arch::asm;
use fields::*;
use raw_cpuid::CpuId;
use sept_core::Hpa;
use x86_64::{
    instructions::tables::{sgdt, sidt},
    registers::{
        control::{Cr0, Cr3, Cr4, Cr4Flags},
        model_specific::Msr,
        segmentation::{CS, SS, Segment},
    },
    structures::DescriptorTablePointer,
};

const FEATURE_CONTROL: u32 = 0x3a;
const BASIC: u32 = 0x480;
const CR0_FIXED0: u32 = 0x486;
const CR4_FIXED0: u32 = 0x488;
const PROCBASED_2: u32 = 0x48b;
const EPT_VPID_CAP: u32 = 0x48c;
const TRUE_PINBASED: u32 = 0x48d;
const TRUE_PROCBASED: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TRUE_ENTRY: u32 = 0x490;

// Controls.
const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
const HLT_EXITING: u32 = 1 << 7;
const SECONDARY_CONTROLS: u32 = 1 << 31;
const ENABLE_EPT: u32 = 1 << 1;
const UNRESTRICTED_GUEST: u32 = 1 << 7;
const HOST_ADDRESS_SPACE_SIZE: u32 = 1 << 9;

// EPT pointer: write-back, four levels, accessed and dirty flags.
const EPTP_WRITE_BACK: u64 = 6;
const EPTP_FOUR_LEVELS: u64 = 3 << 3;
const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;
const INVEPT_SINGLE_CONTEXT: u64 = 1;

const EXIT_INTERRUPT: u64 = 1;
const EXIT_HLT: u64 = 12;
const EXIT_EPT_VIOLATION: u64 = 48;
const EXIT_EPT_MISCONFIGURATION: u64 = 49;

/// VMX with EPT.
#[derive(Debug)]
pub struct Vmx;

impl Virtualization for Vmx {
    fn available() -> bool {
        CpuId::new().get_feature_info().is_some_and(|features| features.has_vmx())
    }

    unsafe fn with_vcpu<R>(root: Hpa, body: impl FnOnce(&mut dyn Vcpu) -> R) -> R {
        let mut pages = Pages { vmxon: [0; 4096], vmcs: [0; 4096] };
        body(&mut VmxVcpu::new(&mut pages, root))
    }
}

fn capability(msr: u32) -> u64 {
    // SAFETY: the capability registers exist with VMX, and reading one changes nothing.
    unsafe { Msr::new(msr).read() }
}

/// Pages that the CPU keeps its own state and the guest's in.
#[repr(C, align(4096))]
struct Pages {
    vmxon: [u8; 4096],
    vmcs: [u8; 4096],
}

/// A virtual CPU. The CPU that makes it is in VMX operation until it is dropped.
struct VmxVcpu<'p> {
    pages: &'p mut Pages,
    eptp: u64,
    launched: bool,
}

impl<'p> VmxVcpu<'p> {
    fn new(pages: &'p mut Pages, root: Hpa) -> Self {
        assert_eq!(capability(FEATURE_CONTROL) & 5, 5, "the firmware did not allow VMX");
        assert!(capability(EPT_VPID_CAP) & 1 << 21 != 0, "EPT without accessed and dirty flags");
        let revision = (capability(BASIC) as u32).to_le_bytes();
        pages.vmxon[..4].copy_from_slice(&revision);
        pages.vmcs[..4].copy_from_slice(&revision);
        // SAFETY: VMX is not in use on this CPU, so the bit has no effect yet.
        unsafe { Cr4::update(|flags| flags.insert(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS)) };

        let eptp = root.raw() | EPTP_WRITE_BACK | EPTP_FOUR_LEVELS | EPTP_ACCESSED_DIRTY;
        let mut vcpu = Self { pages, eptp, launched: false };
        let vmxon = vcpu.pages.vmxon.as_mut_ptr().addr() as u64;
        let vmcs = vcpu.pages.vmcs.as_mut_ptr().addr() as u64;
        // SAFETY: the page belongs to the CPU until VMXOFF, in `drop`.
        succeeded("vmxon", unsafe { instruction::vmxon(&vmxon) });
        // SAFETY: the page belongs to the CPU from here until VMCLEAR, in `drop`.
        succeeded("vmclear", unsafe { instruction::vmclear(&vmcs) });
        // SAFETY: as before.
        succeeded("vmptrld", unsafe { instruction::vmptrld(&vmcs) });
        vcpu.set_controls();
        vcpu.set_host();
        vcpu.set_guest();
        vcpu
    }

    fn set_controls(&mut self) {
        /// The wanted controls and those that must be set (low half); must not be set: not in the high half.
        fn control(msr: u32, wanted: u32) -> u64 {
            let capability = capability(msr);
            let control = u64::from(wanted) | capability & 0xffff_ffff;
            assert_eq!(
                control & !(capability >> 32),
                0,
                "controls {wanted:#x} of {msr:#x} are not to be had"
            );
            control
        }
        for field in ZERO.into_iter().flat_map(|range| range.step_by(2)) {
            self.set(field, 0);
        }
        self.set(PIN_BASED, control(TRUE_PINBASED, EXTERNAL_INTERRUPT_EXITING));
        self.set(PROC_BASED, control(TRUE_PROCBASED, HLT_EXITING | SECONDARY_CONTROLS));
        self.set(PROC_BASED_2, control(PROCBASED_2, ENABLE_EPT | UNRESTRICTED_GUEST));
        self.set(VM_EXIT, control(TRUE_EXIT, HOST_ADDRESS_SPACE_SIZE));
        self.set(VM_ENTRY, control(TRUE_ENTRY, 0));
        self.set(EPT_POINTER, self.eptp);
        self.set(LINK_POINTER, u64::MAX);
    }

    /// What the CPU has now it gets back at an exit.
    fn set_host(&mut self) {
        let (gdt, idt) = (sgdt(), sidt());
        let task = instruction::task_register();
        self.set(HOST_CS, CS::get_reg().0.into());
        self.set(HOST_SS, SS::get_reg().0.into());
        self.set(HOST_TR, task.into());
        self.set(HOST_TR_BASE, descriptor_base(&gdt, task));
        self.set(HOST_GDTR_BASE, gdt.base.as_u64());
        self.set(HOST_IDTR_BASE, idt.base.as_u64());
        self.set(HOST_CR0, Cr0::read_raw());
        self.set(HOST_CR3, Cr3::read().0.start_address().as_u64());
        self.set(HOST_CR4, Cr4::read_raw());
    }

    /// 32-bit protected mode without paging, flat segments.
    fn set_guest(&mut self) {
        const PE_PG: u64 = 1 | 1 << 31;
        for (attributes, limit, value) in [
            (GUEST_CS_ATTRIBUTES, GUEST_CS_LIMIT, 0xc09b),
            (GUEST_SS_ATTRIBUTES, GUEST_SS_LIMIT, 0xc093),
            (GUEST_DS_ATTRIBUTES, GUEST_DS_LIMIT, 0xc093),
            (GUEST_ES_ATTRIBUTES, GUEST_ES_LIMIT, 0xc093),
            (GUEST_FS_ATTRIBUTES, GUEST_FS_LIMIT, 0xc093),
            (GUEST_GS_ATTRIBUTES, GUEST_GS_LIMIT, 0xc093),
            (GUEST_TR_ATTRIBUTES, GUEST_TR_LIMIT, 0xc08b),
        ] {
            self.set(attributes, value);
            self.set(limit, 0xffff_ffff);
        }
        self.set(GUEST_LDTR_ATTRIBUTES, 0x1_0000); // unusable
        self.set(GUEST_CR0, capability(CR0_FIXED0) & !PE_PG | 0x11); // PE, ET
        self.set(GUEST_CR4, capability(CR4_FIXED0));
        // IF: Bochs exits for an interrupt where the guest would take it, hardware in any case.
        self.set(GUEST_RFLAGS, 0x202);
        self.set(GUEST_DR7, 0x400);
    }

    fn set(&mut self, field: u64, value: u64) {
        // SAFETY: it writes to the VMCS of this value; what the field says is judged at the next entry.
        succeeded("vmwrite", unsafe { instruction::vmwrite(field, value) });
    }

    fn get(&self, field: u64) -> u64 {
        instruction::vmread(field)
    }
}

impl Vcpu for VmxVcpu<'_> {
    fn enter(&mut self, registers: &mut Registers) -> Exit {
        self.set(GUEST_RIP, registers.eip.into());
        let (mut rax, mut rcx, mut rdx) =
            (u64::from(registers.eax), u64::from(registers.ecx), u64::from(registers.edx));
        let failed: u8;
        // SAFETY:
        // * the host state is that of this CPU, with the stack and address to come back to written here;
        // * the other registers are kept or named here;
        // * the guest runs the programs of `crate::guest`, which do nothing but access memory, and the extended page table
        //   leads to memory that a guest may use.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "mov r9, {host_rsp}",
                "vmwrite r9, rsp",
                "mov r9, {host_rip}",
                "lea r10, [rip + 3f]",
                "vmwrite r9, r10",
                "test r8b, r8b",
                "jnz 2f",
                "vmlaunch",
                "jmp 4f",
                "2:",
                "vmresume",
                "4:",
                "mov r8b, 1",
                "jmp 5f",
                "3:",
                "mov r8b, 0",
                "5:",
                "pop rbp",
                "pop rbx",
                host_rsp = const HOST_RSP,
                host_rip = const HOST_RIP,
                inout("rax") rax,
                inout("rcx") rcx,
                inout("rdx") rdx,
                inout("r8b") u8::from(self.launched) => failed,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("sysv64"),
            );
        }
        assert_eq!(failed, 0, "entry failed, error {}", self.get(INSTRUCTION_ERROR));
        self.launched = true;
        registers.eip = self.get(GUEST_RIP) as u32;
        (registers.eax, registers.ecx, registers.edx) = (rax as u32, rcx as u32, rdx as u32);
        let at = self.get(GUEST_PHYSICAL_ADDRESS);
        match self.get(EXIT_REASON) {
            EXIT_HLT => Exit::Halt,
            EXIT_INTERRUPT => {
                take_interrupts();
                Exit::Interrupt
            }
            EXIT_EPT_VIOLATION => Exit::Hole(Fault { at, cause: self.get(EXIT_QUALIFICATION) }),
            EXIT_EPT_MISCONFIGURATION => Exit::Misconfigured { at },
            code => Exit::Other { code, info: self.get(EXIT_QUALIFICATION) },
        }
    }

    fn flush(&mut self) {
        let descriptor = [self.eptp, 0];
        // SAFETY: to forget translations is always allowed.
        succeeded("invept", unsafe { instruction::invept(INVEPT_SINGLE_CONTEXT, &descriptor) });
    }
}

impl Drop for VmxVcpu<'_> {
    fn drop(&mut self) {
        let vmcs = self.pages.vmcs.as_ptr().addr() as u64;
        // SAFETY: the page is this value's, and was given to the CPU in `new`.
        succeeded("vmclear", unsafe { instruction::vmclear(&vmcs) });
        // SAFETY: VMX operation began in `new`, and no VMCS is left with the CPU.
        succeeded("vmxoff", unsafe { instruction::vmxoff() });
    }
}

fn succeeded(name: &str, success: bool) {
    assert!(success, "{name} failed");
}

/// Base of the task state that `selector` names.
fn descriptor_base(gdt: &DescriptorTablePointer, selector: u16) -> u64 {
    let descriptor = (gdt.base.as_u64() + u64::from(selector & !7)) as *const [u64; 2];
    // SAFETY: the selector is loaded, so the 16 bytes of its descriptor are in the table.
    let [low, high] = unsafe { descriptor.read() };
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}

/// The instructions. Each says whether it succeeded: carry and zero flag clear.
mod instruction {
    use core::arch::asm;

    macro_rules! on_address {
        ($name:ident) => {
            pub(super) unsafe fn $name(page: &u64) -> bool {
                let success: u8;
                // SAFETY: the caller answers for the page.
                unsafe {
                    asm!(concat!(stringify!($name), " [{}]"), "seta {}", in(reg) page, out(reg_byte) success)
                };
                success != 0
            }
        };
    }
    on_address!(vmxon);
    on_address!(vmclear);
    on_address!(vmptrld);

    pub(super) unsafe fn vmxoff() -> bool {
        let success: u8;
        // SAFETY: the caller answers for it.
        unsafe { asm!("vmxoff", "seta {}", out(reg_byte) success) };
        success != 0
    }

    pub(super) unsafe fn vmwrite(field: u64, value: u64) -> bool {
        let success: u8;
        // SAFETY: the caller answers for the value.
        unsafe { asm!("vmwrite {}, {}", "seta {}", in(reg) field, in(reg) value, out(reg_byte) success) };
        success != 0
    }

    pub(super) fn vmread(field: u64) -> u64 {
        let value;
        // SAFETY: reading the current VMCS changes nothing but, without one, flags.
        unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) field, options(nostack)) };
        value
    }

    pub(super) unsafe fn invept(kind: u64, descriptor: &[u64; 2]) -> bool {
        let success: u8;
        // SAFETY: the caller answers for it.
        unsafe {
            asm!("invept {}, [{}]", "seta {}", in(reg) kind, in(reg) descriptor, out(reg_byte) success)
        };
        success != 0
    }

    pub(super) fn task_register() -> u16 {
        let selector;
        // SAFETY: it only reads.
        unsafe { asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
        selector
    }
}
