use super::*;
use crate::Regs;
use crate::testing::{Script, entry, frame, gpa, hpa};
use std::vec::Vec;

const RESUMABLE: u64 = 0x8000_0003_0000_0000;
const INTERRUPTED_BUSY: u64 = 0x8000_0206_0000_0092;
const BUSY: u64 = 0x8000_0200_0000_0001;

fn td() -> Tdr {
    Tdr::new(hpa(0x100_0000)).unwrap()
}

fn rcx(script: &Script) -> Vec<u64> {
    script.calls().iter().map(|call| call.rcx).collect()
}

#[test]
fn write_back_stops_at_the_page_that_is_refused() {
    let bits = KeyIdBits::new(46, 6).unwrap();
    let script = Script::new().status(0).status(0).status(BUSY);
    let stopped = write_back(&script, hpa(0x8000_0000), 5, Hkid::new(1), bits).unwrap_err();
    assert_eq!(stopped.at, hpa(0x8000_2000));
    write_back(&script, stopped.at, 3, Hkid::new(1), bits).unwrap();
    let pages: Vec<u64> = rcx(&script).iter().map(|raw| raw & 0xffff).collect();
    assert_eq!(pages, [0, 0x1000, 0x2000, 0x2000, 0x3000, 0x4000]);
    assert!(write_back(&script, hpa(0x8000_0000), 0, Hkid::new(1), bits).is_ok());
}

/// Nothing is done to the beginning of a range that cannot be gone through to its end.
#[test]
fn a_range_that_does_not_end_in_memory_is_refused_whole() {
    let bits = KeyIdBits::new(46, 6).unwrap();
    let script = Script::new();
    let last = hpa((1 << 52) - 0x1000);
    let stopped = write_back(&script, last, 2, Hkid::new(1), bits).unwrap_err();
    assert_eq!((stopped.at, stopped.error.status.raw()), (last, 0xc000_ff01_0000_0001));
    assert_eq!(reclaim(&script, last, 2, |_, _| panic!("reclaimed")).unwrap_err().at, last);
    let chunk = gpa((1 << 52) - 0x100);
    assert_eq!(extend(&script, td(), chunk, 0x200).unwrap_err().at, chunk);
    // Part of a chunk would silently not be measured.
    for bytes in [1, 0x80, 0x180] {
        let error = extend(&script, td(), gpa(0x1000), bytes).unwrap_err().error;
        assert_eq!(error.status.raw(), 0xc000_ff01_0000_0001);
    }
    assert!(script.calls().is_empty());
    extend(&script, td(), chunk, 0x100).unwrap();
    extend(&script, td(), chunk, 0).unwrap();
    assert_eq!(script.calls().len(), 1);
}

/// RDMD of a page in use at `level`, then RECLAIM of it.
fn used(script: Script, level: u64) -> Script {
    let out = move |regs: Regs| Regs { rax: 0, rcx: 3, rdx: 0x100_0000, r8: level, ..regs };
    script.then(out).then(out)
}

#[test]
fn reclaim_goes_by_the_size_in_use() {
    let free = |regs: Regs| Regs { rax: 0, rcx: 0, ..regs };
    let script = used(used(Script::new(), 1).then(free), 0);
    let mut seen = Vec::new();
    reclaim(&script, hpa(0x8000_0000), 514, |page, info| seen.push((page.raw(), info.level))).unwrap();
    assert_eq!(seen, [(0x8000_0000, Some(Level::L2M)), (0x8020_1000, Some(Level::L4K))]);
    assert_eq!(script.leaves(), [24, 28, 24, 24, 28]);
}

#[test]
fn reclaim_leaves_a_page_alone_that_sticks_out() {
    // The range ends inside a 2 MiB page, or begins inside one.
    for (first, pages) in [(0x8000_0000, 511), (0x8000_1000, 512)] {
        let script = used(Script::new(), 1);
        let stopped = reclaim(&script, hpa(first), pages, |_, _| panic!("reclaimed")).unwrap_err();
        assert_eq!(stopped.at, hpa(first));
        assert_eq!(script.leaves(), [24]);
    }
}

#[test]
fn reclaim_passes_over_the_header_of_a_region_that_is_split() {
    // RDMD of a 2 MiB entry with a page pair: look at the pages.
    let split = |regs: Regs| Regs { rax: 0, rcx: 1 << 63 | 15, r8: 1, ..regs };
    let script = used(Script::new().then(split), 0);
    let mut count = 0;
    reclaim(&script, hpa(0x8000_0000), 2, |_, _| count += 1).unwrap();
    assert_eq!((count, script.leaves()), (1, std::vec![24, 24, 28]));
}

#[test]
fn reclaim_passes_over_a_region_without_a_pair_at_once() {
    // Dynamic PAMT: RDMD stops at the 2 MiB entry. The range begins in the middle of one.
    let empty = |regs: Regs| Regs { rax: 0, rcx: 0, r8: 1, ..regs };
    let script = used(Script::new().then(empty).then(empty), 0);
    let mut seen = Vec::new();
    reclaim(&script, hpa(0x8000_3000), 509 + 512 + 1, |page, _| seen.push(page.raw())).unwrap();
    assert_eq!(seen, [0x8040_0000]);
    assert_eq!(rcx(&script), [0x8000_3000, 0x8020_0000, 0x8040_0000, 0x8040_0000]);
}

#[test]
fn add_gives_the_refused_page_back() {
    let range = GpaRange::new(gpa(0x1000), 0x4000).unwrap();
    let script = Script::new().status(0).status(BUSY);
    let mut next = 0x8000_0000;
    let stopped = add(&script, td(), range, |_| {
        next += 0x1000;
        Some((frame(next), hpa(0x5000)))
    })
    .unwrap_err();
    assert_eq!((stopped.at, stopped.page.unwrap().hpa()), (entry(0x2000, Level::L4K), hpa(0x8000_2000)));
    assert!(stopped.error.is_some());
    let none = add(&script, td(), range, |_| None).unwrap_err();
    assert!(none.error.is_none() && none.page.is_none());
}

#[test]
fn extend_covers_the_range_once() {
    let script = Script::new().status(0).status(BUSY);
    let stopped = extend(&script, td(), gpa(0x1000), 0x400).unwrap_err();
    assert_eq!(stopped.at, gpa(0x1100));
    extend(&script, td(), stopped.at, 0x300).unwrap();
    assert_eq!(rcx(&script), [0x1000, 0x1100, 0x1100, 0x1200, 0x1300]);
}

#[test]
fn cache_wb_resumes_with_its_own_command() {
    let script = Script::new().status(RESUMABLE).status(RESUMABLE);
    assert_eq!(cache_wb_to_end(&script, 2), Ok(CacheWritten::Done));
    assert_eq!(rcx(&script), [0, 1, 1]);
    let script = Script::new().status(RESUMABLE).status(RESUMABLE);
    assert!(cache_wb_to_end(&script, 1).unwrap_err().status.is(Status::INTERRUPTED_RESUMABLE));
    assert_eq!(rcx(&script), [0, 1]);
}

#[test]
fn sept_add_resumes_with_what_is_left() {
    let pages = || SeptPages { l1: Some(frame(0x200_0000)), l2: [Some(frame(0x201_0000)), None, None] };
    let l1_taken = |regs: Regs| Regs { rax: RESUMABLE, r8: u64::MAX, ..regs };
    let all_taken = |regs: Regs| Regs { rax: 0, r8: u64::MAX, r9: u64::MAX, ..regs };
    let script = Script::new().then(l1_taken).then(all_taken);
    let at = entry(0x4000_0000, Level::L2M);
    let rest = sept_add_to_end(&script, td(), at, false, pages(), 1).unwrap();
    assert!(rest.l1.is_none() && rest.l2.iter().all(Option::is_none));
    assert_eq!(script.calls()[1].r8, u64::MAX);
    let script = Script::new().then(l1_taken);
    let back = sept_add_to_end(&script, td(), at, false, pages(), 0).unwrap_err();
    assert!(back.held.l1.is_none() && back.held.l2[0].is_some());
}

#[test]
fn blockw_resumes_where_it_was() {
    let mut page = frame(0x5000);
    let stops = |rax, r8| move |regs: Regs| Regs { rax, rcx: regs.rcx + (4 << 3), r8, ..regs };
    let first_entries =
        |script: &Script| -> Vec<u64> { rcx(script).iter().map(|rcx| rcx >> 3 & 0x1ff).collect() };
    let script = Script::new().then(stops(RESUMABLE, 0)).then(stops(INTERRUPTED_BUSY, 0));
    blockw_to_end(&script, td(), GpaList::new(&mut page, 0, 9).unwrap(), 2).unwrap();
    assert_eq!((script.leaves()[0], first_entries(&script)), (65, std::vec![0, 4, 8]));
    // One interruption more than it waits for: the list comes back from where it is.
    let script = Script::new().then(stops(RESUMABLE, 0)).then(stops(RESUMABLE, 0));
    let back = blockw_to_end(&script, td(), GpaList::new(&mut page, 0, 9).unwrap(), 1).unwrap_err();
    assert_eq!(back.held.first(), 8);
    // Version 1 counts the problems of all parts.
    let script = Script::new().then(stops(RESUMABLE, 2)).then(stops(0, 1));
    assert_eq!(blockw_v1_to_end(&script, td(), GpaList::new(&mut page, 0, 9).unwrap(), 1).unwrap(), 3);
    assert_eq!(script.leaves(), [0x1_0041; 2]);
}
