//! Operations that can be written down, generated and shrunk.

use crate::{Level, Permissions, test_util::MockFault, test_util::MockOp};

/// A 4 KiB page in one of the windows of guest address space that a sequence looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "written down in tests")]
pub struct Spot {
    /// Which window: 0 begins at address 0, 1 has a boundary of the root's entries in its middle, 2 the end of the
    /// guest's address space.
    pub window: u8,
    /// 1 GiB block of the window, 0 to 3.
    pub g: u8,
    /// 2 MiB block in it, 0 to 511.
    pub m: u16,
    /// 4 KiB page in that, 0 to 511.
    pub k: u16,
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "written down in tests")]
pub struct Place {
    /// Somewhere in it.
    pub spot: Spot,
    /// Its level.
    pub level: Level,
    /// Rather the next entry on from there that the operation is meant for, of this level if there is one: a page for
    /// [`Op::Split`], a full table for [`Op::Merge`], a free entry below an existing table for [`Op::Link`].
    pub near: bool,
}

/// The entries of `level` from one spot to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "written down in tests")]
pub struct Span {
    /// One end.
    pub from: Spot,
    /// The other end, in the same window whatever it says.
    pub to: Spot,
    /// Both ends are rounded outwards to this.
    pub level: Level,
}

/// Which memory is mapped to an address: each choice gives every address another page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "written down in tests")]
pub enum Memory {
    /// Aligned like the guest address, to 1 GiB.
    Aligned,
    /// The same, other memory.
    Other,
    /// Aligned like the guest address, to 2 MiB.
    By2M,
    /// Only to 4 KiB.
    By4K,
}

/// The fence or grace period that an operation shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "written down in tests")]
pub enum Proof {
    /// Block (or close) what the operation is about, and fence: the usual way.
    Fresh,
    /// The last fence there was.
    Last,
    /// One from before.
    Older,
    /// Another table's.
    Foreign,
}

/// How a range is split or merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "written down in tests")]
pub enum Way {
    /// [`Resize`](crate::Resize), to its end.
    Rounds,
    /// [`Resize`](crate::Resize), cancelled after so many steps.
    Cancel(u8),
    /// In one call, where no TEE is.
    AtOnce,
}

/// One operation on a table, valid or misused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are those of the operations and their arguments")]
pub enum Op {
    Link {
        at: Place,
        backing: Option<Memory>,
        short: bool,
    },
    LinkTo {
        at: Place,
        memory: Option<Memory>,
        short: bool,
    },
    /// With a page of another size, if one is given.
    Map {
        at: Place,
        memory: Memory,
        copy: bool,
        exclusive: bool,
        size: Option<Level>,
    },
    MapRange {
        span: Span,
        memory: Memory,
        largest: Level,
        meanwhile: Option<Place>,
    },
    Block(Place),
    Unblock(Place, Proof),
    Protect(Place, Permissions),
    ProtectRange(Span, Permissions),
    Probe(Place),
    ProbeRange {
        span: Span,
        level: Level,
        budget: u16,
    },
    Remove(Place, Proof),
    Unlink(Place, Proof),
    Split {
        at: Place,
        proof: Proof,
        short: bool,
    },
    Merge(Place, Proof),
    Inhibit(Place, bool),
    InhibitRange {
        span: Span,
        level: Level,
        inhibit: bool,
    },
    BlockRange(Span),
    UnblockRange(Span, Proof),
    TakeRange(Span, Proof),
    BlockEmptyTables(Span),
    UnlinkEmptyTables(Span, Proof),
    SplitRange {
        span: Span,
        whole: Option<Level>,
        way: Way,
        meanwhile: Option<Place>,
    },
    MergeRange {
        span: Span,
        way: Way,
    },
    SplitInPlace {
        at: Place,
        short: bool,
    },
    Close(Place),
    Reopen(Place),
    MergeInPlace(Place, Proof),
    RemoveSubtree(Place, Proof),
    MapLinking {
        at: Place,
        memory: Memory,
        short: bool,
    },
    UnmapNow(Place),
    SplitNow {
        at: Place,
        short: bool,
    },
    MergeNow(Place),
    RemoveSubtreeNow(Place),
    UnmapRangeNow(Span),
    /// So many fences, the last of which may be held for a while.
    Fence {
        count: u16,
        held: bool,
    },
    /// Turns all that is owed into frames; without a fence if only walks have to be waited for.
    Settle {
        fence: bool,
        pages: bool,
    },
    /// The guest accepts pages.
    Accept(Span),
    /// The MMU sets the accessed bit, or the dirty bit, of what it finds there.
    Touch(Place, bool),
    /// The TEE refuses the call after so many others of its kind.
    Fail {
        op: MockOp,
        after: u8,
        fault: MockFault,
    },
}

/// Values that are 0 first and then those at which things happen.
const EDGES: [u16; 8] = [0, 1, 511, 2, 255, 256, 510, 7];

fn index(byte: u8) -> u16 {
    match byte {
        ..240 => EDGES.get(usize::from(byte % 8)).copied().unwrap_or(0),
        _ => u16::from(byte - 240) * 34,
    }
}

fn level(byte: u8) -> Level {
    match byte % 16 {
        0..7 => Level::L4K,
        7..13 => Level::L2M,
        13 | 14 => Level::L1G,
        _ if byte < 128 => Level::L512G,
        _ => Level::L256T,
    }
}

fn memory(byte: u8) -> Memory {
    match byte % 16 {
        0..12 => Memory::Aligned,
        12 => Memory::Other,
        13 => Memory::By2M,
        _ => Memory::By4K,
    }
}

fn proof(byte: u8) -> Proof {
    match byte % 16 {
        0..11 => Proof::Fresh,
        11..14 => Proof::Last,
        14 => Proof::Older,
        _ => Proof::Foreign,
    }
}

impl Op {
    /// Bytes that an operation is made of.
    pub const SEED: usize = 12;

    /// Whether it is carried out with [`Exclusive`](crate::Exclusive) access.
    pub(super) const fn is_alone(&self) -> bool {
        matches!(
            self,
            Self::Map { exclusive: true, .. }
                | Self::MapLinking { .. }
                | Self::UnmapNow(_)
                | Self::SplitNow { .. }
                | Self::MergeNow(_)
                | Self::RemoveSubtreeNow(_)
                | Self::UnmapRangeNow(_)
                | Self::MergeRange { way: Way::AtOnce, .. }
        )
    }

    /// The operation that these bytes stand for. Every seed is one; smaller bytes mean simpler ones.
    #[must_use]
    pub fn from_seed(seed: [u8; Self::SEED]) -> Self {
        let [kind, flag, g0, m0, k0, g1, m1, k1, size, x, y, z] = seed;
        // Most operations go to one place, so that they meet.
        let window = match g0 {
            ..160 => 0,
            160..224 => 1,
            _ => 2,
        };
        let spot = |g: u8, m, k| Spot { window, g: (g % 8) & 3, m: index(m), k: index(k) };
        let at = Place { spot: spot(g0, m0, k0), level: level(size), near: y % 4 != 3 };
        let span = Span { from: at.spot, to: spot(g1, m1, k1), level: level(size) };
        let other = Place { spot: spot(g1, m1, k1), level: level(x), near: z % 4 != 3 };
        let (proof, short) = (proof(x), flag % 16 == 15);
        let permissions = Permissions::from_bits_truncate(!x & 7);
        let meanwhile = (flag % 8 == 7).then_some(other);
        let way = match y % 8 {
            0..4 => Way::Rounds,
            4..7 => Way::AtOnce,
            _ => Way::Cancel(z % 8),
        };
        match kind % 68 {
            0..7 => Self::MapRange { span, memory: memory(x), largest: level(y), meanwhile },
            7..11 => {
                let size = short.then(|| level(z));
                Self::Map { at, memory: memory(x), copy: flag & 1 != 0, exclusive: flag & 2 != 0, size }
            }
            11 => Self::Link { at, backing: (flag & 1 != 0).then(|| memory(x)), short },
            12 => Self::LinkTo { at, memory: (flag & 1 != 0).then(|| memory(x)), short },
            13 => Self::Block(at),
            14 | 15 => Self::Unblock(at, proof),
            16 | 17 => Self::Split { at, proof, short },
            18 | 19 => Self::Merge(at, proof),
            20 | 21 => Self::Remove(at, proof),
            22 => Self::Unlink(at, proof),
            23 | 24 => Self::SplitInPlace { at, short },
            25 => Self::Close(at),
            26 => Self::Reopen(at),
            27 | 28 => Self::MergeInPlace(at, proof),
            29 => Self::RemoveSubtree(at, proof),
            30 | 31 => Self::UnmapNow(at),
            32 => Self::SplitNow { at, short },
            33 | 34 => Self::MergeNow(at),
            35 => Self::RemoveSubtreeNow(at),
            36 => Self::UnmapRangeNow(span),
            37 | 38 => Self::BlockRange(span),
            39 => Self::UnblockRange(span, proof),
            40 | 41 => Self::TakeRange(span, proof),
            42 => Self::BlockEmptyTables(span),
            43 | 44 => Self::UnlinkEmptyTables(span, proof),
            45..49 => {
                let whole = (flag & 16 != 0).then(|| level(x));
                Self::SplitRange { span, whole, way, meanwhile }
            }
            49..52 => Self::MergeRange { span, way },
            52 => Self::Probe(at),
            53 => Self::ProbeRange { span, level: level(x), budget: u16::from(y) * u16::from(z) },
            54 => Self::Protect(at, permissions),
            55 => Self::ProtectRange(span, permissions),
            56 if flag & 2 == 0 => Self::Inhibit(at, flag & 1 == 0),
            56 => Self::InhibitRange { span, level: level(x), inhibit: flag & 1 == 0 },
            57 | 58 => Self::Settle { fence: flag % 4 != 3, pages: flag & 16 == 0 },
            59 | 60 => Self::Accept(span),
            61 => Self::Touch(at, flag & 1 != 0),
            62 => {
                let count = if flag < 224 { 1 } else { 2040 + u16::from(x % 16) };
                Self::Fence { count, held: flag & 1 != 0 }
            }
            63 => Self::Fail { op: failing(x), after: y % 4, fault: fault(z) },
            _ => Self::MapLinking { at, memory: memory(x), short },
        }
    }
}

fn failing(byte: u8) -> MockOp {
    match byte % 11 {
        0 => MockOp::Map,
        1 => MockOp::Link,
        2 => MockOp::Block,
        3 => MockOp::Unblock,
        4 => MockOp::Split,
        5 => MockOp::Merge,
        6 => MockOp::Unmap,
        7 => MockOp::Unlink,
        8 => MockOp::Probe,
        9 => MockOp::Fence,
        _ => MockOp::WriteBack,
    }
}

fn fault(byte: u8) -> MockFault {
    match byte % 3 {
        0 => MockFault::Busy,
        1 => MockFault::BusyAfterWrite,
        _ => MockFault::Fatal,
    }
}

#[cfg(feature = "arbitrary")]
mod generated {
    use super::Op;
    use arbitrary::{Arbitrary, Result, Unstructured};

    impl<'a> Arbitrary<'a> for Op {
        fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
            u.arbitrary().map(Self::from_seed)
        }

        fn size_hint(_: usize) -> (usize, Option<usize>) {
            (Self::SEED, Some(Self::SEED))
        }
    }
}
