//! How fast the model answers, and how much memory a large TD takes: `cargo bench -p tdx-model`. Nothing is asserted.
//!
//! Times are of this thread on the processor, so a busy machine matters little; each is the best of some rounds. The floor
//! is what no model can do without: a mutex, four loads through tables, the stores to an S-EPT and a PAMT entry.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use sept_core::{Gpa, Hpa, Level};
use tdx_model::boot::{self, TdPages, TdSpec};
use tdx_model::{Accept, Guest, Leaf, Lp, Machine, Status};

const BASE: u64 = 0x1_0000_0000;
/// 4 KiB pages in a round.
const PAGES: u64 = 1 << 20;
const ROUNDS: u32 = 5;
/// Passes of the floor in a round: the system's clock of the processor ticks in milliseconds.
const PASSES: u64 = 64;

/// Nanoseconds that this thread has been on a processor; wall-clock time where the system does not say.
fn busy(start: Instant) -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let busy = schedstat.split_whitespace().next().and_then(|field| field.parse().ok());
    busy.unwrap_or_else(|| start.elapsed().as_nanos() as u64)
}

/// The shortest of several rounds, in nanoseconds.
#[derive(Clone, Copy)]
struct Best(u64);

impl Best {
    const NONE: Self = Self(u64::MAX);

    fn time(&mut self, work: impl FnOnce()) {
        let start = Instant::now();
        let before = busy(start);
        work();
        self.0 = self.0.min(busy(start) - before);
    }

    fn report(self, what: &str, count: u64, floor: Self) {
        let (rate, ratio) = (count as f64 / self.0 as f64 * 1e3, self.0 as f64 / floor.0 as f64);
        println!("{what:<24} {rate:>7.2} million/s, {:>6.1} ns, {ratio:>5.1} times the floor", 1e3 / rate);
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 10
}

fn accept(guest: Guest<'_>, gpa: Gpa, level: Level) {
    assert_eq!(guest.accept(gpa, level), Ok(Accept::Returned(Status::SUCCESS)));
}

/// The same stores without any check: `PAGES` entries in tables of 512, a PAMT entry each.
fn floor() -> Best {
    let tables = vec![[0u64; 512]; (PAGES >> 9) as usize + 3];
    let state = Mutex::new((tables, vec![(0u64, 0u64); PAGES as usize]));
    let mut best = Best::NONE;
    for _ in 0..ROUNDS {
        best.time(|| {
            for page in (0..PASSES).flat_map(|_| 0..PAGES) {
                let (tables, pamt) = &mut *state.lock().expect("not poisoned");
                let upper =
                    tables[0][(page >> 18) as usize] + tables[1][0] + tables[2][(page >> 9) as usize % 512];
                tables[3 + (page >> 9) as usize][page as usize % 512] = black_box(upper | page << 12);
                pamt[page as usize] = (page << 12, upper);
            }
        });
    }
    Best(best.0 / PASSES)
}

/// AUG and ACCEPT of 4 KiB pages; then guest writes and reads, and SEPT.RD.
fn small_pages(floor: Best) {
    let [mut mapped, mut written, mut read, mut looked] = [Best::NONE; 4];
    for _ in 0..ROUNDS {
        let machine = Machine::builder().memory(BASE, 6).build();
        let lp = machine.lp(0);
        let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
        let td = boot::create(&lp, &machine, &TdSpec::default(), &mut frames).expect("a TD");
        let guest = machine.guest(td.vcpus[0]);
        let page = |index: u64| Gpa::truncate(index << 12);
        for chunk in 0..PAGES >> 9 {
            boot::map_tables(&lp, &td, page(chunk << 9), Level::L4K, &mut frames).expect("tables");
        }
        guest.enter(0).expect("entered");
        mapped.time(|| {
            for index in 0..PAGES {
                boot::aug(&lp, &td, page(index), Level::L4K, frames.next().expect("a frame")).expect("AUG");
                accept(guest, page(index), Level::L4K);
            }
        });
        written.time(|| (0..PAGES).for_each(|index| guest.write(page(index), index).expect("a write")));
        read.time(|| (0..PAGES).for_each(|index| assert_eq!(guest.read(page(index)), Ok(index))));
        looked.time(|| {
            for index in 0..PAGES {
                boot::call(&lp, Leaf::SeptRd, [index << 12, td.tdr.raw(), 0, 0]).expect("SEPT.RD");
            }
        });
    }
    mapped.report("AUG + ACCEPT of 4 KiB", PAGES, floor);
    looked.report("SEPT.RD", PAGES, floor);
    written.report("guest write", PAGES, floor);
    read.report("guest read", PAGES, floor);
}

fn promote(lp: &Lp<'_>, td: &TdPages, gpa: u64) {
    let entry = gpa | 2;
    boot::call(lp, Leaf::RangeBlock, [entry, td.tdr.raw(), 0, 0]).expect("BLOCK");
    boot::call(lp, Leaf::MemTrack, [td.tdr.raw(), 0, 0, 0]).expect("TRACK");
    boot::call(lp, Leaf::PagePromote, [entry, td.tdr.raw(), 0, 0]).expect("PROMOTE");
}

/// 1 TiB of 2 MiB pages, accepted and merged into 1 GiB leaves.
fn large_td(floor: Best) {
    let before = resident_mib();
    let machine = Machine::builder().memory(BASE, 1026).build();
    let lp = machine.lp(0);
    let mut frames = (BASE..).step_by(4096).map(Hpa::truncate);
    let td = boot::create(&lp, &machine, &TdSpec::default(), &mut frames).expect("a TD");
    let guest = machine.guest(td.vcpus[0]);
    let mut best = Best::NONE;
    best.time(|| {
        for gib in 0..1024u64 {
            let base = gib << 30;
            boot::map_tables(&lp, &td, Gpa::truncate(base), Level::L2M, &mut frames).expect("tables");
            guest.enter(0).expect("entered");
            for chunk in 0..512u64 {
                let gpa = Gpa::truncate(base | chunk << 21);
                let page = Hpa::truncate(BASE + gpa.raw() + (1 << 30));
                boot::aug(&lp, &td, gpa, Level::L2M, page).expect("AUG");
                accept(guest, gpa, Level::L2M);
            }
            guest.exit();
            promote(&lp, &td, base);
        }
    });
    let per_page = Best(best.0 * PAGES / (1024 * 512));
    per_page.report("AUG + ACCEPT of 2 MiB", PAGES, floor);
    println!("1 TiB of it, merged into 1 GiB leaves: {} MiB resident", resident_mib() - before);
}

fn main() {
    let floor = floor();
    println!("floor: {:.1} ns a page", floor.0 as f64 / PAGES as f64);
    large_td(floor);
    small_pages(floor);
}
