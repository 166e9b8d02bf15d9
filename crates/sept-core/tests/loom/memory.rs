//! Table memory of loom's atomics, and walks that a shootdown waits for.

use core::{array, cell::Cell};
use loom::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread_local,
};
use sept_core::{Frame, Hpa, Shootdown, SideWord, TableMemory, Tainted, Word};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

/// Threads of a model.
pub(crate) const THREADS: usize = 2;
/// Frames for tables.
pub(crate) const FRAMES: u64 = 16;
const WORDS: usize = 512 + SideWord::COUNT;

thread_local! {
    /// Number of the thread, and how many pins it holds.
    static SELF: Cell<(usize, u32)> = Cell::new((0, 0));
}

/// To be called first by each thread but the main one.
pub(crate) fn become_thread(number: usize) {
    SELF.with(|this| this.set((number, 0)));
}

/// Counts of walks begun and ended by each thread: odd while it is inside of one.
pub(crate) struct Pins([AtomicUsize; THREADS]);

impl Pins {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(array::from_fn(|_| AtomicUsize::new(0))))
    }

    fn step(&self) {
        let (number, _) = SELF.with(Cell::get);
        self.0[number].fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn pin(&self) -> Pin<'_> {
        let (number, depth) = SELF.with(Cell::get);
        SELF.with(|this| this.set((number, depth + 1)));
        if depth == 0 {
            self.step();
        }
        Pin(self)
    }
}

/// A walk under way, or a CPU inside the guest.
pub(crate) struct Pin<'a>(&'a Pins);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let (number, depth) = SELF.with(Cell::get);
        SELF.with(|this| this.set((number, depth - 1)));
        if depth == 1 {
            self.0.step();
        }
    }
}

/// A shootdown: done when every walk that it found has ended. `lies` if it says so at once.
pub(crate) struct Rcu {
    pub(crate) pins: Arc<Pins>,
    pub(crate) lies: bool,
}

impl Rcu {
    pub(crate) fn begin(&self) -> [usize; THREADS] {
        // Updates, so that a walk that begins later sees what was done before.
        array::from_fn(|thread| self.pins.0[thread].fetch_add(0, Ordering::AcqRel))
    }

    pub(crate) fn ended(&self, ticket: [usize; THREADS]) -> bool {
        let over = |thread: usize| {
            ticket[thread].is_multiple_of(2) || self.pins.0[thread].load(Ordering::Acquire) != ticket[thread]
        };
        self.lies || (0..THREADS).all(over)
    }
}

#[expect(unsafe_code, reason = "the trait's promise")]
// SAFETY: frames name no real memory; whether a walk can meet a frame that was given back is what the models check.
unsafe impl Shootdown for Rcu {
    type Ticket = [usize; THREADS];

    fn start(&self) -> Self::Ticket {
        self.begin()
    }

    fn done(&self, ticket: Self::Ticket) -> bool {
        self.ended(ticket)
    }
}

/// Frames 0 to [`FRAMES`], shared by its clones. The watched words are loom's; nobody races for the others.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Inner>);

struct Inner {
    pins: Arc<Pins>,
    watched: Vec<((u64, usize), AtomicU64)>,
    plain: Mutex<Vec<[u64; WORDS]>>,
    /// Frames that hold no table.
    free: Mutex<BTreeSet<u64>>,
}

fn index(word: Word) -> usize {
    match word {
        Word::Entry(index) => usize::from(index),
        Word::Side(side) => 512 + side.index(),
    }
}

impl Memory {
    pub(crate) fn new(pins: &Arc<Pins>, watched: &[(u64, Word)]) -> Self {
        Self(Arc::new(Inner {
            pins: Arc::clone(pins),
            watched: watched
                .iter()
                .map(|(frame, word)| ((*frame, index(*word)), AtomicU64::new(0)))
                .collect(),
            plain: Mutex::new(vec![[0; WORDS]; usize::try_from(FRAMES).unwrap()]),
            free: Mutex::new((0..FRAMES).collect()),
        }))
    }

    /// The frame becomes a table, or stops being one.
    pub(crate) fn set_free(&self, hpa: Hpa, free: bool) {
        let frame = hpa.raw() >> 12;
        let mut all = self.0.free.lock().unwrap();
        let changed = if free { all.insert(frame) } else { all.remove(&frame) };
        assert!(changed, "frame {frame} has two owners");
    }

    fn place(&self, table: Hpa, word: Word) -> ((u64, usize), Option<&AtomicU64>) {
        let place = (table.raw() >> 12, index(word));
        assert!(!self.0.free.lock().unwrap().contains(&place.0), "frame {} is no table any more", place.0);
        (place, self.0.watched.iter().find(|(other, _)| *other == place).map(|(_, word)| word))
    }

    /// A word that nobody races for.
    fn plain<T>(&self, (frame, word): (u64, usize), run: impl FnOnce(&mut u64) -> T) -> T {
        run(&mut self.0.plain.lock().unwrap()[usize::try_from(frame).unwrap()][word])
    }
}

#[expect(unsafe_code, reason = "the trait's promises")]
// SAFETY: every word is its own; `scrub` has nothing to overwrite, since guest pages are not modelled.
unsafe impl TableMemory for Memory {
    type Pin<'a> = Pin<'a>;

    fn pin(&self) -> Pin<'_> {
        self.0.pins.pin()
    }

    fn load(&self, table: Hpa, word: Word, order: Ordering) -> u64 {
        match self.place(table, word) {
            (_, Some(watched)) => watched.load(order),
            (place, None) => self.plain(place, |word| *word),
        }
    }

    fn store(&self, table: Hpa, word: Word, value: u64, order: Ordering) {
        match self.place(table, word) {
            (_, Some(watched)) => watched.store(value, order),
            (place, None) => self.plain(place, |word| *word = value),
        }
    }

    fn compare_exchange(&self, table: Hpa, word: Word, old: u64, new: u64) -> Result<(), u64> {
        match self.place(table, word) {
            (_, Some(watched)) => {
                watched.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
            }
            (place, None) => self.plain(place, |word| {
                let found = *word;
                if found == old {
                    *word = new;
                    return Ok(());
                }
                Err(found)
            }),
        }
    }

    fn add(&self, table: Hpa, word: Word, value: u64) {
        match self.place(table, word) {
            (_, Some(watched)) => {
                watched.fetch_add(value, Ordering::AcqRel);
            }
            (place, None) => self.plain(place, |word| *word = word.wrapping_add(value)),
        }
    }

    fn write_detached(&self, table: &Frame, entry: impl Fn(u16) -> u64) {
        for index in 0..512 {
            self.store(table.hpa(), Word::Entry(index), entry(index), Ordering::Relaxed);
        }
        for side in SideWord::ALL {
            self.store(table.hpa(), Word::Side(side), 0, Ordering::Relaxed);
        }
    }

    #[expect(unsafe_code, reason = "modelled memory")]
    fn scrub(&self, page: Frame<Tainted>) -> Frame {
        // SAFETY: no cache and no other key holds anything of a page that is not there.
        unsafe { page.assume_scrubbed() }
    }
}
