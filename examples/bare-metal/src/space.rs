//! STAND-IN for sept-core until it has formats that hardware walks.
#![allow(missing_docs, clippy::new_without_default, reason = "stand-in")]

use crate::memory;
use core::{
    cell::RefCell,
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
};
use sept_core::{Frame, Gpa, GpaEntry, Hpa, Level, Shootdown};

pub trait Format {
    const TABLE: u64;
    const LEAF: u64;
    const AD: u64;
}
#[derive(Debug)]
pub struct X86;
impl Format for X86 {
    const TABLE: u64 = 7;
    const LEAF: u64 = 7;
    const AD: u64 = 0x60;
}
#[derive(Debug)]
pub struct Ept;
impl Format for Ept {
    const TABLE: u64 = 7;
    const LEAF: u64 = 7 | 6 << 3;
    const AD: u64 = 0x300;
}

#[repr(align(4096))]
pub struct TableFrame([AtomicU64; 512]);
impl TableFrame {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }
}

const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

pub struct Space<'m, F, S> {
    frames: &'m [TableFrame],
    used: RefCell<[bool; 64]>,
    root: Hpa,
    shootdown: S,
    format: PhantomData<F>,
}

impl<'m, F: Format, S: Shootdown> Space<'m, F, S> {
    pub fn new(frames: &'m mut [TableFrame; 64], shootdown: S) -> Self {
        let mut space = Self {
            frames,
            used: RefCell::new([false; 64]),
            root: Hpa::default(),
            shootdown,
            format: PhantomData,
        };
        space.root = space.table();
        space
    }
    pub fn root(&self) -> Hpa {
        self.root
    }
    pub fn tables(&self) -> usize {
        self.used.borrow().iter().filter(|u| **u).count()
    }
    pub fn shootdown(&self) -> &S {
        &self.shootdown
    }
    fn table(&self) -> Hpa {
        let mut used = self.used.borrow_mut();
        let i = used.iter().position(|u| !u).unwrap();
        used[i] = true;
        for w in &self.frames[i].0 {
            w.store(0, Ordering::Relaxed);
        }
        Hpa::truncate(self.frames[i].0.as_ptr().addr() as u64)
    }
    fn free(&self, t: Hpa) {
        let i = (t.raw() as usize - self.frames.as_ptr().addr()) / 4096;
        self.used.borrow_mut()[i] = false;
    }
    fn word(&self, t: Hpa, level: Level, gpa: Gpa) -> &AtomicU64 {
        let i = (t.raw() as usize - self.frames.as_ptr().addr()) / 4096;
        &self.frames[i].0[usize::from(level.index(gpa))]
    }
    fn slot(&self, at: GpaEntry, make: bool) -> &AtomicU64 {
        let mut t = self.root;
        let mut level = Level::L512G;
        loop {
            let w = self.word(t, level, at.gpa());
            if level == at.level() {
                return w;
            }
            if w.load(Ordering::Relaxed) == 0 {
                assert!(make);
                w.store(self.table().raw() | F::TABLE, Ordering::Relaxed);
            }
            let raw = w.load(Ordering::Relaxed);
            assert!(raw & LARGE == 0);
            t = Hpa::truncate(raw & ADDRESS);
            level = level.child().unwrap();
        }
    }
    fn leaf(hpa: Hpa, level: Level) -> u64 {
        hpa.raw() | F::LEAF | if level == Level::L4K { 0 } else { LARGE }
    }
    pub fn fence(&self) {
        let t = self.shootdown.start();
        while !self.shootdown.done(t) {}
    }
    pub fn raw(&self, at: GpaEntry) -> u64 {
        self.slot(at, false).load(Ordering::Relaxed)
    }
    pub fn set_raw(&self, at: GpaEntry, raw: u64) {
        self.slot(at, false).store(raw, Ordering::Relaxed)
    }
    pub fn map(&self, at: GpaEntry, page: Frame) {
        let w = self.slot(at, true);
        assert_eq!(w.load(Ordering::Relaxed), 0);
        w.store(Self::leaf(page.hpa(), at.level()), Ordering::Release);
    }
    pub fn unmap(&self, at: GpaEntry) -> Frame {
        let w = self.slot(at, false);
        let raw = w.swap(0, Ordering::AcqRel);
        assert!(raw != 0);
        self.fence();
        let hpa = Hpa::truncate(raw & ADDRESS);
        memory::take_back_raw(hpa, at.level());
        memory::lend(hpa, at.level())
    }
    /// Gives back tables that are empty.
    pub fn trim(&self, gpa: Gpa) {
        for level in [Level::L2M, Level::L1G, Level::L512G] {
            let at = GpaEntry::containing(gpa, level);
            let w = self.slot(at, false);
            let t = Hpa::truncate(w.load(Ordering::Relaxed) & ADDRESS);
            if w.load(Ordering::Relaxed) != 0 {
                let child = level.child().unwrap();
                for i in 0..512 {
                    if self.word(t, child, at.child(i).unwrap().gpa()).load(Ordering::Relaxed) != 0 {
                        return;
                    }
                }
                w.store(0, Ordering::Relaxed);
                self.fence();
                self.free(t);
            }
        }
    }
    pub fn split(&self, at: GpaEntry) {
        let w = self.slot(at, false);
        let raw = w.load(Ordering::Relaxed);
        let hpa = raw & 0x000f_ffff_ffe0_0000;
        let t = self.table();
        let child = at.level().child().unwrap();
        for i in 0..512 {
            let e = at.child(i).unwrap();
            self.word(t, child, e.gpa())
                .store(Self::leaf(Hpa::truncate(hpa + 4096 * u64::from(i)), child), Ordering::Relaxed);
        }
        w.store(t.raw() | F::TABLE, Ordering::Release);
        self.fence();
    }
    pub fn merge(&self, at: GpaEntry) {
        let w = self.slot(at, false);
        let t = Hpa::truncate(w.load(Ordering::Relaxed) & ADDRESS);
        let child = at.level().child().unwrap();
        let first = self.word(t, child, at.gpa()).load(Ordering::Relaxed) & !F::AD;
        for i in 0..512 {
            let e = at.child(i).unwrap();
            assert_eq!(
                self.word(t, child, e.gpa()).load(Ordering::Relaxed) & !F::AD,
                first + 4096 * u64::from(i)
            );
        }
        w.store(Self::leaf(Hpa::truncate(first & ADDRESS), at.level()), Ordering::Release);
        self.fence();
        self.free(t);
    }
}
