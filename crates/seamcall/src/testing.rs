//! Test doubles: a transport that plays a script, minted frames, a store, a lock and a shootdown that keep count.

use crate::{Call, EnterCall, GuestRegs, Regs, Transport, VpEnter};
use core::cell::{Cell, RefCell};
use sept_core::{Frame, FrameKind, FrameStore, Gpa, GpaEntry, Hpa, Level, Shootdown, TreeLock};
use std::{boxed::Box, collections::VecDeque, vec::Vec};

type Reply = Box<dyn Fn(Regs) -> Regs>;

/// Answers calls from a script and keeps what it was called with. An empty script answers success, all else unchanged.
#[derive(Default)]
pub(crate) struct Script {
    replies: RefCell<VecDeque<Reply>>,
    calls: RefCell<Vec<Regs>>,
    exits: RefCell<VecDeque<GuestRegs>>,
    entries: RefCell<Vec<GuestRegs>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn then(self, reply: impl Fn(Regs) -> Regs + 'static) -> Self {
        self.replies.borrow_mut().push_back(Box::new(reply));
        self
    }

    /// A status, with `RCX` and `RDX` zeroed as the S-EPT leaves do.
    pub(crate) fn status(self, rax: u64) -> Self {
        self.details(rax, 0, 0)
    }

    pub(crate) fn details(self, rax: u64, rcx: u64, rdx: u64) -> Self {
        self.then(move |regs| Regs { rax, rcx, rdx, ..regs })
    }

    /// The next entry ends with these registers.
    pub(crate) fn exit(self, out: GuestRegs) -> Self {
        self.exits.borrow_mut().push_back(out);
        self
    }

    /// What TDH.VP.ENTER was called with.
    pub(crate) fn entries(&self) -> Vec<GuestRegs> {
        self.entries.borrow().clone()
    }

    pub(crate) fn calls(&self) -> Vec<Regs> {
        self.calls.borrow().clone()
    }

    /// The leaf selectors called so far.
    pub(crate) fn leaves(&self) -> Vec<u64> {
        self.calls.borrow().iter().map(|regs| regs.rax).collect()
    }

    /// The one call made.
    #[track_caller]
    pub(crate) fn only(&self) -> Regs {
        let calls = self.calls.borrow();
        assert_eq!(calls.len(), 1, "{calls:x?}");
        calls[0]
    }
}

impl Transport for Script {
    fn call(&self, call: Call<'_>) -> Regs {
        self.calls.borrow_mut().push(call.regs());
        let reply = self.replies.borrow_mut().pop_front();
        match reply {
            Some(reply) => reply(call.regs()),
            None => Regs { rax: 0, ..call.regs() },
        }
    }
}

impl VpEnter for Script {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        self.entries.borrow_mut().push(call.regs());
        self.exits.borrow_mut().pop_front().unwrap()
    }
}

pub(crate) fn hpa(raw: u64) -> Hpa {
    Hpa::new(raw).unwrap()
}

pub(crate) fn gpa(raw: u64) -> Gpa {
    Gpa::new(raw).unwrap()
}

pub(crate) fn entry(raw: u64, level: Level) -> GpaEntry {
    GpaEntry::new(gpa(raw), level).unwrap()
}

#[expect(unsafe_code, reason = "tests make up frames; no memory is behind them")]
pub(crate) fn frame_of(raw: u64, level: Level) -> Frame {
    // SAFETY: nothing reads or writes the memory of these addresses, and no test mints one twice.
    unsafe { Frame::assume_owned(hpa(raw), level) }.unwrap()
}

pub(crate) fn frame(raw: u64) -> Frame {
    frame_of(raw, Level::L4K)
}

#[expect(unsafe_code, reason = "tests make up frames; no memory is behind them")]
pub(crate) fn scrub(page: Frame<sept_core::Tainted>) -> Frame {
    // SAFETY: there is no memory behind the frame.
    unsafe { page.assume_scrubbed() }
}

/// Keeps frames by kind.
#[derive(Default)]
pub(crate) struct Shelf(pub(crate) Vec<(FrameKind, Frame)>);

impl FrameStore for Shelf {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        self.0.push((kind, frame));
        Ok(())
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        let index = self.0.iter().position(|(other, _)| *other == kind)?;
        Some(self.0.remove(index).1)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        u32::try_from(self.0.iter().filter(|(other, _)| *other == kind).count()).unwrap()
    }
}

/// Ends each shootdown at once and counts them.
#[derive(Default)]
pub(crate) struct Kicks(pub(crate) Cell<u32>);

#[expect(unsafe_code, reason = "there are no vCPUs to leave anything in")]
// SAFETY: there are no CPUs.
unsafe impl Shootdown for Kicks {
    type Ticket = u32;

    fn start(&self) -> u32 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    fn done(&self, _: u32) -> bool {
        true
    }
}

/// Notes how each section was taken: `s` or `x`.
#[derive(Default)]
pub(crate) struct Sections(pub(crate) RefCell<std::string::String>);

impl TreeLock for Sections {
    fn shared<R>(&self, call: impl FnOnce() -> R) -> R {
        self.0.borrow_mut().push('s');
        call()
    }

    fn exclusive<R>(&self, call: impl FnOnce() -> R) -> R {
        self.0.borrow_mut().push('x');
        call()
    }
}
