//! Storage for reserved frames that needs no allocator.

use super::{Frame, FrameKind, FrameStore};
use crate::{Hpa, Level, SideWord, TableMemory, Word};
use core::sync::atomic::Ordering;

/// Storage of an operation that needs no frames.
impl FrameStore for () {
    fn put(&mut self, _: FrameKind, frame: Frame) -> Result<(), Frame> {
        Err(frame)
    }

    fn get(&mut self, _: FrameKind) -> Option<Frame> {
        None
    }

    fn count(&self, _: FrameKind) -> u32 {
        0
    }
}

/// Reserved frames in slots that the caller brings.
///
/// Putting and getting look at each slot: for a handful of frames.
///
/// ```
/// use sept_core::{FrameKind, FrameStore, SliceStore, test_util::FramePool, Hpa, FrameSource};
/// let mut slots = [const { None }; 2];
/// let mut store = SliceStore::new(&mut slots);
/// let pool = FramePool::new(Hpa::default(), 4);
/// for _ in 0..2 {
///     store.put(FrameKind::MirrorTable, pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap()).unwrap();
/// }
/// let third = pool.take(FrameKind::MirrorTable, Hpa::default()).unwrap();
/// assert!(store.put(FrameKind::MirrorTable, third).is_err()); // full: the frame comes back
/// ```
#[derive(Debug)]
pub struct SliceStore<'a>(&'a mut [Option<(FrameKind, Frame)>]);

impl<'a> SliceStore<'a> {
    /// Storage in `slots`, with what they hold.
    pub const fn new(slots: &'a mut [Option<(FrameKind, Frame)>]) -> Self {
        Self(slots)
    }
}

impl FrameStore for SliceStore<'_> {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        match self.0.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some((kind, frame));
                Ok(())
            }
            None => Err(frame),
        }
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        let slot = self.0.iter_mut().find(|slot| slot.as_ref().is_some_and(|kept| kept.0 == kind))?;
        slot.take().map(|(_, frame)| frame)
    }

    fn count(&self, kind: FrameKind) -> u32 {
        let kept = self.0.iter().flatten().filter(|kept| kept.0 == kind).count();
        u32::try_from(kept).unwrap_or(u32::MAX)
    }
}

/// Reserved frames chained through their own side words: any number of them in constant size, each step constant time.
///
/// The link of a frame is written where no guest and no MMU can reach it. All frames must be of the memory's.
#[derive(Debug)]
pub struct FrameList<'m, M> {
    memory: &'m M,
    lists: [(u64, u32); FrameKind::COUNT],
}

impl<'m, M: TableMemory> FrameList<'m, M> {
    /// An empty list of frames of `memory`.
    pub const fn new(memory: &'m M) -> Self {
        Self { memory, lists: [(0, 0); FrameKind::COUNT] }
    }
}

impl<M: TableMemory> FrameStore for FrameList<'_, M> {
    fn put(&mut self, kind: FrameKind, frame: Frame) -> Result<(), Frame> {
        let Some((first, count)) = self.lists.get_mut(kind.index()) else { return Err(frame) };
        if frame.level() != Level::L4K {
            return Err(frame);
        }
        self.memory.store(frame.hpa(), Word::Side(SideWord::Link), *first, Ordering::Relaxed);
        *first = frame.hpa().raw();
        *count = count.saturating_add(1);
        Ok(())
    }

    fn get(&mut self, kind: FrameKind) -> Option<Frame> {
        let (first, count) = self.lists.get_mut(kind.index())?;
        *count = count.checked_sub(1)?;
        let hpa = Hpa::truncate(*first);
        *first = self.memory.load(hpa, Word::Side(SideWord::Link), Ordering::Relaxed);
        Some(Frame::from_ledger(hpa, Level::L4K))
    }

    fn count(&self, kind: FrameKind) -> u32 {
        self.lists.get(kind.index()).map_or(0, |list| list.1)
    }
}
