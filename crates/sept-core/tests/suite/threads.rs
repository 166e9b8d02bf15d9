//! Faults in parallel.

use crate::rig::{CONFIGS, Error, K4, Rig};
use sept_core::{Entry, Fill, Hpa, Level};
use std::sync::Barrier;

/// Maps the 4 KiB pages `pages` of the window to RAM from `ram` on; says which ones this thread won.
fn fault(rig: &Rig, start: &Barrier, pages: impl Iterator<Item = u64>, ram: u64) -> Vec<u64> {
    start.wait();
    let mut won = Vec::new();
    for page in pages {
        let mut frame = rig.page(ram + (page << 12), K4);
        loop {
            match rig.table.map(rig.at(page << 12, K4), frame, Fill::OnAccept) {
                Ok(()) => won.push(page),
                Err(refused) => match refused.error {
                    Error::Contended { .. } => {
                        frame = refused.held;
                        std::hint::spin_loop();
                        continue;
                    }
                    Error::State { found: Entry::Leaf { .. }, .. } => {
                        rig.ram.take_back(refused.held).unwrap();
                    }
                    error => panic!("{error}"),
                },
            }
            break;
        }
    }
    won
}

fn leaf(rig: &Rig, page: u64) -> Hpa {
    match rig.table.entry(rig.at(page << 12, K4)) {
        Ok(Entry::Leaf { hpa, .. }) => hpa,
        other => panic!("{other:?}"),
    }
}

#[test]
fn disjoint_faults_all_succeed() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, K4);
    rig.link_to(2 << 20, K4);
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let even = scope.spawn(|| fault(&rig, &start, (0..1024).step_by(2), 0));
        let odd = scope.spawn(|| fault(&rig, &start, (1..1024).step_by(2), 0));
        assert_eq!((even.join().unwrap().len(), odd.join().unwrap().len()), (512, 512));
    });
    rig.check(); // live counts, mirror, TEE and frames
    assert!((0..1024).all(|page| leaf(&rig, page) == Rig::hpa(page << 12)));
    assert_eq!(rig.tee().refused(), []);
}

#[test]
fn of_two_faults_on_one_page_one_wins_and_the_other_keeps_its_frame() {
    const SECOND: u64 = 1 << 30;
    for _ in 0..8 {
        let mut rig = Rig::new(CONFIGS[1], false);
        rig.link_to(0, K4);
        let start = Barrier::new(2);
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| fault(&rig, &start, 0..512, 0));
            let second = scope.spawn(|| fault(&rig, &start, 0..512, SECOND));
            (first.join().unwrap(), second.join().unwrap())
        });
        rig.check(); // the losers' frames are back: pages lent equal pages mapped
        for page in 0..512 {
            let ram = match (first.binary_search(&page), second.binary_search(&page)) {
                (Ok(_), Err(_)) => 0,
                (Err(_), Ok(_)) => SECOND,
                both => panic!("page {page}: {both:?}"),
            };
            assert_eq!(leaf(&rig, page), Rig::hpa(ram + (page << 12)));
        }
        assert_eq!(rig.tee().refused(), []);
    }
}

/// One thread splits and merges a 2 MiB page over and over while the other one reads it: it always translates.
#[test]
fn readers_never_lose_a_translation() {
    let mut rig = Rig::new(CONFIGS[0], false);
    rig.link_to(0, Level::L2M);
    rig.map(0, 0, Level::L2M, false).unwrap();
    let (at, gpa) = (rig.at(0, Level::L2M), rig.gpa(0x5_6000));
    let done = std::sync::atomic::AtomicBool::new(false);
    let Rig { table, store, owed, pool, .. } = &mut rig;
    let table = &*table;
    for _ in 0..40 {
        for kind in [sept_core::FrameKind::MirrorTable, sept_core::FrameKind::TeeTable] {
            let frame = sept_core::FrameSource::take(pool, kind, Hpa::default()).unwrap();
            sept_core::FrameStore::put(store, kind, frame).unwrap();
        }
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Acquire) || seen == 0 {
                let found = table.lookup(gpa).unwrap();
                match found.entry {
                    Entry::Leaf { hpa, .. } => {
                        let offset = gpa.raw() - found.at.gpa().raw();
                        assert_eq!(hpa.checked_add(offset), Some(Rig::hpa(0x5_6000)));
                        seen += 1;
                    }
                    Entry::Frozen => {}
                    other => panic!("{gpa:#x} became {other}"),
                }
            }
        });
        for _ in 0..40 {
            table.block(at).unwrap();
            let ticket = table.fence().unwrap();
            table.split(at, &table.fenced(&ticket).unwrap(), store).unwrap();
            table.block(at).unwrap();
            let ticket = table.fence().unwrap();
            table.merge(at, &table.fenced(&ticket).unwrap(), owed).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        reader.join().unwrap();
    });
    assert_eq!(rig.settle().total(), 80);
    rig.check();
}
