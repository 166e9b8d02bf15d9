//! Addresses, levels, entries and ranges against plain arithmetic in 128 bits.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sept_core::{ADDRESS_BITS, Gpa, GpaEntry, GpaRange, Level};

const LIMIT: u128 = 1 << ADDRESS_BITS;

#[derive(Arbitrary, Debug)]
struct Input {
    raw: u64,
    other: u64,
    level: u8,
    index: u16,
    order: u8,
    spans: [Span; 2],
}

/// A start and a length; `near_end` moves the start close to the limit, `pages` makes both multiples of 4K.
#[derive(Arbitrary, Debug, Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
    near_end: bool,
    pages: bool,
    shift: u8,
}

impl Span {
    fn start(self) -> Gpa {
        let mask = if self.pages { !0xfff } else { !0 };
        let start = self.start >> (self.shift % 64);
        let limit = LIMIT as u64;
        Gpa::truncate(if self.near_end { limit - 1 - start % limit } else { start } & mask)
    }

    fn range(self) -> Option<GpaRange> {
        let mask = if self.pages { !0xfff } else { !0 };
        let (start, len) = (self.start(), self.len & mask);
        let range = GpaRange::new(start, len);
        let end = u128::from(start.raw()) + u128::from(len);
        let legal = len != 0 && len % 4096 == 0 && start.raw() % 4096 == 0 && end <= LIMIT;
        assert_eq!(range.is_some(), legal, "{start:?} + {len:#x}");
        if let Some(range) = range {
            assert_eq!((range.start(), u128::from(range.end()), range.len()), (start, end, len));
            assert_eq!(range.pages() * 4096, len);
        }
        range
    }
}

fuzz_target!(|input: Input| {
    addresses(input.raw, input.other);
    let level = levels(input.level, input.order);
    entries(Gpa::truncate(input.raw), level, input.index);
    let [first, second] = input.spans.map(Span::range);
    if let Some(range) = first {
        aligned_out(range, level);
        inside(range, Gpa::truncate(input.raw), level);
        if let Some(other) = second {
            intersection(range, other, Gpa::truncate(input.raw));
        }
    }
});

fn addresses(raw: u64, bytes: u64) {
    let inside = u128::from(raw) < LIMIT;
    assert_eq!(Gpa::new(raw).map(Gpa::raw), inside.then_some(raw));
    let gpa = Gpa::truncate(raw);
    assert_eq!(u128::from(gpa.raw()), u128::from(raw) % LIMIT);
    let sum = u128::from(gpa.raw()) + u128::from(bytes);
    assert_eq!(gpa.checked_add(bytes).map(|gpa| u128::from(gpa.raw())), (sum < LIMIT).then_some(sum));
    for level in Level::ALL {
        let down = gpa.align_down(level);
        assert_eq!(down.raw(), gpa.raw() / level.size() * level.size());
        assert_eq!(gpa.is_aligned(level), down == gpa);
    }
}

/// Checks both ways from numbers to levels and gives one to go on with.
fn levels(raw: u8, order: u8) -> Level {
    assert_eq!(Level::new(raw).map(Level::raw), (raw < 5).then_some(raw));
    let level = Level::ALL[usize::from(raw % 5)];
    assert_eq!(u128::from(level.size()), 4096 << (9 * u32::from(level.raw())));
    assert_eq!(level.size(), level.pages() * 4096);
    assert_eq!(level.pages(), 1 << level.order());
    assert_eq!(level.child().and_then(Level::parent), level.child().map(|_| level));
    assert_eq!(level.parent().and_then(Level::child), level.parent().map(|_| level));

    let largest = [Level::L1G, Level::L2M].into_iter().find(|level| level.order() <= order);
    assert_eq!(Level::within_order(order), largest.unwrap_or(Level::L4K));
    level
}

fn entries(gpa: Gpa, level: Level, index: u16) {
    assert_eq!(GpaEntry::new(gpa, level).is_some(), gpa.is_aligned(level));
    let entry = GpaEntry::containing(gpa, level);
    assert_eq!(GpaEntry::new(entry.gpa(), level), Some(entry));
    assert!(entry.range().contains(gpa));
    assert_eq!(entry.end() - entry.gpa().raw(), level.size());
    assert_eq!(entry.to_string(), format!("{:#x}/{level}", entry.gpa().raw()));

    let child = entry.child(index);
    assert_eq!(child.is_some(), index < 512 && level != Level::L4K);
    let Some(child) = child else { return };
    assert_eq!(Some(child.level()), level.child());
    assert_eq!(GpaEntry::containing(child.gpa(), level), entry);
    assert_eq!(child.level().index(child.gpa()), index);
    assert_eq!(child.gpa().raw(), entry.gpa().raw() + u64::from(index) * child.level().size());
    assert!(entry.range().covers(child));
}

fn aligned_out(range: GpaRange, level: Level) {
    let out = range.align_out(level);
    assert!(out.start().is_aligned(level) && out.end() % level.size() == 0);
    assert!(out.start() <= range.start() && range.end() <= out.end());
    // The smallest: one entry less at either end would lose a page.
    assert!(range.start().raw() - out.start().raw() < level.size());
    assert!(out.end() - range.end() < level.size());
    assert_eq!(out.align_out(level), out);
}

fn inside(range: GpaRange, gpa: Gpa, level: Level) {
    let within = |byte: u64| range.start().raw() <= byte && byte < range.end();
    assert_eq!(range.contains(gpa), within(gpa.raw()));
    let entry = GpaEntry::containing(gpa, level);
    assert_eq!(range.covers(entry), within(entry.gpa().raw()) && within(entry.end() - 1));
}

fn intersection(a: GpaRange, b: GpaRange, gpa: Gpa) {
    let both = a.intersect(b);
    assert_eq!(both, b.intersect(a));
    assert_eq!(both.is_some_and(|both| both.contains(gpa)), a.contains(gpa) && b.contains(gpa));
    if let Some(both) = both {
        assert_eq!(both.intersect(a), Some(both));
        assert!(both.start() == a.start() || both.start() == b.start());
        assert!(both.end() == a.end() || both.end() == b.end());
    } else {
        assert!(a.end() <= b.start().raw() || b.end() <= a.start().raw());
    }
}
