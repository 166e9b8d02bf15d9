//! One number for everything that an error must leave alone.

use crate::abi::PageType;
use crate::l2;
use crate::machine::Machine;
use crate::memory::fold;
use crate::sept;
use crate::state::{KeyState, State};
use crate::td::Td;

impl State {
    /// Folds the PAMT, the key table and every TD. Locks, host priority and page contents are left out: an error may
    /// leave host priority behind, and a page overwritten that was offered.
    pub(crate) fn digest(&self) -> u64 {
        let mut hash = 0;
        let mut add = |word: u64| hash = fold(hash, word);
        for (gib, number) in self.mem.gibs.iter().zip(0u64..) {
            let Some(gib) = gib else { continue };
            let fine = gib.chunks.iter().flat_map(|chunk| &chunk.fine);
            let entries =
                gib.chunks.iter().map(|chunk| &chunk.own).chain(fine.flat_map(|fine| &fine.entries));
            for (index, entry) in entries.chain([&gib.own]).enumerate() {
                if entry.owner() != 0 || entry.kind() != PageType::Nda {
                    add(number << 32 | index as u64);
                    add(entry.owner() | entry.kind() as u64);
                    add(entry.bepoch);
                }
            }
            let marked = gib.chunks.iter().filter_map(|chunk| chunk.pamt_pages.as_ref());
            marked.for_each(|bits| bits.iter().for_each(|&word| add(word)));
        }
        for key in &self.keys {
            add(match key {
                KeyState::Free => 0,
                KeyState::Reserved => 1,
                KeyState::Assigned => 2,
                KeyState::Flushing(packages) => 3 | u64::from(*packages) << 2,
            });
        }
        add(self.system.state as u64);
        self.cfg.tdmrs.iter().for_each(|tdmr| add(tdmr.initialized_end));
        self.tds.iter().flatten().for_each(|td| self.digest_td(td, &mut add));
        hash
    }

    fn digest_td(&self, td: &Td, add: &mut impl FnMut(u64)) {
        let states = u64::from(td.op_state) | (td.lifecycle as u64) << 8 | u64::from(td.fatal) << 16;
        let (controls, migration) = (&td.controls, &td.migration);
        let words = [
            td.tdr,
            td.chldcnt,
            td.td_epoch,
            states,
            td.measurement,
            td.tdcx.len() as u64,
            u64::from(td.keyed_packages) | u64::from(td.num_vcpus) << 32,
            controls.attributes,
            controls.td_ctls,
            controls.notify_enables,
            controls.hp_lock_timeout,
            u64::from(migration.epoch),
            migration.block_write_epoch,
            migration.dirty_count,
        ];
        words.into_iter().chain(controls.vm_ctls).for_each(&mut *add);
        td.refcount.iter().for_each(|&count| add(u64::from(count)));
        for vcpu in &td.vcpus {
            let flags = [vcpu.initialized, vcpu.inside, vcpu.disabled, vcpu.left_by_trap];
            add(vcpu.tdvpr | flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u64::from(flag)));
            add(vcpu.epoch);
            add(vcpu.lp.map_or(0, |lp| u64::from(lp) + 1) | (vcpu.tdcx.len() as u64) << 32);
        }
        if td.is_built() {
            for (vm, &root) in td.roots().tables().iter().enumerate() {
                self.digest_table(vm, root, td.root_level, add);
            }
        }
    }

    fn digest_table(&self, vm: usize, table: u32, level: u8, add: &mut impl FnMut(u64)) {
        for (index, &raw) in self.mem.table(table).iter().enumerate() {
            let (raw, free) = match vm {
                0 => (raw & !sept::HOST_PRIORITY & !self.lock_bit(), sept::FREE),
                _ => (raw, l2::FREE),
            };
            if raw == free {
                continue;
            }
            add((vm as u64) << 40 | u64::from(level) << 32 | index as u64);
            add(raw);
            let is_table = if vm == 0 { sept::state_of(raw).is_in(sept::TABLES) } else { l2::is_table(raw) };
            let next = self.mem.table_at(raw & self.cfg.address_mask());
            if let Some(child) = next.filter(|_| is_table && level > 0) {
                self.digest_table(vm, child, level - 1, add);
            }
        }
    }
}

impl Machine {
    /// A number that a call which is refused must leave as it was (with very few exceptions, all of them documented:
    /// what a call did before it was interrupted). It says nothing about equality of two machines.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.with(|state| state.digest())
    }
}
