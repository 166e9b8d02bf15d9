//! Each adapter around the module: what it lets through, what it keeps away, and that the module cannot tell.

use crate::bench::{BASE, Bench, LARGE, builder, entry, frame, scrub};
use seamcall::adapter::{EntropyRetry, Gate};
use seamcall::mem::{self, DemotePages, L2Mode, MaybeTainted};
use seamcall::{Features0, FieldId, Status, Transport, mng, sys};
use sept_core::{Class, Classify, External, Fill, Hpa, LeafState, Level, Observed};
use tdx_model::{Fault, Leaf, Machine};

const NO_ENTROPY: tdx_model::Status = tdx_model::Status(0x8000_0203_0000_0000);

fn large_page<T: Transport>(bench: &Bench<'_, T>) -> sept_core::GpaEntry {
    bench.link(entry(0, Level::L512G), None);
    bench.link(entry(0x4000_0000, Level::L1G), None);
    let at = entry(0x4000_0000, Level::L2M);
    bench.td.map(at, frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();
    at
}

#[test]
fn entropy_runs_dry_while_a_td_is_built() {
    let machine = builder(false).build();
    for (leaf, times) in [(Leaf::MngCreate, 9), (Leaf::MngKeyConfig, 1), (Leaf::MngAddCx, 3)] {
        machine.inject(Fault { times, ..Fault::nth(leaf, 1, NO_ENTROPY) });
    }
    let bench = Bench::over(EntropyRetry::new(machine.lp(0)), &machine, false, true);
    bench.sound();

    // One more than it waits for.
    machine.inject(Fault { times: 10, ..Fault::nth(Leaf::MngCreate, 1, NO_ENTROPY) });
    let page = frame(BASE + 0x10_0000, Level::L4K);
    let back = mng::create(bench.td.transport(), page, seamcall::Hkid::new(34)).unwrap_err();
    assert!(back.error.status.is(Status::RND_NO_ENTROPY) && back.error.class() == Class::Retry);
    // The module has written the page by then.
    let MaybeTainted::Tainted(page) = back.held else { panic!("clean") };
    mng::create(bench.td.transport(), scrub(page), seamcall::Hkid::new(34)).unwrap();
    bench.sound();
}

fn features(machine: &Machine) -> Features0 {
    Features0::from_bits_retain(sys::rd(&machine.lp(0), FieldId::TDX_FEATURES0).unwrap().0)
}

/// The pair of a DEMOTE to a module without Dynamic PAMT: the module would never look at it.
#[test]
fn a_gate_keeps_pages_that_would_be_lost() {
    let pages = |first: u64| {
        let page = |index: u64| frame(first + index * 0x1000, Level::L4K);
        (DemotePages::new(page(0)), [page(1), page(2)])
    };
    for gated in [true, false] {
        let machine = builder(false).build();
        let features = features(&machine) & !Features0::DYNAMIC_PAMT & !Features0::TD_PARTITIONING;
        let bench = Bench::over(Gate::new(machine.lp(0), features), &machine, false, true);
        let at = large_page(&bench);
        bench.td.block(at).unwrap();
        bench.td.fence().unwrap();
        let (table, pair) = pages(BASE + 0x10_0000);
        let td = bench.td.tdr();
        let demote = |pages| {
            if gated {
                mem::page_demote(bench.td.transport(), td, at, L2Mode::All, pages)
            } else {
                mem::page_demote(bench.td.transport().inner(), td, at, L2Mode::All, pages)
            }
        };
        let result = demote(table.with_pair(pair));
        assert_eq!(result.is_err(), gated, "without the gate the pair is gone and nobody has it");
        if let Err(back) = result {
            assert_eq!(back.error.status.operand(), Some(seamcall::Operand::R12));
            assert!(!back.held.is_tainted());
            assert_eq!(bench.td.probe(at).unwrap(), Observed::Leaf(LeafState::Pending));
            let (_, _, pair) = back.held.into_parts();
            assert_eq!(pair.unwrap().map(|page| page.hpa().raw()), [BASE + 0x10_1000, BASE + 0x10_2000]);
            // What the module knows passes.
            let (table, _) = pages(BASE + 0x20_0000);
            demote(table).unwrap();
        }
        assert_eq!(bench.td.probe(at).unwrap(), Observed::Table);
        bench.sound();
    }
}

#[test]
fn a_gate_lets_through_what_the_module_can() {
    let machine = builder(true).build();
    let features = features(&machine) | Features0::DYNAMIC_PAMT;
    let bench = Bench::over(Gate::new(machine.lp(0), features), &machine, true, true);
    let at = large_page(&bench);
    bench.td.block(at).unwrap();
    bench.td.fence().unwrap();
    let pages = bench.td.gather(at, Some(Hpa::truncate(LARGE)), &mut bench.shelf(3)).unwrap();
    bench.td.split(at, pages).unwrap();
    bench.sound();
}

/// A refused DEMOTE changes nothing; when the budget is used up the page is unblocked, and it goes better later.
#[cfg(feature = "test-util")]
#[test]
fn injected_interruptions_leave_the_module_alone() {
    use seamcall::adapter::{Fault, Inject};
    use sept_core::{Frame, FrameStore};
    let machine = builder(false).build();
    // Six calls: the budget of four repetitions and the first attempt; the sixth is the next try's first.
    let plan = Fault::at_leaf(seamcall::Leaf::MEM_PAGE_DEMOTE, 0, Status::INTERRUPTED_RESTARTABLE).times(6);
    let bench = Bench::over(Inject::new(machine.lp(0), [plan]), &machine, false, true);
    let at = large_page(&bench);
    bench.guest().enter(0).unwrap();
    bench.accept(at);
    let mut shelf = bench.shelf(1);
    let mut attempt = |expected: u64| {
        bench.td.block(at).unwrap();
        bench.td.fence().unwrap();
        let before = (machine.td(bench.td.tdr().hpa()), machine.stats().total);
        let pages = bench.td.gather(at, None, &mut shelf).unwrap();
        let result = bench.td.split(at, pages);
        let after = machine.stats().total;
        assert_eq!(after - before.1, expected, "only what was not injected reached the module");
        if let Err(back) = &result {
            assert_eq!((back.error.class(), machine.td(bench.td.tdr().hpa())), (Class::Retry, before.0));
        }
        result.map_err(|back| {
            bench.td.scatter(back.held, &mut scrub, &mut shelf);
            let page: Vec<Frame> = shelf.back.drain(..).map(|(_, frame)| frame).collect();
            shelf.fresh.extend(page.iter().map(|frame| frame.hpa().raw()));
            bench.td.unblock(at).unwrap();
            bench.guest().enter(0).unwrap();
            assert_eq!(bench.guest().read(at.gpa()), Ok(0), "the guest goes on");
        })
    };
    attempt(0).unwrap_err();
    attempt(1).unwrap();
    assert_eq!(bench.td.probe(at).unwrap(), Observed::Table);
    assert_eq!(shelf.count(sept_core::FrameKind::TeeTable), 0);
    bench.sound();
}

/// What was recorded, made again from the lines alone on a fresh machine, gives the same answers.
#[cfg(feature = "std")]
#[test]
fn a_recording_replays() {
    use crate::bench::write_params;
    use seamcall::adapter::Recorder;
    for dynamic_pamt in [false, true] {
        let machine = builder(dynamic_pamt).build();
        let recorder = Recorder::new(machine.lp(0), Vec::new(), 7);
        let bench = Bench::over(&recorder, &machine, dynamic_pamt, true);
        let at = large_page(&bench);
        assert!(bench.td.unmap(at, Hpa::truncate(LARGE)).is_err(), "not blocked: details in the line");
        bench.td.block(at).unwrap();
        bench.td.block(at).unwrap();
        bench.td.fence().unwrap();
        let backing = Some(Hpa::truncate(LARGE));
        let pages = bench.td.gather(at, backing, &mut bench.shelf(3)).unwrap();
        bench.td.split(at, pages).unwrap();
        bench.td.block(at).unwrap();
        bench.td.fence().unwrap();
        bench.td.merge(at, Hpa::truncate(LARGE)).unwrap();
        bench.sound();
        let text = String::from_utf8(recorder.finish().unwrap()).unwrap();

        let fresh = builder(dynamic_pamt).build();
        write_params(&fresh);
        assert!(text.lines().count() > 25);
        for (index, line) in text.lines().enumerate() {
            let line = crate::line::parse(line);
            assert_eq!((line.seq, line.index), (7, index as u64));
            let input = line.input();
            assert_eq!(fresh.lp(0).raw(input), line.output(input), "{}", line.leaf);
        }
        assert_eq!(fresh.check_invariants(), Vec::<String>::new());
    }
}
