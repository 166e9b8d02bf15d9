//! The module comes up and goes down; debug access; write blocks; a host that never comes back for its priority.

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, EntryState, Leaf, Machine, ModuleVersion, Status};

const BASE: u64 = 0x1_0000_0000;
const PAGE: u64 = BASE + 0x1000_0000;
/// The array of addresses, and one TDMR_INFO.
const ARRAY: u64 = 0x1000_0000;
const INFO: u64 = 0x1000_1000;

fn call(machine: &Machine, lp: u32, leaf: Leaf, operands: [u64; 3]) -> (Status, Regs) {
    let [rcx, rdx, r8] = operands;
    let out = machine.lp(lp).raw(Regs { rax: leaf as u64, rcx, rdx, r8, ..Regs::new() });
    (Status(out.rax), out)
}

fn put(machine: &Machine, at: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.host_write_bytes(Hpa::truncate(at), &bytes);
}

/// TDMR_INFO of `gib` GiB with PAMT areas that are large enough and a reserved area.
fn write_info(machine: &Machine, gib: u64, reserved: [u64; 4]) {
    let size = gib << 30;
    let info = [BASE, size, 0x2000_0000, 4096, 0x2001_0000, gib << 13, 0x2100_0000, gib << 22];
    put(machine, INFO, &info);
    put(machine, INFO + 64, &reserved);
    put(machine, ARRAY, &[INFO]);
}

#[test]
fn a_cold_module_comes_up_step_by_step() {
    let machine = Machine::builder().version(ModuleVersion::V1_5_01).packages(2).cold().build();
    let go = |lp, leaf, operands| call(&machine, lp, leaf, operands).0;
    write_info(&machine, 2, [0x4000_0000, 0x1000, 0, 0]);
    assert_eq!(go(0, Leaf::MngCreate, [BASE, 33, 0]), Status::SYS_NOT_READY);
    // No leaf has this number: the state of the module comes first, what is wrong with the rest of RAX before that.
    let unknown = |rax| machine.lp(0).raw(Regs { rax, ..Regs::new() }).rax;
    assert_eq!(unknown(255), 0xC000_0505_0000_0000);
    assert_eq!([unknown(0x1_00FF), unknown(0x100_00FF)], [0xC000_0100_0000_0000; 2]);
    assert_eq!(go(0, Leaf::SysConfig, [ARRAY, 1, 32]), Status::SYS_LP_INIT_NOT_DONE);
    assert_eq!(go(0, Leaf::SysLpInit, [0; 3]), Status::SYS_LP_INIT_NOT_PENDING);
    assert_eq!(go(0, Leaf::SysInit, [1, 0, 0]), Status(0xC000_0100_0000_0001));
    assert_eq!(go(0, Leaf::SysInit, [0; 3]), Status::SUCCESS);
    assert_eq!(go(0, Leaf::SysInit, [0; 3]), Status::SYS_INIT_NOT_PENDING);
    assert_eq!(go(0, Leaf::SysLpInit, [0; 3]), Status::SUCCESS);
    assert_eq!(go(1, Leaf::SysLpInit, [0; 3]), Status::SUCCESS);
    assert_eq!(go(1, Leaf::SysLpInit, [0; 3]), Status::SYS_LP_INIT_DONE);
    assert_eq!(go(0, Leaf::SysKeyConfig, [0; 3]), Status::SYS_KEY_CONFIG_NOT_PENDING);
    assert_eq!(go(0, Leaf::SysConfig, [ARRAY, 0, 32]), Status(0xC000_0100_0000_0002));
    assert_eq!(go(0, Leaf::SysConfig, [ARRAY, 1, 31]), Status(0xC000_0100_0000_0008));
    assert_eq!(go(0, Leaf::SysConfig, [ARRAY, 1, 40]), Status::SUCCESS);
    assert_eq!(go(0, Leaf::SysConfig, [ARRAY, 1, 40]), Status::SYS_CONFIG_NOT_PENDING);
    assert_eq!(go(0, Leaf::SysTdmrInit, [BASE, 0, 0]), Status::SYS_NOT_READY, "no key yet");
    assert_eq!(go(0, Leaf::SysKeyConfig, [0; 3]), Status::SUCCESS);
    assert_eq!(go(0, Leaf::SysKeyConfig, [0; 3]), Status::KEY_CONFIGURED);
    assert_eq!(go(1, Leaf::SysKeyConfig, [0; 3]), Status::SUCCESS);

    assert_eq!(go(0, Leaf::SysTdmrInit, [BASE + 4096, 0, 0]), Status(0xC000_0100_0000_0001));
    for number in 0..512u64 {
        let create = go(0, Leaf::MngCreate, [BASE, 40, 0]);
        let outside = Status(0xC000_0101_0000_0001);
        assert_eq!(create, if number < 256 { outside } else { Status(0xC000_0820_0000_0000) }, "{number}");
        let (status, out) = call(&machine, 0, Leaf::SysTdmrInit, [BASE, 0, 0]);
        assert_eq!((status, out.rdx), (Status::SUCCESS, BASE + (((number + 1) / 256) << 30)));
    }
    assert_eq!(go(0, Leaf::SysTdmrInit, [BASE, 0, 0]), Status::TDMR_ALREADY_INITIALIZED);
    let reserved = go(0, Leaf::MngCreate, [BASE + 0x4000_0000, 33, 0]);
    assert_eq!(reserved, Status(0xC000_0300_0000_0001), "a reserved page is in the TDMR, but nobody's");
    assert_eq!(go(0, Leaf::MngCreate, [BASE, 33, 0]), Status::SUCCESS);
    assert_eq!(go(7, Leaf::MngCreate, [BASE + 4096, 34, 0]), Status::SYS_LP_INIT_NOT_DONE);
    assert_eq!(unknown(255), 0xC000_0100_0000_0000);

    assert_eq!(go(0, Leaf::SysLpShutdown, [0; 3]), Status::SUCCESS);
    assert_eq!(go(0, Leaf::SysShutdown, [1, 0, 0]), Status(0xC000_0100_0000_0001), "no such handoff version");
    assert_eq!(go(0, Leaf::SysShutdown, [0; 3]), Status::SUCCESS);
    assert_eq!(go(0, Leaf::MemTrack, [BASE, 0, 0]), Status::SYS_SHUTDOWN);
    assert_eq!(unknown(255), 0xC000_0506_0000_0000);
    assert_eq!(go(0, Leaf::SysLpShutdown, [0; 3]), Status::SUCCESS);
}

#[test]
fn a_bad_tdmr_is_named() {
    let start = || {
        let machine = Machine::builder().version(ModuleVersion::V1_5_01).cold().build();
        assert_eq!(call(&machine, 0, Leaf::SysInit, [0; 3]).0, Status::SUCCESS);
        assert_eq!(call(&machine, 0, Leaf::SysLpInit, [0; 3]).0, Status::SUCCESS);
        write_info(&machine, 2, [0; 4]);
        machine
    };
    // PAMT areas: 1 GiB 0x2000_0000 + 0x1000, 2 MiB 0x2001_0000 + 0x4000, 4 KiB 0x2100_0000 + 0x80_0000.
    let cases: [(u64, &[u64], u64); 19] = [
        (0, &[BASE + 4096], 0xC000_0A00_0000_0000),
        (8, &[0x2000_0000], 0xC000_0A00_0000_0000),
        (8, &[0], 0xC000_0A00_0000_0000),
        (8, &[u64::MAX << 30], 0xC000_0A00_0000_0000),
        (0, &[1 << 46], 0xC000_0A00_0000_0000),
        (24, &[4095], 0xC000_0A10_0000_0200),
        (24, &[4097], 0xC000_0A10_0000_0200),
        (32, &[0x2001_0800], 0xC000_0A10_0000_0100),
        (56, &[4096], 0xC000_0A10_0000_0000),
        (48, &[(1 << 46) - 0x1000], 0xC000_0A10_0000_0000),
        // A PAMT area in another one, and in memory that is offered.
        (48, &[0x2001_4000], 0),
        (48, &[0x2001_3000], 0xC000_0A12_0000_0000),
        (16, &[0x2001_3000], 0xC000_0A12_0000_0100),
        (48, &[BASE], 0xC000_0A12_0000_0000),
        (32, &[BASE + 0x7FFF_C000], 0xC000_0A12_0000_0100),
        // Reserved areas: inside, whole pages, ascending, none empty before the last.
        (64, &[0x7FFF_F000, 0x2000], 0xC000_0A20_0000_0000),
        (64, &[0x1000, 0x800], 0xC000_0A20_0000_0000),
        (64, &[0x2000, 0x1000, 0x1000, 0x1000], 0xC000_0A21_0000_0100),
        (64, &[0, 0, 0x1000, 0x1000], 0xC000_0A21_0000_0000),
    ];
    for (offset, words, expected) in cases {
        let machine = start();
        put(&machine, INFO + offset, words);
        assert_eq!(
            call(&machine, 0, Leaf::SysConfig, [ARRAY, 1, 32]).0,
            Status(expected),
            "{offset} {words:x?}"
        );
    }
    // In a reserved area a PAMT area is well placed.
    let machine = start();
    put(&machine, INFO + 32, &[BASE + 0x7FFF_C000]);
    put(&machine, INFO + 64, &[0x7FFF_C000, 0x4000]);
    assert_eq!(call(&machine, 0, Leaf::SysConfig, [ARRAY, 1, 32]).0, Status::SUCCESS);
    let machine = start();
    put(&machine, ARRAY, &[INFO, INFO]);
    assert_eq!(call(&machine, 0, Leaf::SysConfig, [ARRAY, 2, 32]).0, Status(0xC000_0A01_0000_0001));
}

#[test]
fn memory_that_is_not_convertible_is_refused() {
    let with = |ranges: &[(u64, u64)]| {
        let builder = Machine::builder().version(ModuleVersion::V1_5_01).cold().logical_processors(2);
        let machine =
            ranges.iter().fold(builder, |builder, &(base, size)| builder.convertible(base, size)).build();
        assert_eq!(call(&machine, 0, Leaf::SysInit, [0; 3]).0, Status::SUCCESS);
        assert_eq!(call(&machine, 0, Leaf::SysLpInit, [0; 3]).0, Status::SUCCESS);
        write_info(&machine, 2, [0; 4]);
        let config = || call(&machine, 0, Leaf::SysConfig, [ARRAY, 1, 32]).0;
        assert_eq!(config(), Status::SYS_CONFIG_NOT_PENDING, "one of two processors");
        assert_eq!(call(&machine, 1, Leaf::SysLpInit, [0; 3]).0, Status::SUCCESS);
        config()
    };
    let pamt = (0x2000_0000, 0x1000_0000);
    assert_eq!(with(&[pamt, (BASE, 2 << 30)]), Status::SUCCESS);
    assert_eq!(with(&[pamt, (BASE, 1 << 30), (BASE + (1 << 30), 1 << 30)]), Status::SUCCESS, "one stretch");
    assert_eq!(with(&[pamt, (BASE, 1 << 30)]), Status(0xC000_0A02_0000_0000));
    assert_eq!(with(&[(0x2000_0000, 0x10_0000), (BASE, 2 << 30)]), Status(0xC000_0A11_0000_0000));
    assert_eq!(with(&[(0x2001_0000, 0x1000_0000), (BASE, 2 << 30)]), Status(0xC000_0A11_0000_0200));
}

/// A running TD with one accepted page at 0.
fn running(spec: TdSpec, patience: u32) -> (Machine, TdPages) {
    let machine = Machine::builder().memory(BASE, 1).host_priority_patience(patience).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let td = boot::create(&lp, &machine, &spec, &mut frames).unwrap();
    boot::map_tables(&lp, &td, Gpa::truncate(0), Level::L4K, &mut frames).unwrap();
    boot::aug(&lp, &td, Gpa::truncate(0), Level::L4K, Hpa::truncate(PAGE)).unwrap();
    machine.guest(td.vcpus[0]).enter(0).unwrap();
    machine.guest(td.vcpus[0]).accept(Gpa::truncate(0), Level::L4K).unwrap();
    (machine, td)
}

#[test]
fn debug_access_reads_and_writes_eight_bytes() {
    let (machine, td) = running(TdSpec { debug: true, ..TdSpec::default() }, 9);
    let tdr = td.tdr.raw();
    let guest = machine.guest(td.vcpus[0]);
    guest.write(Gpa::truncate(0), 0x1234).unwrap();
    assert_eq!(call(&machine, 0, Leaf::MemRd, [8, tdr, 7]).1.r8, 0x1234, "a pattern fills its page");
    let (status, out) = call(&machine, 0, Leaf::MemWr, [16, tdr, 0x99]);
    assert_eq!((status, out.rcx, out.rdx, out.r8), (Status::SUCCESS, 0, 0, 0x1234));
    assert_eq!(call(&machine, 0, Leaf::MemRd, [16, tdr, 0]).1.r8, 0x99);
    assert_eq!(call(&machine, 0, Leaf::MemRd, [8, tdr, 0]).1.r8, 0x1234);
    assert!(guest.read(Gpa::truncate(0)).is_ok(), "written with the TD's key");
    let (status, out) = call(&machine, 0, Leaf::MemRd, [4, tdr, 5]);
    assert_eq!((status, out.r8), (Status(0xC000_0100_0000_0001), 0));
    let (status, out) = call(&machine, 0, Leaf::MemRd, [0x1000, tdr, 5]);
    assert_eq!((status, out.rcx, out.rdx), (Status(0xC000_0B03_0000_0001), 1 << 63, 0));
    let (machine, td) = running(TdSpec::default(), 9);
    assert_eq!(call(&machine, 0, Leaf::MemRd, [4, td.tdr.raw(), 0]).0, Status::TD_NON_DEBUG);
    assert_eq!(machine.violations(), []);
}

#[test]
fn relocation_keeps_every_byte() {
    let (machine, td) = running(TdSpec { debug: true, finalize: true, ..TdSpec::default() }, 9);
    let tdr = td.tdr.raw();
    assert_eq!(call(&machine, 0, Leaf::MemWr, [0xFF8, tdr, 0x77]).0, Status::SUCCESS);
    assert_eq!(call(&machine, 0, Leaf::RangeBlock, [0, tdr, 0]).0, Status::SUCCESS);
    assert_eq!(call(&machine, 0, Leaf::MemTrack, [tdr, 0, 0]).0, Status::SUCCESS);
    assert!(machine.guest(td.vcpus[0]).exit());
    assert_eq!(call(&machine, 0, Leaf::PageRelocate, [0, tdr, PAGE + 4096]).0, Status::SUCCESS);
    assert_eq!(call(&machine, 0, Leaf::MemRd, [0xFF8, tdr, 0]).1.r8, 0x77);
    assert_eq!(call(&machine, 0, Leaf::MemRd, [0xFF0, tdr, 0]).1.r8, 0);
}

#[test]
fn a_busy_entry_is_not_described_by_unblockw() {
    let (machine, td) = running(TdSpec::default(), 9);
    assert!(machine.set_op_state(td.tdr, 3) && !machine.set_op_state(td.tdr, 11));
    let hold = machine.hold_entry(td.tdr, Gpa::truncate(0), Level::L4K).unwrap();
    let (status, out) = call(&machine, 0, Leaf::ExportUnblockw, [0, td.tdr.raw(), 0]);
    assert_eq!((status, out.rcx, out.rdx), (Status(0x8000_0200_0000_0001), 0, 0));
    machine.release(hold);
    let (status, out) = call(&machine, 0, Leaf::ExportUnblockw, [0, td.tdr.raw(), 0]);
    assert_eq!((status, out.rdx), (Status(0xC000_0B0D_0000_0001), 0x400), "not write-blocked");
    let entry = machine.entry(td.tdr, Gpa::truncate(0), Level::L4K).unwrap();
    assert_eq!(entry.state, EntryState::Mapped);
}

#[test]
fn a_guest_gives_up_when_the_host_never_comes_back() {
    let (machine, td) = running(TdSpec::default(), 3);
    let (tdr, gpa) = (td.tdr, Gpa::truncate(0x1000));
    boot::aug(&machine.lp(0), &td, gpa, Level::L4K, Hpa::truncate(PAGE + 4096)).unwrap();
    let hold = machine.hold_entry(tdr, gpa, Level::L4K).unwrap();
    assert_eq!(call(&machine, 0, Leaf::SeptRd, [0x1000, tdr.raw(), 0]).0, Status(0x8000_0200_0000_0001));
    machine.release(hold);
    let guest = machine.guest(td.vcpus[0]);
    let busy = Accept::Returned(Status(0x8000_0200_0000_0001));
    assert_eq!(guest.accept(gpa, Level::L4K), Ok(busy));
    assert_eq!(guest.accept(gpa, Level::L4K), Ok(busy));
    let Ok(Accept::Exit(exit)) = guest.accept(gpa, Level::L4K) else { panic!("it stays") };
    assert_eq!(Status(exit.regs.rax), Status::HOST_PRIORITY_BUSY_TIMEOUT);
    assert!(!guest.is_inside());
    assert_eq!(call(&machine, 0, Leaf::SeptRd, [0x1000, tdr.raw(), 0]).0, Status::SUCCESS);
    guest.enter(0).unwrap();
    assert_eq!(guest.accept(gpa, Level::L4K), Ok(Accept::Returned(Status::SUCCESS)));
}

#[test]
fn sys_info_fills_what_it_is_given() {
    let machine = Machine::builder().version(ModuleVersion::V1_5_01).memory(BASE, 2).build();
    let (buffer, list) = (0x1000_0400, 0x1000_1000);
    let info = |rcx: u64, rdx: u64, r8: u64, r9: u64| {
        let out = machine.lp(0).raw(Regs { rax: 32, rcx, rdx, r8, r9, ..Regs::new() });
        (out.rax, out.rdx, out.r9)
    };
    for (operands, register) in [
        ([buffer + 512, 1024, list, 32], 1),
        ([buffer, 1023, list, 32], 2),
        ([buffer, 1024, list + 256, 32], 8),
        ([buffer, 1024, list, 31], 9),
    ] {
        let [rcx, rdx, r8, r9] = operands;
        assert_eq!(info(rcx, rdx, r8, r9), (0xC000_0100_0000_0000 | register, 0, 0));
    }
    assert_eq!(info(buffer, 4096, list, 40), (0, 1024, 32));
    assert_eq!(machine.violations(), []);
}

/// The module does not notice that what it reads was written with another key; the host is told.
#[test]
fn ordinary_memory_is_read_with_the_key_of_its_address() {
    let machine = Machine::builder().memory(BASE, 1).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let spec = TdSpec { finalize: false, ..TdSpec::default() };
    let td = boot::create(&lp, &machine, &spec, &mut frames).unwrap();
    boot::map_tables(&lp, &td, Gpa::truncate(0), Level::L4K, &mut frames).unwrap();
    machine.host_write(Hpa::truncate(0x5000_0000), 77);
    let add = |gpa: u64, source: u64| {
        let (rdx, r8) = (td.tdr.raw(), PAGE + gpa);
        Status(lp.raw(Regs { rax: 2, rcx: gpa, rdx, r8, r9: source, ..Regs::new() }).rax)
    };
    assert_eq!(add(0, 0x5000_0000), Status::SUCCESS);
    assert_eq!(machine.peek(Hpa::truncate(PAGE)).pattern, 77);
    assert_eq!(machine.violations(), []);
    assert_eq!(add(0x1000, 5 << 46 | 0x5000_0000), Status::SUCCESS, "another shared key");
    assert_ne!(machine.peek(Hpa::truncate(PAGE + 0x1000)).pattern, 77);
    assert_eq!(add(0x2000, PAGE), Status::SUCCESS, "a private page");
    assert_ne!(machine.peek(Hpa::truncate(PAGE + 0x2000)).pattern, 77);
    let kinds: Vec<_> = machine.violations().iter().map(|told| (told.kind, told.hpa, told.key)).collect();
    let noise = tdx_model::ViolationKind::ModuleReadCiphertext;
    assert_eq!(kinds, [(noise, 0x5000_0000, 0), (noise, PAGE, 33)]);
}

/// Version 1 of VP.INIT, which 2.0.08 has.
#[test]
fn x2apic_ids_are_unique() {
    let start = |version| {
        let machine = Machine::builder().version(version).dynamic_pamt(false).memory(BASE, 1).build();
        let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
        let spec = TdSpec { vcpus: 0, max_vcpus: 2, finalize: false, ..TdSpec::default() };
        let td = boot::create(&machine.lp(0), &machine, &spec, &mut frames).unwrap();
        let vcpus = [PAGE, PAGE + 0x10_0000].map(|page| {
            boot::call(&machine.lp(0), Leaf::VpCreate, [page, td.tdr.raw(), 0, 0]).unwrap();
            for number in 1..=5 {
                boot::call(&machine.lp(0), Leaf::VpAddCx, [page + number * 4096, page, 0, 0]).unwrap();
            }
            page
        });
        (machine, td.tdr, vcpus)
    };
    let init = |machine: &Machine, vcpu: u64, id: u64| {
        Status(machine.lp(0).raw(Regs { rax: 22 | 1 << 16, rcx: vcpu, r8: id, ..Regs::new() }).rax)
    };
    let (machine, _, [first, _]) = start(ModuleVersion::V1_5_28);
    assert_eq!(init(&machine, first, 7), Status(0xC000_0100_0000_0000));
    let (machine, tdr, [first, second]) = start(ModuleVersion::V2_0_08);
    let hold = machine.hold_page(tdr, Level::L4K, tdx_model::Access::Shared).unwrap();
    assert_eq!(init(&machine, first, 7), Status(0x8000_0200_0000_0080), "it wants the TDR for itself");
    machine.release(hold);
    assert_eq!(init(&machine, first, 7), Status::SUCCESS);
    assert_eq!(init(&machine, second, 7), Status(0xC000_0621_0000_0007));
}
