//! What is taken once: templates per zone, page tables per block.
//!
//! Together with [`Reservation::fill`](crate::Reservation::fill) these are the only places of this crate that ask a
//! [`FrameSource`] for memory.

use crate::{Geometry, Tail, TailScheme, VmemmapBackend};
use folio_split::{OrderSet, PfnBlock};
use sept_core::{Class, Classify, FrameKind, FrameSource};

/// The templates that folios of `orders` need: one per order that has tail pages, one for all, or none.
pub fn templates(geometry: Geometry, orders: OrderSet) -> impl Iterator<Item = Tail> {
    let mut large = orders.iter().filter(move |&order| geometry.tail_pages(order) > 0);
    let one = (geometry.tails() == TailScheme::OrderFree)
        .then(|| large.next().map(|_| Tail::AnyTemplate))
        .flatten();
    let each = large.filter(move |_| geometry.tails() == TailScheme::PerOrder).map(Tail::Template);
    one.into_iter().chain(each)
}

/// Installs the templates that the zone of `near` lacks for folios of `orders`. Returns how many.
///
/// Called when a zone is registered; templates stay for good. Calling it again costs nothing.
///
/// # Errors
///
/// [`RegisterError::NoFrame`] if the source has no page. Templates installed until then stay, and a later call goes
/// on from there.
pub fn install_templates<V: VmemmapBackend + ?Sized>(
    backend: &V,
    near: PfnBlock,
    orders: OrderSet,
    source: &dyn FrameSource,
) -> Result<u32, RegisterError> {
    let mut installed: u32 = 0;
    for tail in templates(backend.geometry(), orders).filter(|&tail| !backend.has_template(near, tail)) {
        let kind = FrameKind::TailTemplate;
        let page = source.take(kind, near.base().hpa()).ok_or(RegisterError::NoFrame { kind, near })?;
        match backend.add_template(near, tail, page) {
            Ok(()) => installed = installed.saturating_add(1),
            Err(page) => source.give(kind, page),
        }
    }
    Ok(installed)
}

/// Adds the page tables that the vmemmap of `block` lacks. Returns how many.
///
/// # Errors
///
/// [`RegisterError::NoFrame`] if the source has no page. Tables added until then stay, and a later call goes on from
/// there.
pub fn install_tables<V: VmemmapBackend + ?Sized>(
    backend: &V,
    block: PfnBlock,
    source: &dyn FrameSource,
) -> Result<u32, RegisterError> {
    let mut added: u32 = 0;
    for _ in 0..backend.tables_missing(block) {
        let kind = FrameKind::VmemmapTable;
        let page =
            source.take(kind, block.base().hpa()).ok_or(RegisterError::NoFrame { kind, near: block })?;
        match backend.add_table(block, page) {
            Ok(()) => added = added.saturating_add(1),
            Err(page) => source.give(kind, page),
        }
    }
    Ok(added)
}

/// Why memory could not be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The source has no page.
    #[error("no page for a {kind} near {near}")]
    NoFrame {
        /// What for.
        kind: FrameKind,
        /// Where.
        near: PfnBlock,
    },
}

impl Classify for RegisterError {
    fn class(&self) -> Class {
        Class::Retry
    }
}
