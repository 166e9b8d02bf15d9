//! Intel EPT: the physical memory of a guest in VMX is our table.

use super::{check, second_level, translations::Mmu};
use crate::{
    guest::{Exit, Guest},
    kick::Kick,
    memory,
    space::{Ept, Space, TableFrame},
    vmx::Vmx,
};
use sept_core::{Gpa, GpaEntry, Level};

/// Exit qualifications: bit 0 read, bit 1 write, bit 7 the linear address is known, bit 8 it was translated.
const EPT: Mmu = Mmu {
    name: "EPT",
    accessed: 1 << 8,
    dirty: 1 << 9,
    read_of_hole: 1 << 8 | 1 << 7 | 1 << 0,
    write_to_hole: 1 << 8 | 1 << 7 | 1 << 1,
};

/// Permissions of an entry: bit 0 read, bit 1 write, bit 2 execute.
const READ: u64 = 1;

/// Checks EPT.
pub fn run(tables: &mut [TableFrame; 64]) {
    second_level::run::<Ept, Vmx>(&EPT, tables, misconfigured);
}

/// The one thing that an entry must not say: that memory may be written and not read.
fn misconfigured(space: &Space<'_, Ept, &Kick>, guest: &mut Guest<'_>) {
    let at = GpaEntry::containing(Gpa::truncate(0x8020_3000), Level::L4K);
    let address = at.gpa().raw() + 0x50;
    check(EPT.name, "an entry that may be written but not read is a misconfiguration", || {
        space.map(at, memory::lend(memory::page(0), Level::L4K));
        assert!(guest.try_read(address).is_ok());
        let entry = space.raw(at);
        space.set_raw(at, entry & !READ);
        space.fence();
        assert_eq!(guest.try_read(address), Err(Exit::Misconfigured { at: address }));
        space.set_raw(at, entry);
        space.fence();
        assert!(guest.try_read(address).is_ok());
        memory::take_back(space.unmap(at));
        space.trim(at.gpa());
    });
}
