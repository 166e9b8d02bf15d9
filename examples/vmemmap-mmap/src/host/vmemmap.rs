//! Entries of the window.

use super::{Books, MmapHost, Replaced};
use crate::page::STRUCTS;
use folio_split::PfnBlock;
use sept_core::Frame;
use std::sync::atomic::{Ordering, fence};
use vmemmap_prealloc::{Geometry, Tail, VmemmapBackend, VmemmapPage};

/// A fresh page, filled through the direct map.
#[derive(Debug)]
#[must_use = "dropping it leaks the page"]
pub struct Fresh {
    at: VmemmapPage,
    frame: Frame,
}

/// Proof of a flush.
#[derive(Debug)]
#[must_use = "replaced pages are given up against this proof"]
pub struct Flushed(u64);

impl VmemmapBackend for MmapHost {
    type Fresh = Fresh;
    type Flushed = Flushed;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn is_optimized(&self, block: PfnBlock) -> bool {
        self.is_optimized_at(block)
    }

    fn set_optimized(&self, block: PfnBlock, optimized: bool) {
        let number = self.start(block) / self.first.pages();
        if let Some(slot) = self.books().optimized.get_mut(number as usize) {
            *slot = optimized;
        }
    }

    fn has_template(&self, _near: PfnBlock, tail: Tail) -> bool {
        match tail {
            Tail::Template(order) => self.books().templates.contains_key(&order.raw()),
            Tail::HeadPage(_) => true,
            _ => false,
        }
    }

    fn add_template(&self, _near: PfnBlock, tail: Tail, page: Frame) -> Result<(), Frame> {
        let mut books = self.books();
        match tail {
            Tail::Template(order) if !books.templates.contains_key(&order.raw()) => {
                self.memory.direct(page.hpa().raw()).iter().for_each(|one| one.set_tail(order.raw()));
                books.templates.insert(order.raw(), page);
                Ok(())
            }
            _ => Err(page),
        }
    }

    fn maps(&self, at: VmemmapPage, tail: Tail) -> bool {
        let (books, entry) = (self.books(), self.entry(at));
        let shown = books.shown.get(entry as usize).copied();
        books.own.get(entry as usize).is_some_and(Option::is_none)
            && self.tail_page(&books, at, tail).map(|page| page.hpa().raw()) == shown
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Fresh {
        let shown = self.memory.window(self.entry(at));
        let fresh = self.memory.direct(page.hpa().raw());
        fresh.iter().zip(shown).for_each(|(fresh, shown)| fresh.copy_from(shown));
        Fresh { at, frame: page }
    }

    fn write_folio(&self, fresh: &mut Fresh, folio: PfnBlock) {
        let start = self.start(folio);
        let first = self.entry(fresh.at) * STRUCTS as u64;
        for (number, page) in (first..).zip(self.memory.direct(fresh.frame.hpa().raw())) {
            if (start..start + folio.pages()).contains(&number) {
                page.set(folio.order().raw(), number == start);
            }
        }
    }

    fn write_tails(&self, at: VmemmapPage, folio: PfnBlock) {
        self.memory.window(self.entry(at)).iter().for_each(|page| page.set_tail(folio.order().raw()));
    }

    fn map_own(&self, at: VmemmapPage, fresh: Fresh) {
        assert_eq!(fresh.at, at, "a page prepared for another entry");
        let entry = self.entry(at);
        // The page before the entry; a kernel has a barrier here, and the system call is one.
        fence(Ordering::Release);
        self.map(entry, &fresh.frame, true);
        self.replace(at, Some(fresh.frame));
    }

    fn map_tail(&self, at: VmemmapPage, tail: Tail) {
        let mut books = self.books();
        let page = self.tail_page(&books, at, tail).unwrap_or_else(|| panic!("no page for {tail:?}"));
        let (entry, shown) = (self.entry(at), page.hpa().raw());
        self.map(entry, page, false);
        if let Some(slot) = books.shown.get_mut(entry as usize) {
            *slot = shown;
        }
        drop(books);
        self.replace(at, None);
    }

    /// The kernel drops old translations before `mmap` returns; what is left is to count.
    fn flush(&self) -> Flushed {
        fence(Ordering::SeqCst);
        let mut books = self.books();
        books.flushes += 1;
        Flushed(books.flushes)
    }

    fn take_replaced(&self, block: PfnBlock, flushed: &Flushed) -> Option<Frame> {
        let replaced = &mut self.books().replaced;
        let at = replaced.iter().rposition(|page| page.block == block && page.flushes < flushed.0)?;
        Some(replaced.swap_remove(at).frame)
    }
}

impl MmapHost {
    /// The page that `tail` stands for.
    fn tail_page<'a>(&self, books: &'a Books, at: VmemmapPage, tail: Tail) -> Option<&'a Frame> {
        match tail {
            Tail::Template(order) => books.templates.get(&order.raw()),
            Tail::HeadPage(index) => {
                let entry = self.entry(VmemmapPage { index, ..at });
                books.own.get(entry as usize).and_then(Option::as_ref)
            }
            _ => None,
        }
    }

    /// Records what an entry has for its own now, and keeps what it had.
    fn replace(&self, at: VmemmapPage, own: Option<Frame>) {
        let mut books = self.books();
        let entry = self.entry(at);
        let Some(slot) = books.own.get_mut(entry as usize) else {
            panic!("entry {entry} is not in the window")
        };
        if let Some(frame) = std::mem::replace(slot, own) {
            let flushes = books.flushes;
            books.replaced.push(Replaced { block: at.block, frame, flushes });
        }
    }
}
