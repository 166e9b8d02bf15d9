//! What a `struct page` holds in the model.

use folio_split::Order;

/// One `struct page`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StructPage {
    /// The first page of a folio.
    Head {
        /// Order of the folio.
        order: u8,
        /// Whether the memory behind it is broken (PG_hwpoison).
        poisoned: bool,
        /// References: 0 while frozen.
        refs: u32,
    },
    /// A tail of a folio of this order: the head is where the address, masked by the order, points.
    Tail {
        /// Order of the folio.
        order: u8,
    },
    /// A tail that names its head, so many pages after the first of the block.
    TailOf {
        /// Page number of the head in the block.
        head: u32,
    },
    /// A tail that says nothing: the head is found in the index.
    AnyTail,
}

/// The `struct page`s of one page of the vmemmap: as many as the geometry says.
pub(super) type Page = [StructPage];

/// References that the host itself holds on a folio: one per page, as the Linux page cache does.
pub(super) fn base_refs(order: u8) -> u32 {
    Order::new(order).map_or(0, |order| u32::try_from(order.pages()).unwrap_or(u32::MAX))
}

/// A frozen head.
pub(super) const fn frozen(order: u8) -> StructPage {
    StructPage::Head { order, poisoned: false, refs: 0 }
}
