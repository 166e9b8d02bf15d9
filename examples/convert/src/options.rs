//! What the person at the terminal may choose.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// The orders that a folio may have. Order 0 is always one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderChoice(u32);

impl OrderChoice {
    /// The largest order that can be named: 4 TiB.
    pub const LARGEST: u32 = 30;
    /// Those of HugeTLB: 1 GiB, 2 MiB and 4 KiB.
    pub const HUGETLB: Self = Self(1 << 18 | 1 << 9 | 1);
    /// Every order up to 1 GiB.
    pub const ALL: Self = Self((1 << 19) - 1);

    /// The orders, descending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..=Self::LARGEST).rev().filter(move |&order| self.contains(order))
    }

    /// Whether a folio may have this order.
    #[must_use]
    pub fn contains(self, order: u32) -> bool {
        order <= Self::LARGEST && self.0 & (1 << order) != 0
    }
}

impl fmt::Display for OrderChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let orders: Vec<_> = self.iter().map(|order| order.to_string()).collect();
        f.write_str(&orders.join(","))
    }
}

/// Why a list of orders is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// One of them is no order.
    #[error("`{0}` is not an order from 0 to {max}", max = OrderChoice::LARGEST)]
    NotAnOrder(String),
    /// A shared page must be a folio of its own.
    #[error("order set {0} does not contain order 0")]
    NoPages(String),
}

impl FromStr for OrderChoice {
    type Err = OrderError;

    fn from_str(list: &str) -> Result<Self, OrderError> {
        if list == "all" {
            return Ok(Self::ALL);
        }
        let set = list.split(',').try_fold(0, |set, word| {
            let order = word.trim().parse::<u32>().ok().filter(|&order| order <= Self::LARGEST);
            order.map(|order| set | 1 << order).ok_or_else(|| OrderError::NotAnOrder(word.to_owned()))
        })?;
        let choice = Self(set);
        if choice.contains(0) { Ok(choice) } else { Err(OrderError::NoPages(list.to_owned())) }
    }
}

/// When pieces become one again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Merge {
    /// After the operation that made it possible.
    #[default]
    Eager,
    /// At `merge`.
    Lazy,
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
        })
    }
}

/// The TDX module that the software module behaves like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Module {
    /// 1.5.01.
    #[value(name = "1.5.01")]
    V1_5_01,
    /// 1.5.28.
    #[default]
    #[value(name = "1.5.28")]
    V1_5_28,
    /// 2.0.08.
    #[value(name = "2.0.08")]
    V2_0_08,
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_5_01 => "1.5.01",
            Self::V1_5_28 => "1.5.28",
            Self::V2_0_08 => "2.0.08",
        })
    }
}

/// How a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Orders that a folio may have.
    pub orders: OrderChoice,
    /// When pieces become one again.
    pub merge: Merge,
    /// The TDX module.
    pub module: Module,
}

impl Default for Options {
    fn default() -> Self {
        Self { orders: OrderChoice::HUGETLB, merge: Merge::default(), module: Module::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_sets() {
        assert_eq!("18,9,0".parse(), Ok(OrderChoice::HUGETLB));
        assert_eq!("0, 9,18,9".parse(), Ok(OrderChoice::HUGETLB));
        assert_eq!(OrderChoice::HUGETLB.iter().collect::<Vec<_>>(), [18, 9, 0]);
        assert_eq!(OrderChoice::HUGETLB.to_string(), "18,9,0");
        assert_eq!("all".parse(), Ok(OrderChoice::ALL));
        assert_eq!(OrderChoice::ALL.iter().collect::<Vec<_>>(), (0..=18).rev().collect::<Vec<_>>());
        assert_eq!("30,0".parse::<OrderChoice>().map(|set| set.contains(30)), Ok(true));
        assert_eq!("18,9".parse::<OrderChoice>(), Err(OrderError::NoPages("18,9".to_owned())));
        assert_eq!("31,0".parse::<OrderChoice>(), Err(OrderError::NotAnOrder("31".to_owned())));
    }
}
