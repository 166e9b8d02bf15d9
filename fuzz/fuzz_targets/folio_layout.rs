//! Layouts, counts and transitions of arbitrary sets against explicit lists of orders.
#![no_main]

use arbitrary::Arbitrary;
use folio_split::{
    Change, CostModel, FolioLayout, Large, Order, OrderSet, PageSet, Pfn, PfnBlock, Transition, Union, XArray,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    order: u8,
    base: u8,
    orders: u64,
    sets: [Set; 2],
    seam: u64,
    window: (u64, u64),
    chunk: u8,
}

/// Runs of single pages and of pages that stay together, by start and length.
#[derive(Arbitrary, Debug)]
struct Set {
    small: Vec<(u16, u8)>,
    large: Vec<(u16, u8)>,
    words: bool,
}

impl Set {
    fn bits(runs: &[(u16, u8)], pages: u64) -> Vec<u64> {
        let mut bits = vec![0; pages.div_ceil(64) as usize];
        for &(start, len) in runs.iter().take(64) {
            let start = u64::from(start) % pages;
            for page in start..(start + u64::from(len)).min(pages) {
                bits[page as usize / 64] |= 1 << (page % 64);
            }
        }
        bits
    }
}

fn has(bits: &[u64], page: u64) -> bool {
    bits[page as usize / 64] >> (page % 64) & 1 != 0
}

/// The orders of all pages, by the definition.
fn listed(order: u8, orders: OrderSet, small: &[u64], large: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < 1 << order {
        let at = out.len() as u64;
        let fits = |o: Order| {
            let start = at & !(o.pages() - 1);
            let mut pages = start..start + o.pages();
            o == Order::PAGE
                || o.raw() <= order
                    && start == at
                    && pages.clone().all(|page| !has(small, page))
                    && pages.all(|page| has(large, page) == has(large, at))
        };
        let folio = orders.iter().rev().find(|&o| fits(o)).unwrap();
        out.extend((0..folio.pages()).map(|_| folio.raw()));
    }
    out
}

fn check(order: u8, layout: &FolioLayout<impl PageSet>, want: &[u8]) {
    let mut at = 0;
    for folio in layout.folios(0) {
        assert_eq!(
            (layout.block().offset_of(folio.base()), folio.order().raw()),
            (Some(at), want[at as usize])
        );
        assert_eq!(layout.folio_at(at + folio.pages() - 1), folio);
        at += folio.pages();
    }
    assert_eq!(at, 1 << order);
    let counts = layout.counts();
    let mut folios = 0;
    for o in (0..=order).map(|o| Order::new(o).unwrap()) {
        let of = want.iter().filter(|&&of| of == o.raw()).count() as u64 >> o.raw();
        let broken =
            want.chunks(1 << o.raw()).filter(|chunk| chunk.iter().any(|&of| of < o.raw())).count() as u64;
        assert_eq!((counts.folios_of(o), counts.fragmented(o)), (of, broken), "order {o}");
        folios += of;
    }
    assert_eq!(counts.folios(), folios);
}

fuzz_target!(|input: Input| {
    let order = input.order % 14;
    let pages = 1 << order;
    let orders = OrderSet::from_bits(input.orders & OrderSet::ALL.bits() | 1).unwrap();
    let base = Pfn::new(u64::from(input.base) << order).unwrap();
    let block = PfnBlock::new(base, Order::new(order).unwrap()).unwrap();
    let index = XArray::new(input.chunk % 12 + 1).unwrap();
    let sets = input.sets.each_ref().map(|set| {
        let small = Set::bits(&set.small, pages);
        let large = if set.words { vec![0; small.len()] } else { Set::bits(&set.large, pages) };
        (small, large)
    });
    let [a, b] = sets.each_ref().map(|(small, large)| Union(small.as_slice(), Large(large.as_slice())));
    let t = Transition::new(block, orders, a, b);
    let [from, to] = sets.each_ref().map(|(small, large)| listed(order, orders, small, large));
    check(order, &t.from_layout(), &from);
    check(order, &t.to_layout(), &to);

    let mut want = Vec::new();
    let mut at = 0;
    while at < from.len() {
        let whole = from[at].max(to[at]);
        let folio = block.part(at as u64, Order::new(whole).unwrap()).unwrap();
        match from[at].cmp(&to[at]) {
            std::cmp::Ordering::Greater => want.push(Change::Split(folio)),
            std::cmp::Ordering::Less => want.push(Change::Merge(folio)),
            std::cmp::Ordering::Equal => {}
        }
        at += 1 << whole;
    }
    assert!(t.changes(0..pages).eq(want.iter().copied()));
    assert!(t.reversed().changes(0..pages).map(Change::reversed).eq(want.iter().copied()));
    let (start, end) = (input.window.0 % (pages + 1), input.window.1 % (pages + 1));
    let touches = |change: &&Change| {
        let range = change.whole().range();
        start < end && range.start < base.raw() + end && base.raw() + start < range.end
    };
    assert!(t.changes(start..end).eq(want.iter().filter(touches).copied()));

    let delta = t.delta(&index);
    let nodes = |change: &Change| match change {
        Change::Split(whole) => (index.units(&t.to_layout().within(*whole).unwrap().counts()), 0),
        Change::Merge(whole) => (0, index.units(&t.from_layout().within(*whole).unwrap().counts())),
    };
    let sum = want.iter().map(nodes).fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
    assert_eq!((delta.needed, delta.freed), sum);

    // The layout between the splits and the merges has the smaller of both orders everywhere.
    let between: Vec<u8> = from.iter().zip(&to).map(|(a, b)| *a.min(b)).collect();
    let counts = t.counts();
    for o in (0..=order).map(|o| Order::new(o).unwrap()) {
        let of = |orders: &[u8]| orders.iter().filter(|&&of| of == o.raw()).count() as u64 >> o.raw();
        let have = [counts.from(), counts.between(), counts.to()].map(|layout| layout.folios_of(o));
        assert_eq!(have, [of(&from), of(&between), of(&to)], "order {o}");
    }
    assert_eq!(t.reversed().counts().delta(&index), counts.delta(&index).reversed());

    let seam = input.seam % (pages + 1);
    let step = t.step(0, seam);
    let low = |page: u64| page < seam;
    let mix = |left: &[u64], right: &[u64]| {
        let mut out = vec![0; left.len()];
        for page in 0..pages {
            if has(if low(page) { left } else { right }, page) {
                out[page as usize / 64] |= 1 << (page % 64);
            }
        }
        out
    };
    let [(sa, la), (sb, lb)] = &sets;
    check(order, &step.to_layout(), &listed(order, orders, &mix(sb, sa), &mix(lb, la)));
    assert_eq!(t.step(seam, pages).from_layout().counts(), step.to_layout().counts());
});
