//! The one way into the TDX module: a register file in, a register file out, both by value.
//!
//! A [`Transport`] is the instruction, a model of the module, or an adapter around another transport. Wrappers build a
//! [`Call`]; nobody else can, so making a call is safe. Registers go in by value and come out as a new value: a retry
//! repeats the call it was asked for and never what an earlier attempt left behind. The one leaf that exchanges more
//! registers with a guest, TDH.VP.ENTER, has a trait and a register file of its own: [`VpEnter`](crate::VpEnter).

use core::marker::PhantomData;

/// The registers a SEAMCALL leaf reads and writes (`RAX`, `RCX`, `RDX`, `R8` to `R13`).
///
/// On the way in `rax` is the leaf selector, on the way out the completion status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[expect(missing_docs, reason = "each field is the register of that name")]
#[expect(
    clippy::exhaustive_structs,
    reason = "the register file of the ABI; tests and transports build it by name"
)]
pub struct Regs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
}

impl Regs {
    /// All registers zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { rax: 0, rcx: 0, rdx: 0, r8: 0, r9: 0, r10: 0, r11: 0, r12: 0, r13: 0 }
    }
}

/// One SEAMCALL, ready to be made once. Built by the typed wrappers.
///
/// Neither copied nor kept: what it gives away is given while the wrapper runs, and may be another's afterwards. A
/// transport hands it on or lets it go; one that wants to make it again says why it may, with [`Call::from_regs`].
#[derive(Debug)]
pub struct Call<'a> {
    regs: Regs,
    wrapper: PhantomData<&'a mut ()>,
}

impl Call<'_> {
    /// A call with any registers.
    ///
    /// # Safety
    ///
    /// * On hardware the module acts on memory by physical address. The caller vouches that every page this call may
    ///   make private, overwrite or remove is its own to give when the call is made.
    /// * The leaf is not TDH.VP.ENTER, which exchanges registers that are not in [`Regs`]; see
    ///   [`VpEnter`](crate::VpEnter).
    #[must_use]
    #[expect(unsafe_code, reason = "raw registers can name any memory")]
    pub const unsafe fn from_regs(regs: Regs) -> Self {
        Self::new(regs)
    }

    /// Used by the wrappers, whose arguments prove what `from_regs` asks for.
    pub(crate) const fn new(regs: Regs) -> Self {
        Self { regs, wrapper: PhantomData }
    }

    /// The registers to load.
    #[must_use]
    pub const fn regs(&self) -> Regs {
        self.regs
    }
}

/// Makes SEAMCALLs. Object safe; any CPU may call.
pub trait Transport {
    /// Executes `call` and returns the registers as the module left them.
    ///
    /// A register that the leaf does not define as an output comes back unchanged.
    fn call(&self, call: Call<'_>) -> Regs;
}

impl<T: Transport + ?Sized> Transport for &T {
    fn call(&self, call: Call<'_>) -> Regs {
        (**self).call(call)
    }
}
