//! Near-valid calls at random: invariants hold after all of them, and an error changes nothing.

use std::collections::BTreeMap;

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{Leaf, NULL_PA, PAGE, Status};
use crate::boot::{self, TdPages, TdSpec};
use crate::config::ModuleVersion;
use crate::faults::Interrupts;
use crate::foreign::{Access, Hold, TdLock};
use crate::machine::Machine;

const BASE: u64 = 0x1_0000_0000;

/// A generator that is enough for choosing among few things.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }
}

struct World {
    machine: Machine,
    td: TdPages,
    dice: Dice,
    hold: Option<Hold>,
}

impl World {
    fn new(version: ModuleVersion, seed: u64) -> Self {
        let machine = Machine::builder().version(version).memory(BASE, 2).build();
        let lp = machine.lp(0);
        if version == ModuleVersion::V2_0_08 {
            for region in [0, 1] {
                let pair = BASE + 0x3000_0000 + region * 0x2000;
                let rcx = (BASE + (region << 21)) | 1;
                let regs = Regs { rax: 58, rcx, rdx: pair, r8: pair + PAGE, ..Regs::default() };
                assert_eq!(lp.raw(regs).rax, 0);
            }
        }
        let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
        let spec = TdSpec { vcpus: 2, ..TdSpec::default() };
        let td = boot::create(&lp, &machine, &spec, &mut frames).expect("a TD");
        boot::map_tables(&lp, &td, Gpa::truncate(0), Level::L2M, &mut frames).expect("tables");
        Self { machine, td, dice: Dice(seed | 1), hold: None }
    }

    /// Pages of a few kinds: control pages, tables to be, small and large data, and nonsense.
    fn page(&mut self) -> u64 {
        let small = BASE + 0x10_0000 + self.dice.roll(24) * PAGE;
        let large = BASE + 0x40_0000 + (self.dice.roll(4) << 21);
        let odd =
            self.dice.pick(&[0, NULL_PA, 0x1008, 0x4000_0000, 33 << 46 | small, self.td.tdr.raw(), BASE]);
        match self.dice.roll(16) {
            0 => odd,
            1..=8 => small,
            9 => large + self.dice.roll(512) * PAGE,
            _ => large,
        }
    }

    /// Mostly an entry of `level`, in one of three 2 MiB ranges. Never a table higher up: blocked, it would hide all.
    fn entry(&mut self, level: u64) -> u64 {
        let level = if self.dice.roll(25) == 0 { self.dice.pick(&[0, 1, 5]) } else { level };
        let gpa = (self.dice.roll(3) << 21) + (self.dice.roll(4) << 12);
        let aligned = gpa & !((PAGE << (9 * level.min(4))) - 1);
        if self.dice.roll(40) == 0 { gpa | 1 << 47 | level } else { aligned | level }
    }

    fn frame(&mut self, level: u64) -> u64 {
        match (self.dice.roll(12), level) {
            (0, _) => self.page(),
            (_, 1) => BASE + 0x40_0000 + (self.dice.roll(4) << 21),
            _ => BASE + 0x10_0000 + self.dice.roll(24) * PAGE,
        }
    }

    fn regs(&mut self) -> Regs {
        let leaf = self.dice.pick(&[
            Leaf::PageAug,
            Leaf::PageAug,
            Leaf::SeptAdd,
            Leaf::RangeBlock,
            Leaf::RangeUnblock,
            Leaf::MemTrack,
            Leaf::MemTrack,
            Leaf::PageDemote,
            Leaf::PagePromote,
            Leaf::PageRemove,
            Leaf::PageRelocate,
            Leaf::SeptRemove,
            Leaf::SeptRd,
            Leaf::PhymemPageRdmd,
            Leaf::PhymemPageReclaim,
            Leaf::PhymemPageWbinvd,
            Leaf::PhymemPamtAdd,
            Leaf::PhymemPamtRemove,
            Leaf::PageAdd,
            Leaf::MrFinalize,
            Leaf::VpCreate,
            Leaf::MngAddCx,
            Leaf::MngRd,
        ]);
        let level = match leaf {
            Leaf::PageDemote | Leaf::PagePromote | Leaf::SeptAdd | Leaf::SeptRemove => 1,
            Leaf::PageAdd | Leaf::PageRelocate => 0,
            _ => self.dice.roll(2),
        };
        let page_level = if leaf == Leaf::PageAug { level } else { 0 };
        let tdr = if self.dice.roll(50) == 0 { self.page() } else { self.td.tdr.raw() };
        let mut regs = Regs {
            rax: leaf as u64 | if self.dice.roll(8) == 0 { 1 << 16 } else { 0 },
            rcx: self.entry(level),
            rdx: tdr | u64::from(self.dice.roll(30) == 0),
            r8: self.frame(page_level),
            r9: NULL_PA,
            r10: NULL_PA,
            r11: NULL_PA,
            r12: BASE + 0x3100_0000 + self.dice.roll(16) * PAGE,
            r13: BASE + 0x3100_0000 + self.dice.roll(16) * PAGE,
        };
        match leaf {
            Leaf::SeptRd if regs.r12 & 0x1000 != 0 => regs.rcx = 2,
            Leaf::MemTrack | Leaf::MrFinalize => regs.rcx = tdr,
            Leaf::MngRd => (regs.rcx, regs.rdx) = (tdr, 0x9210_0003_0000_0000),
            Leaf::PhymemPageRdmd | Leaf::PhymemPageReclaim | Leaf::PhymemPageWbinvd => regs.rcx = self.page(),
            Leaf::VpCreate | Leaf::MngAddCx => regs.rcx = self.page(),
            Leaf::PhymemPamtAdd | Leaf::PhymemPamtRemove => {
                regs.rcx = (BASE + (self.dice.roll(8) << 21)) | 1;
                (regs.rdx, regs.r8) = (regs.r12, regs.r13);
            }
            Leaf::PageAdd => regs.r9 = 0x4000_0000,
            _ => {}
        }
        regs
    }

    fn guest_step(&mut self) {
        let (index, leaves) = (self.dice.roll(2) as usize, self.dice.roll(3) == 0);
        let level = self.dice.roll(2);
        let (entry, pattern) = (self.entry(level), self.dice.roll(1000));
        let guest = self.machine.guest(self.td.vcpus[index]);
        if !guest.is_inside() {
            let _ = guest.enter(index as u32);
        } else if leaves {
            guest.exit();
        } else {
            let _ = guest.accept_raw(0, entry);
            let _ = guest.write(Gpa::truncate(entry & !7), pattern);
            let _ = guest.read(Gpa::truncate(entry & !7));
        }
    }

    /// Every vCPU out, one epoch further.
    fn fence(&self) {
        for &tdvpr in &self.td.vcpus {
            self.machine.guest(tdvpr).exit();
        }
        let _ = boot::call(&self.machine.lp(0), Leaf::MemTrack, [self.td.tdr.raw(), 0, 0, 0]);
    }

    fn disturb(&mut self) {
        let page = self.page();
        if let Some(hold) = self.hold.take() {
            self.machine.release(hold);
            self.machine.set_interrupts(None);
            return;
        }
        let lock = self.dice.pick(&[TdLock::SeptTree, TdLock::OpState, TdLock::Epoch]);
        self.hold = match self.dice.roll(4) {
            0 => self.machine.hold_page(Hpa::truncate(page), Level::L2M, Access::Shared),
            1 => self.machine.hold_td(self.td.tdr, lock, Access::Exclusive),
            2 => {
                let gpa = Gpa::truncate(self.entry(1) & !0xFFF);
                self.machine.hold_entry(self.td.tdr, gpa, Level::L2M)
            }
            _ => {
                self.machine.set_interrupts(Some(Interrupts::nmi_after(self.dice.roll(3))));
                None
            }
        };
    }

    /// Blocks an entry, lets its epoch retire, then works on it; often twice, so that splits are merged again.
    fn retire(&mut self) {
        let level = self.dice.roll(2);
        let entry = self.entry(level);
        let (small, tdr) = (self.frame(0), self.td.tdr.raw());
        let pair = BASE + 0x3200_0000 + self.dice.roll(16) * 2 * PAGE;
        for first in [true, false] {
            let leaf = match (level, first, self.dice.roll(4)) {
                (0, _, roll) => [Leaf::PageRelocate, Leaf::PageRemove, Leaf::RangeUnblock][roll as usize % 3],
                (_, true, 0..=2) => Leaf::PageDemote,
                (_, false, 0..=2) => Leaf::PagePromote,
                _ => self.dice.pick(&[Leaf::SeptRemove, Leaf::PageRemove, Leaf::RangeUnblock]),
            };
            self.call(Regs { rax: Leaf::RangeBlock as u64, rcx: entry, rdx: tdr, ..Regs::default() });
            self.fence();
            let rax = leaf as u64;
            let (r12, r13) = (pair, pair + PAGE);
            self.call(Regs { rax, rcx: entry, rdx: tdr, r8: small, r12, r13, ..Regs::default() });
        }
    }

    fn step(&mut self) {
        match self.dice.roll(10) {
            0 => self.disturb(),
            1..=3 => self.guest_step(),
            4 => self.fence(),
            5..=6 => self.retire(),
            _ => {}
        }
        let regs = self.regs();
        self.call(regs);
    }

    /// The call; when it is refused nothing may have changed.
    fn call(&self, regs: Regs) {
        let before = self.machine.digest();
        let out = self.machine.lp(0).raw(regs);
        if out.rax != 0 {
            let after = self.machine.digest();
            assert_eq!(before, after, "{regs:x?} answered {:?} and changed something", Status(out.rax));
        }
    }
}

/// Leaves of which the random calls must reach the effect, not only the refusals.
const EXERCISED: [Leaf; 10] = [
    Leaf::PageAug,
    Leaf::SeptAdd,
    Leaf::SeptRemove,
    Leaf::RangeBlock,
    Leaf::RangeUnblock,
    Leaf::PageDemote,
    Leaf::PagePromote,
    Leaf::PageRemove,
    Leaf::PageRelocate,
    Leaf::SeptRd,
];

fn count_successes(machine: &Machine, succeeded: &mut BTreeMap<Leaf, u64>) {
    let stats = machine.stats();
    for (&leaf, calls) in &stats.calls {
        let refused = stats.answers.iter().filter(|((number, _), _)| *number == leaf as u16);
        *succeeded.entry(leaf).or_insert(0) += calls - refused.map(|(_, count)| count).sum::<u64>();
    }
}

#[test]
fn invariants_hold_and_errors_change_nothing() {
    for version in [ModuleVersion::V1_5_01, ModuleVersion::V1_5_28, ModuleVersion::V2_0_08] {
        let mut succeeded = BTreeMap::new();
        for seed in 1..=3 {
            let mut world = World::new(version, seed * 0x9E37_79B9);
            for step in 0..900 {
                world.step();
                if step % 32 == 0 {
                    let broken = world.machine.check_invariants();
                    assert!(broken.is_empty(), "{version:?} seed {seed} step {step}: {broken:#?}");
                }
            }
            count_successes(&world.machine, &mut succeeded);
            // No guest may reach a page that is not its TD's, however careless the host is.
            let stale = crate::ViolationKind::StaleTranslation;
            assert!(world.machine.violations().iter().all(|violation| violation.kind != stale));
        }
        for leaf in EXERCISED {
            let count = succeeded.get(&leaf).copied().unwrap_or(0);
            assert!(count >= 5, "{version:?}: only {count} calls of {leaf:?} succeeded");
        }
    }
}
