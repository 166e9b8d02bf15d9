//! The physical address metadata table: one entry per page at 4 KiB, 2 MiB and 1 GiB.
//!
//! The walk goes from the 1 GiB entry down, takes every entry on its way shared and the one it stops at in the mode
//! asked for. It stops at a mapped larger page, or at the size asked for; with Dynamic PAMT it also stops at a 2 MiB
//! entry that has no page pair. (TDX module ABI, "PAMT".)

use crate::abi::{PAGE, PageType, size_of_level};
use crate::config::Config;
use crate::lock::{Lock, Mode};
use crate::memory::{CHUNK, Chunk, FANOUT, Memory};

/// One entry: lock in bits 15:0, type in 23:16, owner frame in 63:24; then BEPOCH.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PamtEntry {
    meta: u64,
    pub(crate) bepoch: u64,
}

impl PamtEntry {
    const RESERVED: Self = Self { meta: (PageType::Rsvd as u64) << 16, bepoch: 0 };

    pub(crate) const fn kind(self) -> PageType {
        PageType::from_bits((self.meta >> 16) as u8)
    }

    /// The owner field as stored: stale for a free page.
    pub(crate) const fn owner(self) -> u64 {
        self.meta >> 24 << 12
    }

    pub(crate) const fn lock(self) -> Lock {
        Lock(self.meta as u16)
    }

    /// All of it but the lock.
    pub(crate) const fn without_lock(self) -> Self {
        Self { meta: self.meta & !0xFFFF, ..self }
    }

    const fn set_lock(&mut self, lock: Lock) {
        self.meta = self.meta & !0xFFFF | lock.0 as u64;
    }

    fn acquire(&mut self, mode: Mode) -> bool {
        let mut lock = self.lock();
        let taken = lock.acquire(mode);
        self.set_lock(lock);
        taken
    }

    fn release(&mut self, mode: Mode) {
        let mut lock = self.lock();
        lock.release(mode);
        self.set_lock(lock);
    }

    const fn set(&mut self, kind: PageType, owner: u64) {
        self.meta = self.meta & 0xFFFF | (kind as u64) << 16 | owner >> 12 << 24;
    }

    /// The entry becomes free; owner and BEPOCH stay as they were.
    const fn free(&mut self) {
        self.meta &= !0xFF_0000;
    }
}

/// The 4 KiB entries of a 2 MiB region.
#[derive(Clone, Debug)]
pub(crate) struct Fine {
    pub(crate) entries: [PamtEntry; FANOUT],
    /// Entries that are not free.
    pub(crate) used: u16,
    /// Dynamic PAMT: the two pages that hold these entries.
    pub(crate) pair: [u64; 2],
}

/// Where a walk stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) level: u8,
    pub(crate) entry: PamtEntry,
}

/// An entry was locked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Busy;

const fn slot(hpa: u64) -> usize {
    (hpa >> 12) as usize % FANOUT
}

impl Memory {
    /// The 4 KiB entries of the region, made on first use (reserved pages marked).
    fn fine(&mut self, cfg: &Config, hpa: u64) -> &mut Fine {
        self.chunk_mut(hpa).fine.get_or_insert_with(|| {
            let base = hpa & !(CHUNK - 1);
            let mut fine = Fine { entries: [PamtEntry::default(); FANOUT], used: 0, pair: [0; 2] };
            if cfg.tdmrs.iter().any(|tdmr| tdmr.reserved(base, CHUNK)) {
                for (entry, at) in fine.entries.iter_mut().zip((base..).step_by(PAGE as usize)) {
                    if cfg.tdmrs.iter().any(|tdmr| tdmr.reserved(at, PAGE)) {
                        *entry = PamtEntry::RESERVED;
                        fine.used += 1;
                    }
                }
            }
            Box::new(fine)
        })
    }

    pub(crate) fn entry_mut(&mut self, cfg: &Config, hpa: u64, level: u8) -> &mut PamtEntry {
        self.touched.page(hpa, level);
        match level {
            0 => &mut self.fine(cfg, hpa).entries[slot(hpa)],
            1 => &mut self.chunk_mut(hpa).own,
            _ => &mut self.gib_mut(hpa).own,
        }
    }

    /// The entry of `level` for the page, without making one.
    pub(crate) fn entry(&self, hpa: u64, level: u8) -> PamtEntry {
        let gib = self.gibs.get((hpa >> 30) as usize).and_then(Option::as_ref);
        match level {
            0 => self.chunk(hpa).and_then(|chunk| chunk.fine.as_ref()).map(|fine| fine.entries[slot(hpa)]),
            1 => self.chunk(hpa).map(|chunk| chunk.own),
            _ => gib.map(|gib| gib.own),
        }
        .unwrap_or_default()
    }

    /// The entry that describes the page at `hpa`, and its level, without locks.
    pub(crate) fn leaf_entry(&self, cfg: &Config, hpa: u64) -> Found {
        let level = (0..=2).rev().find(|&level| stops(cfg, self.entry(hpa, level), level, 0)).unwrap_or(0);
        Found { level, entry: self.entry(hpa, level) }
    }

    /// Walks to the page, at most down to `want`, locking as it goes.
    pub(crate) fn pamt_walk(&mut self, cfg: &Config, hpa: u64, want: u8, mode: Mode) -> Result<Found, Busy> {
        for level in (0..=2).rev() {
            let entry = self.entry_mut(cfg, hpa, level);
            let stop = stops(cfg, *entry, level, want);
            if !entry.acquire(if stop { mode } else { Mode::Shared }) {
                self.release_parents(cfg, hpa, level);
                return Err(Busy);
            }
            if stop {
                return Ok(Found { level, entry: *entry });
            }
        }
        Err(Busy)
    }

    fn release_parents(&mut self, cfg: &Config, hpa: u64, level: u8) {
        for parent in level + 1..=2 {
            self.entry_mut(cfg, hpa, parent).release(Mode::Shared);
        }
    }

    /// Gives back what a walk that stopped at `level` holds.
    pub(crate) fn pamt_unwalk(&mut self, cfg: &Config, hpa: u64, level: u8, mode: Mode) {
        self.pamt_unlock(cfg, hpa, level, mode);
        self.release_parents(cfg, hpa, level);
    }

    /// Takes one entry without its parents (an implicit operand).
    pub(crate) fn pamt_lock(&mut self, cfg: &Config, hpa: u64, level: u8, mode: Mode) -> Result<(), Busy> {
        if self.entry_mut(cfg, hpa, level).acquire(mode) { Ok(()) } else { Err(Busy) }
    }

    pub(crate) fn pamt_unlock(&mut self, cfg: &Config, hpa: u64, level: u8, mode: Mode) {
        // With Dynamic PAMT the entries of a region can be gone by now, and their locks with them.
        if level > 0 || self.chunk(hpa).is_some_and(|chunk| chunk.fine.is_some()) {
            self.entry_mut(cfg, hpa, level).release(mode);
        }
    }

    /// Assigns the page of `level`. BEPOCH stays.
    pub(crate) fn pamt_assign(&mut self, cfg: &Config, hpa: u64, level: u8, kind: PageType, owner: u64) {
        if level == 0 {
            self.fine(cfg, hpa).used += 1;
        }
        self.entry_mut(cfg, hpa, level).set(kind, owner);
    }

    /// Frees the page of `level`. Owner and BEPOCH stay. Says whether a PAMT page pair is now without use.
    pub(crate) fn pamt_free(&mut self, cfg: &Config, hpa: u64, level: u8) -> bool {
        self.entry_mut(cfg, hpa, level).free();
        if level > 0 {
            return false;
        }
        let fine = self.fine(cfg, hpa);
        fine.used -= 1;
        fine.used == 0 && cfg.profile.dynamic_pamt
    }

    /// Whether all 512 4 KiB pages of the region are free, or serve nothing.
    pub(crate) fn region_empty(&self, cfg: &Config, hpa: u64) -> bool {
        let chunk = self.chunk(hpa);
        let reserved = || cfg.tdmrs.iter().any(|tdmr| tdmr.reserved(hpa, CHUNK));
        let in_use = match chunk.and_then(|chunk| chunk.fine.as_ref()) {
            Some(fine) => fine.used > 0,
            None => reserved(),
        };
        let pamt_pages = chunk.and_then(|chunk| chunk.pamt_pages.as_ref());
        !in_use && pamt_pages.is_none_or(|bits| bits.iter().all(|&word| word == 0))
    }

    /// Whether the page serves as a Dynamic PAMT page (or is reserved).
    pub(crate) fn is_pamt_page(&self, cfg: &Config, hpa: u64) -> bool {
        let bits = self.chunk(hpa).and_then(|chunk| chunk.pamt_pages.as_ref());
        bits.is_some_and(|bits| bits[slot(hpa) / 64] & 1 << (slot(hpa) % 64) != 0)
            || cfg.tdmrs.iter().any(|tdmr| tdmr.reserved(hpa, PAGE))
    }

    /// Marks or unmarks the page as a Dynamic PAMT page.
    pub(crate) fn mark_pamt_page(&mut self, hpa: u64, set: bool) {
        let bits = self.chunk_mut(hpa).pamt_pages.get_or_insert_default();
        let (word, bit) = (&mut bits[slot(hpa) / 64], 1 << (slot(hpa) % 64));
        if set {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    /// All entries of the 2 MiB region come or go.
    fn touch_region(&mut self, hpa: u64) {
        self.touched.page(hpa, 1);
        let base = hpa & !(CHUNK - 1);
        (0..FANOUT as u64).for_each(|index| self.touched.page(base + index * PAGE, 0));
    }

    /// Gives the 2 MiB region its page pair: its 4 KiB entries exist from now on.
    pub(crate) fn attach_pair(&mut self, cfg: &Config, hpa: u64, pair: [u64; 2]) {
        self.touch_region(hpa);
        self.chunk_mut(hpa).fine = None;
        self.fine(cfg, hpa).pair = pair;
        self.chunk_mut(hpa).own.set(PageType::Pamt, 0);
    }

    /// Takes the page pair away: the 4 KiB entries are gone.
    pub(crate) fn detach_pair(&mut self, hpa: u64) -> [u64; 2] {
        self.touch_region(hpa);
        let chunk: &mut Chunk = self.chunk_mut(hpa);
        chunk.own.free();
        let pair = chunk.fine.take().map_or([0; 2], |fine| fine.pair);
        pair.iter().for_each(|&page| self.mark_pamt_page(page, false));
        pair
    }

    /// Splits the page of `level`: 512 smaller pages of the same owner, whose entries live in `pair` if there is one.
    pub(crate) fn pamt_demote(&mut self, cfg: &Config, hpa: u64, level: u8, pair: Option<[u64; 2]>) {
        let owner = self.entry_mut(cfg, hpa, level).owner();
        match pair {
            Some(pair) => self.attach_pair(cfg, hpa, pair),
            None => self.entry_mut(cfg, hpa, level).free(),
        }
        for index in 0..FANOUT as u64 {
            let child = hpa + index * size_of_level(level - 1);
            let entry = self.entry_mut(cfg, child, level - 1);
            entry.set(PageType::Reg, owner);
            entry.bepoch = 0;
        }
        if level == 1 {
            self.fine(cfg, hpa).used = FANOUT as u16;
        }
    }

    /// Merges 512 pages into the page of `level` and returns the page pair that held their entries, if one did.
    ///
    /// BEPOCH of the result is reset only with Dynamic PAMT.
    pub(crate) fn pamt_promote(&mut self, cfg: &Config, hpa: u64, level: u8) -> Option<[u64; 2]> {
        let owner = self.entry_mut(cfg, hpa, level - 1).owner();
        let pair = (level == 1 && cfg.profile.dynamic_pamt).then(|| self.detach_pair(hpa));
        if pair.is_none() {
            for index in 0..FANOUT as u64 {
                self.entry_mut(cfg, hpa + index * size_of_level(level - 1), level - 1).free();
            }
            if level == 1 {
                self.fine(cfg, hpa).used = 0;
            }
        }
        let entry = self.entry_mut(cfg, hpa, level);
        entry.set(PageType::Reg, owner);
        if cfg.profile.dynamic_pamt {
            entry.bepoch = 0;
        }
        pair
    }
}

/// Whether the walk for a page of `want` stops at this entry of `level`.
fn stops(cfg: &Config, entry: PamtEntry, level: u8, want: u8) -> bool {
    level == want
        || level == 0
        || match (level, cfg.profile.dynamic_pamt) {
            (1, true) => entry.kind() != PageType::Pamt,
            _ => entry.kind() != PageType::Nda,
        }
}
