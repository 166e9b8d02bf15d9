//! Comparing everything a block holds with the layout it should have.

use super::{
    HostModel, State, StructPage,
    block::{Block, WRITABLE, tail_value},
    page::base_refs,
};
use crate::TailScheme;
use folio_split::{CostModel, FolioLayout, PageSet, PfnBlock, XArray};
use std::{collections::HashSet, format, string::String};

impl HostModel {
    /// Reads all `struct page`s and the index of a block that is not frozen, and compares them with `layout`, the
    /// pins and the poisoned pages; counts its own vmemmap pages and its index nodes.
    ///
    /// # Errors
    ///
    /// The first difference, in words.
    pub fn check<S: PageSet>(&self, layout: &FolioLayout<S>) -> Result<(), String> {
        let state = self.lock();
        let name = layout.block();
        let block = state.blocks.get(&name.base().raw()).filter(|block| block.block == name);
        let block = block.ok_or_else(|| format!("block {name} is unknown"))?;
        if let Some(frozen) = block.frozen.first() {
            return Err(format!("{frozen} is still frozen"));
        }
        for folio in layout.folios(0) {
            state.check_folio(self, block, folio)?;
        }
        let counts = layout.counts();
        match &block.tree {
            Some(tree) => {
                tree.check(name, &mut layout.folios(0))?;
                let (have, want) = (tree.nodes(), XArray::LINUX.units(&counts));
                if have != want {
                    return Err(format!("{name} has {have} index nodes, not {want}"));
                }
            }
            None => {
                let offset = |folio: PfnBlock| folio.base().raw() - name.base().raw();
                let entry = |folio: PfnBlock| block.load_index(offset(folio));
                let same = |folio: PfnBlock| entry(folio) == Some((offset(folio), folio.order().raw()));
                if let Some(folio) = layout.folios(0).find(|&folio| !same(folio)) {
                    return Err(format!("the index has no entry of its own for {folio}"));
                }
            }
        }
        let want = if block.optimized { self.geometry.own_pages(&counts) } else { block.entries.len() };
        state.check_own(block, want)
    }

    /// Reads every template and compares it with what tails must be; every violation so far counts as a failure.
    ///
    /// # Errors
    ///
    /// The first difference, in words.
    pub fn check_host(&self) -> Result<(), String> {
        let state = self.lock();
        if let Some(first) = state.violations.first() {
            return Err(format!("{} violations, the first: {first}", state.violations.len()));
        }
        for (&order, hpa) in &state.templates {
            let want = if order == u8::MAX { StructPage::AnyTail } else { StructPage::Tail { order } };
            let held = state.memory.get(hpa).ok_or_else(|| format!("template {order} is gone"))?;
            if held.content.iter().any(|&page| page != want) {
                return Err(format!("template {order} was written"));
            }
        }
        Ok(())
    }
}

impl State {
    fn check_folio(&self, host: &HostModel, block: &Block, folio: PfnBlock) -> Result<(), String> {
        let base = block.block.base().raw();
        let head = folio.base().raw() - base;
        let order = folio.order().raw();
        let end = head + folio.pages();
        let pins: u32 = block.pins.range(head..end).map(|(_, pins)| pins).sum();
        let poisoned = block.poisoned.range(head..end).next().is_some();
        let want = StructPage::Head { order, poisoned, refs: base_refs(order).saturating_add(pins) };
        let have = self.read(base, head);
        if have != Some(want) || poisoned && order > 0 {
            return Err(format!("head of {folio} is {have:?}, not {want:?}"));
        }
        if order == 0 {
            return Ok(());
        }
        let wrong = |page: u64| format!("page {page:#x} of {folio} is {:?}", self.read(base, page));
        if !block.is_paged() {
            let want = tail_value(None, head, order);
            return match (head + 1..end).find(|&page| self.read(base, page) != Some(want)) {
                Some(page) => Err(wrong(page)),
                None => Ok(()),
            };
        }
        let scheme = host.geometry.tails();
        let want = tail_value(Some(scheme), head, order);
        let structs = self.structs;
        let mut page = head + 1;
        while page < end {
            let index = page / structs;
            let content = self.read_page(base, index).ok_or_else(|| wrong(page))?;
            let upto = end.min((index + 1) * structs);
            let slots = &content[(page % structs) as usize..][..(upto - page) as usize];
            if scheme == TailScheme::SharedWithHead {
                // A page of tails may show the image of its head.
                if let Some(page) = (page..upto).find(|&page| self.head_of(base, page) != Some(head)) {
                    return Err(wrong(page));
                }
            } else if slots.iter().any(|&slot| slot != want) {
                return Err(wrong(page));
            }
            page = upto;
        }
        Ok(())
    }

    /// Counts the block's own pages, each of which must be of one entry alone.
    fn check_own(&self, block: &Block, want: u64) -> Result<(), String> {
        let mut own = HashSet::new();
        for index in 0..block.entries.len() {
            let entry = block.entries.get(index);
            if entry & WRITABLE != 0 && !own.insert(entry) {
                return Err(format!("entry {index} of {} maps a page that another one has", block.block));
            }
        }
        let have = own.len() as u64;
        if have != want {
            return Err(format!("{} has {have} vmemmap pages of its own, not {want}", block.block));
        }
        Ok(())
    }
}
