//! Every layout and every transition of small blocks against explicit lists; large ones at random.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "a test that overflows or misses an index has failed"
)]

extern crate std;

use crate::*;
use core::ops::Range;
use std::{collections::BTreeSet, vec, vec::Vec};

/// Without optimization, the slowest comparisons are made for one case in so many; with it, for each.
const STRIDE: u64 = if cfg!(debug_assertions) { 13 } else { 1 };

fn block(order: u8) -> PfnBlock {
    PfnBlock::new(Pfn::new((3 << order) & ((1 << 40) - 1)).unwrap(), Order::new(order).unwrap()).unwrap()
}

fn order_sets(order: u8) -> impl Iterator<Item = OrderSet> {
    (0..1_u64 << order).map(|high| OrderSet::from_bits(high << 1 | 1).unwrap())
}

/// The order of each page's folio, by the definition: divide until nothing must be divided.
fn reference(order: u8, orders: OrderSet, small: &dyn Fn(u64) -> bool) -> Vec<u8> {
    fn divide(at: u64, order: u8, orders: OrderSet, small: &dyn Fn(u64) -> bool, out: &mut Vec<u8>) {
        let pages = 1_u64 << order;
        let member = orders.contains(Order::new(order).unwrap());
        if order == 0 || member && !(at..at + pages).any(small) {
            out.extend((0..pages).map(|_| order));
        } else {
            divide(at, order - 1, orders, small, out);
            divide(at + pages / 2, order - 1, orders, small, out);
        }
    }
    let mut out = Vec::new();
    divide(0, order, orders, small, &mut out);
    out
}

fn orders_of<S: PageSet>(layout: &FolioLayout<S>) -> Vec<u8> {
    let mut out = Vec::new();
    for folio in layout.folios(0) {
        assert_eq!(layout.block().offset_of(folio.base()), Some(out.len() as u64));
        out.extend((0..folio.pages()).map(|_| folio.order().raw()));
    }
    out
}

fn check_counts(order: u8, orders: &[u8], counts: &LayoutCounts) {
    for o in 0..=order {
        let pages = orders.iter().filter(|&&of| of == o).count() as u64;
        assert_eq!(counts.folios_of(Order::new(o).unwrap()), pages >> o);
        let broken = orders.chunks(1 << o).filter(|chunk| chunk.iter().any(|&of| of < o)).count() as u64;
        assert_eq!(counts.fragmented(Order::new(o).unwrap()), broken, "order {o} in {orders:?}");
    }
    let folios: u64 = (0..=order).map(|o| counts.folios_of(Order::new(o).unwrap())).sum();
    assert_eq!(counts.folios(), folios);
}

/// The orders of sixteen pages, four bits each: the reference, small enough to be compared a million times.
fn packed_reference(orders: OrderSet, bits: u64) -> u64 {
    let mut out = 0;
    let mut at = 0;
    while at < 16 {
        let clean = |order: Order| {
            let pages = (1_u64 << order.pages()).wrapping_sub(1) << (at & !(order.pages() - 1));
            order == Order::PAGE || order.raw() <= 4 && bits & pages == 0
        };
        let order = orders.iter().rev().find(|&order| clean(order)).unwrap();
        for page in at..at + order.pages() {
            out |= u64::from(order.raw()) << (page * 4);
        }
        at += order.pages();
    }
    out
}

fn packed<S: PageSet>(layout: &FolioLayout<S>) -> u64 {
    let mut out = 0;
    for folio in layout.folios(0) {
        let at = layout.block().offset_of(folio.base()).unwrap();
        out |= (0x1111_1111_1111_1111_u64 & !((u64::MAX << (folio.pages() * 4 - 1)) << 1))
            .wrapping_mul(u64::from(folio.order().raw()))
            << (at * 4);
    }
    out
}

#[test]
fn every_layout_of_sixteen_pages() {
    for orders in order_sets(4) {
        for bits in 0..1_u64 << 16 {
            let words = [bits];
            let layout = FolioLayout::new(block(4), orders, words.as_slice());
            let want = packed_reference(orders, bits);
            assert_eq!(packed(&layout), want, "{orders} {bits:#x}");
            if bits % STRIDE != 0 {
                continue;
            }
            let listed = reference(4, orders, &|page| bits >> page & 1 != 0);
            check_counts(4, &listed, &layout.counts());
            for (page, order) in (0..16).zip(listed) {
                let folio = layout.folio_at(page);
                assert_eq!(folio.order().raw(), order);
                assert_eq!(u64::from(order), want >> (page * 4) & 15);
                assert!(folio.contains_pfn(Pfn::new(block(4).base().raw() + page).unwrap()));
                assert_eq!(layout.folios(page).next(), Some(folio));
            }
        }
    }
}

/// The differences of two lists of orders, by the definition.
fn reference_changes(block: PfnBlock, from: &[u8], to: &[u8]) -> Vec<Change> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < from.len() {
        let whole = from[at].max(to[at]);
        let folio = block.part(at as u64, Order::new(whole).unwrap()).unwrap();
        match from[at].cmp(&to[at]) {
            core::cmp::Ordering::Greater => out.push(Change::Split(folio)),
            core::cmp::Ordering::Less => out.push(Change::Merge(folio)),
            core::cmp::Ordering::Equal => {}
        }
        at += 1 << whole;
    }
    out
}

fn check_transition(order: u8, orders: OrderSet, a: u64, b: u64) {
    let block = block(order);
    let (wa, wb) = ([a], [b]);
    let t = Transition::new(block, orders, wa.as_slice(), wb.as_slice());
    let (from, to) = (orders_of(&t.from_layout()), orders_of(&t.to_layout()));
    let want = reference_changes(block, &from, &to);
    let got: Vec<_> = t.changes(0..u64::MAX).collect();
    assert_eq!(got, want, "{orders} {a:#x} -> {b:#x}");
    let back: Vec<_> = t.reversed().changes(0..u64::MAX).map(Change::reversed).collect();
    assert_eq!(back, want);
    // Nodes, summed over the changes one by one.
    let index = XArray::new(2).unwrap();
    let delta = t.index_delta(&index);
    let mut sum = IndexDelta::default();
    for &change in &want {
        let (needed, freed, pieces): (u64, u64, Vec<_>) = match change {
            Change::Split(whole) => {
                assert!(t.splits(whole) && !t.merges(whole));
                let part = t.to_layout().within(whole).unwrap().counts();
                (index.nodes(&part), 0, t.split_pieces(whole).collect())
            }
            Change::Merge(whole) => {
                assert!(t.merges(whole) && !t.splits(whole));
                let part = t.from_layout().within(whole).unwrap().counts();
                (0, index.nodes(&part), t.merge_pieces(whole).collect())
            }
        };
        sum.needed += needed;
        sum.freed += freed;
        assert!(pieces.len() > 1 && pieces.iter().all(|&piece| change.whole().contains(piece)));
        assert_eq!(pieces.iter().map(|piece| piece.pages()).sum::<u64>(), change.whole().pages());
    }
    assert_eq!(delta, sum);
}

#[test]
fn every_transition_of_eight_pages() {
    for orders in order_sets(3) {
        for a in 0..256 {
            for b in (0..256_u64).filter(|b| (a * 31 + b).is_multiple_of(STRIDE)) {
                check_transition(3, orders, a, b);
            }
        }
    }
}

#[test]
fn every_pair_of_layouts_of_sixteen_pages() {
    for orders in order_sets(4) {
        let mut seen = BTreeSet::new();
        let mut sets = Vec::new();
        for bits in 0..1_u64 << 16 {
            // In no particular order, so that the sets that stand for a layout are of all kinds.
            let bits = bits.wrapping_mul(0x9e37) & 0xffff;
            let listed = packed_reference(orders, bits);
            if seen.insert(listed) {
                sets.push(([bits], listed));
            }
        }
        for (i, (a, from)) in sets.iter().enumerate() {
            for (j, (b, to)) in sets.iter().enumerate() {
                let t = Transition::new(block(4), orders, a.as_slice(), b.as_slice());
                let mut changes = t.changes(0..16);
                let mut at = 0;
                while at < 16 {
                    let (old, new) = (from >> (at * 4) & 15, to >> (at * 4) & 15);
                    if old != new {
                        let whole = block(4).part(at, Order::new(old.max(new) as u8).unwrap()).unwrap();
                        let change = if old > new { Change::Split(whole) } else { Change::Merge(whole) };
                        assert_eq!(changes.next(), Some(change), "{orders} {a:x?} -> {b:x?}");
                    }
                    at += 1 << old.max(new);
                }
                assert_eq!(changes.next(), None, "{orders} {a:x?} -> {b:x?}");
                if (i as u64 * 31 + j as u64).is_multiple_of(STRIDE) {
                    check_transition(4, orders, a[0], b[0]);
                }
            }
        }
    }
}

#[test]
fn windows_show_what_touches_them() {
    let block = block(4);
    for (a, b) in
        (0..400_u64).map(|seed| (seed.wrapping_mul(0x5deb) & 0xffff, seed.wrapping_mul(0x3a91) & 0xffff))
    {
        let (wa, wb) = ([a], [b]);
        let t = Transition::new(block, OrderSet::ALL, wa.as_slice(), wb.as_slice());
        for (start, end) in (0..18).flat_map(|start| (start..18).map(move |end| (start, end))) {
            let touches = |change: &Change| {
                let range = change.whole().range();
                let base = block.base().raw();
                range.start < base + end && base + start < range.end && start < end
            };
            let want: Vec<_> = t.changes(0..16).filter(touches).collect();
            assert_eq!(t.changes(start..end).collect::<Vec<_>>(), want, "{a:#x} {b:#x} {start}..{end}");
        }
    }
}

#[test]
fn steps_add_up() {
    for (a, b) in
        (0..300_u64).map(|seed| (seed.wrapping_mul(0x5deb) & 0xffff, seed.wrapping_mul(0x3a91) & 0xffff))
    {
        let (wa, wb) = ([a], [b]);
        let t = Transition::new(block(4), OrderSet::ALL, wa.as_slice(), wb.as_slice());
        let mut now = orders_of(&t.from_layout());
        for (done, until) in [(0, 3), (3, 4), (4, 4), (4, 11), (11, 16)] {
            let step = t.step(done, until);
            assert_eq!(orders_of(&step.from_layout()), now);
            now = orders_of(&step.to_layout());
        }
        assert_eq!(now, orders_of(&t.to_layout()));
    }
}

/// Layouts where runs may stay large, by the definition: a folio holds no small page, and all or nothing of a run.
fn mixed_reference(order: u8, orders: OrderSet, small: u64, large: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < 1 << order {
        let at = out.len() as u64;
        let clean = |o: Order| {
            let pages = (1_u64 << o.pages()).wrapping_sub(1) << (at & !(o.pages() - 1));
            o == Order::PAGE
                || o.raw() <= order && small & pages == 0 && (large & pages == 0 || large & pages == pages)
        };
        let folio = orders.iter().rev().find(|&o| clean(o)).unwrap();
        out.extend((0..folio.pages()).map(|_| folio.raw()));
    }
    out
}

#[test]
fn runs_that_stay_large() {
    for orders in order_sets(3) {
        for (small, large) in (0..256).flat_map(|small| (0..256_u64).map(move |large| (small, large))) {
            if !(small * 31 + large).is_multiple_of(STRIDE) {
                continue;
            }
            let (s, l) = ([small], [large]);
            let set = Union(s.as_slice(), Large(l.as_slice()));
            let layout = FolioLayout::new(block(3), orders, set);
            let want = mixed_reference(3, orders, small, large);
            assert_eq!(orders_of(&layout), want, "{orders} {small:#x} {large:#x}");
            for (page, &order) in (0..8).zip(&want) {
                assert_eq!(layout.folio_at(page).order().raw(), order);
            }
            check_counts(3, &want, &layout.counts());
        }
    }
    let mut rng = Rng(77);
    for _ in 0..6000 {
        let orders = OrderSet::from_bits(rng.next(16) << 1 | 1).unwrap();
        let mut draw = || (rng.next(1 << 16) & rng.next(1 << 16) & rng.next(1 << 16), rng.next(1 << 16));
        let ((sa, la), (sb, lb)) = (draw(), draw());
        let seam = rng.next(17);
        let words = [[sa], [la], [sb], [lb]];
        let [a, b] = [(0, 1), (2, 3)]
            .map(|(s, l): (usize, usize)| Union(words[s].as_slice(), Large(words[l].as_slice())));
        let t = Transition::new(block(4), orders, a, b);
        let (from, to) = (mixed_reference(4, orders, sa, la), mixed_reference(4, orders, sb, lb));
        let want = reference_changes(block(4), &from, &to);
        assert_eq!(t.changes(0..16).collect::<Vec<_>>(), want, "{orders} {words:x?}");
        let counts = t.counts();
        check_counts(4, &from, &counts.from);
        check_counts(4, &to, &counts.to);
        let between: Vec<_> = from.iter().zip(&to).map(|(a, b)| *a.min(b)).collect();
        check_counts(4, &between, &counts.between);
        let low = (1 << seam) - 1;
        let step = t.step(0, seam);
        let spliced = mixed_reference(4, orders, sb & low | sa & !low, lb & low | la & !low);
        assert_eq!(orders_of(&step.to_layout()), spliced);
        let less = FolioLayout::new(block(4), orders, Minus(a, Large(words[3].as_slice())));
        assert_eq!(orders_of(&less), mixed_reference(4, orders, sa, la & !lb));
    }
}

/// A small generator of numbers (xorshift64*), so that a failing seed can be named.
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// Up to `most` runs in `pages` pages, ascending and apart.
    fn runs(&mut self, most: u64, pages: u64, longest: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut starts: Vec<_> = (0..self.next(most + 1)).map(|_| self.next(pages)).collect();
        starts.sort_unstable();
        for start in starts {
            let end = (start + 1 + self.next(longest)).min(pages);
            match runs.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

fn bitmap(runs: &[Range<u64>], pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    for page in runs.iter().cloned().flatten() {
        words[page as usize / 64] |= 1 << (page % 64);
    }
    words
}

/// A set, and whether a page is a member.
type Case<'a> = (&'a dyn PageSet, &'a dyn Fn(u64) -> bool);

#[test]
fn sets_agree_with_their_pages() {
    const PAGES: u64 = 300;
    for seed in 1..120 {
        let mut rng = Rng(seed);
        let (a, b) = (rng.runs(12, PAGES, 70), rng.runs(12, PAGES, 70));
        let (wa, wb) = (bitmap(&a, PAGES), bitmap(&b, PAGES));
        let seam = rng.next(PAGES);
        let has = |words: &[u64], page: u64| {
            words.get(page as usize / 64).is_some_and(|w| w >> (page % 64) & 1 != 0)
        };
        let (a, b) = (a.as_slice(), b.as_slice());
        let (wa, wb) = (wa.as_slice(), wb.as_slice());
        let splice = Splice { left: a, right: wb, at: seam };
        let words = Splice { left: wa, right: Minus(wb, 70..130), at: seam };
        let cases: [Case; 8] = [
            (&a, &|p| has(wa, p)),
            (&wa, &|p| has(wa, p)),
            (&Union(a, wb), &|p| has(wa, p) || has(wb, p)),
            (&Minus(wa, b), &|p| has(wa, p) && !has(wb, p)),
            (&splice, &|p| if p < seam { has(wa, p) } else { has(wb, p) }),
            (&(seam..seam + 99), &|p| (seam..seam + 99).contains(&p)),
            (&words, &|p| if p < seam { has(wa, p) } else { has(wb, p) && !(70..130).contains(&p) }),
            (&Union(wa, seam..seam + 9), &|p| has(wa, p) || (seam..seam + 9).contains(&p)),
        ];
        for (i, (set, member)) in cases.into_iter().enumerate() {
            for from in 0..PAGES + 70 {
                let start = (from..PAGES + 70).find(|&p| member(p));
                let want = start.map(|start| start..(start..).find(|&p| !member(p)).unwrap());
                assert_eq!(set.next_run(from), want, "seed {seed} case {i} from {from}");
            }
            for word in 0..6 {
                let want = (0..64).filter(|bit| member(word * 64 + bit)).fold(0, |w, bit| w | 1_u64 << bit);
                // Ranges in a slice have no words.
                let known = if [0, 2, 3, 4].contains(&i) { None } else { Some(want) };
                assert_eq!(set.word(word), known, "seed {seed} case {i} word {word}");
            }
        }
        for from in 0..PAGES {
            let want = (from..PAGES).find(|&p| has(wa, p) != has(wb, p));
            assert_eq!(crate::pages::next_difference(&a, &wb, from), want);
        }
    }
}

#[test]
fn large_blocks_at_random() {
    let sets = [
        OrderSet::ALL,
        OrderSet::HUGETLB,
        OrderSet::PAGES,
        OrderSet::from_bits(0b1_0010_0100_0000_0001).unwrap(),
        OrderSet::from_bits(0b100_0010_0100_0000_1001).unwrap(),
    ];
    for seed in 1..40 {
        let mut rng = Rng(seed);
        let longest = 1 << rng.next(14);
        let runs = rng.runs(40, 1 << 18, longest);
        let words = bitmap(&runs, 1 << 18);
        let orders = sets[rng.next(5) as usize];
        let by_runs = FolioLayout::new(block(18), orders, runs.as_slice());
        let by_words = FolioLayout::new(block(18), orders, words.as_slice());
        let want = reference(18, orders, &|page| words[page as usize / 64] >> (page % 64) & 1 != 0);
        assert!(orders_of(&by_runs) == want, "seed {seed}");
        check_counts_large(&want, &by_runs.counts());
        assert_eq!(by_runs.counts(), by_words.counts());
    }
}

/// A set that is read as runs, as a handful of them, or in lines of words: orders that are no members count nothing.
#[test]
fn counts_do_not_depend_on_how_a_set_is_read() {
    let some = OrderSet::from_bits(1 << 18 | 1 << 13 | 1 << 10 | 1 << 3 | 1).unwrap();
    for orders in [some, OrderSet::ALL, OrderSet::HUGETLB] {
        for count in 1..70 {
            let runs: Vec<_> = (0..count).map(|i| i / 2 * 1000 + i % 2 * 2).map(|at| at..at + 1).collect();
            let words = bitmap(&runs, 1 << 18);
            let by_runs = FolioLayout::new(block(18), orders, runs.as_slice()).counts();
            let by_words = FolioLayout::new(block(18), orders, words.as_slice()).counts();
            assert!(by_runs == by_words, "{count} runs, {orders}");
            let members = by_runs.by_order().map(|(order, folios)| folios << order.raw()).sum::<u64>();
            assert_eq!(members, 1 << 18);
        }
    }
}

fn check_counts_large(orders: &[u8], counts: &LayoutCounts) {
    for o in 0..=18_u8 {
        let pages = orders.iter().filter(|&&of| of == o).count() as u64;
        assert_eq!(counts.folios_of(Order::new(o).unwrap()), pages >> o);
    }
    for o in [1, 5, 6, 7, 9, 12, 13, 18] {
        let broken = orders.chunks(1 << o).filter(|chunk| chunk.iter().any(|&of| of < o)).count() as u64;
        assert_eq!(counts.fragmented(Order::new(o).unwrap()), broken);
    }
}

/// The small pages, then folios and index nodes with `{18,9,0}`, then with all orders.
type Row = (Vec<Range<u64>>, u64, u64, u64, u64);

#[test]
fn the_published_table() {
    let spread = |step: u64, count: u64| (0..count).map(move |i| i * step..i * step + 1).collect::<Vec<_>>();
    let rows: [Row; 8] = [
        (vec![1000..1001], 1023, 73, 19, 3),
        (vec![5..6, 100..101], 1023, 73, 25, 4),
        (vec![5..6, 200_000..200_001], 1534, 81, 36, 5),
        (vec![16..32], 1023, 73, 30, 3),
        (vec![512..1024], 1023, 73, 521, 10),
        (vec![256..768], 1534, 81, 522, 10),
        (spread(4096, 64), 33_216, 577, 832, 129),
        (spread(512, 512), 262_144, 4161, 5120, 577),
    ];
    for (runs, hugetlb, hugetlb_nodes, all, all_nodes) in rows {
        for (orders, folios, nodes) in
            [(OrderSet::HUGETLB, hugetlb, hugetlb_nodes), (OrderSet::ALL, all, all_nodes)]
        {
            let counts = FolioLayout::new(block(18), orders, runs.as_slice()).counts();
            assert_eq!((counts.folios(), XArray::LINUX.nodes(&counts)), (folios, nodes), "{runs:?} {orders}");
        }
    }
}

/// What lib/xarray.c allows in one call.
#[test]
fn legal_steps_of_the_index() {
    let order = |raw| Order::new(raw).unwrap();
    let index = XArray::LINUX;
    let mut steps = vec![18];
    while let Some(next) = index.next_step(order(*steps.last().unwrap())) {
        steps.push(next.raw());
    }
    assert_eq!(steps, [18, 17, 12, 11, 6, 5, 0]);
    assert_eq!([0, 5, 6, 9, 17, 18].map(|o| index.slots(order(o))), [1, 32, 1, 8, 32, 1]);
    assert_eq!(index.split_nodes(order(18), order(0)), None);
    assert_eq!(index.split_nodes(order(18), order(9)), None);
    assert_eq!(index.split_nodes(order(18), order(12)), Some(1));
    assert_eq!(index.split_nodes(order(11), order(0)), Some(32));
    assert_eq!(index.split_nodes(order(9), order(0)), Some(8));
    assert_eq!(index.split_nodes(order(9), order(9)), None);
    assert_eq!(index.chain_nodes(order(9), order(0)), 1);
    assert_eq!(index.chain_nodes(order(18), order(0)), 3);
}

#[test]
fn blocks_of_other_orders() {
    let one = |order: u8, orders| FolioLayout::new(block(order), orders, 5..6).counts();
    assert_eq!(XArray::LINUX.nodes(&one(9, OrderSet::HUGETLB)), 8);
    assert_eq!(XArray::LINUX.nodes(&one(9, OrderSet::ALL)), 1);
    assert_eq!(one(9, OrderSet::HUGETLB).folios(), 512);
    // 512 GiB: 511 folios of 1 GiB appear, then it goes on as in a 1 GiB block.
    let huge = OrderSet::new([27, 18, 9, 0].map(|order| Order::new(order).unwrap())).unwrap();
    assert_eq!(one(27, huge).folios(), 511 + 1023);
    assert_eq!(one(27, OrderSet::HUGETLB).folios(), 511 + 1023);
    assert_eq!(one(40, OrderSet::ALL).folios(), 41);
    let single = FolioLayout::new(block(0), OrderSet::HUGETLB, Empty);
    assert_eq!(single.folios(0).collect::<Vec<_>>(), [block(0)]);
    assert_eq!(single.counts().folios(), 1);
    assert_eq!(XArray::LINUX.nodes(&single.counts()), 0);
}

#[test]
fn orders_are_read_and_shown() {
    assert_eq!("all".parse(), Ok(OrderSet::ALL));
    assert_eq!("0, 18,9".parse::<OrderSet>().map(|set| std::format!("{set}")), Ok("18,9,0".into()));
    assert_eq!("18,x".parse::<OrderSet>(), Err(OrderSetError::NotANumber { position: 1 }));
    assert_eq!("0,63".parse::<OrderSet>(), Err(OrderSetError::TooLarge { order: 63 }));
    assert_eq!(OrderSet::from_bits(1 << 41 | 1), Err(OrderSetError::TooLarge { order: 41 }));
    assert_eq!(OrderSet::HUGETLB.iter().rev().map(Order::raw).collect::<Vec<_>>(), [18, 9, 0]);
    assert_eq!(
        OrderSet::ALL.at_least(Order::HUGE_2M).clipped(Order::new(10).unwrap()).bits(),
        0b110_0000_0001
    );
}
