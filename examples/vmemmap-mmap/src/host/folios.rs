//! Folios in `struct page`s.

use super::{MmapHost, OWN};
use crate::{State, page::STRUCTS};
use folio_split::{FolioBackend, Pfn, PfnBlock, Pinned};

/// A frozen block.
#[derive(Debug)]
#[must_use = "dropping it leaves the folios frozen"]
pub struct Frozen(PfnBlock);

impl MmapHost {
    /// Calls `each` with position and order of the folios in `whole`, as their heads tell.
    fn heads(&self, whole: PfnBlock, mut each: impl FnMut(u64, u8) -> bool) -> Option<u64> {
        let mut number = self.start(whole);
        let end = number + whole.pages();
        while number < end {
            let State::Head(order) = self.page(number).state() else {
                panic!("page {number:#x} of {whole} is {:?}, not a head", self.page(number).state())
            };
            if !each(number, order) {
                return Some(number);
            }
            number += 1 << order;
        }
        None
    }

    /// Writes head and tails of a frozen folio where the window may be written.
    fn write(&self, folio: PfnBlock) {
        let (start, order) = (self.start(folio), folio.order().raw());
        let structs = STRUCTS as u64;
        let books = self.books();
        let mut number = start;
        while number < start + folio.pages() {
            let next = (number / structs + 1) * structs;
            if books.own.get((number / structs) as usize).is_some_and(Option::is_some) {
                (number..next.min(start + folio.pages()))
                    .for_each(|number| self.page(number).set(order, number == start));
            }
            number = next;
        }
    }
}

impl FolioBackend for MmapHost {
    type Nodes = ();
    type Frozen = Frozen;

    fn freeze(&self, whole: PfnBlock, tries: u32) -> Result<Frozen, Pinned> {
        let mut folios = 0_u64;
        let freeze = |number, _| {
            folios += 1;
            (0..tries.max(1)).any(|_| self.page(number).set_refs(OWN, 0))
        };
        if let Some(pinned) = self.heads(whole, freeze) {
            let _ = self.heads(whole, |number, _| number < pinned && self.page(number).set_refs(0, OWN));
            let first = Pfn::new(self.first.base().raw() + pinned).unwrap_or(whole.base());
            return Err(Pinned { first });
        }
        // Heads may become tails: nobody is left who saw one of them alive and has not tried yet. With images of the head,
        // the caller sees to that, between two rounds.
        if folios > 1 && !self.images() {
            self.grace_period();
        }
        Ok(Frozen(whole))
    }

    fn split(&self, _frozen: &mut Frozen, piece: PfnBlock, _nodes: &mut ()) {
        self.write(piece);
    }

    fn merge(&self, _frozen: &mut Frozen, whole: PfnBlock, _nodes: &mut ()) -> u64 {
        // The pages that become tails are replaced as they are: their heads stay frozen until then.
        let kept = if self.is_optimized_at(whole) { STRUCTS as u64 } else { whole.pages() };
        let (start, order) = (self.start(whole), whole.order().raw());
        for number in start..start + whole.pages().min(kept) {
            self.page(number).set(order, number == start);
        }
        0
    }

    fn thaw(&self, frozen: Frozen) {
        let _ = self.heads(frozen.0, |number, _| self.page(number).set_refs(0, OWN));
    }
}
