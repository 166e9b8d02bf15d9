//! A machine with two TDs, and calls on it that are nearly valid: pages, entries and TDs come from small pools, so that
//! they meet. Any register can also be anything.

use arbitrary::Arbitrary;
use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{
    Access, Fault, Hold, Interrupts, Leaf, Machine, MachineBuilder, ModuleVersion, Status, TdLock,
};

mod registers;

use registers::{BASE, CHUNK, Entry, LIST, PAGE, SMALL, Value, register_mut};

/// What a machine is like.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Setup {
    version: u8,
    build: bool,
    debug: bool,
    /// L2 VMs of the first TD; the other has none.
    l2_vms: u8,
}

/// One thing that happens.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Step {
    /// A call with the operands that its leaf expects; `odd` replaces one register.
    Call {
        leaf: u8,
        td: bool,
        entry: Entry,
        page: u8,
        version: u8,
        odd: Option<(u8, Value)>,
    },
    /// A call with anything.
    Raw {
        rax: u32,
        registers: [Value; 8],
    },
    /// BLOCK, everybody out, TRACK, then the call.
    Retire {
        leaf: u8,
        td: bool,
        entry: Entry,
        page: u8,
    },
    Enter {
        td: bool,
        vcpu: bool,
    },
    Exit {
        td: bool,
        vcpu: bool,
    },
    Accept {
        td: bool,
        vcpu: bool,
        entry: Entry,
    },
    /// PAGE.ATTR.RD or PAGE.ATTR.WR: attributes and masks of two VMs.
    Attributes {
        td: bool,
        vcpu: bool,
        write: bool,
        entry: Entry,
        sets: [u8; 2],
        masks: [u8; 2],
    },
    /// A guest's call with anything.
    TdCall {
        td: bool,
        vcpu: bool,
        rax: u8,
        registers: [Value; 3],
    },
    Read {
        td: bool,
        vcpu: bool,
        entry: Entry,
    },
    Write {
        td: bool,
        vcpu: bool,
        entry: Entry,
        pattern: u8,
    },
    HoldPage {
        page: Value,
        level: u8,
        exclusive: bool,
    },
    HoldTd {
        td: bool,
        lock: u8,
        exclusive: bool,
    },
    HoldEntry {
        td: bool,
        entry: Entry,
    },
    Release,
    Interrupt {
        after: u8,
        events: u8,
        host: bool,
    },
    MemoryError {
        page: u8,
    },
    /// States that only leaves of a migration lead to.
    OpState {
        td: bool,
        op_state: u8,
    },
    /// The next call of a leaf is refused.
    Fault {
        leaf: u8,
        status: u8,
    },
    /// The pages that a BLOCKW is to block.
    List {
        entries: [Entry; 3],
        odd: u8,
    },
}

pub struct World {
    pub machine: Machine,
    tds: [TdPages; 2],
}

impl World {
    pub fn new(setup: Setup, change: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Self {
        let versions = [ModuleVersion::V1_5_01, ModuleVersion::V1_5_28, ModuleVersion::V2_0_08];
        let version = versions[usize::from(setup.version) % versions.len()];
        let machine = change(Machine::builder().version(version).memory(BASE, 1)).build();
        let lp = machine.lp(0);
        if version == ModuleVersion::V2_0_08 {
            for region in [0, 1] {
                let pair = BASE + 0x3000_0000 + region * 2 * PAGE;
                let operands = [(BASE + region * CHUNK) | 1, pair, pair + PAGE, 0];
                boot::call(&lp, Leaf::PhymemPamtAdd, operands).expect("a page pair");
            }
        }
        let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
        let tds = [(33, setup.l2_vms % 3), (34, 0)].map(|(hkid, l2_vms)| {
            let (debug, finalize) = (setup.debug, !setup.build);
            let spec = TdSpec { hkid, vcpus: 2, l2_vms, debug, finalize, ..TdSpec::default() };
            let td = boot::create(&lp, &machine, &spec, &mut frames).expect("a TD");
            for level in [3, 2] {
                let page = |wanted| if wanted { frames.next().map_or(u64::MAX, Hpa::raw) } else { u64::MAX };
                let [r8, r9, r10] = [true, l2_vms > 0, l2_vms > 1].map(page);
                let (rax, rdx) = (Leaf::SeptAdd as u64 | 1 << 16, td.tdr.raw());
                let out = lp.raw(Regs { rax, rcx: level, rdx, r8, r9, r10, r11: u64::MAX, ..Regs::new() });
                assert_eq!(out.rax, 0, "tables");
            }
            td
        });
        Self { machine, tds }
    }

    /// The registers of a step that is a call.
    pub fn regs(&self, step: Step) -> Option<Regs> {
        match step {
            Step::Call { leaf, td, entry, page, version, odd } => {
                let leaf = match Leaf::ALL[usize::from(leaf) % Leaf::ALL.len()] {
                    // Nothing comes after them; a raw call may still be one.
                    Leaf::SysLpShutdown | Leaf::SysShutdown => Leaf::MemTrack,
                    leaf => leaf,
                };
                let mut regs = self.operands(leaf, td, entry, page);
                regs.rax |= u64::from(version % 4 == 1) << 16;
                if let Some((register, value)) = odd {
                    *register_mut(&mut regs, register) = self.value(value);
                }
                Some(regs)
            }
            Step::Raw { rax, registers } => {
                let mut regs = Regs { rax: rax.into(), ..Regs::new() };
                for (register, value) in (0..).zip(registers) {
                    *register_mut(&mut regs, register) = self.value(value);
                }
                Some(regs)
            }
            _ => None,
        }
    }

    /// A call by logical processor `lp`; refused, it may have changed nothing.
    pub fn call(&self, lp: u32, regs: Regs) -> u64 {
        let before = self.machine.digest();
        let out = self.machine.lp(lp).raw(regs);
        judge(&self.machine, before, regs, &out);
        out.rax
    }

    fn retire(&self, lp: u32, leaf: u8, td: bool, entry: Entry, page: u8) {
        const LEAVES: [Leaf; 6] = [
            Leaf::PageDemote,
            Leaf::PagePromote,
            Leaf::PageRemove,
            Leaf::PageRelocate,
            Leaf::SeptRemove,
            Leaf::RangeUnblock,
        ];
        let regs = self.operands(LEAVES[usize::from(leaf) % LEAVES.len()], td, entry, page);
        self.call(lp, Regs { rax: Leaf::RangeBlock as u64, ..regs });
        self.tds[usize::from(td)].vcpus.iter().for_each(|&vcpu| _ = self.machine.guest(vcpu).exit());
        self.call(lp, self.operands(Leaf::MemTrack, td, entry, page));
        self.call(lp, regs);
    }

    /// Any step, by the host on `lp`; `hold` is its foreign lock.
    pub fn step(&self, lp: u32, hold: &mut Option<Hold>, step: Step) {
        let machine = &self.machine;
        let guest = |td: bool, vcpu: bool| machine.guest(self.tds[usize::from(td)].vcpus[usize::from(vcpu)]);
        let access = |exclusive| if exclusive { Access::Exclusive } else { Access::Shared };
        let mut keep = |new: Option<Hold>| {
            if let Some(old) = std::mem::replace(hold, new) {
                machine.release(old);
            }
        };
        match step {
            Step::Call { .. } | Step::Raw { .. } => {
                self.regs(step).map(|regs| self.call(lp, regs));
            }
            Step::Retire { leaf, td, entry, page } => self.retire(lp, leaf, td, entry, page),
            Step::Enter { td, vcpu } => _ = guest(td, vcpu).enter(vcpu.into()),
            Step::Exit { td, vcpu } => _ = guest(td, vcpu).exit(),
            Step::Accept { td, vcpu, entry } => _ = guest(td, vcpu).accept_raw(0, entry.raw()),
            Step::Attributes { td, vcpu, write, entry, sets, masks } => {
                let place = |sets: [u8; 2]| u64::from(sets[0]) << 16 | u64::from(sets[1]) << 32;
                let valid = 1 << 31 | 1 << 47;
                let (rax, rdx, r8) = (23 + u64::from(write), place(sets) | valid, place(masks));
                _ = guest(td, vcpu).tdcall(Regs { rax, rcx: entry.raw(), rdx, r8, ..Regs::new() });
            }
            Step::TdCall { td, vcpu, rax, registers } => {
                let [rcx, rdx, r8] = registers.map(|value| self.value(value));
                _ = guest(td, vcpu).tdcall(Regs { rax: rax.into(), rcx, rdx, r8, ..Regs::new() });
            }
            Step::Read { td, vcpu, entry } => _ = guest(td, vcpu).read(Gpa::truncate(entry.raw() & !7)),
            Step::Write { td, vcpu, entry, pattern } => {
                _ = guest(td, vcpu).write(Gpa::truncate(entry.raw() & !7), pattern.into());
            }
            Step::HoldPage { page, level, exclusive } => {
                let level = Level::ALL[usize::from(level % 3)];
                keep(machine.hold_page(Hpa::truncate(self.value(page)), level, access(exclusive)));
            }
            Step::HoldTd { td, lock, exclusive } => {
                let lock = [TdLock::SeptTree, TdLock::OpState, TdLock::Epoch][usize::from(lock % 3)];
                keep(machine.hold_td(self.tds[usize::from(td)].tdr, lock, access(exclusive)));
            }
            Step::HoldEntry { td, entry } => {
                let level = Level::ALL[usize::from(entry.level % 2)];
                let gpa = Gpa::truncate(entry.raw() & !0xFFF);
                keep(machine.hold_entry(self.tds[usize::from(td)].tdr, gpa, level));
            }
            Step::Release => keep(None),
            Step::Interrupt { after, events, host } => {
                let (after, events) = (after.into(), u64::from(events % 4));
                machine.set_interrupts(Some(Interrupts { after, events, host_interruptible: host }));
            }
            Step::MemoryError { page } => {
                _ = machine.consume_memory_error(Hpa::truncate(SMALL + u64::from(page) % 64 * PAGE))
            }
            Step::OpState { td, op_state } => {
                _ = machine.set_op_state(self.tds[usize::from(td)].tdr, op_state % 11);
            }
            Step::Fault { leaf, status } => {
                let answers = [Status::OPERAND_BUSY, Status::INTERRUPTED_RESTARTABLE, Status::RND_NO_ENTROPY];
                let leaf = Leaf::ALL[usize::from(leaf) % Leaf::ALL.len()];
                machine.inject(Fault::nth(leaf, 1, answers[usize::from(status) % answers.len()]));
            }
            Step::List { entries, odd } => {
                let item = |entry: Entry| entry.raw() & !7 | 1 << 52 | u64::from(odd == 0) << 54;
                let bytes: Vec<u8> =
                    entries.into_iter().flat_map(|entry| item(entry).to_le_bytes()).collect();
                machine.host_write_bytes(Hpa::truncate(LIST), &bytes);
            }
        }
    }

    /// Every invariant of the module's state.
    pub fn check(&self) {
        let broken = self.machine.check_invariants();
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

/// A call that was refused may have changed nothing, but for those that are done in parts.
pub fn judge(machine: &Machine, before: u64, regs: Regs, out: &Regs) {
    let status = Status(out.rax);
    let in_parts =
        status.code() == Status::INTERRUPTED_RESUMABLE.0 || regs.rax as u16 == Leaf::ExportBlockw as u16;
    if status.code() != 0 && !in_parts {
        assert_eq!(before, machine.digest(), "{regs:x?} answered {status:?} and changed something");
    }
}
