use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

use serde::Serialize;

/// What a conversion takes from the host, by kind. Signed: a balance may fall below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Writable vmemmap pages.
    pub vmemmap_pages: i64,
    /// Page tables of the vmemmap.
    pub vmemmap_tables: i64,
    /// Nodes of the page cache index, 576 bytes each.
    pub index_nodes: i64,
    /// Pages of the Secure EPT.
    pub sept_pages: i64,
    /// Pages of the host's mirror of it.
    pub mirror_pages: i64,
    /// Dynamic PAMT pages.
    pub dpamt_pages: i64,
}

impl Resources {
    /// Whole pages, of any kind. Index nodes are not pages.
    #[must_use]
    pub fn pages(self) -> i64 {
        self.vmemmap_pages + self.vmemmap_tables + self.sept_pages + self.mirror_pages + self.dpamt_pages
    }

    /// Whether there is nothing of any kind.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Resources {
    fn add_assign(&mut self, more: Self) {
        self.vmemmap_pages += more.vmemmap_pages;
        self.vmemmap_tables += more.vmemmap_tables;
        self.index_nodes += more.index_nodes;
        self.sept_pages += more.sept_pages;
        self.mirror_pages += more.mirror_pages;
        self.dpamt_pages += more.dpamt_pages;
    }
}

impl Neg for Resources {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            vmemmap_pages: -self.vmemmap_pages,
            vmemmap_tables: -self.vmemmap_tables,
            index_nodes: -self.index_nodes,
            sept_pages: -self.sept_pages,
            mirror_pages: -self.mirror_pages,
            dpamt_pages: -self.dpamt_pages,
        }
    }
}

impl SubAssign for Resources {
    fn sub_assign(&mut self, less: Self) {
        *self += -less;
    }
}

impl Add for Resources {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl Sub for Resources {
    type Output = Self;

    fn sub(mut self, less: Self) -> Self {
        self -= less;
        self
    }
}

impl std::iter::Sum for Resources {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}
