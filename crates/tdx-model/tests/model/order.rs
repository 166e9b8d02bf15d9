//! The order of the checks: of everything that is wrong with a call, the first in the ABI's order is answered. And the locks that
//! each leaf needs. (TDX module ABI, "Common prologue of S-EPT leaves", "Lock matrix".)

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Access, Hold, Leaf, Machine, ModuleVersion, Status, TdLock};

use crate::common::BASE;

/// A table whose entries 0 and 2 are pages and whose entry 1 is free; a 2 MiB page; a free entry; an empty table; a table of
/// 512 pages that merge; a blocked 2 MiB page; nothing at all.
const SMALL: u64 = 0x4000_0000;
const FREE_SMALL: u64 = 0x4000_1000;
const LARGE: u64 = 0x4020_0001;
const FREE_LARGE: u64 = 0x4040_0001;
const EMPTY_TABLE: u64 = 0x4060_0001;
const FULL_TABLE: u64 = 0x4080_0001;
const BLOCKED: u64 = 0x40A0_0001;
const NOTHING: u64 = 0x8000_0000;

const NEW_PAGE: u64 = BASE + 0x3000_0000;
const SOURCE: u64 = 0x4000_0000;
const OUTSIDE: u64 = 0x90_0000_0000;

struct World {
    machine: Machine,
    td: TdPages,
    /// A TD without TDCX pages.
    bare: u64,
    holds: Vec<Hold>,
}

/// A TD that is being built, so that nothing needs blocking or tracking.
fn world() -> World {
    let machine = Machine::builder().version(ModuleVersion::V1_5_01).memory(BASE, 1).build();
    let (lp, mut frames) = (machine.lp(0), (BASE..).step_by(4096).map(Hpa::truncate));
    let spec = TdSpec { finalize: false, ..TdSpec::default() };
    let td = boot::create(&lp, &machine, &spec, &mut frames).unwrap();
    for entry in [SMALL, EMPTY_TABLE & !7, FULL_TABLE & !7] {
        boot::map_tables(&lp, &td, Gpa::truncate(entry), Level::L4K, &mut frames).unwrap();
    }
    let aug = |entry: u64, level, page: u64| {
        boot::aug(&lp, &td, Gpa::truncate(entry & !7), level, Hpa::truncate(page)).unwrap();
    };
    aug(SMALL, Level::L4K, BASE + 0x2000_0000);
    aug(SMALL + 0x2000, Level::L4K, BASE + 0x2000_1000);
    aug(LARGE, Level::L2M, BASE + 0x2100_0000);
    aug(BLOCKED, Level::L2M, BASE + 0x2200_0000);
    (0..512).for_each(|i| aug(FULL_TABLE + i * 4096, Level::L4K, BASE + 0x2300_0000 + i * 4096));
    boot::call(&lp, Leaf::RangeBlock, [BLOCKED, td.tdr.raw(), 0, 0]).unwrap();
    let bare = frames.next().unwrap().raw();
    boot::call(&lp, Leaf::MngCreate, [bare, 34, 0, 0]).unwrap();
    boot::call(&lp, Leaf::MngKeyConfig, [bare, 0, 0, 0]).unwrap();
    World { machine, td, bare, holds: Vec::new() }
}

/// A leaf with operands that succeed, and an entry whose state it does not take.
struct Case {
    leaf: Leaf,
    rcx: u64,
    wrong_state: u64,
    /// Which of the prologue's locks it takes: operation state, tree, entry.
    locks: [bool; 3],
}

const fn case(leaf: Leaf, rcx: u64, wrong_state: u64) -> Case {
    let locks = [!matches!(leaf, Leaf::PageAdd); 3];
    Case { leaf, rcx, wrong_state, locks }
}

const CASES: [Case; 11] = [
    case(Leaf::SeptAdd, FREE_LARGE, LARGE),
    case(Leaf::SeptRd, LARGE, 0),
    case(Leaf::SeptRemove, EMPTY_TABLE, LARGE),
    case(Leaf::PageAdd, FREE_SMALL, SMALL),
    case(Leaf::PageAug, FREE_SMALL, SMALL),
    case(Leaf::PageRemove, LARGE, FREE_LARGE),
    case(Leaf::PageRelocate, SMALL, FREE_SMALL),
    case(Leaf::PageDemote, LARGE, FREE_LARGE),
    case(Leaf::PagePromote, FULL_TABLE, FREE_LARGE),
    case(Leaf::RangeBlock, LARGE, FREE_LARGE),
    case(Leaf::RangeUnblock, BLOCKED, LARGE),
];

/// What goes wrong, in the order in which the module looks.
const STAGES: [(&str, u64); 18] = [
    ("reserved bits of RAX", 0xC000_0100_0000_0000),
    ("form of RDX", 0xC000_0100_0000_0002),
    ("RDX outside of all regions", 0xC000_0101_0000_0002),
    ("RDX locked", 0x8000_0200_0000_0002),
    ("RDX no TDR", 0xC000_0300_0000_0002),
    ("TD fatal", 0xE000_0604_0000_0000),
    ("life cycle", 0x8000_0810_0000_0000),
    ("too few TDCX pages", 0xC000_0606_0000_0000),
    ("operation state locked", 0x8000_0200_0000_00AC),
    ("operation state", 0xC000_0608_0000_0000),
    ("reserved bits of RCX", 0xC000_0100_0000_0001),
    ("level of RCX", 0xC000_0100_0000_0001),
    ("alignment of RCX", 0xC000_0100_0000_0001),
    ("shared address", 0xC000_0100_0000_0001),
    ("tree locked", 0x8000_0200_0000_0092),
    ("no table on the way", 0xC000_0B00_0000_0001),
    ("entry locked", 0x8000_0200_0000_0001),
    ("state of the entry", 0xC000_0B0D_0000_0001),
];

/// The registers, and the world, with everything wrong from `stage` on.
fn spoil(case: &Case, stage: usize, w: &mut World) -> Regs {
    let wrong_type = w.td.control[0].raw();
    let rdx = match stage {
        0 | 1 => OUTSIDE + 0x802,
        2 => OUTSIDE,
        3 | 4 => wrong_type,
        7 => w.bare,
        _ => w.td.tdr.raw(),
    };
    let level = case.rcx & 7;
    let rcx = match stage {
        0..=10 => NOTHING | 1 << 47 | 0x1000 | 7 | 8,
        11 => NOTHING | 1 << 47 | 0x1000 | 7,
        // No level 0 address can be misaligned.
        12 => NOTHING | 1 << 47 | level | if level > 0 { 0x1000 } else { 0 },
        13 => NOTHING | 1 << 47 | level,
        14 | 15 => NOTHING | level,
        _ => case.wrong_state,
    };
    if stage <= 3 {
        w.holds.push(w.machine.hold_page(Hpa::truncate(wrong_type), Level::L4K, Access::Exclusive).unwrap());
    }
    let tdr = w.td.tdr;
    if stage <= 8 {
        w.holds.push(w.machine.hold_td(tdr, TdLock::OpState, Access::Exclusive).unwrap());
    }
    if stage <= 14 {
        w.holds.push(w.machine.hold_td(tdr, TdLock::SeptTree, Access::Exclusive).unwrap());
    }
    if stage <= 16 && case.wrong_state != 0 {
        let (gpa, level) =
            (Gpa::truncate(case.wrong_state & !7), Level::new((case.wrong_state & 7) as u8).unwrap());
        w.holds.push(w.machine.hold_entry(tdr, gpa, level).unwrap());
    }
    if stage <= 6 {
        let lp = w.machine.lp(0);
        boot::call(&lp, Leaf::VpFlush, [w.td.vcpus[0].raw(), 0, 0, 0]).unwrap();
        boot::call(&lp, Leaf::MngVpFlushDone, [tdr.raw(), 0, 0, 0]).unwrap();
    }
    if stage <= 5 {
        assert!(w.machine.consume_memory_error(w.td.control[5]));
    }
    if stage <= 9 {
        assert!(w.machine.set_op_state(tdr, 0));
    }
    let rax = case.leaf as u64 | if stage == 0 { 1 << 40 } else { 0 };
    // R8 and R9 are wrong to the end: they are looked at last.
    Regs { rax, rcx, rdx, r8: 0x123, r9: 0x456, ..Regs::new() }
}

#[test]
fn the_first_thing_that_is_wrong_is_answered() {
    for case in &CASES {
        for (stage, &(what, expected)) in STAGES.iter().enumerate() {
            let [op_state, tree, entry] = case.locks;
            let applies = match stage {
                8 => op_state,
                12 => case.rcx & 7 != 0,
                14 => tree,
                16 => entry && case.wrong_state != 0,
                17 => case.wrong_state != 0,
                _ => true,
            };
            if !applies {
                continue;
            }
            let mut w = world();
            let input = spoil(case, stage, &mut w);
            let before = w.machine.digest();
            let out = w.machine.lp(0).raw(input);
            let context = format!("{:?}, {what}: {:?}", case.leaf, Status(out.rax));
            assert_eq!(out.rax, expected, "{context}");
            match stage {
                0 => assert_eq!((out.rcx, out.rdx), (input.rcx, input.rdx), "{context}"),
                1..=14 => assert_eq!((out.rcx, out.rdx), (0, 0), "{context}"),
                15 => assert_eq!((out.rcx, out.rdx), (1 << 63, 2), "{context}: where the walk stopped"),
                _ => assert_ne!(out.rdx, 1 << 63, "{context}: the entry is described"),
            }
            assert_eq!((out.r8, out.r9), (input.r8, input.r9), "{context}");
            assert_eq!(w.machine.digest(), before, "{context}");
        }
    }
}

#[test]
fn what_is_not_wrong_succeeds() {
    for case in &CASES {
        let w = world();
        let rdx = w.td.tdr.raw();
        let regs =
            Regs { rax: case.leaf as u64, rcx: case.rcx, rdx, r8: NEW_PAGE, r9: SOURCE, ..Regs::new() };
        assert_eq!(Status(w.machine.lp(0).raw(regs).rax), Status::SUCCESS, "{:?}", case.leaf);
    }
}

/// Who holds which lock, in the order of the columns of the table below.
fn hold(w: &World, column: usize, case: &Case) -> Option<Hold> {
    let m = &w.machine;
    let tdr = w.td.tdr;
    let page = |hpa: u64, level, access| m.hold_page(Hpa::truncate(hpa), level, access);
    // The page behind the entry: its PAMT entry is of that size.
    let behind = match case.rcx {
        SMALL => Some((BASE + 0x2000_0000, Level::L4K)),
        LARGE => Some((BASE + 0x2100_0000, Level::L2M)),
        BLOCKED => Some((BASE + 0x2200_0000, Level::L2M)),
        EMPTY_TABLE | FULL_TABLE => {
            let entry = m.entry(tdr, Gpa::truncate(case.rcx & !7), Level::L2M)?;
            Some((entry.hpa, Level::L4K))
        }
        _ => None,
    };
    match column {
        0 => page(tdr.raw(), Level::L4K, Access::Shared),
        1 => page(tdr.raw(), Level::L4K, Access::Exclusive),
        2 => m.hold_td(tdr, TdLock::OpState, Access::Shared),
        3 => m.hold_td(tdr, TdLock::OpState, Access::Exclusive),
        4 => m.hold_td(tdr, TdLock::SeptTree, Access::Shared),
        5 => m.hold_td(tdr, TdLock::SeptTree, Access::Exclusive),
        6 => {
            let level = Level::new((case.rcx & 7) as u8).unwrap();
            m.hold_entry(tdr, Gpa::truncate(case.rcx & !7), level)
        }
        7 => behind.and_then(|(hpa, level)| page(hpa, level, Access::Shared)),
        8 => page(NEW_PAGE, Level::L4K, Access::Shared),
        9 => m.hold_td(tdr, TdLock::Epoch, Access::Exclusive),
        _ => None,
    }
}

/// Columns: TDR shared, exclusive; operation state shared, exclusive; tree shared, exclusive; entry; page behind it, new page,
/// each shared; epoch exclusive. The answer that busy gives, by its operand: D RDX, O, T, C RCX, 8 R8.
#[test]
fn each_leaf_needs_the_locks_of_the_matrix() {
    let table = [
        (Leaf::SeptAdd, ".D.O.TC.8."),
        (Leaf::SeptRd, ".D.O.TC..."),
        (Leaf::SeptRemove, ".D.OTTCC.."),
        (Leaf::PageAdd, "DD......8."),
        (Leaf::PageAug, ".D.O.TC.8."),
        (Leaf::PageRemove, ".D.O.TCC.."),
        (Leaf::PageRelocate, ".D.O.TCC8."),
        (Leaf::PageDemote, ".D.O.TCC8."),
        (Leaf::PagePromote, ".D.O.TCC.."),
        (Leaf::RangeBlock, ".D.OTTC..."),
        (Leaf::RangeUnblock, ".D.OTTC..."),
    ];
    for ((leaf, row), case) in table.iter().zip(&CASES) {
        assert_eq!(*leaf, case.leaf);
        for (column, verdict) in row.chars().enumerate() {
            // PAGE.ADD with a locked entry cannot be: see "what must not be".
            if *leaf == Leaf::PageAdd && column == 6 {
                continue;
            }
            let w = world();
            let _hold = hold(&w, column, case);
            let rdx = w.td.tdr.raw();
            let regs =
                Regs { rax: *leaf as u64, rcx: case.rcx, rdx, r8: NEW_PAGE, r9: SOURCE, ..Regs::new() };
            let out = w.machine.lp(0).raw(regs);
            let expected = match verdict {
                'D' => 0x8000_0200_0000_0002,
                'O' => 0x8000_0200_0000_00AC,
                'T' => 0x8000_0200_0000_0092,
                'C' => 0x8000_0200_0000_0001,
                '8' => 0x8000_0200_0000_0008,
                _ => 0,
            };
            assert_eq!(out.rax, expected, "{leaf:?} column {column}: {:?}", Status(out.rax));
            // The entry lock tells what the entry looks like, a PAMT lock does not.
            if verdict == 'C' {
                assert_eq!(out.rcx != 0 || out.rdx != 0, column == 6, "{leaf:?} column {column}");
            }
        }
    }
}
