//! PHYMEM.PAGE.RECLAIM, RDMD, WBINVD and PHYMEM.CACHE.WB: pages as such.

use crate::abi::{Leaf, Lifecycle, Operand, PAGE, PageType, Status, size_of_level};
use crate::call::Ctx;
use crate::lock::Mode;
use crate::session::{Point, Session};
use crate::state::{Answer, KeyState};

/// TDH.PHYMEM.PAGE.RECLAIM: takes a page back from a TD that is torn down.
pub(super) fn reclaim(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let page = c.regs.rcx;
    s.page_format(page, 0, Operand::Rcx)?;
    let found = s.page_walk(c, page, 0, Operand::Rcx, Mode::Exclusive)?;
    let kind = found.entry.kind();
    if matches!(kind, PageType::Nda | PageType::Rsvd) {
        return Err(Status::PAGE_METADATA_INCORRECT.of(Operand::Rcx));
    }
    let owner = found.entry.owner();
    c.out.rcx = kind as u64;
    c.out.rdx = owner;
    c.out.r8 = u64::from(found.level);
    if !page.is_multiple_of(size_of_level(found.level)) {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    let is_root = kind == PageType::Tdr;
    if !is_root {
        s.implicit_page(c, owner, 0, Operand::Tdr, Mode::Shared)?;
    }
    let td = s.mem.cell(if is_root { page } else { owner }).value() as usize;
    if s.td(td).lifecycle != Lifecycle::Teardown {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    s.pause(c, Point::Commit);
    if !is_root {
        s.td_mut(td).chldcnt -= size_of_level(found.level) / PAGE;
        s.mem.drop_table(page);
    } else if s.td(td).chldcnt != 0 {
        return Err(Status::TD_ASSOCIATED_PAGES_EXIST);
    } else {
        s.tds[td] = None;
    }
    let hinted = s.free_page(Leaf::PhymemPageReclaim, page, found.level);
    if s.cfg.profile.removed_page_hint {
        c.out.r9 = hinted ^ page;
    }
    Ok(())
}

/// TDH.PHYMEM.PAGE.RDMD: what the PAMT says. It never fails for a page's type.
pub(super) fn rdmd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let v2 = s.cfg.profile.rdmd_v2;
    let (page, level) = if v2 { (c.regs.rcx & !7, (c.regs.rcx & 7) as u8) } else { (c.regs.rcx, 0) };
    if level > 2 || level > 0 && !s.cfg.profile.dynamic_pamt {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.page_format(page, 0, Operand::Rcx)?;
    let found = s.page_walk(c, page, level, Operand::Rcx, Mode::Shared)?;
    s.pause(c, Point::Commit);
    let kind = found.entry.kind();
    c.out.rcx = kind as u64;
    c.out.rdx = found.entry.owner();
    c.out.r8 = u64::from(found.level);
    if matches!(kind, PageType::Reg | PageType::Ept) {
        c.out.r9 = found.entry.bepoch;
    }
    if kind == PageType::Pamt {
        let pair = s.mem.chunk(page).and_then(|chunk| chunk.fine.as_ref()).map_or([0; 2], |fine| fine.pair);
        c.out.rcx |= 1 << 63;
        [c.out.r10, c.out.r11] = pair;
    }
    Ok(())
}

/// TDH.PHYMEM.PAGE.WBINVD: writes back the lines of one free page under the key id in its address.
pub(super) fn page_wbinvd(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let mask = s.cfg.hkid.mask();
    let page = c.regs.rcx & !mask;
    let key = ((c.regs.rcx & mask) >> s.cfg.hkid.start_bit) as u16;
    s.page_format(page, 0, Operand::Rcx)?;
    let found = s.page_walk(c, page, 0, Operand::Rcx, Mode::Shared)?;
    s.pause(c, Point::Commit);
    let dynamic = s.cfg.profile.dynamic_pamt;
    let level_fits = found.level == 0 || dynamic && found.level == 1;
    if !level_fits || found.entry.kind() != PageType::Nda || dynamic && s.mem.is_pamt_page(&s.cfg, page) {
        return Err(Status::PAGE_METADATA_INCORRECT.of(Operand::Rcx));
    }
    s.mem.write_back(page, key);
    Ok(())
}

/// TDH.PHYMEM.CACHE.WB: writes back all lines of the keys whose TDs are blocked, on this package.
///
/// RCX 0 starts, with the keys that wait now; 1 goes on after an interrupt. The cache is written back piece by piece.
pub(super) fn cache_wb(s: &mut Session<'_>, c: &mut Ctx) -> Answer {
    let package = c.lp % s.cfg.packages;
    let index = package as usize;
    if c.regs.rcx > 1 {
        return Err(Status::OPERAND_INVALID.of(Operand::Rcx));
    }
    s.lock_write_back(c, index)?;
    s.lock_key_table(c, Mode::Shared)?;
    s.pause(c, Point::Commit);
    if c.regs.rcx == 0 {
        let flushing = |&(_, key): &(u16, &KeyState)| matches!(key, KeyState::Flushing(_));
        let keys: Vec<u16> = (0..).zip(&s.keys).filter(flushing).map(|(number, _)| number).collect();
        s.write_backs[index].done = 0;
        if keys.is_empty() {
            return Err(Status::NO_HKID_READY_TO_WBCACHE);
        }
        s.write_backs[index].keys = keys;
    } else if s.write_backs[index].done == 0 {
        return Err(Status::WBCACHE_RESUME_ERROR);
    }
    let pieces = s.cfg.cache_sub_blocks;
    loop {
        s.write_backs[index].done += 1;
        if s.write_backs[index].done >= pieces {
            break;
        }
        if s.faults.host_poll() {
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
    s.write_backs[index].done = 0;
    let mut clean = Vec::new();
    for number in s.write_backs[index].keys.clone() {
        if let KeyState::Flushing(packages) = &mut s.keys[usize::from(number)] {
            *packages &= !(1 << package);
            if *packages == 0 {
                clean.push(number);
            }
        }
    }
    s.mem.write_back_all(clean.into_iter());
    Ok(())
}
