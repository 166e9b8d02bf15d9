//! What is taken once: templates per zone, page tables per block, and the reservation of a plan.
//!
//! These are the only places of this crate that ask a [`FrameSource`] for memory.

use crate::{Geometry, Tail, TailScheme, VmemmapBackend};
use folio_split::{OrderSet, PfnBlock};
use sept_core::{Class, Classify, FrameKind, FrameNeeds, FrameSource, FrameStore, Hpa};

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

/// Takes all frames of `needs` from `source` into `store`, or none.
///
/// A plan is for blocks of one NUMA node; `near` names it, and the source decides whether others may serve.
///
/// # Errors
///
/// [`RegisterError::Reserve`]: what was taken has gone back.
pub fn reserve(
    needs: &FrameNeeds,
    near: Hpa,
    source: &dyn FrameSource,
    store: &mut dyn FrameStore,
) -> Result<(), RegisterError> {
    let mut taken = FrameNeeds::NONE;
    for kind in FrameKind::ALL {
        while taken[kind] < needs[kind] {
            let full = match source.take(kind, near).map(|frame| store.put(kind, frame)) {
                Some(Ok(())) => {
                    taken[kind] = taken[kind].saturating_add(1);
                    continue;
                }
                Some(Err(frame)) => {
                    source.give(kind, frame);
                    true
                }
                None => false,
            };
            let error = RegisterError::Reserve { kind, need: needs[kind], got: taken[kind], full };
            give_back(&taken, source, store);
            return Err(error);
        }
    }
    Ok(())
}

/// Gives up to `count` frames of each kind back from `store` to `source`.
pub fn give_back(count: &FrameNeeds, source: &dyn FrameSource, store: &mut dyn FrameStore) {
    for kind in FrameKind::ALL {
        for _ in 0..count[kind] {
            let Some(frame) = store.get(kind) else { break };
            source.give(kind, frame);
        }
    }
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
    /// A reservation was not filled, and has been emptied again.
    #[error("{need} frames asked for ({kind}), {got} to be had (store full: {full})")]
    Reserve {
        /// What for.
        kind: FrameKind,
        /// How many were needed.
        need: u32,
        /// How many could be taken.
        got: u32,
        /// Whether it was the store that had no room.
        full: bool,
    },
}

impl Classify for RegisterError {
    fn class(&self) -> Class {
        match self {
            Self::Reserve { full: true, .. } => Class::Caller,
            Self::NoFrame { .. } | Self::Reserve { .. } => Class::Retry,
        }
    }
}
