//! Every public operation, called with values that the optimizer knows nothing of.

use crate::tee::{Source, ask};
use crate::{Exclusive, Table};
use sept_core::{
    Entry, External, FenceTicket, Fenced, Fill, Format, Frame, FrameSource, Frames, GpaEntry, GpaRange,
    HardwareWalked, HostOwned, Hpa, Level, Obligation, Permissions, Plan, Resize, Scope, SliceStore, Tainted,
};

/// What the operations are called with.
pub struct With<'a, X: External> {
    at: GpaEntry,
    range: GpaRange,
    page: Option<Frame>,
    tainted: Option<Frame<Tainted>>,
    pages: Option<Frames>,
    store: SliceStore<'a>,
    fence: Fenced,
    ticket: FenceTicket<X::Ticket>,
    owed: [Option<Obligation>; 3],
    resize: [Option<Resize<X::Ticket>>; 2],
    source: Source,
}

fn level() -> Level {
    let [low, ..] = ask(9).to_le_bytes();
    Level::new(low).unwrap_or(Level::L4K)
}

fn scope() -> Scope {
    if ask(10) == 0 { Scope::Ends } else { Scope::Whole(level()) }
}

/// Whether it came off, so that nothing is left out.
fn told<T, E>(result: Result<T, E>) -> u64 {
    u64::from(result.is_ok())
}

/// What works on every table.
#[inline(never)]
pub fn secure<F: Format, X: External>(table: &Table<F, X>, with: &mut With<'_, X>) -> u64 {
    let With { at, range, store, fence, ticket, source, owed: [owed, other, third], .. } = with;
    let (at, range) = (*at, *range);
    let hpa = Hpa::new(ask(11));
    let mut count = 0;
    let mut note = |done: u64| count ^= done;

    note(told(table.link(at, hpa, store)));
    if let Some(page) = with.page.take() {
        note(told(table.map(at, page, if ask(12) == 0 { Fill::OnAccept } else { Fill::Copy(at_hpa()) })));
    }
    note(told(table.block(at)));
    note(told(table.unblock(at, fence)));
    note(told(table.protect(at, Permissions::READ)));
    note(told(table.permissions(at)));
    note(told(table.probe(at)));
    note(told(table.split(at, fence, store)));
    note(told(table.mergeable(at)));
    note(told(table.inhibit(at, ask(13) == 0)));
    note(told(table.inhibited(at)));
    note(table.translate(at.gpa()).map_or(0, |found| found.hpa.raw()));
    note(told(table.lookup(at.gpa())));
    note(told(table.live(at)));
    note(told(table.entry(at)));
    note(u64::from(table.fence().is_ok()));
    note(u64::from(table.fenced(ticket).is_some()));
    note(u64::from(table.quiet(ticket).is_some()));
    if let Some(owed) = owed {
        note(told(table.merge(at, fence, owed)));
        note(told(table.unlink(at, fence, owed)));
        note(told(table.take_range(range, fence, owed, |_, page| drop(page))));
        note(told(table.unlink_empty_tables(range, fence, owed)));
    }
    if let Ok(page) = table.remove(at, fence) {
        note(told(table.reclaim(page)));
    }
    if let Some(page) = with.tainted.take() {
        note(told(table.reclaim(page)));
    }
    note(told(table.block_range(range)));
    note(told(table.unblock_range(range, fence)));
    note(told(table.block_empty_tables(range)));
    note(told(table.probe_candidates(range, level(), at.gpa(), 7)));
    if let (Some(pages), Some(hpa)) = (with.pages.take(), hpa)
        && let Ok(plan) = table.plan_map(range, hpa, level())
        && let Ok(reserved) = plan.reserve(source, SliceStore::new(&mut [const { None }; 4]))
    {
        match table.map_range(reserved, pages) {
            Ok(done) => note(done.used.total()),
            Err(refused) => {
                let (reserved, pages) = refused.held;
                note(pages.count());
                drop(reserved.release(source));
            }
        }
    }
    if let Ok(plan) = table.plan_split(range, scope())
        && let Ok(reserved) = plan.reserve(source, ())
        && let Ok(reserved) = reserved.refit(plan, source)
    {
        match table.start_split(reserved) {
            Ok(resize) => with.resize[0] = Some(resize),
            Err(refused) => drop(refused.held.release(source)),
        }
    }
    with.resize[1] = Some(table.start_merge(range));
    for resize in &mut with.resize {
        if let (Some(resize), Some(third)) = (resize.as_mut(), third.as_mut()) {
            note(told(resize.step(table, third)));
            resize.cancel();
        }
        if let Some(resize) = resize.take() {
            note(told(resize.finish()));
        }
    }
    if let (Some(owed), Some(quiet)) = (other.take(), table.quiet(ticket)) {
        match table.settle(owed, &quiet, source) {
            Ok(needs) => note(needs.total()),
            Err(unsettled) => *other = Some(unsettled.rest),
        }
    }
    for found in table.entries(range) {
        note(u64::from(matches!(found.entry, Entry::Free)));
    }
    for run in table.runs(range) {
        note(run.count);
    }
    note(told(table.audit()));
    count
}

fn at_hpa() -> Hpa {
    Hpa::truncate(ask(14))
}

/// What works only where an MMU walks the table and no TEE keeps one.
#[inline(never)]
pub fn walked<F: HardwareWalked, X: HostOwned>(table: &mut Table<F, X>, with: &mut With<'_, X>) -> u64 {
    let With { at, range, store, fence, ticket, source, owed: [owed, other, ..], .. } = with;
    let (at, range) = (*at, *range);
    let mut count = 0;
    let mut note = |done: u64| count ^= done;

    note(told(table.split_in_place(at, store)));
    note(told(table.close(at)));
    note(told(table.reopen(at)));
    if let Some(owed) = owed {
        if let Some(quiet) = table.quiet(ticket) {
            note(told(table.merge_in_place(at, &quiet, owed)));
        }
        note(told(table.remove_subtree(at, fence, owed)));
    }
    if let Ok(plan) = table.plan_split(range, scope())
        && let Ok(reserved) = plan.reserve(source, ())
    {
        match table.split_range(reserved) {
            Ok(done) => note(done.used.total()),
            Err(refused) => drop(refused.held.release(source)),
        }
    }
    if let (Some(owed), Some(quiet)) = (other.take(), table.quiet(ticket)) {
        let settled = table.settle_pages(owed, &quiet, source, &mut |_, pages| drop(pages));
        if let Err(unsettled) = settled {
            *other = Some(unsettled.rest);
        }
    }
    let mut unmapped = None;
    if let Some(owed) = owed {
        let mut alone: Exclusive<'_, F, _, X> = table.exclusive();
        if let Some(page) = with.page.take() {
            note(told(alone.map(at, page, Fill::OnAccept)));
        }
        note(told(alone.split(at, store)));
        note(alone.walker().translate(at.gpa()).map_or(0, |found| found.hpa.raw()));
        note(told(alone.merge(at, owed)));
        note(told(alone.remove_subtree(at, owed)));
        note(told(alone.merge_range(range, owed)));
        note(told(alone.unmap_range(range, owed, |_, page| drop(page))));
        unmapped = alone.unmap(at, owed).ok();
    }
    if let Some(page) = unmapped {
        match table.take(page, fence) {
            Ok(page) => source.give(sept_core::FrameKind::MirrorTable, page),
            Err(page) => note(page.hpa().raw()),
        }
    }
    count
}
