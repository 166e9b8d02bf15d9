//! Folio orders and the set of orders that may exist.

use core::{fmt, str::FromStr};
use sept_core::{Class, Classify, Level};

/// The order of a folio: it is 2^order pages, 0 to 40.
///
/// 40 is the order of all memory that a 52-bit physical address can name with 4 KiB pages.
///
/// ```
/// use folio_split::Order;
/// assert_eq!(Order::new(9), Some(Order::HUGE_2M));
/// assert_eq!(Order::HUGE_2M.pages(), 512);
/// assert_eq!(Order::new(41), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const PAGE: Self = Self(0);
    /// 2 MiB with 4 KiB pages.
    pub const HUGE_2M: Self = Self(9);
    /// 1 GiB with 4 KiB pages.
    pub const HUGE_1G: Self = Self(18);
    /// The largest order.
    pub const MAX: Self = Self(40);
    /// Number of orders.
    pub(crate) const COUNT: usize = 41;

    /// The order `raw`, or `None` above 40.
    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        if raw <= Self::MAX.0 { Some(Self(raw)) } else { None }
    }

    /// The number of an order that is known to be at most 40 (a bit position of an [`OrderSet`]).
    const fn from_bit(bit: u32) -> Self {
        let [low, ..] = bit.to_le_bytes();
        Self(low)
    }

    /// The order as a number, 0 to 40.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// Pages in a folio of this order.
    #[must_use]
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    /// Bits of a page number below a block of this order.
    #[inline]
    pub(crate) const fn mask(self) -> u64 {
        self.pages().wrapping_sub(1)
    }

    /// Position in an array indexed by order.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<Level> for Order {
    type Error = OrderSetError;

    /// The order of a page of `level`.
    fn try_from(level: Level) -> Result<Self, OrderSetError> {
        Self::new(level.order()).ok_or(OrderSetError::TooLarge { order: level.order() })
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The orders that folios may have. Order 0 is always one of them.
///
/// ```
/// use folio_split::{Order, OrderSet, OrderSetError};
/// let orders: OrderSet = "18,9,0".parse()?;
/// assert_eq!(orders, OrderSet::HUGETLB);
/// assert_eq!(orders.largest_within(Order::new(17).unwrap()), Order::HUGE_2M);
/// assert_eq!("18,9".parse::<OrderSet>(), Err(OrderSetError::NoOrderZero { bits: 1 << 18 | 1 << 9 }));
/// # Ok::<(), OrderSetError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrderSet(u64);

impl OrderSet {
    /// Every order, as a buddy allocator has them.
    pub const ALL: Self = Self((1 << Order::COUNT) - 1);
    /// Orders 18, 9 and 0: the sizes that HugeTLB has on x86-64.
    pub const HUGETLB: Self = Self(1 << 18 | 1 << 9 | 1);
    /// Order 0 alone: what a uniform split ends in.
    pub const PAGES: Self = Self(1);

    /// The set whose order-o member is bit o of `bits`.
    ///
    /// # Errors
    ///
    /// [`OrderSetError::NoOrderZero`] if bit 0 is clear (a shared page could not be one folio then),
    /// [`OrderSetError::TooLarge`] if a bit above 40 is set.
    pub const fn from_bits(bits: u64) -> Result<Self, OrderSetError> {
        if bits & 1 == 0 {
            return Err(OrderSetError::NoOrderZero { bits });
        }
        if bits & !Self::ALL.0 != 0 {
            let [order, ..] = 63_u32.wrapping_sub(bits.leading_zeros()).to_le_bytes();
            return Err(OrderSetError::TooLarge { order });
        }
        Ok(Self(bits))
    }

    /// The set of the orders given.
    ///
    /// # Errors
    ///
    /// [`OrderSetError::NoOrderZero`] if order 0 is not among them.
    pub fn new(orders: impl IntoIterator<Item = Order>) -> Result<Self, OrderSetError> {
        Self::from_bits(orders.into_iter().fold(0, |bits, order| bits | order.pages()))
    }

    /// Bit o is set if order o is a member.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether `order` is a member.
    #[must_use]
    pub const fn contains(self, order: Order) -> bool {
        self.0 & order.pages() != 0
    }

    /// The largest member that is not larger than `order`.
    #[must_use]
    #[inline]
    pub const fn largest_within(self, order: Order) -> Order {
        let below = self.0 & (order.pages() | order.mask());
        // Bit 0 is set, so `below` is not 0.
        Order::from_bit(63_u32.wrapping_sub(below.leading_zeros()))
    }

    /// The smallest member that is not smaller than `order`.
    #[must_use]
    #[inline]
    pub const fn smallest_from(self, order: Order) -> Option<Order> {
        let above = self.0 & !order.mask();
        if above == 0 { None } else { Some(Order::from_bit(above.trailing_zeros())) }
    }

    /// The smallest member above 0.
    pub(crate) const fn smallest_large(self) -> Option<Order> {
        self.smallest_from(Order(1))
    }

    /// The members that are not larger than `order`.
    #[must_use]
    pub const fn clipped(self, order: Order) -> Self {
        Self(self.0 & (order.pages() | order.mask()))
    }

    /// Order 0 and the members that are not smaller than `order`: no private piece is smaller than `order` unless a
    /// small page lies in its block, which is then all single pages.
    #[must_use]
    pub const fn at_least(self, order: Order) -> Self {
        Self(self.0 & !order.mask() | 1)
    }

    /// The members that are larger than `order`, smallest first.
    pub(crate) const fn above(self, order: Order) -> Orders {
        Orders(self.0 & !order.mask() & !order.pages())
    }

    /// The members, smallest first.
    #[must_use]
    pub const fn iter(self) -> Orders {
        Orders(self.0)
    }
}

impl IntoIterator for OrderSet {
    type Item = Order;
    type IntoIter = Orders;

    fn into_iter(self) -> Orders {
        self.iter()
    }
}

/// The members of an [`OrderSet`], smallest first; from the largest with `rev`.
#[derive(Clone, Debug)]
pub struct Orders(u64);

impl Iterator for Orders {
    type Item = Order;

    #[inline]
    fn next(&mut self) -> Option<Order> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(Order::from_bit(bit))
    }
}

impl DoubleEndedIterator for Orders {
    #[inline]
    fn next_back(&mut self) -> Option<Order> {
        if self.0 == 0 {
            return None;
        }
        let order = Order::from_bit(63_u32.wrapping_sub(self.0.leading_zeros()));
        self.0 &= !order.pages();
        Some(order)
    }
}

impl fmt::Display for OrderSet {
    /// The members, largest first, as [`FromStr`] reads them: `18,9,0`; `all` for every order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        for (i, order) in self.iter().rev().enumerate() {
            write!(f, "{}{order}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for OrderSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderSet({self})")
    }
}

impl FromStr for OrderSet {
    type Err = OrderSetError;

    fn from_str(text: &str) -> Result<Self, OrderSetError> {
        if text == "all" {
            return Ok(Self::ALL);
        }
        let mut bits = 0;
        for (position, part) in text.split(',').enumerate() {
            let raw = part.trim().parse::<u8>().map_err(|_| OrderSetError::NotANumber { position })?;
            bits |= Order::new(raw).ok_or(OrderSetError::TooLarge { order: raw })?.pages();
        }
        Self::from_bits(bits)
    }
}

/// Why a set of orders was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderSetError {
    /// Order 0 is missing.
    #[error("order 0 is missing from the set of orders {bits:#x}: a shared page must be a folio of its own")]
    NoOrderZero {
        /// The set that was asked for, bit o for order o.
        bits: u64,
    },
    /// An order is above 40.
    #[error("order {order} is above {}", Order::MAX)]
    TooLarge {
        /// The largest order asked for.
        order: u8,
    },
    /// A part of a textual set is not a number from 0 to 255.
    #[error("part {position} of the set of orders is not a number")]
    NotANumber {
        /// Which part, counted from 0.
        position: usize,
    },
}

impl Classify for OrderSetError {
    fn class(&self) -> Class {
        Class::Caller
    }
}
