//! Addresses, levels and ranges against plain 128-bit arithmetic.

#![expect(clippy::arithmetic_side_effects, reason = "tests fail by panicking")]

use proptest::prelude::*;
use sept_core::{FrameKind, FrameNeeds, Gpa, GpaEntry, GpaRange, Hpa, Level};

const LIMIT: u128 = 1 << 52;

/// Any `u64`, with the edges that matter made likely.
fn raw() -> impl Strategy<Value = u64> {
    let edges: Vec<u64> = [0_u32, 12, 21, 30, 39, 47, 48, 51, 52, 63]
        .into_iter()
        .flat_map(|bit| [(1_u64 << bit).wrapping_sub(1), 1 << bit, (1_u64 << bit).wrapping_add(1)])
        .chain([u64::MAX, u64::MAX - 0xfff, (1 << 52) - 4096])
        .collect();
    prop_oneof![
        any::<u64>(),
        prop::sample::select(edges),
        0..1_u64 << 52,
        (0..1_u64 << 40).prop_map(|p| p << 12)
    ]
}

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(Level::ALL.to_vec())
}

/// Bytes of a page, from the architecture: 4 KiB times 512 for each level up.
fn bytes(level: Level) -> u128 {
    4096 * 512_u128.pow(u32::from(level.raw()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_address_is_below_2_52(raw in raw(), add in raw()) {
        let gpa = Gpa::new(raw);
        prop_assert_eq!(gpa.is_some(), u128::from(raw) < LIMIT);
        prop_assert_eq!(Hpa::new(raw).is_some(), gpa.is_some());
        prop_assert_eq!(u128::from(Gpa::truncate(raw).raw()), u128::from(raw) % LIMIT);
        if let Some(gpa) = gpa {
            let sum = u128::from(raw) + u128::from(add);
            let expect = if sum < LIMIT { Some(sum) } else { None };
            prop_assert_eq!(gpa.checked_add(add).map(|gpa| u128::from(gpa.raw())), expect);
        }
    }

    #[test]
    fn an_entry_is_an_aligned_address(raw in raw(), level in level()) {
        let gpa = Gpa::truncate(raw);
        let inside = u128::from(gpa.raw()) % bytes(level);
        prop_assert_eq!(GpaEntry::new(gpa, level).is_some(), inside == 0);
        prop_assert_eq!(gpa.is_aligned(level), inside == 0);
        let entry = GpaEntry::containing(gpa, level);
        prop_assert_eq!(u128::from(entry.gpa().raw()), u128::from(gpa.raw()) - inside);
        prop_assert_eq!(u128::from(entry.end()), u128::from(entry.gpa().raw()) + bytes(level));
        prop_assert_eq!(u128::from(level.index(gpa)), u128::from(gpa.raw()) / bytes(level) % 512);
        prop_assert!(entry.range().contains(gpa) && entry.range().covers(entry));
        prop_assert_eq!(u128::from(entry.range().len()), bytes(level));
    }

    #[test]
    fn children_tile_their_parent(raw in raw(), level in level(), index: u16) {
        let entry = GpaEntry::containing(Gpa::truncate(raw), level);
        match entry.child(index) {
            None => prop_assert!(level == Level::L4K || index > 511),
            Some(child) => {
                prop_assert!(index < 512);
                prop_assert_eq!(child.level().raw() + 1, level.raw());
                let expect = u128::from(entry.gpa().raw()) + bytes(child.level()) * u128::from(index);
                prop_assert_eq!(u128::from(child.gpa().raw()), expect);
            }
        }
    }

    #[test]
    fn a_range_is_whole_pages_below_2_52(start in raw(), len in raw(), probe in raw(), level in level()) {
        let start = Gpa::truncate(start);
        let (low, high) = (u128::from(start.raw()), u128::from(start.raw()) + u128::from(len));
        let range = GpaRange::new(start, len);
        prop_assert_eq!(range.is_some(), len > 0 && low % 4096 == 0 && len % 4096 == 0 && high <= LIMIT);
        if let Some(range) = range {
            prop_assert_eq!(u128::from(range.end()), high);
            prop_assert_eq!(range.pages() * 4096, len);
            let probe = Gpa::truncate(probe);
            let at = u128::from(probe.raw());
            prop_assert_eq!(range.contains(probe), low <= at && at < high);
            let out = range.align_out(level);
            let size = bytes(level);
            prop_assert_eq!(u128::from(out.start().raw()), low / size * size);
            prop_assert_eq!(u128::from(out.end()), high.div_ceil(size) * size);
        }
    }

    #[test]
    fn intersections_hold_what_both_hold(
        a in 0_u64..64, b in 0_u64..64, len in 1_u64..64, other in 1_u64..64, probe in 0_u64..130,
    ) {
        let range = |start: u64, pages: u64| GpaRange::new(Gpa::new(start << 12).unwrap(), pages << 12).unwrap();
        let (x, y) = (range(a, len), range(b, other));
        let probe = Gpa::new(probe << 12).unwrap();
        let both = x.contains(probe) && y.contains(probe);
        prop_assert_eq!(x.intersect(y).is_some_and(|part| part.contains(probe)), both);
        prop_assert_eq!(x.intersect(y), y.intersect(x));
    }

    #[test]
    fn needs_never_wrap(a: u32, b: u32, times: u32) {
        let of = |count| FrameNeeds::of(FrameKind::Vmemmap, count);
        prop_assert_eq!(of(a).plus(of(b))[FrameKind::Vmemmap], a.saturating_add(b));
        prop_assert_eq!(of(a).times(times)[FrameKind::Vmemmap], a.saturating_mul(times));
        prop_assert_eq!(of(a).saturating_sub(&of(b)).total(), u64::from(a).saturating_sub(u64::from(b)));
        prop_assert_eq!(of(a).covers(&of(b)), a >= b);
    }
}

#[test]
fn levels_are_those_of_the_abi() {
    let names = ["4K", "2M", "1G", "512G", "256T"];
    for (raw, level) in Level::ALL.into_iter().enumerate() {
        let number = u8::try_from(raw).unwrap();
        assert_eq!(Level::new(number), Some(level));
        assert_eq!((level.raw(), level.to_string().as_str()), (number, names[raw]));
        assert_eq!(u128::from(level.size()), bytes(level));
        assert_eq!(u128::from(level.pages()) * 4096, bytes(level));
        assert_eq!(1_u64 << level.order(), level.pages());
        assert_eq!(level.child().map_or(number, |child| child.raw() + 1), number);
        assert_eq!(level.parent().map_or(4, |parent| parent.raw() - 1), number);
    }
    assert!((5..=255).all(|raw| Level::new(raw).is_none()));
    // Orders of 4 KiB, 2 MiB and 1 GiB folios are 0, 9 and 18.
    for order in 0..=255 {
        let expect = if order < 9 {
            Level::L4K
        } else if order < 18 {
            Level::L2M
        } else {
            Level::L1G
        };
        assert_eq!(Level::within_order(order), expect);
    }
}
