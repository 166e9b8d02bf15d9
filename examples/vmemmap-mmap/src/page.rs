//! A `struct page` as the readers see it.

use std::sync::atomic::{AtomicU64, Ordering};

/// `struct page`s in a page of the window.
pub(crate) const STRUCTS: usize = 64;

/// 64 bytes, as on x86-64. Any bytes are a valid value.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct StructPage {
    state: AtomicU64,
    refs: AtomicU64,
    /// Flags, mapping, list links and the rest: what is copied along.
    rest: [AtomicU64; 6],
}

/// What a `struct page` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The first page of a folio of this order.
    Head(u8),
    /// A tail of a folio of this order: its head is where the page number, masked by the order, points.
    Tail(u8),
    /// Nothing that was ever written as a `struct page`.
    Garbage(u64),
}

const HEAD: u64 = 0x4ead_0000_0000_0000;
const TAIL: u64 = 0x7a11_0000_0000_0000;
/// Written to pages that go back to their source.
const GIVEN_UP: u64 = 0xdead_dead_dead_dead;

impl StructPage {
    /// What it says now.
    pub fn state(&self) -> State {
        let raw = self.state.load(Ordering::Acquire);
        let [order, ..] = raw.to_le_bytes();
        match raw & !0xff {
            HEAD => State::Head(order),
            TAIL => State::Tail(order),
            _ => State::Garbage(raw),
        }
    }

    /// References, 0 while frozen and in tails.
    pub fn refs(&self) -> u64 {
        self.refs.load(Ordering::SeqCst)
    }

    /// Makes it a head without references, or a tail.
    pub(crate) fn set(&self, order: u8, head: bool) {
        if head { self.set_head(order) } else { self.set_tail(order) }
    }

    /// Makes it a head without references.
    fn set_head(&self, order: u8) {
        self.refs.store(0, Ordering::Relaxed);
        self.state.store(HEAD | u64::from(order), Ordering::Release);
    }

    /// Makes it a tail.
    pub(crate) fn set_tail(&self, order: u8) {
        self.refs.store(0, Ordering::Relaxed);
        self.state.store(TAIL | u64::from(order), Ordering::Release);
    }

    /// Overwrites it.
    pub(crate) fn give_up(&self) {
        self.state.store(GIVEN_UP, Ordering::Release);
        self.refs.store(GIVEN_UP, Ordering::Release);
    }

    /// Copies all of `from`, which nobody writes.
    pub(crate) fn copy_from(&self, from: &Self) {
        let copy =
            |to: &AtomicU64, from: &AtomicU64| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        copy(&self.state, &from.state);
        copy(&self.refs, &from.refs);
        self.rest.iter().zip(&from.rest).for_each(|(to, from)| copy(to, from));
    }

    /// Sets the count from `from` to `to`; false if it is another.
    pub(crate) fn set_refs(&self, from: u64, to: u64) -> bool {
        self.refs.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Adds a reference unless there is none.
    pub(crate) fn try_get(&self) -> bool {
        let mut refs = self.refs();
        while refs != 0 {
            match self.refs.compare_exchange_weak(refs, refs + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => refs = now,
            }
        }
        false
    }

    /// Drops a reference.
    pub(crate) fn put(&self) {
        self.refs.fetch_sub(1, Ordering::SeqCst);
    }

    /// Stores to it, whatever it is: what a stray pointer does.
    pub(crate) fn scribble(&self) {
        self.state.store(GIVEN_UP, Ordering::Relaxed);
    }
}
