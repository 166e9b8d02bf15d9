//! TDH.EXPORT.*: the leaves of live migration that work on the S-EPT. The rest of migration is not covered.

use crate::operand::{invoke_at, mapping};
use crate::{GpaListInfo, Leaf, Operand, Regs, SeamcallError, Status, Tdr, Transport, transport::Call};
use core::{fmt, marker::PhantomData};
use sept_core::{Frame, GpaEntry, Level, Returned};

/// A list of guest pages in a 4 KiB frame of shared memory, and which of its 512 entries to work on.
///
/// Borrows the frame: the module writes a status into each [`GpaListEntry`](crate::GpaListEntry).
///
/// Source: TDX module ABI, GPA_LIST_INFO.
#[derive(PartialEq, Eq)]
pub struct GpaList<'a> {
    info: GpaListInfo,
    frame: PhantomData<&'a mut Frame>,
}

impl<'a> GpaList<'a> {
    /// Entries `first` to `last` of the list in `frame`; `None` if that is none, or the frame is no 4 KiB page.
    #[must_use]
    pub fn new(frame: &'a mut Frame, first: u16, last: u16) -> Option<Self> {
        if frame.level() != Level::L4K {
            return None;
        }
        GpaListInfo::new(frame.hpa(), first, last).map(|info| Self { info, frame: PhantomData })
    }

    /// The operand.
    #[must_use]
    pub const fn raw(&self) -> u64 {
        self.info.raw()
    }

    /// The first entry that is still to do.
    #[must_use]
    pub const fn first(&self) -> u16 {
        self.info.first()
    }
}

impl fmt::Debug for GpaList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpaList({:#x})", self.info.raw())
    }
}

/// TDH.EXPORT.BLOCKW (65): takes write access from the pages in `list`; their entries tell what became of each.
///
/// Operands: `RCX` list, `RDX` TDR. Op state LIVE_EXPORT. Pages MAPPED, PENDING or their EXPORTED_DIRTY forms, 4K.
/// Then [`mem::track`](crate::mem::track). Tree lock shared.
///
/// Returns the number of entries that had a problem.
///
/// # Errors
///
/// Comes with the list to go on with, which is what is left of it: after `INTERRUPTED_RESUMABLE` from the entry that
/// is next, after `OPERAND_INVALID|GPA_LIST_ENTRY` from the entry that is malformed. In check order: the common errors
/// of [`mem`](crate::mem) up to the tree lock, without those of an entry operand; `OPERAND_INVALID|RCX` (the list);
/// then entry by entry `OPERAND_INVALID|GPA_LIST_ENTRY` or `INTERRUPTED_RESUMABLE`. A page that cannot be blocked is
/// no error but a status in its entry; a busy one has the host-priority flag now, as after any refused call
/// ([`SeamcallError::is_entry_busy`]).
///
/// Source: TDX module ABI, TDH.EXPORT.BLOCKW; `tdh_export_blockw.c` of module 1.5.01.
pub fn blockw<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    let leaf = Leaf::EXPORT_BLOCKW;
    let regs = Regs { rax: leaf.rax(), rcx: list.raw(), rdx: td.hpa().raw(), ..Regs::new() };
    let out = t.call(Call::new(regs));
    let status = Status::from_raw(out.rax);
    if status.is_success() {
        return Ok(status.low());
    }
    let on_the_way = status.is(Status::INTERRUPTED_RESUMABLE)
        || status.is(Status::OPERAND_INVALID) && status.low() == Operand::GPA_LIST_ENTRY.id();
    let held =
        if on_the_way { GpaList { info: list.info.resumed(out.rcx), frame: PhantomData } } else { list };
    Err(Returned { error: SeamcallError::from_output(leaf, None, &out), held })
}

/// TDH.EXPORT.UNBLOCKW (75): gives write access back to the page at `at`.
///
/// Operands: `RCX` entry (4K), `RDX` TDR. Op states RUNNABLE and the exports. Entry in a write-blocked state; an
/// exported one becomes EXPORTED_DIRTY. No tracking. Tree lock shared.
///
/// # Errors
///
/// The common errors of [`mem`](crate::mem); a busy entry is not described, [`SeamcallError::is_entry_busy`] knows.
///
/// Source: TDX module ABI, TDH.EXPORT.UNBLOCKW.
#[inline]
pub fn unblockw<T: Transport + ?Sized>(t: &T, td: Tdr, at: GpaEntry) -> Result<(), SeamcallError> {
    invoke_at(t, Leaf::EXPORT_UNBLOCKW, at, mapping(td, at)).map(drop)
}
