//! EXPORT.BLOCKW and UNBLOCKW: a list of pages loses write access, one page gets it back. (TDX module ABI, "EXPORT.BLOCKW";
//! `tdh_export_blockw.c`, `tdh_export_unblockw.c` of module 1.5.01.)

use seamcall::Regs;
use sept_core::{Gpa, Hpa, Level};
use tdx_model::{EntryState, Interrupts, Leaf};

use crate::common::{Bench, GPA, with_small};

const LIST: u64 = 0x5000_0000;
/// Bits 53:52 of an entry: migrate.
const MIGRATE: u64 = 1 << 52;
const LIVE_EXPORT: u8 = 3;

/// GPA_LIST_INFO: first entry 11:3, page 51:12, last entry 63:55.
fn info(first: u64, last: u64) -> u64 {
    LIST | first << 3 | last << 55
}

/// A TD under export with pages at 0 (mapped) and 1 (pending) of a table.
fn exported() -> (Bench, u64) {
    let (b, page) = with_small();
    b.aug(GPA + 4096, Level::L4K, b.frame());
    assert!(b.machine.set_op_state(b.td.tdr, LIVE_EXPORT));
    (b, page)
}

impl Bench {
    fn put_list(&self, items: &[u64]) {
        let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
        self.machine.host_write_bytes(Hpa::truncate(LIST), &bytes);
    }

    /// Entries of the list, told apart by one look at each: the pattern of a page is all of it.
    fn block(&self, rcx: u64) -> (u64, u64) {
        let out = self.raw(Regs { rax: 65, rcx, rdx: self.tdr(), ..Regs::new() });
        (out.rax, out.rcx)
    }
}

#[test]
fn each_page_of_the_list_is_blocked_or_counted() {
    let (b, page) = exported();
    // Mapped, pending, free, no table, nothing to do.
    b.put_list(&[
        GPA | MIGRATE,
        (GPA + 4096) | MIGRATE,
        (GPA + 8192) | MIGRATE,
        (GPA + (1 << 30)) | MIGRATE,
        GPA + 4096,
    ]);
    assert_eq!(b.block(info(0, 4)), (2, info(5, 4)), "two had a problem; RCX is behind the last");
    assert_eq!(b.state(GPA, Level::L4K), EntryState::Blockedw);
    assert_eq!(b.state(GPA + 4096, Level::L4K), EntryState::PendingBlockedw);
    assert_eq!(b.raw_entry(GPA, Level::L4K), 0x8040_0000_0000_00F5 | page);
    assert_eq!(b.read_epoch(), 1, "of the whole TD");
    // Once is enough.
    b.put_list(&[GPA | MIGRATE]);
    assert_eq!(b.block(info(0, 0)).0, 1);
}

impl Bench {
    /// The epoch of the last write block, as MNG.RD knows it.
    fn read_epoch(&self) -> u64 {
        self.ok(Leaf::MngRd, self.tdr(), 0x9810_0003_0000_0005, 0).r8
    }
}

#[test]
fn a_locked_page_is_a_problem_too_and_host_priority_stays() {
    let (b, _) = exported();
    let hold = b.machine.hold_entry(b.td.tdr, Gpa::truncate(GPA), Level::L4K).unwrap();
    b.put_list(&[GPA | MIGRATE]);
    assert_eq!(b.block(info(0, 0)).0, 1);
    b.machine.release(hold);
    assert_ne!(b.raw_entry(GPA, Level::L4K) & 1 << 52, 0);
    assert_eq!(b.state(GPA, Level::L4K), EntryState::Mapped);
}

#[test]
fn a_bad_list_or_entry_is_refused() {
    let (b, _) = exported();
    let invalid = 0xC000_0100_0000_0001;
    for rcx in [info(0, 0) | 1, info(0, 0) | 1 << 52, info(5, 4), 0x8000_0000, 32 << 46 | LIST] {
        assert_eq!(b.block(rcx), (invalid, rcx), "{rcx:#x}");
    }
    for item in [GPA | MIGRATE | 1, GPA | MIGRATE | 1 << 54, GPA | MIGRATE | 1 << 47, GPA | MIGRATE | 1 << 61]
    {
        b.put_list(&[GPA, item]);
        assert_eq!(b.block(info(0, 1)), (0xC000_0100_0000_0061, info(1, 1)), "{item:#x}: where it stopped");
    }
    assert!(b.machine.set_op_state(b.td.tdr, 2));
    assert_eq!(b.block(info(0, 0)).0, 0xC000_0608_0000_0000);
}

#[test]
fn the_list_is_interrupted_between_entries() {
    let (b, _) = exported();
    b.put_list(&[GPA | MIGRATE, (GPA + 4096) | MIGRATE]);
    b.machine.set_interrupts(Some(Interrupts::nmi_after(0)));
    assert_eq!(b.block(info(0, 1)), (0x8000_0003_0000_0000, info(1, 1)));
    assert_eq!(b.state(GPA, Level::L4K), EntryState::Blockedw);
    assert_eq!(b.state(GPA + 4096, Level::L4K), EntryState::Pending);
    assert_eq!(b.block(info(1, 1)), (0, info(2, 1)), "no poll after the last");
}

#[test]
fn write_access_comes_back_one_by_one() {
    let (b, page) = exported();
    b.put_list(&[GPA | MIGRATE, (GPA + 4096) | MIGRATE]);
    assert_eq!(b.block(info(0, 1)).0, 0);
    assert_eq!(b.answer(Leaf::ExportUnblockw, GPA, 0), (0, 0, 0));
    assert_eq!(b.raw_entry(GPA, Level::L4K), 0x8000_0000_0000_00F7 | page);
    assert_eq!(b.answer(Leaf::ExportUnblockw, GPA, 0).0, 0xC000_0B0D_0000_0001);
    assert_eq!(b.answer(Leaf::ExportUnblockw, GPA + 4096, 0), (0, 0, 0));
    assert_eq!(b.state(GPA + 4096, Level::L4K), EntryState::Pending);
    assert_eq!(b.answer(Leaf::ExportUnblockw, GPA | 1, 0).0, 0xC000_0100_0000_0001, "4 KiB only");
}
