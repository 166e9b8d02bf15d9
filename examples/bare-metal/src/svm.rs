//! A virtual CPU by AMD's SVM, with nested paging.
//!
//! Source: AMD64 Architecture Programmer's Manual volume 2, chapter "Secure Virtual Machine" (VMRUN, intercepts, TLB
//! control, nested paging) and appendix "Layout of VMCB".

use crate::{
    cpu::take_interrupts,
    guest::{Exit, Fault, Registers, Vcpu, Virtualization},
};
use core::arch::asm;
use raw_cpuid::CpuId;
use sept_core::Hpa;
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

const VM_HSAVE_PA: u32 = 0xc001_0117;

/// SVM with nested paging.
#[derive(Debug)]
pub struct Svm;

impl Virtualization for Svm {
    fn available() -> bool {
        let cpuid = CpuId::new();
        let has_svm = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|id| id.has_svm());
        has_svm && cpuid.get_svm_info().is_some_and(|svm| svm.has_nested_paging())
    }

    unsafe fn with_vcpu<R>(root: Hpa, body: impl FnOnce(&mut dyn Vcpu) -> R) -> R {
        let mut pages = Pages { vmcb: [0; 4096], host: [0; 4096] };
        body(&mut SvmVcpu::new(&mut pages, root))
    }
}

/// Pages that the CPU keeps the state of guest and host in.
#[repr(C, align(4096))]
struct Pages {
    vmcb: [u8; 4096],
    host: [u8; 4096],
}

// Offsets into the VMCB: control area.
const INTERCEPTS_3: usize = 0x00c;
const INTERCEPTS_4: usize = 0x010;
const ASID: usize = 0x058;
const TLB_CONTROL: usize = 0x05c;
const EXITCODE: usize = 0x070;
const EXITINFO1: usize = 0x078;
const EXITINFO2: usize = 0x080;
const NP_ENABLE: usize = 0x090;
const N_CR3: usize = 0x0b0;
// And state save area.
const ES: usize = 0x400;
const CS: usize = 0x410;
const SS: usize = 0x420;
const DS: usize = 0x430;
const EFER: usize = 0x4d0;
const CR0: usize = 0x558;
const RFLAGS: usize = 0x570;
const RIP: usize = 0x578;
const RAX: usize = 0x5f8;
const G_PAT: usize = 0x668;

const INTERCEPT_INTR: u32 = 1;
const INTERCEPT_HLT: u32 = 1 << 24;
const INTERCEPT_SHUTDOWN: u32 = 1 << 31;
const INTERCEPT_VMRUN: u32 = 1;

const FLUSH_ALL: u32 = 1;

const EXIT_INTR: u64 = 0x60;
const EXIT_HLT: u64 = 0x78;
const EXIT_NPF: u64 = 0x400;

struct SvmVcpu<'p> {
    pages: &'p mut Pages,
}

impl<'p> SvmVcpu<'p> {
    fn new(pages: &'p mut Pages, root: Hpa) -> Self {
        // SAFETY: the CPU has SVM, and to have it enabled changes nothing by itself.
        unsafe { Efer::update(|flags| flags.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE)) };
        let host = pages.host.as_ptr().addr() as u64;
        // SAFETY: the page is kept for as long as guests are entered through this value.
        unsafe { Msr::new(VM_HSAVE_PA).write(host) };

        let mut vcpu = Self { pages };
        vcpu.set32(INTERCEPTS_3, INTERCEPT_INTR | INTERCEPT_HLT | INTERCEPT_SHUTDOWN);
        vcpu.set32(INTERCEPTS_4, INTERCEPT_VMRUN);
        vcpu.set32(ASID, 1);
        vcpu.set64(NP_ENABLE, 1);
        vcpu.set64(N_CR3, root.raw());
        // Flat 32-bit segments: attributes as in a descriptor, limit, base 0.
        for (segment, attributes) in [(CS, 0xc9b), (DS, 0xc93), (ES, 0xc93), (SS, 0xc93)] {
            vcpu.set16(segment + 2, attributes);
            vcpu.set32(segment + 4, u32::MAX);
        }
        vcpu.set64(EFER, EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE.bits());
        vcpu.set64(CR0, 0x11); // PE, ET
        vcpu.set64(RFLAGS, 0x202); // IF: an interrupt is intercepted where the guest would take it
        vcpu.set64(G_PAT, 0x0007_0406_0007_0406);
        vcpu
    }

    fn set16(&mut self, offset: usize, value: u16) {
        self.pages.vmcb[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, offset: usize, value: u32) {
        self.pages.vmcb[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn set64(&mut self, offset: usize, value: u64) {
        self.pages.vmcb[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.pages.vmcb[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    }
}

impl Vcpu for SvmVcpu<'_> {
    fn enter(&mut self, registers: &mut Registers) -> Exit {
        self.set64(RIP, u64::from(registers.eip));
        self.set64(RAX, u64::from(registers.eax));
        let (mut rcx, mut rdx) = (u64::from(registers.ecx), u64::from(registers.edx));
        // SAFETY:
        // * VMRUN brings back the registers that it saved, and the others are kept or named here;
        // * the guest runs the programs of `crate::guest`, which do nothing but access memory, and the nested table leads
        //   to memory that a guest may use;
        // * no interrupt is taken while the guest's state is loaded: the first STGI comes after it.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "clgi",
                "vmrun rax",
                "stgi",
                "pop rbp",
                "pop rbx",
                inout("rax") self.pages.vmcb.as_mut_ptr() => _,
                inout("rcx") rcx,
                inout("rdx") rdx,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("sysv64"),
            );
        }
        self.set32(TLB_CONTROL, 0);
        registers.eip = self.get64(RIP) as u32;
        registers.eax = self.get64(RAX) as u32;
        (registers.ecx, registers.edx) = (rcx as u32, rdx as u32);
        match self.get64(EXITCODE) {
            EXIT_HLT => Exit::Halt,
            EXIT_INTR => {
                take_interrupts();
                Exit::Interrupt
            }
            EXIT_NPF => Exit::Hole(Fault { at: self.get64(EXITINFO2), cause: self.get64(EXITINFO1) }),
            code => Exit::Other { code, info: self.get64(EXITINFO1) },
        }
    }

    fn flush(&mut self) {
        self.set32(TLB_CONTROL, FLUSH_ALL);
    }
}
