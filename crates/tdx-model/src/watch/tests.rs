//! Each invariant, broken on purpose: the watch tells it from what changed, the walk from nothing at all.

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};

use crate::abi::{PAGE, PageType};
use crate::boot::{self, TdPages, TdSpec};
use crate::config::ModuleVersion;
use crate::l2;
use crate::lock::Mode;
use crate::machine::Machine;
use crate::sept;
use crate::state::State;

const BASE: u64 = 0x1_0000_0000;
const LARGE: u64 = BASE + 0x1000_0000;
const SMALL: u64 = BASE + 0x2000_0000;
/// A 2 MiB page, a 4 KiB page.
const LARGE_GPA: u64 = 0x4000_0000;
const SMALL_GPA: u64 = 0x4020_0000;

/// A TD with one L2 VM that may use both pages, and its vCPU inside.
fn fixture(version: ModuleVersion) -> (Machine, TdPages) {
    let machine = Machine::builder().version(version).dynamic_pamt(false).memory(BASE, 1).build();
    let (lp, mut frames) = (machine.lp(0), (BASE..).step_by(4096).map(Hpa::truncate));
    let spec = TdSpec { l2_vms: 1, ..TdSpec::default() };
    let td = boot::create(&lp, &machine, &spec, &mut frames).unwrap();
    for (gpa, level) in [(0, 3), (LARGE_GPA, 2), (SMALL_GPA, 1)] {
        let [r8, r9] = [frames.next().unwrap(), frames.next().unwrap()].map(Hpa::raw);
        let (rcx, rdx, unused) = (gpa | level, td.tdr.raw(), u64::MAX);
        let regs = Regs { rax: 1 << 16 | 3, rcx, rdx, r8, r9, r10: unused, r11: unused, ..Regs::default() };
        assert_eq!(lp.raw(regs).rax, 0);
    }
    let guest = machine.guest(td.vcpus[0]);
    guest.enter(0).unwrap();
    for (gpa, level, page) in [(LARGE_GPA, Level::L2M, LARGE), (SMALL_GPA, Level::L4K, SMALL)] {
        boot::aug(&lp, &td, Gpa::truncate(gpa), level, Hpa::truncate(page)).unwrap();
        guest.accept(Gpa::truncate(gpa), level).unwrap();
        let rcx = gpa | u64::from(level.raw());
        let regs = Regs { rax: 24, rcx, rdx: 0x8007 << 16, r8: 0x8007 << 16, ..Regs::default() };
        let out = guest.tdcall(regs).unwrap();
        assert!(matches!(out, crate::TdCall::Returned(Regs { rax: 0, .. })), "{out:x?}");
    }
    guest.write(Gpa::truncate(SMALL_GPA), 7).unwrap();
    assert_eq!(machine.check_invariants(), [""; 0]);
    (machine, td)
}

fn entry(s: &mut State, gpa: u64, level: u8) -> &mut u64 {
    let slot = s.walk(0, gpa, level);
    assert_eq!(slot.level, level);
    &mut s.mem.table_mut(slot.table)[slot.index]
}

fn l2_entry(s: &mut State, gpa: u64, level: u8) -> &mut u64 {
    let slot = s.l2_walk(0, 1, gpa, level, false);
    assert_eq!(slot.level, level);
    &mut s.mem.table_mut(slot.table)[slot.index]
}

fn page_entry(s: &mut State, page: u64, level: u8) -> &mut crate::pamt::PamtEntry {
    let cfg = s.cfg.clone();
    s.mem.entry_mut(&cfg, page, level)
}

type Damage = fn(&mut State);

/// What is done to the state, and a piece of what has to be told.
const DAMAGES: [(&str, Damage); 24] = [
    ("named by 0 entries", |s| *entry(s, LARGE_GPA, 1) = sept::FREE),
    ("named by 2 entries", |s| {
        let raw = *entry(s, SMALL_GPA, 0);
        *entry(s, SMALL_GPA + PAGE, 0) = raw;
    }),
    ("the PAMT does not know the page", |s| *entry(s, SMALL_GPA, 0) += PAGE),
    ("the PAMT does not know the page", |s| *entry(s, SMALL_GPA, 1) += 0x100_0000),
    ("named by 0 entries", |s| *l2_entry(s, SMALL_GPA, 1) = l2::FREE),
    ("CHLDCNT", |s| s.td_mut(0).chldcnt += 1),
    ("PAMT says", |s| {
        let cfg = s.cfg.clone();
        let owner = s.td(0).tdr;
        s.mem.pamt_assign(&cfg, SMALL + 8 * PAGE, 0, PageType::Tdcx, owner);
    }),
    ("in use below a larger page", |s| {
        let cfg = s.cfg.clone();
        let owner = s.td(0).tdr;
        s.mem.pamt_assign(&cfg, LARGE + PAGE, 0, PageType::Tdcx, owner);
        s.td_mut(0).chldcnt += 1;
    }),
    ("pages used", |s| {
        let cfg = s.cfg.clone();
        s.mem.pamt_assign(&cfg, SMALL + 8 * PAGE, 0, PageType::Nda, 0);
        s.mem.pamt_assign(&cfg, SMALL + 8 * PAGE, 0, PageType::Tdr, 0);
    }),
    ("is no TD", |s| {
        let cfg = s.cfg.clone();
        s.mem.pamt_assign(&cfg, SMALL + 8 * PAGE, 0, PageType::Tdcx, BASE + 0x3000_0000);
    }),
    ("lock bit does not match", |s| {
        let bit = s.lock_bit();
        *entry(s, SMALL_GPA, 0) |= bit;
    }),
    ("lock (1, false)", |s| {
        let cfg = s.cfg.clone();
        s.mem.pamt_lock(&cfg, SMALL, 0, Mode::Shared).unwrap();
    }),
    ("SeptTree lock", |s| assert!(s.td_mut(0).tree_lock.acquire(Mode::Shared))),
    ("Epoch lock", |s| assert!(s.td_mut(0).epoch_lock.acquire(Mode::Exclusive))),
    ("a lock of the key table", |s| assert!(s.key_table_lock.acquire(Mode::Exclusive))),
    ("writable but not readable", |s| *entry(s, SMALL_GPA, 0) &= !1),
    ("accessible", |s| *entry(s, SMALL_GPA, 0) |= 1 << 55),
    ("a table without full access", |s| *entry(s, SMALL_GPA, 1) &= !2),
    ("blocked in the future", |s| {
        page_entry(s, SMALL, 0).bepoch = 1000;
        let raw = *entry(s, SMALL_GPA, 0);
        *entry(s, SMALL_GPA, 0) = sept::blocked(raw, 0);
    }),
    ("refcount", |s| s.td_mut(0).refcount[0] += 1),
    ("is inside since epoch", |s| s.td_mut(0).td_epoch += 2),
    ("can still reach a page", |s| {
        let cfg = s.cfg.clone();
        *entry(s, SMALL_GPA, 0) = sept::FREE;
        *l2_entry(s, SMALL_GPA, 0) = l2::FREE;
        s.mem.pamt_free(&cfg, SMALL, 0);
        s.td_mut(0).chldcnt -= 1;
    }),
    ("VM 1", |s| *l2_entry(s, SMALL_GPA, 0) = l2::FREE),
    ("another page than the L1 entry's", |s| *l2_entry(s, LARGE_GPA, 1) += 0x20_0000),
];

#[test]
fn what_is_broken_is_told_by_the_watch_and_by_the_walk() {
    for version in [ModuleVersion::V1_5_01, ModuleVersion::V2_0_08] {
        for (number, (expected, damage)) in DAMAGES.iter().enumerate() {
            let (machine, _) = fixture(version);
            let mut state = machine.lock();
            damage(&mut state);
            // As every call does, it names a page.
            page_entry(&mut state, BASE, 0);
            let walked = state.check_invariants();
            assert!(walked.iter().any(|told| told.contains(expected)), "{number} {expected}: {walked:#?}");
            if cfg!(debug_assertions) {
                let watched = state.check_changes(false);
                assert!(
                    watched.iter().any(|told| told.contains(expected)),
                    "{number} {expected}: {watched:#?}"
                );
            }
        }
    }
}

/// Rule 9: what a refused call must not do, and what it may.
#[test]
#[cfg(debug_assertions)]
fn a_refused_call_that_changed_something_is_told() {
    let changes: [(Damage, usize); 4] = [
        (|s| *entry(s, SMALL_GPA, 0) |= sept::HOST_PRIORITY, 0),
        (
            |s| {
                let raw = *entry(s, SMALL_GPA, 0);
                *entry(s, SMALL_GPA, 0) = sept::blocked(raw, 0);
            },
            1,
        ),
        (|s| page_entry(s, SMALL, 0).bepoch = 0x77, 1),
        (|s| *l2_entry(s, SMALL_GPA, 0) ^= 2, 1),
    ];
    for (number, (change, told)) in changes.into_iter().enumerate() {
        let (machine, _) = fixture(ModuleVersion::V1_5_01);
        let mut state = machine.lock();
        change(&mut state);
        let refused = state.check_changes(true);
        assert_eq!(
            refused.iter().filter(|line| line.starts_with("refused")).count(),
            told,
            "{number}: {refused:#?}"
        );
        assert_eq!(state.check_changes(true), [""; 0], "told once");
    }
}

/// A debug build panics at the call after which something is wrong.
#[test]
#[cfg(debug_assertions)]
fn a_call_on_a_broken_state_panics_in_debug_builds() {
    let (machine, td) = fixture(ModuleVersion::V1_5_28);
    machine.lock().td_mut(0).chldcnt += 1;
    let call = || boot::call(&machine.lp(0), crate::abi::Leaf::MemTrack, [td.tdr.raw(), 0, 0, 0]);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    assert!(panicked.is_err());
}
