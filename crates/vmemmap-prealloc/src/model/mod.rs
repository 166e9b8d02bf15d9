//! A host in plain memory, for tests: folios, page index and vmemmap as data.
//!
//! [`HostModel`] keeps every `struct page` of every block where a host would keep it: in pages of the vmemmap that
//! came from a page source, reached through entries that may be read-only, with templates for the tails. It reads
//! them back through those entries, so a forgotten copy, a wrong template or a write through a tail mapping shows
//! as what it is. The index is a tree with real nodes: their number is measured.
//!
//! What no correct caller does is recorded as a *violation*: a store through a read-only entry or before the flush,
//! an entry changed while its folio is not frozen, a thaw before the flush, a head published with references, an
//! allocation inside a commit.
//!
//! All methods take `&self`; one lock protects the whole.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test double that overflows or misses an index has found a fault"
)]

mod block;
mod check;
mod folios;
mod page;
mod readers;
mod tree;
mod vmemmap;

pub use self::{
    folios::{Frozen, Nodes},
    page::StructPage,
    vmemmap::{Flushed, Fresh},
};

use self::block::Block;
use crate::{Geometry, NumaNode, RegisterError, Tail, install_tables};
use folio_split::{OrderSet, Pfn, PfnBlock};
use sept_core::{Frame, FrameKind, FrameSource};
use std::{
    boxed::Box,
    collections::{BTreeMap, HashMap},
    format,
    string::String,
    sync::{Mutex, MutexGuard, PoisonError},
    vec::Vec,
};

/// A host: folios, page index and vmemmap. See the [module](self).
#[derive(Debug)]
pub struct HostModel {
    geometry: Geometry,
    orders: OrderSet,
    state: Mutex<State>,
}

/// What the model counts. Pages and nodes are numbers in use now, the others are totals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Pages of the vmemmap that came from a source and are mapped.
    pub vmemmap_pages: u64,
    /// Pages of the vmemmap that were replaced and not released yet.
    pub replaced_pages: u64,
    /// Page tables of the vmemmap.
    pub tables: u64,
    /// Tail templates.
    pub templates: u64,
    /// Index nodes in trees.
    pub index_nodes: u64,
    /// Index nodes in reservations.
    pub reserved_nodes: u64,
    /// Entries of the vmemmap's page tables written.
    pub entry_writes: u64,
    /// Flushes.
    pub flushes: u64,
}

impl Counters {
    /// The numbers in use, without the totals: equal before and after a way there and back.
    #[must_use]
    pub const fn in_use(self) -> Self {
        Self { entry_writes: 0, flushes: 0, ..self }
    }
}

/// A page of memory that holds `struct page`s.
#[derive(Debug)]
struct Held {
    frame: Frame,
    content: Box<page::Page>,
}

#[derive(Debug)]
struct State {
    /// `struct page`s in a page of the vmemmap.
    structs: u64,
    blocks: BTreeMap<u64, Block>,
    /// Pages of the vmemmap and templates, by address.
    memory: HashMap<u64, Held>,
    /// Templates by order (0xff: any order): their address. One zone.
    templates: BTreeMap<u8, u64>,
    /// Page tables by the number of the piece of memory they describe.
    tables: BTreeMap<u64, Frame>,
    /// Entries changed since the last flush, by first page of the block and index: what they were, and may still be
    /// for another CPU.
    stale: BTreeMap<(u64, u64), Vec<u64>>,
    /// Number of flushes so far.
    epoch: u64,
    /// Index nodes that may still be reserved; `None`: any number.
    node_limit: Option<u64>,
    counters: Counters,
    violations: Vec<String>,
}

/// The key of a template in [`State::templates`]; `None` for a tail that needs none.
fn template_key(tail: Tail) -> Option<u8> {
    match tail {
        Tail::Template(order) => Some(order.raw()),
        Tail::AnyTemplate => Some(u8::MAX),
        Tail::HeadPage(_) => None,
    }
}

impl HostModel {
    /// A host whose folios have the orders of `orders`.
    #[must_use]
    pub fn new(geometry: Geometry, orders: OrderSet) -> Self {
        let state = State {
            structs: geometry.structs().pages(),
            blocks: BTreeMap::new(),
            memory: HashMap::new(),
            templates: BTreeMap::new(),
            tables: BTreeMap::new(),
            stale: BTreeMap::new(),
            epoch: 0,
            node_limit: None,
            counters: Counters::default(),
            violations: Vec::new(),
        };
        Self { geometry, orders, state: Mutex::new(state) }
    }

    /// The orders that folios may have.
    #[must_use]
    pub const fn orders(&self) -> OrderSet {
        self.orders
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a block without the optimization. Its vmemmap is boot memory: not counted, and never shared.
    pub fn add_plain_block(&self, block: PfnBlock) {
        let block = Block::flat(block, self.orders.largest_within(block.order()));
        self.lock().blocks.insert(block.block.base().raw(), block);
    }

    /// Adds a block whose vmemmap is all its own, page by page from `source`, and can be optimized.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoFrame`]: pages and tables taken have gone back, or stay for the next call.
    pub fn add_boot_block(&self, block: PfnBlock, source: &dyn FrameSource) -> Result<(), RegisterError> {
        self.add_paged(block, source, false)
    }

    /// Adds a block that is optimized from the start: its own pages and missing tables come from `source`.
    /// Blocks too small to have vmemmap pages of their own are added as plain ones.
    ///
    /// The templates of the zone must be there ([`crate::install_templates`]).
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoFrame`]: pages taken have gone back; tables stay for the next call.
    pub fn add_block(&self, block: PfnBlock, source: &dyn FrameSource) -> Result<(), RegisterError> {
        install_tables(self, block, source)?;
        self.add_paged(block, source, true)
    }

    fn add_paged(
        &self,
        block: PfnBlock,
        source: &dyn FrameSource,
        optimized: bool,
    ) -> Result<(), RegisterError> {
        if self.geometry.vmemmap_pages(block.order()) == 0 {
            self.add_plain_block(block);
            return Ok(());
        }
        let top = self.orders.largest_within(block.order());
        let all = self.geometry.vmemmap_pages(block.order());
        let step = self.geometry.vmemmap_pages(top).max(1);
        let kept = if optimized { self.geometry.kept(top).max(1) } else { step };
        let own: Vec<u64> = (0..all).filter(|index| index % step < kept).collect();
        let mut frames = Vec::new();
        for _ in &own {
            match source.take(FrameKind::Vmemmap, block.base().hpa()) {
                Some(frame) => frames.push(frame),
                None => {
                    frames.into_iter().for_each(|frame| source.give(FrameKind::Vmemmap, frame));
                    return Err(RegisterError::NoFrame { kind: FrameKind::Vmemmap, near: block });
                }
            }
        }
        let mut state = self.lock();
        state.counters.vmemmap_pages += own.len() as u64;
        let mut new = Block::paged(block, top, optimized, all);
        for (index, frame) in own.into_iter().zip(frames) {
            let mut content = state.tails(StructPage::AnyTail);
            new.initial_content(&self.geometry, index, &mut content);
            new.entries.set(index, frame.hpa().raw() | block::WRITABLE);
            state.memory.insert(frame.hpa().raw(), Held { frame, content });
        }
        if optimized {
            for index in (0..all).filter(|index| index % step >= kept) {
                let folio =
                    block.part((index / step * step) << self.geometry.structs().raw(), top).unwrap_or(block);
                let entry = state.tail_entry(&new, self.geometry.tail_of(block, folio));
                // The first one makes the rest of a block that is one folio.
                if !new.entries.set_uniform(entry) {
                    new.entries.set(index, entry);
                } else {
                    break;
                }
            }
        }
        state.blocks.insert(block.base().raw(), new);
        Ok(())
    }

    /// Says which NUMA node the vmemmap of a block is to come from. Node 0 unless it is said.
    pub fn set_node(&self, block: PfnBlock, node: NumaNode) {
        if let Some(block) = self.lock().blocks.get_mut(&block.base().raw()) {
            block.node = node;
        }
    }

    /// Takes a reference on the folio of `pfn` as a reader does: read the head, try to get it, read the head again.
    /// False if the folio is frozen or unknown.
    #[must_use]
    pub fn pin(&self, pfn: Pfn) -> bool {
        let mut state = self.lock();
        let Some((base, page)) = state.locate(pfn) else { return false };
        let Some(head) = state.head_of(base, page) else { return false };
        let Some(StructPage::Head { order, poisoned, refs: refs @ 1.. }) = state.read(base, head) else {
            return false;
        };
        state.write(base, head, StructPage::Head { order, poisoned, refs: refs + 1 });
        if let Some(block) = state.blocks.get_mut(&base) {
            *block.pins.entry(page).or_insert(0) += 1;
        }
        true
    }

    /// Drops a reference that [`HostModel::pin`] took. False if there is none.
    #[must_use]
    pub fn unpin(&self, pfn: Pfn) -> bool {
        let mut state = self.lock();
        let Some((base, page)) = state.locate(pfn) else { return false };
        let Some(block) = state.blocks.get_mut(&base) else { return false };
        match block.pins.get_mut(&page) {
            None => return false,
            Some(1) => drop(block.pins.remove(&page)),
            Some(pins) => *pins -= 1,
        }
        if let Some(head) = state.head_of(base, page)
            && let Some(StructPage::Head { order, poisoned, refs: refs @ 1.. }) = state.read(base, head)
        {
            state.write(base, head, StructPage::Head { order, poisoned, refs: refs - 1 });
        }
        true
    }

    /// References that readers hold on `pfn`.
    #[must_use]
    pub fn pins(&self, pfn: Pfn) -> u32 {
        let state = self.lock();
        let pins =
            state.locate(pfn).and_then(|(base, page)| state.blocks.get(&base)?.pins.get(&page).copied());
        pins.unwrap_or(0)
    }

    /// The first pinned page of `pages` of a block, numbered from its start.
    #[must_use]
    pub fn first_pinned(&self, block: PfnBlock, pages: core::ops::Range<u64>) -> Option<Pfn> {
        let state = self.lock();
        let page = *state.blocks.get(&block.base().raw())?.pins.range(pages).next()?.0;
        Pfn::new(block.base().raw() + page)
    }

    /// Marks the memory of `pfn` as broken in its `struct page`. That is legal only where the page owns it: false,
    /// and a violation, if `pfn` is not a folio of its own.
    #[must_use]
    pub fn poison(&self, pfn: Pfn) -> bool {
        let mut state = self.lock();
        let Some((base, page)) = state.locate(pfn) else { return false };
        match state.read(base, page) {
            Some(StructPage::Head { order: 0, refs, .. }) => {
                state.write(base, page, StructPage::Head { order: 0, poisoned: true, refs });
                if let Some(block) = state.blocks.get_mut(&base) {
                    block.poisoned.insert(page);
                }
                true
            }
            other => {
                state.violate(format!("page {pfn} marked as broken in a struct page not its own: {other:?}"));
                false
            }
        }
    }

    /// The `struct page` of `pfn`, read through the mapping.
    #[must_use]
    pub fn read(&self, pfn: Pfn) -> Option<StructPage> {
        let state = self.lock();
        let (base, page) = state.locate(pfn)?;
        state.read(base, page)
    }

    /// The head that a reader finds for `pfn`.
    #[must_use]
    pub fn head_of(&self, pfn: Pfn) -> Option<Pfn> {
        let state = self.lock();
        let (base, page) = state.locate(pfn)?;
        Pfn::new(base + state.head_of(base, page)?)
    }

    /// The order and first page of the folio that the index has for `pfn`.
    #[must_use]
    pub fn index_entry(&self, pfn: Pfn) -> Option<PfnBlock> {
        let state = self.lock();
        let (base, page) = state.locate(pfn)?;
        let (head, order) = state.blocks.get(&base)?.load_index(page)?;
        PfnBlock::new(Pfn::new(base + head)?, folio_split::Order::new(order)?)
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Lets only so many index nodes be reserved from here on; `None` lifts the limit.
    pub fn limit_nodes(&self, limit: Option<u64>) {
        self.lock().node_limit = limit;
    }

    /// What no correct caller does, as far as it happened.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Stores to a `struct page` as a stray pointer would.
    pub fn scribble(&self, pfn: Pfn, value: StructPage) {
        let mut state = self.lock();
        if let Some((base, page)) = state.locate(pfn) {
            state.write(base, page, value);
        }
    }
}
