//! A page table that does something else than it was asked to is found out.

use super::*;

const HONEST: u8 = 0;
const LOSES_A_PAGE: u8 = 1;
const KEEPS_A_PAGE: u8 = 2;
const MAPS_BESIDE: u8 = 3;
const OTHER_SIZE: u8 = 4;
const LEAKS: u8 = 5;
const WRONG_SUM: u8 = 6;

/// The raw loops, with one thing wrong.
struct Liar<const LIE: u8>(Raw);

impl<const LIE: u8> Contender for Liar<LIE> {
    const NAME: &'static str = "liar";

    fn new() -> Self {
        Self(Raw::new())
    }

    fn fill(&mut self, with: Mapped) {
        self.0.fill(with);
    }

    fn lookup(&self, va: u64) -> Option<(u64, u64)> {
        let last = VA + REGION - K4;
        match (LIE, self.0.lookup(va)) {
            (LOSES_A_PAGE, Some(_)) if va >= last => None,
            (KEEPS_A_PAGE, None) if (last..VA + REGION).contains(&va) => Some((target(va), K4)),
            (MAPS_BESIDE, None) => Some((va, K4)),
            (OTHER_SIZE, Some((pa, _))) => Some((pa, M2)),
            (_, found) => found,
        }
    }

    fn dispose(self) {
        self.0.dispose();
        if LIE == LEAKS {
            arena::take();
        }
    }

    fn translate(&mut self, addresses: &[u64]) -> Option<(Duration, u64)> {
        let (time, sum) = self.0.translate(addresses)?;
        Some((time, sum + u64::from(LIE == WRONG_SUM)))
    }

    fn map_4k(&mut self) -> Option<Duration> {
        self.0.map_4k()
    }

    fn map_2m(&mut self) -> Option<Duration> {
        self.0.map_2m()
    }

    fn split_all(&mut self) -> Option<Duration> {
        self.0.split_all()
    }

    fn unmap_4k(&mut self) -> Option<Duration> {
        self.0.unmap_4k()
    }
}

// One test: there is one arena.
#[test]
fn lies_are_found_out() {
    arena::map().expect("memory");
    let plan = Plan::new(1, 0, 1);
    for work in [Work::Translate, Work::Map4k, Work::SplitAll, Work::Unmap4k] {
        assert!(run::<Liar<HONEST>>(work, &plan).is_ok_and(|time| time.is_some()));
    }
    assert!(matches!(run::<Liar<HONEST>>(Work::Merge, &plan), Ok(None)));
    assert!(matches!(run::<Liar<LOSES_A_PAGE>>(Work::Map4k, &plan), Err(Wrong::Leads { got: None, .. })));
    assert!(matches!(run::<Liar<KEEPS_A_PAGE>>(Work::Unmap4k, &plan), Err(Wrong::Leads { want: None, .. })));
    assert!(matches!(run::<Liar<MAPS_BESIDE>>(Work::Map4k, &plan), Err(Wrong::Leads { want: None, .. })));
    assert!(matches!(run::<Liar<OTHER_SIZE>>(Work::SplitAll, &plan), Err(Wrong::Leads { .. })));
    assert!(matches!(run::<Liar<LEAKS>>(Work::Map4k, &plan), Err(Wrong::Frames { got: 1, want: 0, .. })));
    assert!(matches!(run::<Liar<WRONG_SUM>>(Work::Translate, &plan), Err(Wrong::Sum { .. })));
}
