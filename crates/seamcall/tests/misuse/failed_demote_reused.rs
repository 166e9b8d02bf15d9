//! Pages that a failed DEMOTE may have written do not come back as clean frames.
use seamcall::mem::{self, DemotePages, L2Mode};
use seamcall::{Tdr, Transport};
use sept_core::{Frame, GpaEntry};

fn reused<T: Transport>(t: &T, td: Tdr, at: GpaEntry, pages: DemotePages) -> Option<Frame> {
    let back = mem::page_demote(t, td, at, L2Mode::All, pages).err()?;
    let (table, _, _) = back.held.into_parts();
    Some(table)
}

fn main() {}
