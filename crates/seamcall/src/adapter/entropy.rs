//! Waiting for the random number generator.

use crate::{Call, EnterCall, GuestRegs, Regs, Status, Transport, VpEnter};
use core::hint;

/// Repeats a call while the module finds no entropy (`RND_NO_ENTROPY`), a bounded number of times.
///
/// Sends the same registers each time: those that the module left in an attempt are never its next input.
///
/// ```
/// use seamcall::{Regs, Transport, Call, adapter::EntropyRetry, mng, Hkid, Tdr};
/// # struct Module;
/// # impl Transport for Module {
/// #     fn call(&self, call: Call<'_>) -> Regs { Regs { rax: 0, ..call.regs() } }
/// # }
/// let transport = EntropyRetry::new(Module);
/// # let td = Tdr::new(sept_core::Hpa::new(0x1000).unwrap()).unwrap();
/// mng::key_config(&transport, td)?;
/// # Ok::<(), seamcall::SeamcallError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EntropyRetry<T> {
    inner: T,
    attempts: u32,
}

impl<T: Transport> EntropyRetry<T> {
    /// Ten attempts, as for RDRAND.
    pub const fn new(inner: T) -> Self {
        Self::with_attempts(inner, 10)
    }

    /// At most `attempts` calls; 0 counts as 1.
    pub const fn with_attempts(inner: T, attempts: u32) -> Self {
        Self { inner, attempts }
    }

    /// The transport inside.
    pub const fn inner(&self) -> &T {
        &self.inner
    }
}

impl<T: Transport> Transport for EntropyRetry<T> {
    #[inline]
    fn call(&self, call: Call<'_>) -> Regs {
        let regs = call.regs();
        let mut out = self.inner.call(call);
        for _ in 1..self.attempts {
            if !Status::from_raw(out.rax).is(Status::RND_NO_ENTROPY) {
                break;
            }
            hint::spin_loop();
            // The same call, while the wrapper that made it still waits for its answer.
            out = self.inner.call(Call::new(regs));
        }
        out
    }
}

/// An entry needs no entropy: it is handed on.
impl<T: VpEnter> VpEnter for EntropyRetry<T> {
    #[inline]
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        self.inner.enter(call)
    }
}
