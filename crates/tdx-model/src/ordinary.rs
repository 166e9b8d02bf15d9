//! Ordinary memory as the module reads and writes it: TD_PARAMS, TDMR_INFO, sources of PAGE.ADD, lists.
//!
//! The address carries a shared key id. Memory that another key wrote reads as noise, and that is recorded: on hardware the
//! module would not notice either. (TDX module ABI, "Memory operands".)

use crate::abi::PAGE;
use crate::state::State;
use crate::violation::ViolationKind;

/// What the plaintext of one key looks like under another.
const NOISE: u64 = 0x6C62_272E_07BB_0142;

impl State {
    /// Address without key id, and the key id.
    fn shared_address(&self, at: u64) -> (u64, u16) {
        let mask = self.cfg.hkid.mask();
        (at & !mask, ((at & mask) >> self.cfg.hkid.start_bit) as u16)
    }

    /// Whether the module sees what is in the page; what it does not see is recorded.
    fn sees(&mut self, page: u64, key: u16) -> bool {
        if self.faults.poison.contains(&page) {
            self.violate(ViolationKind::ModuleReadPoison, page, key);
        }
        let writer = self.mem.cell(page).key();
        if writer != key {
            self.violate(ViolationKind::ModuleReadCiphertext, page, writer);
        }
        writer == key
    }

    /// The bytes of the page that holds `at`.
    pub(crate) fn shared_page(&mut self, at: u64) -> [u8; PAGE as usize] {
        let (at, key) = self.shared_address(at);
        let page = at & !(PAGE - 1);
        if self.sees(page, key) {
            return self.mem.read_bytes(page);
        }
        let mut bytes = [0; PAGE as usize];
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&NOISE.to_le_bytes()));
        bytes
    }

    /// Eight bytes.
    pub(crate) fn read_shared(&mut self, at: u64) -> u64 {
        let bytes = self.shared_page(at);
        bytes[(at % PAGE) as usize..][..8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Writes eight bytes with the key id of the address.
    pub(crate) fn write_shared(&mut self, at: u64, word: u64) {
        self.write_shared_bytes(at, &word.to_le_bytes());
    }

    /// Writes bytes of one page with the key id of the address.
    pub(crate) fn write_shared_bytes(&mut self, at: u64, bytes: &[u8]) {
        let (at, key) = self.shared_address(at);
        self.mem.write_bytes(at, bytes, key);
    }

    /// Copies the page at `source` to `page`, where it is written with `key`.
    pub(crate) fn copy_shared(&mut self, source: u64, page: u64, key: u16) {
        let (source, shared) = self.shared_address(source);
        if self.sees(source, shared) {
            self.mem.copy(source, page, key);
        } else {
            self.mem.write(page, NOISE, key);
        }
    }
}
