//! Two threads that fault beside one. Run with `cargo bench -p sept-core --bench scaling [-- ROUNDS]`; nothing is asserted by a
//! clock.
//!
//! Every round begins with an empty table and frames handed out to the two threads in turns. In one half of the rounds one
//! thread maps its 4 KiB pages one by one, with the tables missing on the way; in the other half two threads map theirs at the
//! same time, twice the pages. The figure is how many times the pages of one thread two threads map in the same time: 2 is
//! perfect, and two threads with a table each show what the machine has to give. Rounds in which a thread had to wait for a CPU, as Linux counts it, say nothing about the table: they are dropped.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a program of its own"
)]

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};
use sept_core::{
    Direct, Fill, Frame, FrameKind, FrameList, FrameStore, Gpa, GpaEntry, Hpa, Level, LinearMap,
    SecurePageTable, Shootdown, TableError, TableMemory, X86, X86Config,
};
use std::{fs, thread, time::Instant};

/// Which page a thread maps: thread, number of the page.
type Pages = fn(u64, u64) -> u64;
type Table<'a> = SecurePageTable<X86, &'a LinearMap, Direct<Nobody>>;

const FRAMES: usize = 2048;
/// Pages that a thread maps.
const PAGES: u64 = 1 << 17;
/// Host memory behind the guest's pages; there is none.
const RAM: u64 = 1 << 40;

/// No MMU walks these tables.
struct Nobody;

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: no CPU walks these tables, and no fence is started.
unsafe impl Shootdown for Nobody {
    type Ticket = ();

    fn start(&self) {}

    fn done(&self, (): ()) -> bool {
        true
    }
}

#[repr(align(4096))]
#[expect(dead_code, reason = "read through the linear map")]
struct Page([AtomicU64; 512]);

#[repr(align(64))]
#[expect(dead_code, reason = "read through the linear map")]
struct Side([AtomicU64; 8]);

/// Frames from physical address 0 on, for as long as the program runs.
fn memory() -> LinearMap {
    let zero = || AtomicU64::new(0);
    let tables: Vec<Page> = (0..FRAMES).map(|_| Page([(); 512].map(|()| zero()))).collect();
    let sides: Vec<Side> = (0..FRAMES).map(|_| Side([(); 8].map(|()| zero()))).collect();
    let tables = NonNull::from(Box::leak(tables.into_boxed_slice())).cast();
    let sides = NonNull::from(Box::leak(sides.into_boxed_slice())).cast();
    #[expect(unsafe_code, reason = "raw table memory")]
    // SAFETY:
    // * tables are frames below `FRAMES`, and there are side words for all of them;
    // * neither is ever freed; the side words are aligned, atomic and 0 at first;
    // * nobody else knows either.
    unsafe {
        LinearMap::new(Hpa::default(), tables, sides, ())
    }
}

fn mint(address: u64) -> Frame {
    #[expect(unsafe_code, reason = "minting is where ownership of memory begins")]
    // SAFETY: a round begins with no frame in use and mints each once; there is no guest memory.
    let frame = unsafe { Frame::assume_owned(Hpa::truncate(address), Level::L4K) };
    frame.unwrap()
}

/// Maps a page, and the tables on the way to it where they are missing.
#[inline]
fn fault(table: &Table<'_>, page: u64, store: &mut dyn FrameStore) {
    let at = GpaEntry::containing(Gpa::truncate(page << 12), Level::L4K);
    let mut frame = mint(RAM + (page << 12));
    loop {
        let Err(refused) = table.map(at, frame, Fill::OnAccept) else { return };
        frame = refused.held;
        let error = match refused.error {
            TableError::NoTable { .. } => match table.link_to(at, None, store) {
                Ok(_) => continue,
                Err(error) => error,
            },
            error => error,
        };
        match error {
            TableError::Contended { .. } => core::hint::spin_loop(),
            error => panic!("{error}"),
        }
    }
}

/// How often the calling thread had to wait for a CPU, in nanoseconds of waiting.
fn waited() -> Option<u64> {
    fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').nth(1)?.parse().ok()
}

/// `threads` threads map the pages that `page` gives them, in one table or in one each. Says how long it took, unless one of
/// them waited.
fn round(memory: &LinearMap, threads: u64, apart: bool, page: Pages) -> Option<Duration> {
    let mut frames = (0..FRAMES as u64).map(|number| mint(number << 12));
    let tables = [frames.next(), frames.next()]
        .map(|root| Table::new(X86Config::NESTED_4, memory, Direct::new(Nobody), root.unwrap()));
    let table = |thread: u64| &tables[usize::from(apart && thread == 1)];
    let mut parts = [Vec::new(), Vec::new()];
    for (number, frame) in frames.enumerate() {
        parts[number % 2].push(frame);
    }
    let ready = AtomicUsize::new(0);
    let work = |(thread, frames): (u64, Vec<Frame>)| {
        let mut store = FrameList::new(memory);
        for frame in frames {
            // As an allocator that clears: the frame is in this CPU's caches, not in those of whoever had it before.
            memory.write_detached(&frame, |_| 0);
            store.put(FrameKind::MirrorTable, frame).unwrap();
        }
        let (table, before) = (table(thread), waited());
        ready.fetch_add(1, Ordering::AcqRel);
        while (ready.load(Ordering::Acquire) as u64) < threads {
            core::hint::spin_loop();
        }
        let start = Instant::now();
        for number in 0..PAGES {
            fault(table, page(thread, number), &mut store);
        }
        let end = Instant::now();
        (start, end, before == waited())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .zip(parts)
            .map(|part| {
                let work = &work;
                scope.spawn(move || work(part))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    for thread in 0..threads {
        for number in 0..PAGES {
            let address = page(thread, number) << 12;
            let found = table(thread).translate(Gpa::truncate(address)).unwrap();
            assert_eq!(found.hpa.raw(), RAM + address);
        }
    }
    let start = times.iter().map(|time| time.0).min()?;
    let end = times.iter().map(|time| time.1).max()?;
    times.iter().all(|time| time.2).then(|| end - start)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(51);
    let memory = memory();
    let cases: [(&str, bool, Pages); 4] = [
        ("a table for each thread", true, |thread, number| thread << 18 | number),
        ("disjoint blocks of 1 GiB", false, |thread, number| thread << 18 | number),
        ("alternate blocks of 2 MiB in 1 GiB", false, |thread, number| {
            (number >> 9) << 10 | thread << 9 | number & 0x1ff
        }),
        ("halves of every 2 MiB in 1 GiB", false, |thread, number| {
            (number >> 8) << 9 | thread << 8 | number & 0xff
        }),
    ];
    println!("{:36}{:>12}{:>12}{:>9}{:>9}", "", "one, ns", "two, ns", "ratio", "rounds");
    for (name, apart, page) in cases {
        let mut times = [Vec::new(), Vec::new()];
        // Where the machine is never quiet it ends all the same.
        for _ in 0..20 * rounds {
            for (threads, times) in (1..).zip(&mut times) {
                times.extend(round(&memory, threads, apart, page));
            }
            if times.iter().all(|times| times.len() >= rounds) {
                break;
            }
        }
        let quiet = times[0].len().min(times[1].len());
        if quiet == 0 {
            println!("{name:36}no round without waiting for a CPU");
            continue;
        }
        let [one, two] = times.map(|times| median(times) / PAGES as f64);
        println!("{name:36}{one:12.2}{two:12.2}{:9.2}{quiet:9}", 2.0 * one / two);
    }
}
