//! Faults on demand, for tests.

use crate::{Call, EnterCall, GuestRegs, Leaf, Regs, Status, Transport, VpEnter};
use core::sync::atomic::{AtomicU32, Ordering};

/// One planned fault: from its n-th matching call on, and for a number of calls, the answer is a status and the call
/// is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    leaf: Option<u16>,
    skip: u32,
    times: u32,
    status: Status,
}

impl Fault {
    /// At the call after `skip` others, whatever its leaf.
    #[must_use]
    pub const fn at_call(skip: u32, status: Status) -> Self {
        Self { leaf: None, skip, times: 1, status }
    }

    /// At the call of `leaf` (any version) after `skip` others of that leaf.
    #[must_use]
    pub const fn at_leaf(leaf: Leaf, skip: u32, status: Status) -> Self {
        Self { leaf: Some(leaf.number()), skip, times: 1, status }
    }

    /// Not once but for `times` matching calls in a row.
    #[must_use]
    pub const fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    const fn matches(&self, leaf: Leaf) -> bool {
        match self.leaf {
            Some(number) => number == leaf.number(),
            None => true,
        }
    }

    const fn hits(&self, seen: u32) -> bool {
        seen >= self.skip && seen < self.skip.saturating_add(self.times)
    }
}

/// Refuses calls by plan, without making them.
///
/// Each fault counts the calls that match it, those it (or another fault) refused included. The first that hits
/// answers.
///
/// ```
/// use seamcall::adapter::{Fault, Inject};
/// use seamcall::{Call, Leaf, Operand, Detail, Regs, Status, Transport, mem, Tdr};
/// # struct Module;
/// # impl Transport for Module {
/// #     fn call(&self, call: Call<'_>) -> Regs { Regs { rax: 0, ..call.regs() } }
/// # }
/// # let td = Tdr::new(sept_core::Hpa::new(0x1000).unwrap()).unwrap();
/// let busy = Status::OPERAND_BUSY.with_detail(Detail::Operand(Operand::SEPT_TREE));
/// let transport = Inject::new(Module, [Fault::at_leaf(Leaf::MEM_TRACK, 1, busy)]);
/// assert!(mem::track(&transport, td).is_ok());
/// assert_eq!(mem::track(&transport, td).unwrap_err().status, busy);
/// assert!(mem::track(&transport, td).is_ok());
/// ```
#[derive(Debug)]
pub struct Inject<T, const N: usize> {
    inner: T,
    faults: [(Fault, AtomicU32); N],
}

impl<T: Transport, const N: usize> Inject<T, N> {
    /// `inner` with these faults.
    pub fn new(inner: T, faults: [Fault; N]) -> Self {
        Self { inner, faults: faults.map(|fault| (fault, AtomicU32::new(0))) }
    }

    /// The transport inside.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// Counts a call, and gives the answer of the first fault that it hits.
    fn planned(&self, leaf: Leaf) -> Option<Status> {
        let mut answer = None;
        for (fault, count) in &self.faults {
            if fault.matches(leaf) && fault.hits(count.fetch_add(1, Ordering::Relaxed)) {
                answer = answer.or(Some(fault.status));
            }
        }
        answer
    }
}

impl<T: Transport, const N: usize> Transport for Inject<T, N> {
    fn call(&self, call: Call<'_>) -> Regs {
        let regs = call.regs();
        let leaf = Leaf::from_rax(regs.rax);
        match self.planned(leaf) {
            Some(status) => refuse(Leaf::new(leaf.number()), status, regs),
            None => self.inner.call(call),
        }
    }
}

impl<T: VpEnter, const N: usize> VpEnter for Inject<T, N> {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        match self.planned(Leaf::VP_ENTER) {
            // An entry that is refused changes nothing but the status.
            Some(status) => GuestRegs { rax: status.raw(), ..call.regs() },
            None => self.inner.enter(call),
        }
    }
}

/// The registers as a refusal leaves them: the leaves on pages and on the S-EPT zero `RCX` and `RDX`, unless they were
/// interrupted; the others leave both alone.
const fn refuse(leaf: Leaf, status: Status, regs: Regs) -> Regs {
    let zeroes = matches!(
        leaf,
        Leaf::MEM_PAGE_ADD
            | Leaf::MEM_SEPT_ADD
            | Leaf::MEM_PAGE_RELOCATE
            | Leaf::MEM_PAGE_AUG
            | Leaf::MEM_RANGE_BLOCK
            | Leaf::MEM_RD
            | Leaf::MEM_WR
            | Leaf::MEM_PAGE_DEMOTE
            | Leaf::MR_EXTEND
            | Leaf::MEM_PAGE_PROMOTE
            | Leaf::PHYMEM_PAGE_RDMD
            | Leaf::MEM_SEPT_RD
            | Leaf::PHYMEM_PAGE_RECLAIM
            | Leaf::MEM_PAGE_REMOVE
            | Leaf::MEM_SEPT_REMOVE
            | Leaf::MEM_RANGE_UNBLOCK
            | Leaf::EXPORT_UNBLOCKW
    );
    let interrupted = status.is(Status::INTERRUPTED_RESTARTABLE) || status.is(Status::INTERRUPTED_RESUMABLE);
    let (rcx, rdx) = if zeroes && !interrupted { (0, 0) } else { (regs.rcx, regs.rdx) };
    Regs { rax: status.raw(), rcx, rdx, ..regs }
}
