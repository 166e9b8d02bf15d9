//! The host's side of memory: plain reads and writes with the shared key, cache flushes, memory errors.

use sept_core::Hpa;

use crate::abi::{PAGE, PageType};
use crate::machine::Machine;
use crate::memory::CHUNK;
use crate::state::State;
use crate::violation::ViolationKind;

/// What a host read sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The pattern the host last wrote.
    Pattern(u64),
    /// Noise: the page was last written with the key named.
    Ciphertext(u16),
}

/// What a page really holds. For judges; nothing on a machine can look like this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content {
    /// The pattern.
    pub pattern: u64,
    /// Key id that wrote it; 0 is the shared key.
    pub key: u16,
    /// Key id under which a cache may hold modified lines.
    pub dirty: Option<u16>,
}

impl State {
    /// Whether the page serves a TD or the module.
    fn is_private_page(&self, page: u64) -> bool {
        let kind = self.mem.leaf_entry(&self.cfg, page).entry.kind();
        !matches!(kind, PageType::Nda | PageType::Rsvd)
            || self.cfg.profile.dynamic_pamt
                && self.mem.is_pamt_page(&self.cfg, page)
                && self.cfg.tdmrs.iter().any(|tdmr| tdmr.usable(page) && !tdmr.reserved(page, PAGE))
    }

    /// Whether the page holds structures of the module, which a host write would only destroy.
    fn is_control_page(&self, page: u64) -> bool {
        self.is_private_page(page) && self.mem.leaf_entry(&self.cfg, page).entry.kind() != PageType::Reg
    }

    /// Records what is wrong with a host write; says whether memory takes it.
    fn judge_host_write(&mut self, page: u64) -> bool {
        if self.is_private_page(page) {
            self.violate(ViolationKind::HostWritePrivate, page, self.mem.cell(page).key());
            return !self.is_control_page(page);
        }
        if let Some(key) = self.mem.dirty(page).filter(|&key| key != 0) {
            self.violate(ViolationKind::HostWriteUnflushed, page, key);
        }
        true
    }

    fn host_read(&mut self, page: u64) -> Seen {
        let key = self.mem.cell(page).key();
        if self.is_private_page(page) {
            self.violate(ViolationKind::HostReadPrivate, page, key);
        } else if key != 0 {
            self.violate(ViolationKind::HostReadCiphertext, page, key);
        }
        if key == 0 { Seen::Pattern(self.mem.pattern(page)) } else { Seen::Ciphertext(key) }
    }

    /// The frame's owner consumed the error: its TD is fatal, its vCPUs outside.
    pub(crate) fn consume_machine_check(&mut self, page: u64) -> bool {
        let entry = self.mem.leaf_entry(&self.cfg, page).entry;
        let owner = if entry.kind() == PageType::Tdr { page } else { entry.owner() };
        let td = match entry.kind() {
            PageType::Nda | PageType::Rsvd | PageType::Pamt => None,
            _ => self.td_of(owner),
        };
        let Some(td) = td else { return false };
        self.td_mut(td).fatal = true;
        for vcpu in 0..self.td(td).vcpus.len() {
            self.kick_vcpu(td, vcpu);
        }
        true
    }

    /// The TD whose TDR is at `tdr`.
    pub(crate) fn td_of(&self, tdr: u64) -> Option<usize> {
        self.tds.iter().position(|td| td.as_ref().is_some_and(|td| td.tdr == tdr))
    }
}

impl Machine {
    /// Reads the page that holds `at` with the shared key.
    #[must_use]
    pub fn host_read(&self, at: Hpa) -> Seen {
        self.with(|s| s.host_read(at.raw() & !(PAGE - 1)))
    }

    /// Writes the page that holds `at` with the shared key, through the cache.
    pub fn host_write(&self, at: Hpa, pattern: u64) {
        let page = at.raw() & !(PAGE - 1);
        self.with(|s| {
            if s.judge_host_write(page) {
                s.mem.write(page, pattern, 0);
            }
        });
    }

    /// Writes bytes into the page that holds `at` (they must not cross its end), through the cache.
    ///
    /// # Panics
    ///
    /// When the bytes cross the end of the page.
    pub fn host_write_bytes(&self, at: Hpa, data: &[u8]) {
        assert!(at.raw() % PAGE + data.len() as u64 <= PAGE, "bytes cross a page end");
        self.with(|s| {
            if s.judge_host_write(at.raw() & !(PAGE - 1)) {
                s.mem.write_bytes(at.raw(), data, 0);
            }
        });
    }

    /// Zeroes `pages` pages with MOVDIR64B: a direct store that leaves nothing in a cache and makes noise readable.
    pub fn host_zero(&self, at: Hpa, pages: u64) {
        let start = at.raw() & !(PAGE - 1);
        self.with(|s| {
            let mut page = start;
            while page < start + pages * PAGE {
                let whole = page.is_multiple_of(CHUNK) && start + pages * PAGE - page >= CHUNK;
                let step = if whole && s.is_plain_chunk(page) { CHUNK } else { PAGE };
                if step == CHUNK || s.judge_host_write(page) {
                    s.mem.fill(page, step / PAGE, 0, 0, true);
                }
                page += step;
            }
        });
    }

    /// Flushes (CLFLUSH) the host's lines of `pages` pages.
    pub fn host_flush(&self, at: Hpa, pages: u64) {
        let start = at.raw() & !(PAGE - 1);
        self.with(|s| (0..pages).for_each(|page| s.mem.write_back(start + page * PAGE, 0)));
    }

    /// What the page holds, seen by no key and recorded nowhere.
    #[must_use]
    pub fn peek(&self, at: Hpa) -> Content {
        let page = at.raw() & !(PAGE - 1);
        self.with(|s| Content {
            pattern: s.mem.pattern(page),
            key: s.mem.cell(page).key(),
            dirty: s.mem.dirty(page),
        })
    }

    /// A memory error on the frame is announced (by a scrubber, say). The module does not look; who reads the frame
    /// consumes it.
    pub fn announce_memory_error(&self, page: Hpa) {
        self.with(|s| s.faults.poison.insert(page.raw() & !(PAGE - 1)));
    }

    /// The owner of the frame consumes a memory error now: its TD becomes fatal. Says whether the frame had an owner.
    pub fn consume_memory_error(&self, page: Hpa) -> bool {
        self.announce_memory_error(page);
        self.with(|s| s.consume_machine_check(page.raw() & !(PAGE - 1)))
    }
}

impl State {
    /// Whether nothing in the 2 MiB at `start` is private or waits for a write-back.
    fn is_plain_chunk(&self, start: u64) -> bool {
        (0..CHUNK / PAGE).all(|page| !self.is_private_page(start + page * PAGE))
            && self.mem.foreign_dirty(start, CHUNK / PAGE, 0).is_none()
    }
}
