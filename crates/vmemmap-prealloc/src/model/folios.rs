//! The model's folios and page index.

use super::{
    HostModel, State, StructPage,
    block::tail_value,
    page::{base_refs, frozen},
};
use folio_split::{CostModel, FolioBackend, OutOfNodes, Pfn, PfnBlock, Pinned, XArray};
use std::{format, vec::Vec};

/// Reserved index nodes of the model.
#[derive(Debug, Default)]
#[must_use = "dropping a reservation leaks its nodes"]
pub struct Nodes {
    count: u64,
}

/// A frozen block of the model.
#[derive(Debug)]
#[must_use = "dropping it leaves the folios frozen"]
pub struct Frozen {
    whole: PfnBlock,
}

impl State {
    /// The folios inside `whole` as their heads tell, by page number in the block; `Err` with the page whose
    /// `struct page` is no head.
    fn heads(&self, base: u64, whole: PfnBlock) -> Result<Vec<(u64, u8, bool, u32)>, u64> {
        let mut heads = Vec::new();
        let start = whole.base().raw() - base;
        let mut page = start;
        while page < start + whole.pages() {
            match self.read(base, page) {
                Some(StructPage::Head { order, poisoned, refs })
                    if page + (1 << order) <= start + whole.pages() =>
                {
                    heads.push((page, order, poisoned, refs));
                    page += 1 << order;
                }
                _ => return Err(page),
            }
        }
        Ok(heads)
    }

    /// Writes head and tails of a frozen folio as far as its `struct page`s are its own.
    fn write_folio(&mut self, host: &HostModel, base: u64, folio: PfnBlock) {
        let Some(block) = self.blocks.get_mut(&base) else { return };
        let head = folio.base().raw() - base;
        let order = folio.order().raw();
        let scheme = block.is_paged().then(|| host.geometry.tails());
        let pages = if block.optimized && host.geometry.kept(folio.order()) > 0 {
            folio.pages().min(host.geometry.kept(folio.order()) * self.structs)
        } else {
            folio.pages()
        };
        if block.poisoned.range(head..head + folio.pages()).next().is_some() && order > 0 {
            self.violate(format!("a broken page lies in folio {folio}"));
        }
        let tail = tail_value(scheme, head, order);
        let values = core::iter::once(frozen(order)).chain((1..pages).map(|_| tail));
        self.write_run(base, head, values);
    }
}

impl FolioBackend for HostModel {
    type Nodes = Nodes;
    type Frozen = Frozen;

    fn index(&self) -> &dyn CostModel {
        &XArray::LINUX
    }

    fn reserve_nodes(&self, nodes: &mut Nodes, near: PfnBlock, count: u64) -> Result<(), OutOfNodes> {
        let mut state = self.lock();
        if let Some(limit) = &mut state.node_limit {
            *limit = limit.checked_sub(count).ok_or(OutOfNodes { near, count })?;
        }
        nodes.count += count;
        state.counters.reserved_nodes += count;
        Ok(())
    }

    fn nodes_left(&self, nodes: &Nodes) -> u64 {
        nodes.count
    }

    fn release_nodes(&self, nodes: Nodes) {
        let mut state = self.lock();
        state.counters.reserved_nodes -= nodes.count;
        if let Some(limit) = &mut state.node_limit {
            *limit += nodes.count;
        }
    }

    fn freeze(&self, whole: PfnBlock, _tries: u32) -> Result<Frozen, Pinned> {
        let mut state = self.lock();
        let first = whole.base();
        let Some((base, _)) = state.locate(first) else { return Err(Pinned { first }) };
        let heads = match state.heads(base, whole) {
            Ok(heads) => heads,
            Err(page) => {
                state.violate(format!("page {page} of block {base:#x} is no head inside {whole}"));
                return Err(Pinned { first: Pfn::new(base + page).unwrap_or(first) });
            }
        };
        if let Some(&(page, ..)) = heads.iter().find(|&&(_, order, _, refs)| refs != base_refs(order)) {
            return Err(Pinned { first: Pfn::new(base + page).unwrap_or(first) });
        }
        for (page, order, poisoned, _) in heads {
            state.write(base, page, StructPage::Head { order, poisoned, refs: 0 });
        }
        if let Some(block) = state.blocks.get_mut(&base) {
            block.frozen.push(whole);
        }
        Ok(Frozen { whole })
    }

    fn split(&self, frozen: &mut Frozen, piece: PfnBlock, nodes: &mut Nodes) {
        let mut state = self.lock();
        let Some((base, _)) = state.locate(piece.base()) else { return };
        if !frozen.whole.contains(piece) {
            state.violate(format!("{piece} is not in {}, which is frozen", frozen.whole));
        }
        state.write_folio(self, base, piece);
        let Some(block) = state.blocks.get_mut(&base) else { return };
        let before = nodes.count;
        let stored = block.tree().store(piece.base().raw() - base, piece.order().raw(), &mut nodes.count);
        let used = before - nodes.count;
        state.counters.reserved_nodes -= used;
        state.counters.index_nodes += used;
        match stored {
            Ok(freed) => state.counters.index_nodes -= freed,
            Err(()) => state.violate(format!("no index node reserved for {piece}")),
        }
    }

    fn merge(&self, frozen: &mut Frozen, whole: PfnBlock, nodes: &mut Nodes) -> u64 {
        let mut state = self.lock();
        let Some((base, _)) = state.locate(whole.base()) else { return 0 };
        if frozen.whole != whole {
            state.violate(format!("{whole} merged while {} is frozen", frozen.whole));
        }
        state.write_folio(self, base, whole);
        let Some(block) = state.blocks.get_mut(&base) else { return 0 };
        let mut none = 0;
        let freed = block.tree().store(whole.base().raw() - base, whole.order().raw(), &mut none);
        match freed {
            Ok(freed) => {
                state.counters.index_nodes -= freed;
                state.counters.reserved_nodes += freed;
                nodes.count += freed;
                freed
            }
            Err(()) => {
                state.violate(format!("no index node for {whole}"));
                0
            }
        }
    }

    fn thaw(&self, frozen: Frozen) {
        let mut state = self.lock();
        let whole = frozen.whole;
        let Some((base, first)) = state.locate(whole.base()) else { return };
        let pages = first / state.structs..(first + whole.pages()).div_ceil(state.structs);
        if let Some((&(_, index), _)) = state.stale.range((base, pages.start)..(base, pages.end)).next() {
            state.violate(format!("{whole} thawed while entry {index} is not flushed"));
        }
        match state.heads(base, whole) {
            Ok(heads) => {
                for (page, order, poisoned, _) in heads {
                    state.write(base, page, StructPage::Head { order, poisoned, refs: base_refs(order) });
                }
            }
            Err(page) => state.violate(format!("page {page} of block {base:#x} is no head inside {whole}")),
        }
        if let Some(block) = state.blocks.get_mut(&base) {
            block.frozen.retain(|&other| other != whole);
            block.entries.shrink();
        }
    }
}
