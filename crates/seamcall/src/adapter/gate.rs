//! Operands that a module does not know.

use crate::{
    Call, Detail, EnterCall, EnterFlags, Features0, GuestRegs, Leaf, NULL_PA, Operand, Regs, Status,
    Transport, VpEnter,
};

/// Refuses calls whose operands exist only with a feature that the module does not have.
///
/// A module without the feature would ignore some of them (pages would be given away and never taken), and answer
/// `OPERAND_INVALID` to others. The refusal is `NOT_ISSUED` with the operand.
///
/// | Operand | Feature |
/// |---|---|
/// | PAMT.ADD, PAMT.REMOVE; DEMOTE `R12`, `R13`; RDMD `RCX` bits 2:0 (level); SYS.CONFIG `R8` bit 16 | [`Features0::DYNAMIC_PAMT`] |
/// | SEPT.ADD version 1 and DEMOTE `R9` to `R11`; `RDX` bit 0 of DEMOTE (sparse) and SEPT.RD (L2 attributes); VP.ENTER with [`EnterFlags::RESUME_L1`] | [`Features0::TD_PARTITIONING`] |
///
/// ```
/// use seamcall::{Features0, Status, Transport, adapter::Gate, phymem};
/// use sept_core::Hpa;
///
/// fn pair_of<T: Transport>(module: T, features: Features0, region: Hpa) -> Option<[Hpa; 2]> {
///     phymem::pamt_remove(&Gate::new(module, features), region).ok()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Gate<T> {
    inner: T,
    features: Features0,
}

impl<T: Transport> Gate<T> {
    /// A module with these features. Leave [`Features0::DYNAMIC_PAMT`] out if the module could but was not asked to.
    pub const fn new(inner: T, features: Features0) -> Self {
        Self { inner, features }
    }

    /// The transport inside.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    fn refusal(&self, regs: &Regs) -> Option<Operand> {
        let leaf = Leaf::from_rax(regs.rax);
        let dynamic_pamt = self.features.contains(Features0::DYNAMIC_PAMT);
        let partitioning = self.features.contains(Features0::TD_PARTITIONING);
        match leaf {
            Leaf::PHYMEM_PAMT_ADD | Leaf::PHYMEM_PAMT_REMOVE if !dynamic_pamt => Some(Operand::RAX),
            _ if leaf.number() == Leaf::SYS_CONFIG.number() && !dynamic_pamt && regs.r8 & (1 << 16) != 0 => {
                Some(Operand::R8)
            }
            Leaf::PHYMEM_PAGE_RDMD if !dynamic_pamt && regs.rcx & 0b111 != 0 => Some(Operand::RCX),
            Leaf::MEM_PAGE_DEMOTE if !dynamic_pamt && regs.r12 != 0 => Some(Operand::R12),
            Leaf::MEM_PAGE_DEMOTE if !dynamic_pamt && regs.r13 != 0 => Some(Operand::R13),
            Leaf::MEM_PAGE_DEMOTE if !partitioning => l2_page(regs).or(l2_flag(regs)),
            Leaf::MEM_SEPT_RD if !partitioning => l2_flag(regs),
            _ if leaf == Leaf::MEM_SEPT_ADD.version(1) && !partitioning => l2_page(regs),
            _ => None,
        }
    }
}

/// The flag operand, if it asks for something of L2 VMs.
fn l2_flag(regs: &Regs) -> Option<Operand> {
    (regs.rdx & 1 != 0).then_some(Operand::RDX)
}

/// The first operand that is a page for an L2 VM.
fn l2_page(regs: &Regs) -> Option<Operand> {
    let pages = [(regs.r9, Operand::R9), (regs.r10, Operand::R10), (regs.r11, Operand::R11)];
    pages.into_iter().find(|(page, _)| *page != NULL_PA).map(|(_, operand)| operand)
}

impl<T: Transport> Transport for Gate<T> {
    #[inline]
    fn call(&self, call: Call<'_>) -> Regs {
        let regs = call.regs();
        match self.refusal(&regs) {
            None => self.inner.call(call),
            Some(operand) => {
                let status = Status::NOT_ISSUED.with_detail(Detail::Operand(operand));
                Regs { rax: status.raw(), ..regs }
            }
        }
    }
}

impl<T: VpEnter> VpEnter for Gate<T> {
    #[inline]
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        let regs = call.regs();
        let resume_l1 = EnterFlags::from_bits_truncate(regs.rcx).contains(EnterFlags::RESUME_L1);
        if resume_l1 && !self.features.contains(Features0::TD_PARTITIONING) {
            let status = Status::NOT_ISSUED.with_detail(Detail::Operand(Operand::RCX));
            return GuestRegs { rax: status.raw(), ..regs };
        }
        self.inner.enter(call)
    }
}
