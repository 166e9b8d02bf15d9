//! The model's vmemmap.

use super::{
    Held, HostModel, State, StructPage,
    block::{Replaced, WRITABLE, tail_value},
    page::{Page, frozen},
    template_key,
};
use crate::{Geometry, NumaNode, Tail, VmemmapBackend, VmemmapPage};
use folio_split::PfnBlock;
use sept_core::Frame;
use std::{boxed::Box, format, vec, vec::Vec};

/// A fresh page of the model's vmemmap.
#[derive(Debug)]
#[must_use = "dropping it leaks the page"]
pub struct Fresh {
    at: VmemmapPage,
    frame: Frame,
    content: Box<Page>,
    /// Which `struct page`s were written.
    written: Vec<bool>,
}

/// Proof of a flush: the number of flushes so far.
#[derive(Debug)]
#[must_use = "replaced pages are given up against this proof"]
pub struct Flushed(u64);

impl HostModel {
    /// Tables are shared by blocks that one table describes.
    fn table_keys(&self, block: PfnBlock) -> core::ops::Range<u64> {
        let order = self.geometry.table_order().raw();
        let range = block.range();
        range.start >> order..((range.end - 1) >> order) + 1
    }
}

impl State {
    /// Changes an entry. A page that was the block's own is kept until it is released.
    fn set_entry(&mut self, at: VmemmapPage, entry: u64) {
        let base = at.block.base().raw();
        let epoch = self.epoch;
        let Some(block) = self.blocks.get_mut(&base) else {
            self.violate(format!("entry {} of unknown block {}", at.index, at.block));
            return;
        };
        let old = block.entries.get(at.index);
        if old & WRITABLE != 0 {
            block.replaced.push(Replaced { hpa: old & !WRITABLE, epoch });
            self.counters.vmemmap_pages -= 1;
            self.counters.replaced_pages += 1;
        }
        block.entries.set(at.index, entry);
        if !block.covers_frozen(at.index, self.structs) {
            self.violate(format!("entry {} of {} changed while not frozen", at.index, at.block));
        }
        self.stale.entry((base, at.index)).or_default().push(old);
        self.counters.entry_writes += 1;
    }
}

impl VmemmapBackend for HostModel {
    type Fresh = Fresh;
    type Flushed = Flushed;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn node_of(&self, block: PfnBlock) -> NumaNode {
        self.lock().blocks.get(&block.base().raw()).map_or(NumaNode::default(), |block| block.node)
    }

    fn is_optimized(&self, block: PfnBlock) -> bool {
        self.lock().blocks.get(&block.base().raw()).is_some_and(|block| block.optimized)
    }

    fn set_optimized(&self, block: PfnBlock, optimized: bool) {
        if let Some(block) = self.lock().blocks.get_mut(&block.base().raw()) {
            block.optimized = optimized;
        }
    }

    fn has_template(&self, _near: PfnBlock, tail: Tail) -> bool {
        template_key(tail).is_none_or(|key| self.lock().templates.contains_key(&key))
    }

    fn add_template(&self, _near: PfnBlock, tail: Tail, page: Frame) -> Result<(), Frame> {
        let mut state = self.lock();
        let Some(key) = template_key(tail).filter(|key| !state.templates.contains_key(key)) else {
            return Err(page);
        };
        let hpa = page.hpa().raw();
        let value = if key == u8::MAX { StructPage::AnyTail } else { StructPage::Tail { order: key } };
        state.templates.insert(key, hpa);
        let content = state.tails(value);
        state.memory.insert(hpa, Held { frame: page, content });
        state.counters.templates += 1;
        Ok(())
    }

    fn tables_missing(&self, block: PfnBlock) -> u32 {
        let state = self.lock();
        if self.geometry.vmemmap_pages(block.order()) == 0 {
            return 0;
        }
        let missing = self.table_keys(block).filter(|key| !state.tables.contains_key(key)).count();
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    fn add_table(&self, block: PfnBlock, table: Frame) -> Result<(), Frame> {
        let mut state = self.lock();
        let Some(key) = self.table_keys(block).find(|key| !state.tables.contains_key(key)) else {
            return Err(table);
        };
        state.tables.insert(key, table);
        state.counters.tables += 1;
        Ok(())
    }

    fn maps(&self, at: VmemmapPage, tail: Tail) -> bool {
        let state = self.lock();
        let block = state.blocks.get(&at.block.base().raw());
        block.is_some_and(|block| block.entries.get(at.index) == state.tail_entry(block, tail))
    }

    fn prepare(&self, at: VmemmapPage, page: Frame) -> Fresh {
        let mut state = self.lock();
        let copy = state.read_page(at.block.base().raw(), at.index).map(Box::from);
        if copy.is_none() {
            state.violate(format!("entry {} of {} maps no memory", at.index, at.block));
        }
        let content = copy.unwrap_or_else(|| state.tails(StructPage::AnyTail));
        let written = vec![false; content.len()];
        Fresh { at, frame: page, content, written }
    }

    fn write_folio(&self, fresh: &mut Fresh, folio: PfnBlock) {
        let Some(head) = fresh.at.block.offset_of(folio.base()) else { return };
        let tail = tail_value(Some(self.geometry.tails()), head, folio.order().raw());
        let first = fresh.at.index << self.geometry.structs().raw();
        for (page, (slot, written)) in (first..).zip(fresh.content.iter_mut().zip(&mut fresh.written)) {
            if page == head {
                *slot = frozen(folio.order().raw());
            } else if page > head && page < head + folio.pages() {
                *slot = tail;
            } else {
                continue;
            }
            *written = true;
        }
    }

    fn write_tails(&self, at: VmemmapPage, folio: PfnBlock) {
        let mut state = self.lock();
        let Some(head) = at.block.offset_of(folio.base()) else { return };
        let tail = tail_value(Some(self.geometry.tails()), head, folio.order().raw());
        let structs = state.structs;
        let first = at.index * structs;
        if !(head + 1..head + folio.pages()).contains(&first) {
            state.violate(format!("{at:?} has no tails of {folio} alone"));
        }
        state.write_run(at.block.base().raw(), first, core::iter::repeat_n(tail, structs as usize));
    }

    fn map_own(&self, at: VmemmapPage, fresh: Fresh) {
        let mut state = self.lock();
        if fresh.at != at || fresh.written.contains(&false) {
            state.violate(format!(
                "page for {:?} published at {at:?} with {:?} written",
                fresh.at, fresh.written
            ));
        }
        let hpa = fresh.frame.hpa().raw();
        state.memory.insert(hpa, Held { frame: fresh.frame, content: fresh.content });
        state.counters.vmemmap_pages += 1;
        state.set_entry(at, hpa | WRITABLE);
    }

    fn map_tail(&self, at: VmemmapPage, tail: Tail) {
        let mut state = self.lock();
        let entry = state.blocks.get(&at.block.base().raw()).map_or(0, |block| state.tail_entry(block, tail));
        if entry == 0 {
            state.violate(format!("entry {} of {}: no page for {tail:?}", at.index, at.block));
        }
        state.set_entry(at, entry);
    }

    fn flush(&self) -> Flushed {
        let mut state = self.lock();
        state.stale.clear();
        state.epoch += 1;
        state.counters.flushes += 1;
        Flushed(state.epoch)
    }

    fn take_replaced(&self, block: PfnBlock, flushed: &Flushed) -> Option<Frame> {
        let mut state = self.lock();
        let replaced = &mut state.blocks.get_mut(&block.base().raw())?.replaced;
        let at = replaced.iter().rposition(|page| page.epoch < flushed.0)?;
        let hpa = replaced.swap_remove(at).hpa;
        state.counters.replaced_pages -= 1;
        let held = state.memory.remove(&hpa);
        if held.is_none() {
            state.violate(format!("a replaced page of {block} had no memory"));
        }
        held.map(|held| held.frame)
    }
}
