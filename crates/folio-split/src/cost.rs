//! What layouts cost, as a trait: index nodes, pages of the vmemmap, whatever else a host counts.
//!
//! A cost is *local*: it is a sum over folios, or over aligned blocks that no single folio covers, so that what one folio
//! is divided into costs nothing elsewhere. Then three counts say everything about a transition: those of the layouts
//! before, after, and between the last split and the first merge.

use crate::{LayoutCounts, Order, OrderSet};
use core::fmt::Debug;

/// Something that layouts take units of.
///
/// [`XArray`](crate::XArray) and [`FlatArray`] are the index; the pages of the vmemmap are one in vmemmap-prealloc.
/// [`LayoutCounts::weigh`] and [`LayoutCounts::fragmented`] are what others are made of:
///
/// ```
/// use folio_split::{CostModel, Empty, LayoutCounts, Order, OrderSet, Pfn, PfnBlock, Transition};
///
/// /// Leaves of a host page table that knows 1 GiB, 2 MiB and 4 KiB: a folio takes one, or several smaller ones.
/// #[derive(Debug)]
/// struct Leaves;
/// impl CostModel for Leaves {
///     fn units(&self, layout: &LayoutCounts) -> u64 {
///         layout.weigh(Order::PAGE, |order| match order.raw() {
///             18.. => 1 << (order.raw() - 18),
///             9.. => 1 << (order.raw() - 9),
///             small => 1 << small,
///         })
///     }
/// }
///
/// let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
/// let share = Transition::new(block, OrderSet::ALL, Empty, 1000..1001);
/// // 511 leaves of 2 MiB and 512 of 4 KiB instead of one of 1 GiB.
/// assert_eq!(share.counts().delta(&Leaves).needed, 1022);
/// ```
pub trait CostModel: Debug {
    /// Units that a block of this layout has. A constant part, the same for every layout of the block, may be left out.
    ///
    /// A finer layout never has fewer units than a coarser one.
    fn units(&self, layout: &LayoutCounts) -> u64;
}

/// An index with a fixed slot per page: no nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct FlatArray;

impl FlatArray {
    /// The model.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl CostModel for FlatArray {
    fn units(&self, _layout: &LayoutCounts) -> u64 {
        0
    }
}

/// Units that a transition takes and gives back.
///
/// All splits come before the first merge, so a plan must have `needed` at hand; the merges give `freed` back. A
/// transition whose merges come earlier has a lower peak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub struct CostDelta {
    /// Units to reserve for the splits: how many more there are at the peak than before.
    pub needed: u64,
    /// Units that the merges give back: how many fewer there are in the end than at the peak.
    pub freed: u64,
}

impl CostDelta {
    /// How many more units there are in the end than before.
    #[must_use]
    pub const fn net(self) -> i64 {
        // Both are below 2^41.
        self.needed.cast_signed().wrapping_sub(self.freed.cast_signed())
    }

    /// What the way back takes and gives: the same, exchanged. It always has what it takes.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { needed: self.freed, freed: self.needed }
    }
}

/// Exact numbers of the layouts of a transition.
#[derive(Clone, Copy, Debug)]
pub struct TransitionCounts {
    pub(crate) from: LayoutCounts,
    pub(crate) to: LayoutCounts,
    pub(crate) between: Between,
}

/// The layout that refines both, if it is not one of them.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "a copy of the counts is what it saves")]
pub(crate) enum Between {
    From,
    To,
    Apart(LayoutCounts),
}

impl TransitionCounts {
    /// Of a block that stays undivided.
    pub(crate) const fn undivided(order: Order, orders: OrderSet) -> Self {
        Self {
            from: LayoutCounts::undivided(order, orders),
            to: LayoutCounts::undivided(order, orders),
            between: Between::To,
        }
    }

    /// Before.
    #[must_use]
    pub const fn from(&self) -> &LayoutCounts {
        &self.from
    }

    /// After.
    #[must_use]
    pub const fn to(&self) -> &LayoutCounts {
        &self.to
    }

    /// When all splits are done and no merge is.
    #[must_use]
    pub const fn between(&self) -> &LayoutCounts {
        match &self.between {
            Between::From => &self.from,
            Between::To => &self.to,
            Between::Apart(between) => between,
        }
    }

    /// Units of one cost that the splits need and the merges give back.
    #[must_use]
    #[inline]
    pub fn delta<M: CostModel + ?Sized>(&self, cost: &M) -> CostDelta {
        let (from, to) = (cost.units(&self.from), cost.units(&self.to));
        let between = match &self.between {
            Between::From => from,
            Between::To => to,
            Between::Apart(between) => cost.units(between),
        };
        CostDelta { needed: between.saturating_sub(from), freed: between.saturating_sub(to) }
    }
}

impl PartialEq for TransitionCounts {
    fn eq(&self, other: &Self) -> bool {
        self.from == other.from && self.to == other.to && self.between() == other.between()
    }
}

impl Eq for TransitionCounts {}
