//! The sides of a table that this library is linked with: functions of nobody.

use sept_core::{
    CacheKey, Class, Classify, Donated, External, Fill, Frame, FrameKind, FrameNeeds, FrameSource,
    FrameStore, GpaEntry, Hpa, Level, Observed, Permissions, Returned, Shootdown, Tainted,
};

unsafe extern "C" {
    /// Whatever the host answers; never linked.
    safe fn answer(about: u64) -> u64;
}

/// The host's answer to a question.
pub(crate) fn ask(about: u64) -> u64 {
    answer(about)
}

/// A flush that the host does.
#[derive(Clone, Copy)]
pub struct Flush;

// SAFETY: nothing runs this.
unsafe impl Shootdown for Flush {
    type Ticket = u64;

    fn start(&self) -> u64 {
        ask(0)
    }

    fn done(&self, ticket: u64) -> bool {
        ask(ticket) != 0
    }
}

/// A TEE whose every answer is unknown.
pub struct Tee;

/// Why it refused.
#[derive(Debug)]
pub struct Refused(u64);

impl core::fmt::Display for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("refused")
    }
}

impl core::error::Error for Refused {}

impl Classify for Refused {
    fn class(&self) -> Class {
        match self.0 {
            1 => Class::Retry,
            2 => Class::Quiesce,
            3 => Class::Caller,
            _ => Class::Fatal,
        }
    }
}

fn verdict() -> Result<(), Refused> {
    match ask(1) {
        0 => Ok(()),
        why => Err(Refused(why)),
    }
}

fn page(about: u64) -> Option<Hpa> {
    Hpa::new(ask(about))
}

fn donated() -> Donated {
    Donated { table: page(2), metadata: [page(3), page(4)] }
}

impl External for Tee {
    type Error = Refused;
    type Pages = Option<Frame>;
    type Ticket = u64;

    fn max_map(&self) -> Level {
        Level::L2M
    }
    fn max_leaf(&self) -> Level {
        Level::L1G
    }
    fn table_cost(&self, at: GpaEntry, _: Option<Hpa>) -> FrameNeeds {
        FrameNeeds::of(FrameKind::TeeTable, if ask(at.gpa().raw()) == 0 { 1 } else { 2 })
    }
    fn gather(&self, _: GpaEntry, _: Option<Hpa>, from: &mut dyn FrameStore) -> Option<Option<Frame>> {
        from.get(FrameKind::TeeTable).map(Some)
    }
    fn addresses(&self, _: &Option<Frame>) -> Donated {
        donated()
    }
    fn scatter(
        &self,
        pages: Option<Frame>,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    ) {
        if let Some(page) = pages {
            drop(to.put(FrameKind::TeeTable, scrub(page.taint())));
        }
    }
    fn link(
        &self,
        _: GpaEntry,
        _: Option<Hpa>,
        held: Option<Frame>,
    ) -> Result<(), Returned<Refused, Option<Frame>>> {
        verdict().map_err(|error| Returned { error, held })
    }
    fn unlink(&self, _: GpaEntry, _: Option<Hpa>) -> Result<Donated, Refused> {
        verdict().map(|()| donated())
    }
    fn map(&self, _: GpaEntry, held: Frame, _: Fill) -> Result<(), Returned<Refused, Frame>> {
        verdict().map_err(|error| Returned { error, held })
    }
    fn unmap(&self, _: GpaEntry, _: Hpa) -> Result<(), Refused> {
        verdict()
    }
    fn block(&self, _: GpaEntry) -> Result<(), Refused> {
        verdict()
    }
    fn unblock(&self, _: GpaEntry) -> Result<(), Refused> {
        verdict()
    }
    fn fence(&self) -> Result<u64, Refused> {
        verdict().map(|()| ask(5))
    }
    fn grace(&self) -> u64 {
        ask(6)
    }
    fn fenced(&self, ticket: u64) -> bool {
        ask(ticket) != 0
    }
    fn split(&self, _: GpaEntry, held: Option<Frame>) -> Result<(), Returned<Refused, Option<Frame>>> {
        verdict().map_err(|error| Returned { error, held })
    }
    fn merge(&self, _: GpaEntry, _: Hpa) -> Result<Donated, Refused> {
        verdict().map(|()| donated())
    }
    fn protect(&self, _: GpaEntry, _: Permissions) -> Result<bool, Refused> {
        verdict().map(|()| ask(7) != 0)
    }
    fn probe(&self, _: GpaEntry) -> Result<Observed, Refused> {
        verdict().map(|()| if ask(8) == 0 { Observed::Free } else { Observed::Hidden })
    }
    fn write_back(&self, _: &Frame<Tainted>, _: CacheKey) -> Result<(), Refused> {
        verdict()
    }
}

/// The host's page allocator.
pub struct Source;

impl FrameSource for Source {
    fn take(&self, _: FrameKind, near: Hpa) -> Option<Frame> {
        // SAFETY: nothing runs this.
        unsafe { Frame::assume_owned(page(near.raw())?, Level::L4K) }
    }
    fn give(&self, _: FrameKind, frame: Frame) {
        ask(frame.hpa().raw());
    }
}
