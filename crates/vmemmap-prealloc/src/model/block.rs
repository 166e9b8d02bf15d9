//! One block of the model, and access to its `struct page`s through their mapping.

use super::{
    Held, State,
    page::{Page, StructPage, base_refs},
    template_key,
    tree::Tree,
};
use crate::{Geometry, NumaNode, Tail, TailScheme};
use folio_split::{Order, Pfn, PfnBlock};
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec,
    vec::Vec,
};

/// An entry of the vmemmap's page tables: an address, and whether stores are allowed.
pub(super) const WRITABLE: u64 = 1;

/// The entries of one block. A block that is one folio needs two words.
#[derive(Debug)]
pub(super) struct Entries {
    first: u64,
    rest: u64,
    len: u64,
    each: Option<Vec<u64>>,
}

impl Entries {
    fn new(len: u64) -> Self {
        Self { first: 0, rest: 0, len, each: None }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn get(&self, index: u64) -> u64 {
        match &self.each {
            Some(each) => each.get(index as usize).copied().unwrap_or(0),
            None if index == 0 => self.first,
            None => self.rest,
        }
    }

    /// Makes all entries but the first the same, if nothing else is known about them yet.
    pub(super) fn set_uniform(&mut self, entry: u64) -> bool {
        if self.each.is_none() {
            self.rest = entry;
        }
        self.each.is_none()
    }

    pub(super) fn set(&mut self, index: u64, entry: u64) {
        if index == 0 {
            self.first = entry;
        } else if self.each.is_none() && self.rest != entry {
            let mut each = vec![self.rest; self.len as usize];
            each[0] = self.first;
            self.each = Some(each);
        }
        if let Some(slot) = self.each.as_mut().and_then(|each| each.get_mut(index as usize)) {
            *slot = entry;
        }
    }

    /// Forgets single entries if they are all alike again.
    pub(super) fn shrink(&mut self) {
        let Some(each) = &self.each else { return };
        let mut rest = each.iter().skip(1);
        let Some(&one) = rest.next() else { return };
        if rest.all(|&entry| entry == one) {
            (self.rest, self.each) = (one, None);
        }
    }
}

/// A page that was replaced, and the flush that must follow.
#[derive(Debug)]
pub(super) struct Replaced {
    pub(super) hpa: u64,
    pub(super) epoch: u64,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) block: PfnBlock,
    /// Order of its folios when it was added.
    top: Order,
    pub(super) optimized: bool,
    pub(super) node: NumaNode,
    /// Boot memory that holds the `struct page`s of a plain block; `None` until one is written.
    flat: Option<Box<[StructPage]>>,
    pub(super) entries: Entries,
    pub(super) replaced: Vec<Replaced>,
    /// `None` while the block is one folio and was never divided.
    pub(super) tree: Option<Tree>,
    pub(super) pins: BTreeMap<u64, u32>,
    pub(super) poisoned: BTreeSet<u64>,
    pub(super) frozen: Vec<PfnBlock>,
}

impl Block {
    pub(super) fn flat(block: PfnBlock, top: Order) -> Self {
        Self::with(block, top, false, 0)
    }

    pub(super) fn paged(block: PfnBlock, top: Order, optimized: bool, entries: u64) -> Self {
        Self::with(block, top, optimized, entries)
    }

    fn with(block: PfnBlock, top: Order, optimized: bool, entries: u64) -> Self {
        Self {
            block,
            top,
            optimized,
            node: NumaNode::default(),
            flat: None,
            entries: Entries::new(entries),
            replaced: Vec::new(),
            tree: None,
            pins: BTreeMap::new(),
            poisoned: BTreeSet::new(),
            frozen: Vec::new(),
        }
    }

    /// Whether the `struct page`s lie in pages that are mapped one by one.
    pub(super) const fn is_paged(&self) -> bool {
        self.entries.len() > 0
    }

    /// A page of the block as it was when the block was added.
    fn initial(&self, scheme: Option<TailScheme>, page: u64) -> StructPage {
        let head = page & !(self.top.pages() - 1);
        if head == page {
            let order = self.top.raw();
            return StructPage::Head { order, poisoned: false, refs: base_refs(order) };
        }
        tail_value(scheme, head, self.top.raw())
    }

    pub(super) fn initial_content(&self, geometry: &Geometry, index: u64, content: &mut Page) {
        for (page, slot) in (index << geometry.structs().raw()..).zip(content) {
            *slot = self.initial(Some(geometry.tails()), page);
        }
    }

    /// The `struct page`s of boot memory, from now on one by one.
    fn flat_pages(&mut self) -> &mut [StructPage] {
        if self.flat.is_none() {
            self.flat = Some((0..self.block.pages()).map(|page| self.initial(None, page)).collect());
        }
        self.flat.as_deref_mut().unwrap_or_default()
    }

    pub(super) fn load_index(&self, page: u64) -> Option<(u64, u8)> {
        match &self.tree {
            Some(tree) => tree.load(page),
            None => Some((page & !(self.top.pages() - 1), self.top.raw())),
        }
    }

    /// The tree, made from the folios the block was added with.
    pub(super) fn tree(&mut self) -> &mut Tree {
        let (block, top) = (self.block, self.top);
        self.tree.get_or_insert_with(|| {
            let mut tree = Tree::new(block.order().raw());
            let mut budget = u64::MAX;
            for base in (0..block.pages()).step_by(top.pages() as usize) {
                let _ = tree.store(base, top.raw(), &mut budget);
            }
            tree
        })
    }

    /// Whether vmemmap page `index` belongs to folios that are all frozen.
    pub(super) fn covers_frozen(&self, index: u64, structs: u64) -> bool {
        let first = self.block.base().raw() + index * structs;
        let last = first + structs - 1;
        let frozen =
            |page| Pfn::new(page).is_some_and(|pfn| self.frozen.iter().any(|whole| whole.contains_pfn(pfn)));
        frozen(first) && frozen(last)
    }
}

/// A tail as the scheme writes it. Plain blocks (`None`) have tails with their order.
pub(super) fn tail_value(scheme: Option<TailScheme>, head: u64, order: u8) -> StructPage {
    match scheme {
        None | Some(TailScheme::PerOrder) => StructPage::Tail { order },
        Some(TailScheme::OrderFree) => StructPage::AnyTail,
        Some(TailScheme::SharedWithHead) => {
            StructPage::TailOf { head: u32::try_from(head).unwrap_or(u32::MAX) }
        }
    }
}

impl State {
    pub(super) fn violate(&mut self, what: String) {
        // The first hundred tell the story.
        if self.violations.len() < 100 {
            self.violations.push(what);
        }
    }

    /// A page of the vmemmap in which all are alike.
    pub(super) fn tails(&self, one: StructPage) -> Box<Page> {
        vec![one; self.structs as usize].into_boxed_slice()
    }

    /// The block of a page, by its first page, and the page's number in it.
    pub(super) fn locate(&self, pfn: Pfn) -> Option<(u64, u64)> {
        let (&base, block) = self.blocks.range(..=pfn.raw()).next_back()?;
        Some((base, block.block.offset_of(pfn)?))
    }

    /// The entry that maps a tail.
    pub(super) fn tail_entry(&self, block: &Block, tail: Tail) -> u64 {
        match (tail, template_key(tail)) {
            (Tail::HeadPage(index), _) => block.entries.get(index) & !WRITABLE,
            (_, Some(key)) => self.templates.get(&key).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Reads a `struct page` through its mapping.
    pub(super) fn read(&self, base: u64, page: u64) -> Option<StructPage> {
        let block = self.blocks.get(&base)?;
        if !block.is_paged() {
            return match &block.flat {
                Some(flat) => flat.get(page as usize).copied(),
                None => Some(block.initial(None, page)),
            };
        }
        let held = self.memory.get(&(block.entries.get(page / self.structs) & !WRITABLE))?;
        held.content.get((page % self.structs) as usize).copied()
    }

    /// Reads a page of the vmemmap through its mapping.
    pub(super) fn read_page(&self, base: u64, index: u64) -> Option<&Page> {
        let block = self.blocks.get(&base)?;
        Some(&self.memory.get(&(block.entries.get(index) & !WRITABLE))?.content)
    }

    /// The head that a reader finds.
    pub(super) fn head_of(&self, base: u64, page: u64) -> Option<u64> {
        match self.read(base, page)? {
            StructPage::Head { .. } => Some(match self.read(base, page + 1) {
                // The image of a head: the page after it is a tail of another one (page_fixed_fake_head).
                Some(StructPage::TailOf { head })
                    if page.is_multiple_of(self.structs) && u64::from(head) != page =>
                {
                    u64::from(head)
                }
                _ => page,
            }),
            StructPage::Tail { order } => Some(page & !((1 << order) - 1)),
            StructPage::TailOf { head } => Some(u64::from(head)),
            StructPage::AnyTail => Some(self.blocks.get(&base)?.load_index(page)?.0),
        }
    }

    /// Stores to a `struct page` through its mapping.
    pub(super) fn write(&mut self, base: u64, page: u64, value: StructPage) {
        self.write_run(base, page, core::iter::once(value));
    }

    /// Stores to consecutive `struct page`s through their mapping.
    pub(super) fn write_run(&mut self, base: u64, page: u64, values: impl Iterator<Item = StructPage>) {
        let Some(block) = self.blocks.get_mut(&base) else { return };
        if !block.is_paged() {
            let flat = block.flat_pages();
            for (slot, value) in flat.iter_mut().skip(page as usize).zip(values) {
                *slot = value;
            }
            return;
        }
        let mut values = values.peekable();
        let mut page = page;
        while values.peek().is_some() {
            let index = page / self.structs;
            let entry = self.blocks.get(&base).map_or(0, |block| block.entries.get(index));
            if entry & WRITABLE == 0 {
                self.violate(format!("store through read-only entry {index} of block {base:#x}"));
                return;
            }
            if self.stale.contains_key(&(base, index)) {
                self.violate(format!("store through entry {index} of block {base:#x} before the flush"));
            }
            let skip = (page % self.structs) as usize;
            let Some(Held { content, .. }) = self.memory.get_mut(&(entry & !WRITABLE)) else {
                self.violate(format!("entry {index} of block {base:#x} maps no memory"));
                return;
            };
            for (slot, value) in content.iter_mut().skip(skip).zip(&mut values) {
                *slot = value;
            }
            page = (index + 1) * self.structs;
        }
    }
}
