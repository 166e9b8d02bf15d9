//! TDMR_INFO, the memory regions that the host offers to SYS.CONFIG, and their checks.
//!
//! Order of the checks of a region: its own place, its reserved areas, its three PAMT areas (form, overlap with other PAMT
//! areas, overlap with memory that regions offer), convertible memory. A region that was read stays for the checks of
//! those after it. (TDX module ABI, "TDMR_INFO"; `tdh_sys_config.c` of module 1.5.01.)

use crate::abi::{PAGE, Status};
use crate::config::{Config, Tdmr};
use crate::state::{Answer, State};

pub(super) const TDMR_INFO: u64 = 512;
pub(super) const GIB: u64 = 1 << 30;
const RESERVED_AREAS: usize = 16;

/// First byte and size.
type Area = (u64, u64);

/// What one TDMR_INFO says.
#[derive(Clone, Debug)]
pub(super) struct TdmrInfo {
    base: u64,
    size: u64,
    /// The PAMT areas of 4 KiB, 2 MiB and 1 GiB pages.
    pamt: [Area; 3],
    /// Offset and size.
    reserved: [Area; RESERVED_AREAS],
}

fn overlap((a, bytes): Area, (b, other): Area) -> bool {
    a < b.saturating_add(other) && b < a.saturating_add(bytes)
}

impl TdmrInfo {
    pub(super) fn read(s: &mut State, at: u64) -> Self {
        let mut area = |field: u64| (s.read_shared(at + field * 8), s.read_shared(at + field * 8 + 8));
        let (base, size) = area(0);
        Self {
            base,
            size,
            pamt: [area(6), area(4), area(2)],
            reserved: core::array::from_fn(|index| area(8 + 2 * index as u64)),
        }
    }

    fn end(&self) -> u64 {
        self.base + self.size
    }

    fn reserved_areas(&self) -> impl Iterator<Item = Area> + '_ {
        let areas = self.reserved.iter().take_while(|area| area.1 != 0);
        areas.map(|&(offset, size)| (self.base + offset, size))
    }

    /// What the region offers: what lies between its reserved areas.
    fn available(&self) -> Vec<Area> {
        let ends = core::iter::once(self.base).chain(self.reserved_areas().map(|(start, size)| start + size));
        let starts = self.reserved_areas().map(|(start, _)| start).chain([self.end()]);
        ends.zip(starts).map(|(from, to)| (from, to - from)).filter(|area| area.1 != 0).collect()
    }

    /// Checks the last of `all`.
    pub(super) fn check(all: &[Self], cfg: &Config, dynamic: bool) -> Answer {
        let Some((last, before)) = all.split_last() else { return Ok(()) };
        let index = before.len() as u32;
        last.check_place(before.last(), index, cfg)?;
        last.check_reserved(index)?;
        last.check_pamt(index, cfg, dynamic)?;
        last.check_pamt_overlap(before, index)?;
        last.check_offered(before, index)?;
        for size in [2, 1, 0] {
            if !convertible(cfg, last.pamt[size as usize]) {
                return Err(Status::PAMT_OUTSIDE_CMRS.detail(index | size << 8));
            }
        }
        if last.available().into_iter().all(|area| convertible(cfg, area)) {
            Ok(())
        } else {
            Err(Status::TDMR_OUTSIDE_CMRS.detail(index))
        }
    }

    fn check_place(&self, before: Option<&Self>, index: u32, cfg: &Config) -> Answer {
        let end = self.base.checked_add(self.size).ok_or(Status::INVALID_TDMR.detail(index))?;
        if before.is_some_and(|before| self.base < before.end()) {
            return Err(Status::NON_ORDERED_TDMR.detail(index));
        }
        let whole = self.base.is_multiple_of(GIB) && self.size.is_multiple_of(GIB) && self.size != 0;
        if !whole || !cfg.plain(self.base) || !cfg.plain(end - 1) {
            return Err(Status::INVALID_TDMR.detail(index));
        }
        Ok(())
    }

    fn check_reserved(&self, index: u32) -> Answer {
        let mut free_from = 0;
        for (area, &(offset, size)) in (0u32..).zip(&self.reserved) {
            let detail = index | area << 8;
            if size == 0 {
                if self.reserved.get(area as usize + 1).is_some_and(|next| next.1 != 0) {
                    return Err(Status::NON_ORDERED_RESERVED_IN_TDMR.detail(detail));
                }
                continue;
            }
            let end = offset.checked_add(size).ok_or(Status::INVALID_RESERVED_IN_TDMR.detail(detail))?;
            if offset < free_from {
                return Err(Status::NON_ORDERED_RESERVED_IN_TDMR.detail(detail));
            }
            if !offset.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) || end > self.size {
                return Err(Status::INVALID_RESERVED_IN_TDMR.detail(detail));
            }
            free_from = end;
        }
        Ok(())
    }

    fn check_pamt(&self, index: u32, cfg: &Config, dynamic: bool) -> Answer {
        let entries = if dynamic { [16, 16, 1] } else { [16; 3] };
        let needed = seamcall::pamt_sizes(self.size, entries, dynamic).unwrap_or([u64::MAX; 3]);
        // Byte 1 of the detail is the page size that the area is for.
        for size in [2usize, 1, 0] {
            let (base, bytes) = self.pamt[size];
            let last = base.checked_add(bytes).map(|end| end.wrapping_sub(1));
            let aligned = base.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
            let placed = cfg.plain(base) && last.is_some_and(|last| cfg.plain(last));
            if !aligned || !placed || bytes < needed[2 - size] {
                return Err(Status::INVALID_PAMT.detail(index | (size as u32) << 8));
            }
        }
        Ok(())
    }

    fn check_pamt_overlap(&self, before: &[Self], index: u32) -> Answer {
        let of =
            |size: usize, other: u32| Status::PAMT_OVERLAP.detail(index | (size as u32) << 8 | other << 16);
        for (other, tdmr) in (0u32..).zip(before) {
            if let Some(size) =
                (0..3).find(|&size| tdmr.pamt.iter().any(|&area| overlap(self.pamt[size], area)))
            {
                return Err(of(size, other));
            }
        }
        let pairs = [(0, 1), (0, 2), (1, 2)];
        match pairs.into_iter().find(|&(a, b)| overlap(self.pamt[a], self.pamt[b])) {
            Some((size, _)) => Err(of(size, index)),
            None => Ok(()),
        }
    }

    /// No PAMT area lies in memory that is offered.
    fn check_offered(&self, before: &[Self], index: u32) -> Answer {
        let inside = |pamt: &Self, offers: &Self| {
            let offered = offers.available();
            (0..3).find(|&size| offered.iter().any(|&area| overlap(pamt.pamt[size], area)))
        };
        let of = |pamt: u32, size: usize, offers: u32| {
            Err(Status::PAMT_OVERLAP.detail(pamt | (size as u32) << 8 | offers << 16))
        };
        for (other, tdmr) in (0u32..).zip(before) {
            if let Some(size) = inside(self, tdmr) {
                return of(index, size, other);
            }
            if let Some(size) = inside(tdmr, self) {
                return of(other, size, index);
            }
        }
        inside(self, self).map_or(Ok(()), |size| of(index, size, index))
    }

    /// The region as the module keeps it. Reserved areas from the first empty one on do not count.
    pub(super) fn tdmr(&self) -> Tdmr {
        Tdmr {
            base: self.base,
            size: self.size,
            initialized_end: self.base,
            reserved: self.reserved_areas().collect(),
        }
    }
}

/// Whether all of the area is in one stretch of convertible memory.
fn convertible(cfg: &Config, (base, size): Area) -> bool {
    let Some(ranges) = &cfg.convertible else { return true };
    let mut stretch = (0, 0);
    ranges.iter().filter(|range| range.1 != 0).any(|&(start, bytes)| {
        let from = if stretch.1 == start { stretch.0 } else { start };
        stretch = (from, start + bytes);
        base >= stretch.0 && base + size <= stretch.1
    })
}
