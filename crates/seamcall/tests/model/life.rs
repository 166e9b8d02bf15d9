//! A TD's life from its first page to its last.

use crate::bench::{BASE, Bench, LARGE, PARAMS, builder, entry, frame, scrub};
use seamcall::phymem::{self, CacheWb};
use seamcall::{mng, mr, ranges, vp};
use sept_core::{CacheKey, Class, Classify, External, Fill, Gpa, Hpa, LeafState, Level, Observed};

/// Map, accept, split, merge, remove, tear down; with and without Dynamic PAMT.
#[test]
fn a_life() {
    for dynamic_pamt in [false, true] {
        let machine = builder(dynamic_pamt).build();
        let bench = Bench::new(&machine, dynamic_pamt, true);
        let (td, guest) = (&bench.td, bench.guest());
        bench.link(entry(0, Level::L512G), None);
        bench.link(entry(0x4000_0000, Level::L1G), None);
        let at = entry(0x4000_0000, Level::L2M);
        td.map(at, frame(LARGE, Level::L2M), Fill::OnAccept).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Leaf(LeafState::Pending));
        guest.enter(0).unwrap();
        bench.accept(at);
        (0..512).for_each(|page| guest.write(at.child(page).unwrap().gpa(), 100 + u64::from(page)).unwrap());
        assert_eq!(td.probe(at).unwrap(), Observed::Leaf(LeafState::Mapped));

        // Split, with the vCPU inside until the fence makes it leave.
        td.block(at).unwrap();
        td.block(at).unwrap();
        assert_eq!(td.unblock(at).unwrap_err().class(), Class::Quiesce, "not tracked yet");
        let ticket = td.fence().unwrap();
        assert!(td.fenced(ticket) && !guest.is_inside());
        let backing = Some(Hpa::truncate(LARGE));
        let mut shelf = bench.shelf(3);
        let pages = td.gather(at, backing, &mut shelf).unwrap();
        let given = td.addresses(&pages);
        assert_eq!(given.metadata[0].is_some(), dynamic_pamt);
        td.split(at, pages).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Table);
        guest.enter(0).unwrap();
        assert_eq!(guest.read(at.child(7).unwrap().gpa()), Ok(107));

        // Merge: what was given comes back.
        td.block(at).unwrap();
        td.fence().unwrap();
        assert_eq!(td.merge(at, Hpa::truncate(LARGE)).unwrap(), given);
        for page in [given.table].into_iter().flatten() {
            td.write_back(&frame(page.raw(), Level::L4K).taint(), CacheKey::Guest).unwrap();
        }
        for page in given.metadata.into_iter().flatten() {
            td.write_back(&frame(page.raw(), Level::L4K).taint(), CacheKey::Module).unwrap();
        }
        guest.enter(0).unwrap();
        assert_eq!(guest.read(at.child(511).unwrap().gpa()), Ok(611));
        bench.sound();

        // Remove.
        td.block(at).unwrap();
        td.fence().unwrap();
        td.unmap(at, Hpa::truncate(LARGE)).unwrap();
        td.write_back(&frame(LARGE, Level::L2M).taint(), CacheKey::Guest).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Free);
        bench.sound();

        // Tear down.
        let t = td.transport();
        vp::flush(t, bench.vcpu).unwrap();
        mng::vpflushdone(t, td.tdr()).unwrap();
        phymem::cache_wb(t, CacheWb::Start).unwrap();
        mng::key_freeid(t, td.tdr()).unwrap();
        let mut count = 0;
        ranges::reclaim(t, Hpa::truncate(BASE + 0x1000), 511, |_, _| count += 1).unwrap();
        assert_eq!(count, 6 + 6 + 2, "control pages and two tables");
        phymem::page_reclaim(t, td.tdr().hpa()).unwrap();
        bench.sound();
    }
}

/// A region's page pair comes with its table and goes with it.
#[test]
fn a_table_of_small_pages() {
    for dynamic_pamt in [false, true] {
        let machine = builder(dynamic_pamt).build();
        let bench = Bench::new(&machine, dynamic_pamt, true);
        let td = &bench.td;
        bench.link(entry(0, Level::L512G), None);
        bench.link(entry(0x4000_0000, Level::L1G), None);
        let (table, backing) = (entry(0x4000_0000, Level::L2M), Some(Hpa::truncate(LARGE)));
        let pages = td.gather(table, backing, &mut bench.shelf(3)).unwrap();
        let given = td.addresses(&pages);
        td.link(table, backing, pages).unwrap();
        let at = table.child(3).unwrap();
        td.map(at, frame(LARGE + 0x3000, Level::L4K), Fill::OnAccept).unwrap();
        bench.guest().enter(0).unwrap();
        bench.accept(at);
        td.block(at).unwrap();
        td.block(table).unwrap();
        assert_eq!(td.probe(at).unwrap(), Observed::Hidden);
        td.fence().unwrap();
        td.unblock(table).unwrap();
        td.unmap(at, Hpa::truncate(LARGE + 0x3000)).unwrap();
        td.block(table).unwrap();
        td.fence().unwrap();
        assert_eq!(td.unlink(table, backing).unwrap(), given);
        bench.sound();

        // A table that cannot be linked: the pair is taken back, and all comes home.
        let mut shelf = bench.shelf(3);
        let pages = td.gather(entry(0x8000_0000, Level::L2M), backing, &mut shelf).unwrap();
        let back = td.link(entry(0x8000_0000, Level::L2M), backing, pages).unwrap_err();
        assert_eq!(back.error.class(), Class::Caller, "there is no table above");
        td.scatter(back.held, &mut scrub, &mut shelf);
        assert_eq!(shelf.back.len() + shelf.fresh.len(), 3);
        bench.sound();
    }
}

/// Pages added and measured while the TD is built.
#[test]
fn a_build() {
    let machine = builder(false).build();
    let bench = Bench::new(&machine, false, false);
    let td = &bench.td;
    for (gpa, level) in [(0, Level::L512G), (0, Level::L1G), (0, Level::L2M)] {
        bench.link(entry(gpa, level), None);
    }
    machine.host_write(Hpa::truncate(PARAMS + 0x1000), 0xabcd);
    let at = entry(0x1000, Level::L4K);
    td.map(at, frame(LARGE, Level::L4K), Fill::Copy(Hpa::truncate(PARAMS + 0x1000))).unwrap();
    td.measure(at.gpa(), 4096).unwrap();
    let stopped = td.measure(Gpa::truncate(0x2000), 4096).unwrap_err();
    assert_eq!(stopped.at, Gpa::truncate(0x2000));
    td.finalize().unwrap();
    assert!(mr::extend(td.transport(), td.tdr(), at.gpa()).is_err(), "the build is over");
    bench.guest().enter(0).unwrap();
    assert_eq!(bench.guest().read(at.gpa()), Ok(0xabcd));
    bench.sound();
}
