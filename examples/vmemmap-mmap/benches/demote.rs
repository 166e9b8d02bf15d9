//! 1 GiB to 512 folios of 2 MiB with the saving kept, on real pages, beside what it cannot do without: copying 511
//! pages and the system calls. `cargo bench -p vmemmap-mmap`; nothing is asserted.
//!
//! With `-- --kernel` also the running kernel's own demotion of a free 1 GiB huge page, with the optimization on and off.
//! That needs root and 1 GiB of free contiguous memory, changes sysctl and pool sizes, and puts them back.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a program of its own")]

use folio_split::{Empty, FolioLayout, Large, Order, OrderSet, Pfn, PfnBlock, Transition};
use sept_core::test_util::VecStore;
use std::{
    fs,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};
use vmemmap_mmap::MmapHost;
use vmemmap_prealloc::{Atom, Commit, Reservation, TailScheme, VmemmapNeeds, install_templates, optimize};

fn main() {
    let block = PfnBlock::new(Pfn::new(1 << 18).unwrap(), Order::HUGE_1G).unwrap();
    let orders = OrderSet::HUGETLB;
    match (host(block, orders), host(block, orders)) {
        (Ok(host), Ok(floor)) => ours(block, orders, &host, &floor),
        (Err(error), _) | (_, Err(error)) => println!("not possible here: {error}"),
    }
    if !std::env::args().any(|arg| arg == "--kernel") {
        println!("the kernel's own demotion: only when asked for, with -- --kernel");
        return;
    }
    for on in [true, false] {
        let name = if on { "on" } else { "off" };
        match kernel(on) {
            Ok(best) => println!("the kernel's own demotion, optimization {name}: {best:?}"),
            Err(error) => {
                println!("the kernel's own demotion, optimization {name}: not possible here: {error}")
            }
        }
    }
}

fn host(block: PfnBlock, orders: OrderSet) -> Result<MmapHost, vmemmap_mmap::SetupError> {
    let host = MmapHost::new(block, 1, 4096, TailScheme::PerOrder)?;
    install_templates(&host, block, orders, &host).unwrap();
    optimize(&host, &host, &FolioLayout::new(block, orders, Empty), 1, &host).unwrap();
    Ok(host)
}

/// `host` does it, `floor` does its system calls alone: the same ones, from the same state, in the same order.
fn ours(block: PfnBlock, orders: OrderSet, host: &MmapHost, floor: &MmapHost) {
    // One whole 2 MiB block must not share a folio with the rest: 512 folios of 2 MiB.
    let t = Transition::new(block, orders, Empty, Large(0..512));
    let back = t.reversed();
    let counts = t.counts();
    let needs = VmemmapNeeds::plan(host, &t, &counts);
    println!(
        "1 GiB to {} folios: {} pages, {} entries written, one flush",
        counts.to().folios(),
        needs.fresh,
        needs.entry_writes()
    );
    let from = vec![1_u8; usize::try_from(needs.fresh).unwrap() * 4096];
    let mut to = vec![2_u8; from.len()];
    let mut best = [Duration::MAX; 4];
    let mut ratios = Vec::new();
    for _ in 0..15 {
        let mut held = Reservation::new(block, needs.node, VecStore::default());
        held.fill(host, &needs, 0, host).unwrap();
        host.record();
        let start = Instant::now();
        let mut atoms = [Atom::split(t.by_ref(), block)];
        let commit = Commit::freeze(host, host, &mut atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().release(host);
        let split = start.elapsed();
        let there = host.recorded();
        host.check(&t.to_layout()).unwrap();
        host.record();
        let start = Instant::now();
        let mut atoms = [Atom::merge(back.by_ref(), block)];
        let commit = Commit::freeze(host, host, &mut atoms, held.lend(), 1).unwrap();
        let _ = commit.remap().unwrap().finish().release(host);
        let merge = start.elapsed();
        let back = host.recorded();
        let start = Instant::now();
        for (to, from) in to.chunks_exact_mut(4096).zip(from.chunks_exact(4096)) {
            black_box(to).copy_from_slice(black_box(from));
        }
        let copies = start.elapsed();
        let start = Instant::now();
        floor.replay(&there);
        let calls = start.elapsed();
        floor.replay(&back);
        ratios.push(split.as_secs_f64() / (copies + calls).as_secs_f64());
        for (best, now) in best.iter_mut().zip([split, merge, copies, calls]) {
            *best = now.min(*best);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let [split, merge, copies, calls] = best;
    println!("split {split:?}, merge back {merge:?} (best of 15)");
    println!("floor: copying {copies:?}, system calls {calls:?}");
    println!(
        "split to floor: {:.2} of the best, {:.2} the median",
        split.as_secs_f64() / (copies + calls).as_secs_f64(),
        ratios.get(ratios.len() / 2).unwrap()
    );
}

const POOLS: &str = "/sys/kernel/mm/hugepages";
const OPTIMIZE: &str = "/proc/sys/vm/hugetlb_optimize_vmemmap";

/// A setting that is put back when it is dropped.
struct Setting {
    path: String,
    old: String,
}

impl Setting {
    fn set(path: String, value: &str) -> Result<Self, String> {
        let old = read(&path)?;
        let setting = Self { path, old };
        write(&setting.path, value)?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = write(&self.path, &self.old) {
            println!("not put back: {error}");
        }
    }
}

fn read(path: &str) -> Result<String, String> {
    Ok(fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?.trim().to_owned())
}

fn write(path: &str, value: &str) -> Result<(), String> {
    fs::write(path, value).map_err(|error| format!("{path}: {error}"))
}

/// The best of a few demotions of one free 1 GiB page to 512 pages of 2 MiB.
fn kernel(optimized: bool) -> Result<Duration, String> {
    let large = |name: &str| format!("{POOLS}/hugepages-1048576kB/{name}");
    let small = |name: &str| format!("{POOLS}/hugepages-2048kB/{name}");
    if !Path::new(&large("demote")).exists() {
        return Err("no pool of 1 GiB pages that can be demoted".to_owned());
    }
    let used = (read(&large("nr_hugepages"))?, read(&small("nr_hugepages"))?);
    if used != ("0".to_owned(), "0".to_owned()) {
        return Err(format!("pools are in use: {used:?}"));
    }
    let _optimize = Setting::set(OPTIMIZE.to_owned(), if optimized { "1" } else { "0" })?;
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let _small = Setting { path: small("nr_hugepages"), old: "0".to_owned() };
        let _large = Setting::set(large("nr_hugepages"), "1")?;
        if read(&large("free_hugepages"))? != "1" {
            return Err("no 1 GiB of contiguous free memory".to_owned());
        }
        write(&large("demote_size"), "2048kB")?;
        let start = Instant::now();
        write(&large("demote"), "1")?;
        let time = start.elapsed();
        let got = read(&small("free_hugepages"))?;
        if got != "512" {
            return Err(format!("{got} pages of 2 MiB after the demotion"));
        }
        best = best.min(time);
    }
    Ok(best)
}
