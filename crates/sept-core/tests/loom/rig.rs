//! What the models have in common: a pool, stores, and a race of two threads.

use crate::memory::{FRAMES, Memory, become_thread};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use sept_core::{
    Frame, FrameKind, FrameSource, FrameStore, Gpa, GpaEntry, Hpa, Level, SideWord, Word, test_util::VecStore,
};
use std::sync::Mutex;

/// Tables by their frame: the pool gives them out in this order.
pub(crate) const PDPT: u64 = 1;
pub(crate) const PD: u64 = 2;
pub(crate) const PT: u64 = 3;

/// Where guest memory lies.
pub(crate) const RAM: u64 = 1 << 30;

pub(crate) fn entry(frame: u64, index: u16) -> (u64, Word) {
    (frame, Word::Entry(index))
}

pub(crate) fn live(frame: u64) -> (u64, Word) {
    (frame, Word::Side(SideWord::Live))
}

pub(crate) fn gpa(page: u64) -> Gpa {
    Gpa::new(page << 12).unwrap()
}

pub(crate) fn at(page: u64, level: Level) -> GpaEntry {
    GpaEntry::containing(gpa(page), level)
}

pub(crate) fn ram(page: u64) -> Hpa {
    Hpa::new(RAM + (page << 12)).unwrap()
}

/// Guest memory that nobody else has.
#[expect(unsafe_code, reason = "modelled memory")]
pub(crate) fn lend(page: u64, level: Level) -> Frame {
    // SAFETY: modelled memory; each model lends a page once.
    unsafe { Frame::assume_owned(ram(page), level) }.unwrap()
}

/// Frames 0, 1, 2... of which the memory knows which are in use.
pub(crate) struct Pool {
    memory: Memory,
    free: Mutex<Vec<u64>>,
}

impl Pool {
    pub(crate) fn new(memory: &Memory) -> Self {
        Self { memory: memory.clone(), free: Mutex::new((0..FRAMES).rev().collect()) }
    }

    /// Frames that it has.
    pub(crate) fn left(&self) -> u64 {
        self.free.lock().unwrap().len() as u64
    }
}

impl FrameSource for Pool {
    #[expect(unsafe_code, reason = "modelled memory")]
    fn take(&self, _: FrameKind, _: Hpa) -> Option<Frame> {
        let frame = self.free.lock().unwrap().pop()?;
        let hpa = Hpa::new(frame << 12)?;
        self.memory.set_free(hpa, false);
        // SAFETY: the pool had it, and the memory confirms that nobody else has.
        unsafe { Frame::assume_owned(hpa, Level::L4K) }
    }

    fn give(&self, _: FrameKind, frame: Frame) {
        self.memory.set_free(frame.hpa(), true);
        self.free.lock().unwrap().push(frame.hpa().raw() >> 12);
    }
}

/// A store with `count` tables.
pub(crate) fn stock(pool: &dyn FrameSource, count: u32, tee: u32) -> VecStore {
    let mut store = VecStore::default();
    for (kind, count) in [(FrameKind::MirrorTable, count), (FrameKind::TeeTable, tee)] {
        let frames: Vec<Frame> = (0..count).map(|_| pool.take(kind, Hpa::default()).unwrap()).collect();
        // The store gives out what came last.
        frames.into_iter().rev().for_each(|frame| store.put(kind, frame).unwrap());
    }
    store
}

/// Waits without doing anything.
pub(crate) fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(done) = poll() {
            return done;
        }
        thread::yield_now();
    }
}

/// Runs `make`, then `first` and `second` at the same time, then `check` with what they came to, in every way there is: or
/// in every way that takes a thread off the CPU at most so often (`LOOM_MAX_PREEMPTIONS` overrides it). What `check` returns
/// is counted; all of `expect` must have been seen.
pub(crate) fn race<T: Send + Sync + 'static, A: 'static, B: 'static>(
    preemptions: Option<usize>,
    make: impl Fn() -> T + Send + Sync + 'static,
    first: impl Fn(&T) -> A + Copy + Send + Sync + 'static,
    second: impl Fn(&T) -> B + Copy + Send + Sync + 'static,
    check: impl Fn(&T, A, B) -> &'static str + Send + Sync + 'static,
    expect: &[&'static str],
) {
    let seen = std::sync::Arc::new(Mutex::new(std::collections::BTreeMap::new()));
    let counted = std::sync::Arc::clone(&seen);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.check(move || {
        let shared = Arc::new((make(), AtomicUsize::new(0)));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                become_thread(1);
                // So that either may run as a whole before the other begins. Orders nothing else.
                shared.1.fetch_add(1, Ordering::Relaxed);
                second(&shared.0)
            })
        };
        shared.1.fetch_add(1, Ordering::Relaxed);
        let a = first(&shared.0);
        let b = other.join().unwrap();
        let outcome = check(&shared.0, a, b);
        *counted.lock().unwrap().entry(outcome).or_insert(0_u64) += 1;
    });
    let seen = seen.lock().unwrap();
    eprintln!("{seen:?}");
    for outcome in expect {
        assert!(seen.contains_key(outcome), "never saw {outcome:?}: {seen:?}");
    }
}
