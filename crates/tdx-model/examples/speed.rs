//! How fast the model answers, and how much memory a large TD takes: `cargo run --release --example speed`.

use std::time::Instant;

use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, Guest, Leaf, Lp, Machine, Status};

const BASE: u64 = 0x1_0000_0000;

fn report(what: &str, count: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:<40} {count:>9} in {seconds:>7.3} s: {:>6.2} million/s", count as f64 / seconds / 1e6);
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 10
}

fn accept(guest: Guest<'_>, gpa: Gpa, level: Level) {
    assert_eq!(guest.accept(gpa, level), Ok(Accept::Returned(Status::SUCCESS)));
}

/// AUG and ACCEPT of every 4 KiB page of 4 GiB; then SEPT.RD, guest reads and writes.
fn small_pages() {
    let machine = Machine::builder().memory(BASE, 6).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let td = boot::create(&lp, &machine, &TdSpec::default(), &mut frames).expect("a TD");
    let guest = machine.guest(td.vcpus[0]);
    let pages = 1 << 20;
    let page = |index: u64| Gpa::truncate(index << 12);
    for chunk in 0..pages >> 9 {
        boot::map_tables(&lp, &td, page(chunk << 9), Level::L4K, &mut frames).expect("tables");
    }
    guest.enter(0).expect("entered");
    let start = Instant::now();
    for index in 0..pages {
        boot::aug(&lp, &td, page(index), Level::L4K, frames.next().expect("a frame")).expect("AUG");
        accept(guest, page(index), Level::L4K);
    }
    report("AUG + ACCEPT of 4 KiB", pages, start);
    let start = Instant::now();
    (0..pages).for_each(|index| guest.write(page(index), index).expect("a write"));
    report("guest write", pages, start);
    let start = Instant::now();
    (0..pages).for_each(|index| assert_eq!(guest.read(page(index)), Ok(index)));
    report("guest read", pages, start);
    let start = Instant::now();
    for index in 0..pages {
        boot::call(&lp, Leaf::SeptRd, [index << 12, td.tdr.raw(), 0, 0]).expect("SEPT.RD");
    }
    report("SEPT.RD", pages, start);
    println!("resident: {} MiB", resident_mib());
}

fn promote(lp: &Lp<'_>, td: &TdPages, gpa: u64) {
    let entry = gpa | 2;
    boot::call(lp, Leaf::RangeBlock, [entry, td.tdr.raw(), 0, 0]).expect("BLOCK");
    boot::call(lp, Leaf::MemTrack, [td.tdr.raw(), 0, 0, 0]).expect("TRACK");
    boot::call(lp, Leaf::PagePromote, [entry, td.tdr.raw(), 0, 0]).expect("PROMOTE");
}

/// 1 TiB of 2 MiB pages, accepted and merged into 1 GiB leaves.
fn large_td() {
    let before = resident_mib();
    let machine = Machine::builder().memory(BASE, 1026).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let td = boot::create(&lp, &machine, &TdSpec::default(), &mut frames).expect("a TD");
    let guest = machine.guest(td.vcpus[0]);
    let start = Instant::now();
    for gib in 0..1024u64 {
        let base = gib << 30;
        boot::map_tables(&lp, &td, Gpa::truncate(base), Level::L2M, &mut frames).expect("tables");
        guest.enter(0).expect("entered");
        for chunk in 0..512u64 {
            let gpa = Gpa::truncate(base | chunk << 21);
            boot::aug(&lp, &td, gpa, Level::L2M, Hpa::truncate(BASE + gpa.raw() + (1 << 30))).expect("AUG");
            accept(guest, gpa, Level::L2M);
        }
        guest.exit();
        promote(&lp, &td, base);
    }
    report("AUG + ACCEPT of 2 MiB, 1 TiB merged", 1024 * 512, start);
    println!("resident for 1 TiB: {} MiB more", resident_mib() - before);
}

fn main() {
    large_td();
    small_pages();
}
