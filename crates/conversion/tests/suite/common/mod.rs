//! What all tests share.

pub(crate) mod drive;
pub(crate) mod forms;
pub(crate) mod host;
pub(crate) mod runs;
pub(crate) mod world;

pub(crate) const HUGETLB: &[u8] = &[18, 9, 0];
pub(crate) const ALL: &[u8] = &[18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
pub(crate) const COARSE: &[u8] = &[18, 12, 6, 0];
pub(crate) const TWO: &[u8] = &[9, 0];
pub(crate) const PAGES: &[u8] = &[0];
