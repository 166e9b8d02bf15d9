//! PHYMEM.PAMT.ADD and PHYMEM.PAMT.REMOVE: the page pair that holds the 4 KiB entries of a 2 MiB region.

use crate::abi::{Operand, PAGE, PageType, Status};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::memory::CHUNK;
use crate::session::{Point, Session};
use crate::state::{Answer, State};

/// A page operand and the register it came in.
type PageIn = (u64, Operand);

impl State {
    /// Checks two pages and makes them a pair; pages inside `own_region` are not walked to.
    pub(super) fn claim_pair(
        &mut self,
        c: &mut Ctx,
        pages: [PageIn; 2],
        own_region: Option<u64>,
    ) -> Answer<[u64; 2]> {
        for (page, op) in pages {
            if page % PAGE != 0 || !self.cfg.plain(page) {
                return Err(Status::OPERAND_INVALID.of(op));
            }
        }
        for (page, op) in pages {
            self.page_range(page, op)?;
        }
        for (page, op) in pages {
            if own_region == Some(page & !(CHUNK - 1)) {
                continue;
            }
            let found = self.page_walk(c, page, 0, op, Mode::Shared)?;
            if found.entry.kind() != PageType::Nda {
                return Err(Status::PAGE_NOT_FREE.of(op));
            }
        }
        let [(first, first_op), (second, second_op)] = pages;
        if self.mem.is_pamt_page(&self.cfg, first) {
            return Err(Status::PAGE_NOT_FREE.of(first_op));
        }
        if first == second || self.mem.is_pamt_page(&self.cfg, second) {
            return Err(Status::PAGE_NOT_FREE.of(second_op));
        }
        let key = self.cfg.hkid.global;
        for page in [first, second] {
            self.donated(page, 1, key);
            self.mem.mark_pamt_page(page, true);
            self.mem.write(page, 0, key);
        }
        Ok([first, second])
    }

    fn dynamic_pamt_region(&self, c: &Ctx) -> Answer<u64> {
        if !self.cfg.profile.dynamic_pamt {
            return Err(Status::OPERAND_INVALID.of(Operand::Rax));
        }
        let region = c.regs.rcx & !0xFFF;
        if c.regs.rcx & 0xFFF != 1 || !region.is_multiple_of(CHUNK) || !self.cfg.plain(region) {
            return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
        }
        Ok(region)
    }
}

/// TDH.PHYMEM.PAMT.ADD.
pub(super) fn add(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let region = s.dynamic_pamt_region(c)?;
    let pages = [(c.regs.rdx, Operand::Rdx), (c.regs.r8, Operand::R8)];
    for (page, op) in pages {
        s.page_format(page, 0, op)?;
    }
    s.page_range(region, Operand::Rcx)?;
    let found = s.page_walk(c, region, 1, Operand::Rcx, Mode::Exclusive)?;
    if found.level != 1 || found.entry.kind() != PageType::Nda {
        return Err(Status::HPA_RANGE_NOT_FREE.of(Operand::Rcx));
    }
    s.pause(c, Point::Commit);
    let pair = s.claim_pair(c, pages, Some(region))?;
    let cfg = s.cfg.clone();
    s.mem.attach_pair(&cfg, region, pair);
    Ok(())
}

/// TDH.PHYMEM.PAMT.REMOVE.
pub(super) fn remove(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let region = s.dynamic_pamt_region(c)?;
    s.page_range(region, Operand::Rcx)?;
    let found = s.page_walk(c, region, 1, Operand::Rcx, Mode::Exclusive)?;
    if found.level != 1 || found.entry.kind() != PageType::Pamt {
        return Err(Status::NO_PAMT_PAGE_PAIR.of(Operand::Rcx));
    }
    s.pause(c, Point::Commit);
    let fine = s.mem.chunk(region).and_then(|chunk| chunk.fine.as_ref());
    let used = fine.and_then(|fine| fine.entries.iter().position(|entry| entry.kind() != PageType::Nda));
    if let Some(index) = used {
        return Err(Status::PAMT_PAGE_NOT_EMPTY.detail(u32::from(index >= 256)));
    }
    let [first, second] = s.mem.detach_pair(region);
    c.out.rdx = first;
    c.out.r8 = second;
    Ok(())
}
