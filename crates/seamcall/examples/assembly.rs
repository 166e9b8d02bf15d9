//! Four wrappers over the real instruction, kept as functions so that their assembly can be looked at:
//! `tests/assembly.rs` builds this program and holds it against a bound.
//!
//! Running it makes no SEAMCALL.

#[cfg(target_arch = "x86_64")]
mod wrappers {
    use core::hint::black_box;
    use seamcall::{EnterFlags, GuestRegs, Instruction, SeamcallError, Tdr, Tdvpr};
    use seamcall::{mem, mem::DemotePages, mem::L2Mode, vp};
    use sept_core::{Frame, GpaEntry, Returned};

    /// TDH.MEM.TRACK.
    #[inline(never)]
    fn example_track(t: &Instruction, td: Tdr) -> Result<(), SeamcallError> {
        mem::track(t, td)
    }

    /// TDH.MEM.PAGE.AUG.
    #[inline(never)]
    fn example_aug(
        t: &Instruction,
        td: Tdr,
        at: GpaEntry,
        page: Frame,
    ) -> Result<(), Returned<SeamcallError, Frame>> {
        mem::page_aug(t, td, at, page)
    }

    /// TDH.MEM.PAGE.DEMOTE.
    #[inline(never)]
    fn example_demote(
        t: &Instruction,
        td: Tdr,
        at: GpaEntry,
        pages: DemotePages,
    ) -> Result<[Option<Frame>; 3], Returned<SeamcallError, DemotePages>> {
        mem::page_demote(t, td, at, L2Mode::All, pages)
    }

    /// TDH.VP.ENTER.
    #[inline(never)]
    fn example_enter(t: &Instruction, vcpu: Tdvpr, guest: GuestRegs) -> GuestRegs {
        #[expect(unsafe_code, reason = "a guest runs on this CPU")]
        // SAFETY: never called.
        unsafe {
            vp::enter(t, vcpu, EnterFlags::empty(), guest)
        }
    }

    /// A caller with something in a vector register.
    #[inline(never)]
    fn example_product(t: &Instruction, td: Tdr, a: f64, b: f64) -> f64 {
        let product = a * b;
        let tracked = mem::track(t, td).is_ok();
        if tracked { product } else { 0.0 }
    }

    /// Keeps all of them in the program.
    pub(super) fn keep() {
        black_box(example_track as fn(_, _) -> _);
        black_box(example_aug as fn(_, _, _, _) -> _);
        black_box(example_demote as fn(_, _, _, _) -> _);
        black_box(example_enter as fn(_, _, _) -> _);
        black_box(example_product as fn(_, _, _, _) -> _);
    }
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    wrappers::keep();
    println!("four wrappers, no call made");
}
