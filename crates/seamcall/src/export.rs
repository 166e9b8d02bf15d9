//! TDH.EXPORT.*: the leaves of live migration that work on the S-EPT. The rest of migration is not covered.

use crate::operand::{invoke_at, mapping};
use crate::{GpaListInfo, Leaf, Regs, SeamcallError, Status, Tdr, Transport, transport::Call};
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
    problems: u32,
    frame: PhantomData<&'a mut Frame>,
}

impl<'a> GpaList<'a> {
    /// Entries `first` to `last` of the list in `frame`; `None` if that is none, or the frame is no 4 KiB page.
    #[must_use]
    pub fn new(frame: &'a mut Frame, first: u16, last: u16) -> Option<Self> {
        if frame.level() != Level::L4K {
            return None;
        }
        let info = GpaListInfo::new(frame.hpa(), first, last)?;
        Some(Self { info, problems: 0, frame: PhantomData })
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

    /// How many of the entries done so far had a problem, as far as the module counted them ([`blockw_v1`] counts
    /// all).
    #[must_use]
    pub const fn problems(&self) -> u32 {
        self.problems
    }
}

impl fmt::Debug for GpaList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpaList({:#x})", self.info.raw())
    }
}

/// TDH.EXPORT.BLOCKW (65), version 0: takes write access from the pages in `list`; their entries tell what became of
/// each.
///
/// Operands: `RCX` list, `RDX` TDR. Output: `RCX` list. Op state LIVE_EXPORT. Pages MAPPED, PENDING or their
/// EXPORTED_DIRTY forms, 4K. Then [`mem::track`](crate::mem::track). Tree lock shared.
///
/// Returns the number of entries that had a problem, of this call's only. Modules that have version 1
/// ([`Features0::LIST_ERROR_COUNT`](crate::Features0::LIST_ERROR_COUNT)) do not count in version 0 and say 0: call
/// [`blockw_v1`], or look at the entries.
///
/// # Errors
///
/// Comes with the list to go on with, which is what is left of it: after `INTERRUPTED_RESUMABLE` and
/// `INTERRUPTED_BUSY` from the entry that is next, after `OPERAND_INVALID|GPA_LIST_ENTRY` from the entry that is
/// malformed. In check order: `OPERAND_INVALID` (the module is configured for non-blocking export); the common errors
/// of [`mem`](crate::mem) up to the tree lock, without those of an entry operand; `OPERAND_INVALID|RCX` (the list);
/// then entry by entry `OPERAND_INVALID|GPA_LIST_ENTRY`, `INTERRUPTED_RESUMABLE`, or (1.5.34) `INTERRUPTED_BUSY`:
/// another call wants the tree lock exclusively. A page that cannot be blocked is no error but a status in its entry;
/// a busy one has the host-priority flag now, as after any refused call ([`SeamcallError::is_entry_busy`]).
///
/// Source: TDX module ABI, TDH.EXPORT.BLOCKW; `tdh_export_blockw.c` of modules 1.5.01 to 2.0.08 and of those that
/// have version 1.
pub fn blockw<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    write_block(t, td, list, Leaf::EXPORT_BLOCKW)
}

/// TDH.EXPORT.BLOCKW (65), version 1: as [`blockw`], and counts the entries that had a problem, however it ends.
///
/// Operands: `RCX` list, `RDX` TDR. Outputs: `RCX` list, `R8` count. State as [`blockw`].
///
/// Returns the number of entries that had a problem, those of interrupted calls included: they are in
/// [`GpaList::problems`] of the list that comes back.
///
/// # Errors
///
/// As [`blockw`]. A module without version 1 answers `OPERAND_INVALID|RAX`.
///
/// Source: TDX module ABI, TDH.EXPORT.BLOCKW; `tdh_export_blockw.c` of the modules that have version 1 (1.5.34).
pub fn blockw_v1<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    write_block(t, td, list, Leaf::EXPORT_BLOCKW.version(1))
}

fn write_block<'a, T: Transport + ?Sized>(
    t: &T,
    td: Tdr,
    list: GpaList<'a>,
    leaf: Leaf,
) -> Result<u32, Returned<SeamcallError, GpaList<'a>>> {
    let regs = Regs { rax: leaf.rax(), rcx: list.raw(), rdx: td.hpa().raw(), ..Regs::new() };
    let out = t.call(Call::new(regs));
    let status = Status::from_raw(out.rax);
    let counted = match (leaf.interface(), status.is_success()) {
        (0, true) => status.low(),
        (0, false) => 0,
        // No list has more entries.
        _ => u32::try_from(out.r8).unwrap_or(u32::MAX),
    };
    let problems = list.problems.saturating_add(counted);
    if status.is_success() {
        return Ok(problems);
    }
    // However a call ends, `RCX` says which entry is next.
    let held = GpaList { info: list.info.resumed(out.rcx), problems, frame: PhantomData };
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
