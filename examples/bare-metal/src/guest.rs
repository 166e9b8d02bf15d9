//! A guest: a few instructions that reach memory through the table under test, on a virtual CPU.
//!
//! The guest runs in 32-bit protected mode without paging, so what it addresses are guest-physical addresses.

use crate::{kick::Kick, memory};
use core::sync::atomic::Ordering;
use sept_core::Hpa;

/// An access that the MMU refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address that was accessed.
    pub at: u64,
    /// Why, in the words of the MMU: page-fault error code (paging, NPT) or exit qualification (EPT).
    pub cause: u64,
}

/// Somebody whose reads and writes go through a table.
pub trait Walker {
    /// Reads 4 bytes.
    ///
    /// # Errors
    ///
    /// The MMU refused it.
    fn read(&mut self, at: u64) -> Result<u32, Fault>;

    /// Writes 4 bytes.
    ///
    /// # Errors
    ///
    /// The MMU refused it.
    fn write(&mut self, at: u64, value: u32) -> Result<(), Fault>;
}

/// The registers that the programs use.
#[derive(Clone, Copy, Default, Debug)]
pub struct Registers {
    /// Instruction pointer.
    pub eip: u32,
    /// The value read or to be written.
    pub eax: u32,
    /// Where.
    pub ecx: u32,
    /// Where the watching program shows what it reads.
    pub edx: u32,
}

/// Why a guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It executed `hlt`: a program's end.
    Halt,
    /// This CPU was interrupted.
    Interrupt,
    /// The table has no entry that allows the access.
    Hole(Fault),
    /// The table has an entry that makes no sense, on the way to this address.
    Misconfigured {
        /// The address that was accessed.
        at: u64,
    },
    /// Anything else.
    Other {
        /// The exit code or reason.
        code: u64,
        /// What goes with it.
        info: u64,
    },
}

impl Exit {
    /// The fault of an access to memory that the table does not map; no other exit is expected.
    fn into_fault(self) -> Fault {
        match self {
            Self::Hole(fault) => fault,
            exit => panic!("unexpected exit: {exit:x?}"),
        }
    }
}

/// A virtual CPU of one kind or the other.
pub trait Vcpu {
    /// Enters the guest with these registers and leaves those that it had when it stopped.
    fn enter(&mut self, registers: &mut Registers) -> Exit;

    /// Makes the next entry forget all translations.
    fn flush(&mut self);
}

/// A way to run guests that a CPU has.
pub trait Virtualization {
    /// Whether this machine's CPUs have it.
    fn available() -> bool;

    /// Runs `body` with a virtual CPU of this CPU, whose guest-physical memory is the table at `root`.
    ///
    /// # Safety
    ///
    /// The table outlives the call and leads only to memory that a guest may use as it likes.
    unsafe fn with_vcpu<R>(root: Hpa, body: impl FnOnce(&mut dyn Vcpu) -> R) -> R;
}

/// Where [`load_programs`] puts the programs: the guest's first page.
pub const CODE: u64 = 0;

/// Where the program that writes begins.
pub const WRITE_PROGRAM: u64 = CODE + WRITE.0 as u64;

const READ: (u32, &[u8]) = (
    0x00,
    &[
        0x8b, 0x01, // mov eax, [ecx]
        0xf4, // hlt
    ],
);
const WRITE: (u32, &[u8]) = (
    0x10,
    &[
        0x89, 0x01, // mov [ecx], eax
        0xf4, // hlt
    ],
);
const WATCH: (u32, &[u8]) = (
    0x20,
    &[
        0x8b, 0x01, // again: mov eax, [ecx]
        0x89, 0x02, // mov [edx], eax
        0xff, 0x42, 0x04, // inc dword ptr [edx + 4]
        0xeb, 0xf7, // jmp again
    ],
);

/// Writes the programs to a page that the guest will see at [`CODE`].
pub fn load_programs(page: Hpa) {
    for (offset, program) in [READ, WRITE, WATCH] {
        for (index, bytes) in program.chunks(4).enumerate() {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            let word = u32::from_le_bytes(word);
            memory::word(page, offset as usize / 4 + index).store(word, Ordering::Relaxed);
        }
    }
}

/// A guest with one virtual CPU, which honours a shootdown.
pub struct Guest<'a> {
    vcpu: &'a mut dyn Vcpu,
    kick: &'a Kick,
    /// The latest flush that it was entered after; none if it was never entered.
    served: Option<u64>,
}

impl<'a> Guest<'a> {
    /// A guest that has not run yet.
    pub fn new(vcpu: &'a mut dyn Vcpu, kick: &'a Kick) -> Self {
        Self { vcpu, kick, served: None }
    }

    /// Runs the program that begins at `registers.eip` until it stops.
    fn run(&mut self, registers: &mut Registers) -> Exit {
        let wanted = Some(self.kick.enter());
        if self.served != wanted {
            self.vcpu.flush();
            self.served = wanted;
        }
        let exit = self.vcpu.enter(registers);
        self.kick.leave();
        exit
    }

    /// Reads 4 bytes at `at` and says how that ended.
    pub fn try_read(&mut self, at: u64) -> Result<u32, Exit> {
        let mut registers = Registers { eip: READ.0, ecx: at as u32, ..Registers::default() };
        match self.run(&mut registers) {
            Exit::Halt => Ok(registers.eax),
            exit => Err(exit),
        }
    }

    /// Writes 4 bytes at `at` and says how that ended.
    pub fn try_write(&mut self, at: u64, value: u32) -> Result<(), Exit> {
        match self.run(&mut Registers { eip: WRITE.0, ecx: at as u32, eax: value, edx: 0 }) {
            Exit::Halt => Ok(()),
            exit => Err(exit),
        }
    }

    /// Reads what is at `at` again and again, shows it in the first word at `shown` and counts in the second. Returns
    /// when the guest stops, which it does not do by itself.
    pub fn watch(&mut self, at: u64, shown: u64) -> Exit {
        self.run(&mut Registers { eip: WATCH.0, ecx: at as u32, edx: shown as u32, eax: 0 })
    }
}

impl Walker for Guest<'_> {
    fn read(&mut self, at: u64) -> Result<u32, Fault> {
        self.try_read(at).map_err(Exit::into_fault)
    }

    fn write(&mut self, at: u64, value: u32) -> Result<(), Fault> {
        self.try_write(at, value).map_err(Exit::into_fault)
    }
}
