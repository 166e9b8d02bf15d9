//! SYS.RD and SYS.INFO: what the module says about itself.

use crate::abi::{NULL_PA, Operand, Status};
use crate::call::Ctx;
use crate::state::{Answer, State};

impl State {
    /// Global metadata fields, ordered by id.
    fn global_fields(&self) -> [(u64, u64); 12] {
        let dynamic = self.cfg.profile.dynamic_pamt;
        let hkid_bits = u64::from(self.cfg.max_pa_bits.saturating_sub(48));
        [
            (0x0A00_0000_0000_0001, 1),
            (0x0A00_0003_0000_0008, self.cfg.profile.features0()),
            (0x9100_0001_0000_0008, 64),
            (0x9100_0001_0000_0009, 16),
            (0x9100_0001_0000_0010, 16),
            (0x9100_0001_0000_0011, 16),
            (0x9100_0001_0000_0012, 16),
            (0x9100_0000_0000_0013, u64::from(dynamic)),
            (0x9100_0000_0000_0014, if dynamic { hkid_bits } else { 0 }),
            (0x9800_0001_0000_0100, 6 << 12),
            (0x9800_0001_0000_0200, 6 << 12),
            (0x9900_0001_0000_0008, 576),
        ]
    }
}

/// TDH.SYS.RD: RDX field id (all ones: the first). Out: RDX the next field id, R8 the value.
pub(super) fn rd(s: &mut State, c: &mut Ctx) -> Answer {
    let fields = s.global_fields();
    let wanted = c.regs.rdx;
    c.out.rdx = NULL_PA;
    c.out.r8 = 0;
    if wanted == NULL_PA {
        c.out.rdx = fields[0].0;
        return Ok(());
    }
    let position = fields.iter().position(|&(id, _)| id == wanted);
    let index = position.ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    c.out.rdx = fields.get(index + 1).map_or(NULL_PA, |&(id, _)| id);
    c.out.r8 = fields[index].1;
    Ok(())
}

/// TDH.SYS.INFO: the structures it fills are not modelled; only its operands are checked.
pub(super) fn info(s: &mut State, c: &mut Ctx) -> Answer {
    for (address, alignment, op) in [(c.regs.rcx, 1024, Operand::Rcx), (c.regs.r8, 512, Operand::R8)] {
        if !s.cfg.shared_operand(address, alignment) {
            return Err(Status::OPERAND_INVALID.of(op));
        }
    }
    Ok(())
}
