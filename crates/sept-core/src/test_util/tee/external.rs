//! [`External`] for [`MockTee`].

use super::{MockFault, MockOp, MockPages, MockRefusal, MockTee, MockTicket, Model};
use crate::{
    CacheKey, Donated, External, Fill, Frame, FrameKind, FrameNeeds, FrameStore, GpaEntry, Hpa, LeafState,
    Level, Observed, Returned, Tainted,
};

impl MockTee {
    /// Whether a table below `at` comes with metadata pages.
    fn pair(&self, at: GpaEntry, backing: Option<Hpa>) -> bool {
        self.metadata && at.level() == Level::L2M && backing.is_some()
    }

    /// A call that consumes pages.
    fn consume(
        &self,
        op: MockOp,
        at: GpaEntry,
        mut pages: MockPages,
        change: impl FnOnce(&mut Model, Donated),
    ) -> Result<(), Returned<MockRefusal, MockPages>> {
        let _around = self.around(op);
        let mut state = self.state();
        if let Err(fault) = state.enter(op) {
            pages.written |= fault == MockFault::BusyAfterWrite;
            return Err(Returned { error: fault.into(), held: pages });
        }
        let verdict = state.model.check(op, at);
        let verdict = match verdict {
            Ok(()) if state.model.hold_all(&pages.list()) => Ok(()),
            Ok(()) => Err(MockRefusal::Page),
            Err(why) => Err(why),
        };
        if let Err(why) = verdict {
            return Err(Returned { error: state.refuse(op, why), held: pages });
        }
        change(&mut state.model, pages.donated());
        Ok(())
    }
}

impl External for MockTee {
    type Error = MockRefusal;
    type Pages = MockPages;
    type Ticket = MockTicket;

    fn max_map(&self) -> Level {
        Level::L2M
    }

    fn max_leaf(&self) -> Level {
        Level::L1G
    }

    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds {
        let metadata = if self.pair(at, backing) { 2 } else { 0 };
        FrameNeeds::of(FrameKind::TeeTable, 1).plus(FrameNeeds::of(FrameKind::TeeMetadata, metadata))
    }

    fn gather(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Option<MockPages> {
        let need = self.table_cost(at, backing);
        if FrameKind::ALL.iter().any(|&kind| from.count(kind) < need[kind]) {
            return None;
        }
        let table = from.get(FrameKind::TeeTable)?;
        let metadata =
            (0..need[FrameKind::TeeMetadata]).filter_map(|_| from.get(FrameKind::TeeMetadata)).collect();
        Some(MockPages { table, metadata, written: false })
    }

    fn addresses(&self, pages: &MockPages) -> Donated {
        pages.donated()
    }

    fn scatter(
        &self,
        pages: MockPages,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    ) {
        let table = if pages.written {
            let page = pages.table.taint();
            self.state().written_back.push((page.hpa(), page.level(), CacheKey::Guest));
            scrub(page)
        } else {
            pages.table
        };
        // A store that refuses the frame it just gave out loses it; the page source's count then shows it.
        drop(to.put(FrameKind::TeeTable, table));
        for page in pages.metadata {
            drop(to.put(FrameKind::TeeMetadata, page));
        }
    }

    fn link(
        &self,
        at: GpaEntry,
        _backing: Option<Hpa>,
        pages: MockPages,
    ) -> Result<(), Returned<MockRefusal, MockPages>> {
        self.consume(MockOp::Link, at, pages, |model, donated| model.link(at, donated))
    }

    fn unlink(&self, at: GpaEntry, _backing: Option<Hpa>) -> Result<Donated, MockRefusal> {
        let _around = self.around(MockOp::Unlink);
        let mut state = self.state();
        state.begin(MockOp::Unlink, at)?;
        let truth = state.model.unlink(at);
        Ok(state.report(truth))
    }

    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<MockRefusal, Frame>> {
        let _around = self.around(MockOp::Map);
        let mut state = self.state();
        if let Err(error) = state.begin(MockOp::Map, at) {
            return Err(Returned { error, held: page });
        }
        let small = fill == Fill::OnAccept || at.level() == Level::L4K;
        if page.level() != at.level() || !small || !state.model.hold(page.hpa(), page.level()) {
            let error = state.refuse(MockOp::Map, MockRefusal::Page);
            return Err(Returned { error, held: page });
        }
        let accepted = if fill == Fill::OnAccept { LeafState::Pending } else { LeafState::Mapped };
        state.model.map(at, page.hpa(), accepted);
        Ok(())
    }

    fn unmap(&self, at: GpaEntry, expect: Hpa) -> Result<(), MockRefusal> {
        let _around = self.around(MockOp::Unmap);
        let mut state = self.state();
        state.begin(MockOp::Unmap, at)?;
        if state.model.page_at(at).is_none_or(|page| page.hpa != expect.raw()) {
            return Err(state.refuse(MockOp::Unmap, MockRefusal::Page));
        }
        state.model.unmap(at);
        Ok(())
    }

    fn block(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        let _around = self.around(MockOp::Block);
        let mut state = self.state();
        state.begin(MockOp::Block, at)?;
        state.model.block(at);
        Ok(())
    }

    fn unblock(&self, at: GpaEntry) -> Result<(), MockRefusal> {
        let _around = self.around(MockOp::Unblock);
        let mut state = self.state();
        state.begin(MockOp::Unblock, at)?;
        state.model.unblock(at);
        Ok(())
    }

    fn fence(&self) -> Result<MockTicket, MockRefusal> {
        let _around = self.around(MockOp::Fence);
        let mut state = self.state();
        state.enter(MockOp::Fence).map_err(MockRefusal::from)?;
        state.model.fences_started = state.model.fences_started.saturating_add(1);
        if !state.held {
            state.model.fences_ended = state.model.fences_started;
        }
        Ok(MockTicket { tee: true, number: state.model.fences_started })
    }

    fn grace(&self) -> MockTicket {
        let mut state = self.state();
        state.graces_started = state.graces_started.saturating_add(1);
        if !state.held {
            state.graces_ended = state.graces_started;
        }
        MockTicket { tee: false, number: state.graces_started }
    }

    fn fenced(&self, ticket: MockTicket) -> bool {
        let state = self.state();
        ticket.number <= if ticket.tee { state.model.fences_ended } else { state.graces_ended }
    }

    fn split(&self, at: GpaEntry, pages: MockPages) -> Result<(), Returned<MockRefusal, MockPages>> {
        self.consume(MockOp::Split, at, pages, |model, donated| model.split(at, donated))
    }

    fn merge(&self, at: GpaEntry, backing: Hpa) -> Result<Donated, MockRefusal> {
        let _around = self.around(MockOp::Merge);
        let mut state = self.state();
        state.begin(MockOp::Merge, at)?;
        let truth = state.model.merge(at)?;
        if state.model.page_at(at).is_none_or(|page| page.hpa != backing.raw()) {
            state.refuse(MockOp::Merge, MockRefusal::Page);
        }
        Ok(state.report(truth))
    }

    fn probe(&self, at: GpaEntry) -> Result<Observed, MockRefusal> {
        let _around = self.around(MockOp::Probe);
        let mut state = self.state();
        state.enter(MockOp::Probe).map_err(MockRefusal::from)?;
        let model = &state.model;
        Ok(match (model.walk(at), model.page_at(at)) {
            (Err(_), _) => Observed::Hidden,
            (Ok(()), Some(page)) => Observed::Leaf(page.state),
            (Ok(()), None) if model.is_table(at) => Observed::Table,
            (Ok(()), None) => Observed::Free,
        })
    }

    fn write_back(&self, page: &Frame<Tainted>, key: CacheKey) -> Result<(), MockRefusal> {
        let _around = self.around(MockOp::WriteBack);
        let mut state = self.state();
        state.enter(MockOp::WriteBack).map_err(MockRefusal::from)?;
        state.written_back.push((page.hpa(), page.level(), key));
        Ok(())
    }
}
