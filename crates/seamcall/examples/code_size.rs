//! Every leaf over the real instruction, to see how large they are: `nm --print-size` on the release build.
//! `tests/assembly.rs` looks that no formatting and no panic is among them.
//!
//! Running it makes no SEAMCALL.

#[cfg(target_arch = "x86_64")]
mod leaves {
    use core::hint::black_box;
    use seamcall::export::{self, GpaList};
    use seamcall::{
        EnterFlags, FatalErrorConfig, Features0, FieldId, GuestRegs, Hkid, Instruction as I, SeamcallError,
        Tdr, Tdvpr,
    };
    use seamcall::{mem, mng, mr, phymem, sys, vp};
    use sept_core::{Frame, Hpa, Returned};

    /// TDH.SYS.CONFIG is unsafe to call, and so no plain function.
    fn config(t: &I, tdmrs: Hpa, count: u8, key: Hkid) -> Result<(), SeamcallError> {
        #[expect(unsafe_code, reason = "the leaf takes memory that only its structures name")]
        // SAFETY: never called.
        unsafe {
            sys::config(t, tdmrs, count, key, true)
        }
    }

    /// TDH.SYS.CONFIG version 1, unsafe likewise.
    fn config_v1(t: &I, tdmrs: Hpa, count: u8, key: Hkid, enable: Features0) -> Result<(), SeamcallError> {
        #[expect(unsafe_code, reason = "the leaf takes memory that only its structures name")]
        // SAFETY: never called.
        unsafe {
            sys::config_v1(t, tdmrs, count, key, true, enable)
        }
    }

    /// TDH.SYS.INIT version 1, unsafe likewise.
    fn init_v1(t: &I, fatal: FatalErrorConfig) -> Result<(), SeamcallError> {
        #[expect(unsafe_code, reason = "the leaf takes memory for as long as the module lives")]
        // SAFETY: never called.
        unsafe {
            sys::init_v1(t, fatal)
        }
    }

    /// TDH.VP.ENTER, unsafe too.
    fn enter(t: &I, vcpu: Tdvpr, flags: EnterFlags, guest: GuestRegs) -> GuestRegs {
        #[expect(unsafe_code, reason = "a guest runs on this CPU")]
        // SAFETY: never called.
        unsafe {
            vp::enter(t, vcpu, flags, guest)
        }
    }

    type List<'l> = Result<u32, Returned<SeamcallError, GpaList<'l>>>;

    macro_rules! keep {
        ($($function:expr, $($argument:ty),*;)*) => {
            $(black_box($function as for<'a> fn(&'a I $(, $argument)*) -> _);)*
        };
    }

    /// Keeps all wrappers in the program.
    pub(super) fn keep() {
        keep! {
            mem::page_add::<I>, _, _, _, _;
            mem::page_aug::<I>, _, _, _;
            mem::page_demote::<I>, _, _, _, _;
            mem::page_promote::<I>, _, _;
            mem::page_promote_v1::<I>, _, _;
            mem::page_relocate::<I>, _, _, _;
            mem::page_remove::<I>, _, _;
            mem::range_block::<I>, _, _;
            mem::range_unblock::<I>, _, _;
            mem::rd::<I>, _, _;
            mem::sept_add::<I>, _, _, _;
            mem::sept_add_v1::<I>, _, _, _, _;
            mem::sept_rd::<I>, _, _;
            mem::sept_rd_l2::<I>, _, _;
            mem::sept_remove::<I>, _, _;
            mem::sept_remove_v1::<I>, _, _;
            mem::track::<I>, _;
            mem::wr::<I>, _, _, _;
            mng::addcx::<I>, _, _;
            mng::create::<I>, _, _;
            mng::init::<I>, _, _;
            mng::key_config::<I>, _;
            mng::key_freeid::<I>, _;
            mng::rd::<I>, _, _;
            mng::rd_next::<I>, _, _;
            mng::vpflushdone::<I>, _;
            mng::wr::<I>, _, _, _, _;
            mr::extend::<I>, _, _;
            mr::finalize::<I>, _;
            phymem::cache_wb::<I>, _;
            phymem::page_rdmd::<I>, _;
            phymem::page_rdmd_at::<I>, _, _;
            phymem::page_reclaim::<I>, _;
            phymem::page_wbinvd::<I>, _, _, _;
            phymem::pamt_add::<I>, _, _;
            phymem::pamt_remove::<I>, _;
            export::unblockw::<I>, _, _;
            sys::init::<I>,;
            sys::key_config::<I>,;
            sys::lp_init::<I>,;
            sys::lp_shutdown::<I>,;
            sys::rd::<I>, _;
            sys::shutdown::<I>, _;
            sys::tdmr_init::<I>, _;
            sys::update::<I>,;
            vp::addcx::<I>, _, _;
            vp::create::<I>, _, _;
            vp::flush::<I>, _;
            vp::init::<I>, _, _;
            vp::init_x2apic::<I>, _, _, _;
            vp::rd::<I>, _, _;
            vp::rd_next::<I>, _, _;
            vp::wr::<I>, _, _, _, _;
            config, _, _, _;
            config_v1, _, _, _, _;
            init_v1, _;
            enter, _, _, _;
            sys::update_v1::<I>, _;
        }
        black_box(sys::info::<I> as fn(&I, &mut Frame) -> _);
        black_box(sys::rd_all::<I> as fn(&I, &mut Frame, FieldId) -> _);
        black_box(export::blockw::<I> as for<'l> fn(&I, Tdr, GpaList<'l>) -> List<'l>);
        black_box(export::blockw_v1::<I> as for<'l> fn(&I, Tdr, GpaList<'l>) -> List<'l>);
    }
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    leaves::keep();
    println!("every leaf, no call made");
}
