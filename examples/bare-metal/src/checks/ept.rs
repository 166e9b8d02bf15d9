//! Intel EPT: the physical memory of a guest in VMX is our table.

use super::{check, second_level, translations::Mmu};
use crate::{
    guest::{Exit, Guest},
    kick::Kick,
    memory,
    space::{Space, Tables},
    vmx::Vmx,
};
use sept_core::{Ept, EptConfig, Gpa, GpaEntry, Level};

// Exit qualifications. Source: Intel SDM volume 3, table "Exit Qualification for EPT Violations".
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 2;
const READABLE: u64 = 1 << 3;
const WRITABLE: u64 = 1 << 4;
const EXECUTABLE: u64 = 1 << 5;
/// The linear address is known, and it is that of the access.
const LINEAR: u64 = 1 << 7 | 1 << 8;

const EPT: Mmu = Mmu {
    name: "EPT",
    accessed: 1 << 8,
    dirty: 1 << 9,
    read_of_hole: LINEAR | READ,
    write_to_hole: LINEAR | WRITE,
    write_denied: LINEAR | WRITE | READABLE | EXECUTABLE,
};

const FETCH_DENIED: u64 = LINEAR | FETCH | READABLE | WRITABLE;

/// Checks EPT.
pub fn run(tables: &mut Tables) {
    second_level::run::<Ept, Vmx>(&EPT, FETCH_DENIED, EptConfig::LEVELS_4, tables, misconfigured);
}

/// The one thing that an entry must not say: that memory may be written and not read.
fn misconfigured(space: &Space<'_, Ept, &Kick>, guest: &mut Guest<'_>) {
    let at = GpaEntry::containing(Gpa::truncate(0x8020_3000), Level::L4K);
    let address = at.gpa().raw() + 0x50;
    check(EPT.name, "an entry that may be written but not read is a misconfiguration", || {
        space.map(at.range(), memory::lend(0, 1), Level::L4K);
        assert!(guest.try_read(address).is_ok());
        let entry = space.word(at);
        // Bit 0 of an entry is the permission to read.
        space.set_word(at, entry & !1);
        space.fence();
        assert_eq!(guest.try_read(address), Err(Exit::Misconfigured { at: address }));
        space.set_word(at, entry);
        space.fence();
        assert!(guest.try_read(address).is_ok());
        space.unmap(at.range(), memory::take_back);
        space.trim(at.range());
    });
}
