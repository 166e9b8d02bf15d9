//! A page source that knows what is outstanding, and a store without a bound.
#![allow(dead_code, reason = "not every test file uses all of it")]

use core::cell::RefCell;
use sept_core::{Frame, FrameKind, FrameSource, FrameStore, Hpa, Level};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Source {
    inner: RefCell<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    free: Vec<Frame>,
    out: BTreeMap<Hpa, FrameKind>,
    made: u64,
    limit: Option<u64>,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Gives only `limit` more pages.
    pub(crate) fn limit(&self, limit: Option<u64>) {
        self.inner.borrow_mut().limit = limit;
    }

    pub(crate) fn outstanding(&self) -> BTreeMap<Hpa, FrameKind> {
        self.inner.borrow().out.clone()
    }

    pub(crate) fn count(&self, kind: FrameKind) -> u64 {
        self.inner.borrow().out.values().filter(|&&of| of == kind).count() as u64
    }
}

impl FrameSource for Source {
    fn take(&self, kind: FrameKind, _near: Hpa) -> Option<Frame> {
        let mut inner = self.inner.borrow_mut();
        if let Some(limit) = &mut inner.limit {
            *limit = limit.checked_sub(1)?;
        }
        let frame = match inner.free.pop() {
            Some(frame) => frame,
            None => {
                inner.made += 1;
                let hpa = Hpa::new(inner.made << 12)?;
                // SAFETY:
                // * each address is made up once, and no memory is behind it;
                // * nothing is cached.
                #[expect(unsafe_code, reason = "a source mints its frames")]
                unsafe { Frame::assume_owned(hpa, Level::L4K) }?
            }
        };
        assert_eq!(inner.out.insert(frame.hpa(), kind), None, "given out twice");
        Some(frame)
    }

    fn give(&self, kind: FrameKind, frame: Frame) {
        let mut inner = self.inner.borrow_mut();
        assert_eq!(inner.out.remove(&frame.hpa()), Some(kind), "given back as something else");
        if let Some(limit) = &mut inner.limit {
            *limit += 1;
        }
        inner.free.push(frame);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    frames: Vec<(FrameKind, Frame)>,
    /// Frames it counts and does not give.
    pub(crate) lies: u32,
    pub(crate) room: Option<usize>,
}

impl FrameStore for Store {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        if self.room.is_some_and(|room| self.frames.len() >= room) {
            return Err(frame);
        }
        self.frames.push((kind, frame));
        Ok(())
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        let at = self.frames.iter().rposition(|(of, _)| *of == kind)?;
        Some(self.frames.swap_remove(at).1)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        u32::try_from(self.frames.iter().filter(|(of, _)| *of == kind).count()).unwrap() + self.lies
    }
}

/// A small generator of numbers (xorshift64*), so that a failing seed can be named.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// Up to `most` runs in `pages` pages, ascending and apart.
    pub(crate) fn runs(&mut self, most: u64, pages: u64, longest: u64) -> Vec<core::ops::Range<u64>> {
        let mut runs: Vec<core::ops::Range<u64>> = Vec::new();
        let mut starts: Vec<_> = (0..self.next(most + 1)).map(|_| self.next(pages)).collect();
        starts.sort_unstable();
        for start in starts {
            let end = (start + 1 + self.next(longest)).min(pages);
            match runs.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => runs.push(start..end),
            }
        }
        runs
    }
}
