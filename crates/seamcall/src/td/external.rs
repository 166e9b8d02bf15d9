//! sept-core's hook trait, made of SEAMCALLs.

use super::{Notice, Observe, Td, TdError};
use crate::{
    Leaf, NULL_PA, Operand, SeamcallError, Status, Transport,
    mem::{self, Blocked, L2Mode},
    phymem,
};
use core::hint;
use sept_core::{
    CacheKey, Donated, External, Fill, Frame, FrameKind, FrameNeeds, FrameStore, GpaEntry, Hpa, Level,
    Observed, Returned, Shootdown, Tainted, TreeLock,
};

/// Pages on their way into the module for one table: its S-EPT page and, with Dynamic PAMT, the page pair of the
/// 2 MiB region that its leaves map.
#[derive(Debug)]
#[must_use = "dropping frames leaks their memory"]
pub struct TablePages {
    table: Frame,
    pair: Option<[Frame; 2]>,
    /// A failed DEMOTE may have written the table page, under the TD's key.
    table_tainted: bool,
    /// The pair had been added and was removed again: written under the global key.
    pair_tainted: bool,
}

impl TablePages {
    fn pair_addresses(&self) -> Option<[Hpa; 2]> {
        self.pair.as_ref().map(|pair| pair.each_ref().map(Frame::hpa))
    }
}

impl<T: Transport, S: Shootdown, L: TreeLock, O: Observe> Td<T, S, L, O> {
    /// Whether a table below `at` brings a page pair for the region it maps.
    fn wants_pair(&self, at: GpaEntry, backing: Option<Hpa>) -> bool {
        self.description.dynamic_pamt && at.level() == Level::L2M && backing.is_some()
    }

    /// Gives one unused page back, written back and scrubbed if it needs to be.
    fn give_back(
        &self,
        kind: FrameKind,
        frame: Frame,
        tainted: Option<CacheKey>,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    ) {
        let page = frame.hpa();
        let clean = match tainted {
            None => Some(frame),
            Some(key) => {
                let frame = frame.taint();
                self.write_back(&frame, key).is_ok().then(|| scrub(frame))
            }
        };
        if clean.is_none_or(|frame| to.put(kind, frame).is_err()) {
            self.observer.notice(Notice::Lost { page, kind });
        }
    }

    /// Adds the page pair, if there is one, before the table that needs it.
    fn add_pair(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        pair: Option<[Hpa; 2]>,
    ) -> Result<Option<Hpa>, SeamcallError> {
        let Some(pair) = pair else { return Ok(None) };
        let Some(region) = backing else {
            return Err(SeamcallError::refused(Leaf::PHYMEM_PAMT_ADD, Some(at), Operand::RCX));
        };
        self.retried(|| phymem::pamt_add_at(&self.transport, region, pair))?;
        Ok(Some(region))
    }

    /// TRACK. If vCPUs of the epoch before are still inside, kicks them and tries again, in bounds.
    fn track(&self) -> Result<(), SeamcallError> {
        let mut attempts = self.description.budget.busy;
        let mut kick: Option<S::Ticket> = None;
        loop {
            let error = match self.shared(|| mem::track(&self.transport, self.tdr())) {
                Err(error) if error.status.is(Status::PREVIOUS_TLB_EPOCH_BUSY) => error,
                result => return result,
            };
            let Some(rest) = attempts.checked_sub(1) else { return Err(error) };
            attempts = rest;
            self.observer.notice(Notice::Retry(error));
            // One kick at a time: a new one only when the last has ended and they are back inside.
            if kick.is_none_or(|ticket| self.shootdown.done(ticket)) {
                kick = Some(self.shootdown.start());
            }
            hint::spin_loop();
        }
    }
}

impl<T: Transport, S: Shootdown, L: TreeLock, O: Observe> External for Td<T, S, L, O> {
    type Error = TdError;
    type Pages = TablePages;
    type Ticket = S::Ticket;

    fn max_map(&self) -> Level {
        Level::L2M
    }

    fn max_leaf(&self) -> Level {
        Level::L1G
    }

    fn table_cost(&self, at: GpaEntry, backing: Option<Hpa>) -> FrameNeeds {
        let mut needs = FrameNeeds::of(FrameKind::TeeTable, 1);
        if self.wants_pair(at, backing) {
            needs[FrameKind::TeeMetadata] = 2;
        }
        needs
    }

    fn gather(&self, at: GpaEntry, backing: Option<Hpa>, from: &mut dyn FrameStore) -> Option<TablePages> {
        let pages = |table, pair| TablePages { table, pair, table_tainted: false, pair_tainted: false };
        if !self.wants_pair(at, backing) {
            return from.get(FrameKind::TeeTable).map(|table| pages(table, None));
        }
        if from.count(FrameKind::TeeTable) < 1 || from.count(FrameKind::TeeMetadata) < 2 {
            return None;
        }
        let table = from.get(FrameKind::TeeTable)?;
        let pair = [from.get(FrameKind::TeeMetadata), from.get(FrameKind::TeeMetadata)];
        if let [Some(first), Some(second)] = pair {
            return Some(pages(table, Some([first, second])));
        }
        // A store that counts wrongly: what it gave goes back.
        let kept = pair.into_iter().flatten().map(|frame| (FrameKind::TeeMetadata, frame));
        for (kind, frame) in kept.chain([(FrameKind::TeeTable, table)]) {
            let page = frame.hpa();
            if from.put(kind, frame).is_err() {
                self.observer.notice(Notice::Lost { page, kind });
            }
        }
        None
    }

    fn addresses(&self, pages: &TablePages) -> Donated {
        let metadata = pages.pair_addresses().map_or([None; 2], |pair| pair.map(Some));
        Donated { table: Some(pages.table.hpa()), metadata }
    }

    fn scatter(
        &self,
        pages: TablePages,
        scrub: &mut dyn FnMut(Frame<Tainted>) -> Frame,
        to: &mut dyn FrameStore,
    ) {
        let key = pages.table_tainted.then_some(CacheKey::Guest);
        self.give_back(FrameKind::TeeTable, pages.table, key, scrub, to);
        let key = pages.pair_tainted.then_some(CacheKey::Module);
        for frame in pages.pair.into_iter().flatten() {
            self.give_back(FrameKind::TeeMetadata, frame, key, scrub, to);
        }
    }

    /// PAMT.ADD (if the table brings a page pair), then SEPT.ADD; if the latter is refused, PAMT.REMOVE.
    ///
    /// # Errors
    ///
    /// [`TdError::Torn`] if the pair could not be removed again: it stays with the module and does not come back.
    fn link(
        &self,
        at: GpaEntry,
        backing: Option<Hpa>,
        mut pages: TablePages,
    ) -> Result<(), Returned<TdError, TablePages>> {
        let region = match self.add_pair(at, backing, pages.pair_addresses()) {
            Ok(region) => region,
            Err(error) => return Err(Returned { error: error.into(), held: pages }),
        };
        let table = pages.table.hpa();
        let Err(cause) = self.shared(|| mem::sept_add_at(&self.transport, self.tdr(), at, table)) else {
            return Ok(());
        };
        let Some(region) = region else { return Err(Returned { error: cause.into(), held: pages }) };
        let error = match self.completed(|| phymem::pamt_remove(&self.transport, region)) {
            Ok(_) => {
                pages.pair_tainted = true;
                cause.into()
            }
            Err(_) => {
                pages.pair = None;
                TdError::Torn { at, cause }
            }
        };
        Err(Returned { error, held: pages })
    }

    /// SEPT.REMOVE, then PAMT.REMOVE where linking added a page pair.
    ///
    /// # Errors
    ///
    /// [`TdError::Torn`] if the table is gone and its page pair could not be removed.
    fn unlink(&self, at: GpaEntry, backing: Option<Hpa>) -> Result<Donated, TdError> {
        let removed = self.exclusive(|| mem::sept_remove(&self.transport, self.tdr(), at))?;
        let mut metadata = [None; 2];
        if let (true, Some(region)) = (self.wants_pair(at, backing), backing) {
            metadata = match self.completed(|| phymem::pamt_remove(&self.transport, region)) {
                Ok(pair) => pair.map(Some),
                // Then none came with this table; whoever remembers one will miss it.
                Err(error) if error.status.is(Status::NO_PAMT_PAGE_PAIR) => [None; 2],
                Err(cause) => return Err(TdError::Torn { at, cause }),
            };
        }
        Ok(Donated { table: Some(removed.hpa), metadata })
    }

    /// PAGE.AUG, or PAGE.ADD with a source. What PAGE.ADD copied is measured by [`Td::measure`].
    fn map(&self, at: GpaEntry, page: Frame, fill: Fill) -> Result<(), Returned<TdError, Frame>> {
        let (hpa, td, t) = (page.hpa(), self.tdr(), &self.transport);
        let leaf = match fill {
            Fill::OnAccept => Leaf::MEM_PAGE_AUG,
            _ => Leaf::MEM_PAGE_ADD,
        };
        let result = match fill {
            _ if page.level() != at.level() => Err(SeamcallError::refused(leaf, Some(at), Operand::R8)),
            Fill::OnAccept => self.shared(|| mem::page_aug_at(t, td, at, hpa)),
            // Takes the TDR exclusively: no other call of this TD may be under way.
            Fill::Copy(source) => self.exclusive(|| mem::page_add_at(t, td, at, hpa, source)),
            _ => Err(SeamcallError::refused(leaf, Some(at), Operand::R9)),
        };
        result.map_err(|error| Returned { error: error.into(), held: page })
    }

    /// PAGE.REMOVE; the page that the module names must be the expected one.
    fn unmap(&self, at: GpaEntry, expect: Hpa) -> Result<(), TdError> {
        let removed = self.shared(|| mem::page_remove(&self.transport, self.tdr(), at))?;
        if removed.hpa == expect {
            Ok(())
        } else {
            Err(TdError::WrongPage { at, expected: expect, found: removed.hpa })
        }
    }

    /// RANGE.BLOCK. An entry that was blocked before is a success and a [`Notice::AlreadyBlocked`].
    fn block(&self, at: GpaEntry) -> Result<(), TdError> {
        let blocked = self.exclusive(|| mem::range_block(&self.transport, self.tdr(), at))?;
        if let Blocked::Already(entry) = blocked {
            self.observer.notice(Notice::AlreadyBlocked { at, entry });
        }
        Ok(())
    }

    fn unblock(&self, at: GpaEntry) -> Result<(), TdError> {
        Ok(self.exclusive(|| mem::range_unblock(&self.transport, self.tdr(), at))?)
    }

    /// TRACK, then a shootdown: once that has ended, what was blocked before is tracked.
    fn fence(&self) -> Result<S::Ticket, TdError> {
        self.track()?;
        Ok(self.shootdown.start())
    }

    fn grace(&self) -> S::Ticket {
        self.shootdown.start()
    }

    fn fenced(&self, ticket: S::Ticket) -> bool {
        self.shootdown.done(ticket)
    }

    /// PAGE.DEMOTE, under the budget.
    fn split(&self, at: GpaEntry, mut pages: TablePages) -> Result<(), Returned<TdError, TablePages>> {
        let (t, td, table) = (&self.transport, self.tdr(), pages.table.hpa());
        let pair = pages.pair_addresses();
        // A pair too few is refused late by the module, and one too many is lost to it.
        let paired = self.description.dynamic_pamt && at.level() == Level::L2M;
        let result = if pair.is_some() != paired {
            Err(SeamcallError::refused(Leaf::MEM_PAGE_DEMOTE, Some(at), Operand::R12))
        } else {
            self.shared(|| mem::page_demote_at(t, td, at, L2Mode::All, table, [NULL_PA; 3], pair))
        };
        let Err(error) = result else { return Ok(()) };
        // The last attempt may have failed early and an earlier one late: the page counts as written.
        pages.table_tainted |= !error.status.is(Status::NOT_ISSUED);
        Err(Returned { error: error.into(), held: pages })
    }

    /// PAGE.PROMOTE version 0, under the budget.
    fn merge(&self, at: GpaEntry, _: Hpa) -> Result<Donated, TdError> {
        let call = || mem::page_promote(&self.transport, self.tdr(), at);
        let promoted =
            if self.description.promote_exclusive { self.exclusive(call) } else { self.shared(call) }?;
        let metadata = promoted.pair.map_or([None; 2], |pair| pair.map(Some));
        Ok(Donated { table: Some(promoted.table.hpa), metadata })
    }

    /// SEPT.RD. Its success also clears the host-priority flag that a refused call left on the entry.
    fn probe(&self, at: GpaEntry) -> Result<Observed, TdError> {
        match self.shared(|| mem::sept_rd(&self.transport, self.tdr(), at)) {
            Ok(entry) => entry.state().observed().ok_or(TdError::UnknownState { at, entry }),
            Err(error) if error.status.is(Status::EPT_WALK_FAILED) => Ok(Observed::Hidden),
            Err(error) => Err(error.into()),
        }
    }

    /// PHYMEM.PAGE.WBINVD of each 4 KiB of the page and of nothing else.
    ///
    /// # Errors
    ///
    /// Some of it may have been written back; doing it again is harmless.
    fn write_back(&self, page: &Frame<Tainted>, key: CacheKey) -> Result<(), TdError> {
        let description = &self.description;
        let hkid = match key {
            CacheKey::Module => description.global_hkid,
            _ => description.hkid,
        };
        for index in 0..page.level().pages() {
            let Some(at) = page.hpa().checked_add(index << Level::L4K.shift()) else { break };
            self.retried(|| phymem::page_wbinvd(&self.transport, at, hkid, description.key_id_bits))?;
        }
        Ok(())
    }
}
