//! A list that the module writes cannot be given up while it does.
use seamcall::{Tdr, Transport, export};
use sept_core::{Frame, FrameKind, FrameSource};

fn early<T: Transport>(t: &T, td: Tdr, mut page: Frame, pool: &dyn FrameSource) {
    let list = export::GpaList::new(&mut page, 0, 511).unwrap();
    pool.give(FrameKind::Vmemmap, page);
    let _ = export::blockw(t, td, list);
}

fn main() {}
