//! A machine with two TDs, and calls on it that are nearly valid: pages, entries and TDs come from small pools, so that
//! they meet. Any register can also be anything.

use arbitrary::Arbitrary;
use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{
    Access, Hold, Interrupts, Leaf, Machine, MachineBuilder, ModuleVersion, NULL_PA, Status, TdLock,
};

const BASE: u64 = 0x1_0000_0000;
const PAGE: u64 = 4096;
const CHUNK: u64 = PAGE << 9;
/// Small pages to give, large pages to give, pairs for Dynamic PAMT.
const SMALL: u64 = BASE + 0x10_0000;
const LARGE: u64 = BASE + 0x40_0000;
const PAIRS: u64 = BASE + 0x3100_0000;
/// Ordinary memory.
const SHARED: u64 = 0x4000_0000;

/// What a machine is like.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Setup {
    version: u8,
    build: bool,
    debug: bool,
}

/// A register value that may mean something.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Value {
    Zero,
    None,
    Small(u8),
    Large(u8),
    Inside { large: u8, page: u16 },
    Pair(u8),
    Shared(u8),
    Region(u8),
    Control { td: bool, page: u8 },
    Tdr(bool),
    Vcpu { td: bool, vcpu: bool },
    Entry(Entry),
    WithKey(u8),
    Raw(u64),
}

/// An entry of one of the trees: mostly in three 2 MiB ranges.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Entry {
    level: u8,
    range: u8,
    page: u8,
    odd: u8,
}

impl Entry {
    fn raw(self) -> u64 {
        let level = u64::from(if self.odd == 0 { self.level % 8 } else { self.level % 2 });
        let gpa = (u64::from(self.range) % 3 * CHUNK) + (u64::from(self.page) % 4 * PAGE);
        match self.odd {
            1 => gpa | level,
            2 => gpa | 1 << 47 | level,
            _ => gpa & !((PAGE << (9 * level.min(4))) - 1) | level,
        }
    }
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
        let tds = [33, 34].map(|hkid| {
            let spec =
                TdSpec { hkid, vcpus: 2, debug: setup.debug, finalize: !setup.build, ..TdSpec::default() };
            let td = boot::create(&lp, &machine, &spec, &mut frames).expect("a TD");
            boot::map_tables(&lp, &td, Gpa::truncate(0), Level::L2M, &mut frames).expect("tables");
            td
        });
        Self { machine, tds }
    }

    fn value(&self, value: Value) -> u64 {
        match value {
            Value::Zero => 0,
            Value::None => NULL_PA,
            Value::Small(page) => SMALL + u64::from(page) % 24 * PAGE,
            Value::Large(page) => LARGE + u64::from(page) % 4 * CHUNK,
            Value::Inside { large, page } => {
                LARGE + u64::from(large) % 4 * CHUNK + u64::from(page) % 512 * PAGE
            }
            Value::Pair(page) => PAIRS + u64::from(page) % 16 * PAGE,
            Value::Shared(page) => SHARED + u64::from(page) * 512,
            Value::Region(region) => (BASE + u64::from(region) % 8 * CHUNK) | 1,
            Value::Control { td, page } => {
                let pages = &self.tds[usize::from(td)].control;
                pages[usize::from(page) % pages.len()].raw()
            }
            Value::Tdr(td) => self.tds[usize::from(td)].tdr.raw(),
            Value::Vcpu { td, vcpu } => self.tds[usize::from(td)].vcpus[usize::from(vcpu)].raw(),
            Value::Entry(entry) => entry.raw(),
            Value::WithKey(page) => (SMALL + u64::from(page) % 24 * PAGE) | 33 << 46,
            Value::Raw(raw) => raw,
        }
    }

    /// The operands that the leaf wants, with an entry and a page of the pools.
    fn operands(&self, leaf: Leaf, td: bool, entry: Entry, page: u8) -> Regs {
        let tdr = self.value(Value::Tdr(td));
        let small = self.value(Value::Small(page));
        let mut rcx = entry.raw();
        if matches!(leaf, Leaf::PageDemote | Leaf::PagePromote | Leaf::SeptAdd | Leaf::SeptRemove) {
            rcx = rcx & !0x1F_F007 | 1;
        }
        let large = leaf == Leaf::PageAug && rcx & 7 == 1;
        let mut regs = Regs {
            rax: leaf as u64,
            rcx,
            rdx: tdr,
            r8: if large { self.value(Value::Large(page)) } else { small },
            r9: NULL_PA,
            r10: NULL_PA,
            r11: NULL_PA,
            r12: self.value(Value::Pair(page & !1)),
            r13: self.value(Value::Pair(page | 1)),
        };
        let vcpu = self.value(Value::Vcpu { td, vcpu: page & 1 != 0 });
        match leaf {
            Leaf::PageAdd => regs.r9 = SHARED,
            Leaf::MemTrack
            | Leaf::MrFinalize
            | Leaf::MngKeyConfig
            | Leaf::MngVpFlushDone
            | Leaf::MngKeyFreeId => {
                regs.rcx = tdr;
            }
            Leaf::MngRd => (regs.rcx, regs.rdx) = (tdr, 0x9210_0003_0000_0000),
            Leaf::MngInit => (regs.rcx, regs.rdx) = (tdr, SHARED),
            Leaf::MngCreate => (regs.rcx, regs.rdx) = (small, 35),
            Leaf::MngAddCx | Leaf::VpCreate => regs.rcx = small,
            Leaf::VpAddCx => (regs.rcx, regs.rdx) = (small, vcpu),
            Leaf::VpEnter | Leaf::VpInit | Leaf::VpFlush => regs.rcx = vcpu,
            Leaf::PhymemPageRdmd | Leaf::PhymemPageReclaim => regs.rcx = small,
            Leaf::PhymemPageWbinvd => regs.rcx = self.value(Value::WithKey(page)),
            Leaf::PhymemPamtAdd | Leaf::PhymemPamtRemove => {
                regs.rcx = self.value(Value::Region(page));
                (regs.rdx, regs.r8) = (regs.r12, regs.r13);
            }
            Leaf::PhymemCacheWb => regs.rcx = 0,
            Leaf::MemRd | Leaf::MemWr => regs.rcx = entry.raw() & !7,
            _ => {}
        }
        regs
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
        }
    }

    /// Every invariant of the module's state.
    pub fn check(&self) {
        check(&self.machine);
    }
}

/// Every invariant of the module's state.
pub fn check(machine: &Machine) {
    let broken = machine.check_invariants();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A call that was refused may have changed nothing.
pub fn judge(machine: &Machine, before: u64, regs: Regs, out: &Regs) {
    if out.rax >> 32 != 0 {
        let status = Status(out.rax);
        assert_eq!(before, machine.digest(), "{regs:x?} answered {status:?} and changed something");
    }
}

fn register_mut(regs: &mut Regs, number: u8) -> &mut u64 {
    match number % 8 {
        0 => &mut regs.rcx,
        1 => &mut regs.rdx,
        2 => &mut regs.r8,
        3 => &mut regs.r9,
        4 => &mut regs.r10,
        5 => &mut regs.r11,
        6 => &mut regs.r12,
        _ => &mut regs.r13,
    }
}
