//! TD_PARAMS: what MNG.INIT reads from ordinary memory, and its checks in their order.

use crate::abi::{Operand, Status};
use crate::state::Answer;
use crate::td::{ATTRIBUTE_DEBUG, ATTRIBUTE_SEPT_VE_DISABLE, Controls, MIN_TDCX};

/// Bytes of the structure.
pub(crate) const TD_PARAMS: u64 = 1024;

const MIGRATABLE: u64 = 1 << 29;
const PERFMON: u64 = 1 << 63;
/// Debug, SEPT_VE_DISABLE, migratable, protection keys for supervisor pages, performance monitoring.
pub(crate) const ATTRIBUTES: u64 =
    ATTRIBUTE_DEBUG | ATTRIBUTE_SEPT_VE_DISABLE | MIGRATABLE | 1 << 30 | PERFMON;
/// x87 and SSE are needed; AVX, AVX-512, PT, PK, CET, ULI, LBR, AMX are possible.
pub(crate) const XFAM: (u64, u64) = (0x3, 0x6_DBE7);
/// GPAW, flexible pending #VE, no RBP modification.
pub(crate) const CONFIG_FLAGS: u64 = 7;
/// Microseconds that a guest is refused for host priority.
const HP_LOCK_TIMEOUT: u64 = 1_000_000;

/// The fields that the model looks at.
pub(crate) struct TdParams {
    attributes: u64,
    xfam: u64,
    max_vcpus: u16,
    pub(crate) num_l2_vms: u8,
    msr_config_ctls: u8,
    eptp_controls: u64,
    pub(crate) config_flags: u64,
    tsc_frequency: u16,
    /// Whether the reserved bytes before EPTP_CONTROLS, after the TSC frequency, and after the measurements are zero.
    reserved_clear: [bool; 3],
}

impl TdParams {
    /// Reads the little-endian structure.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let number = |at: usize, size: usize| {
            bytes[at..at + size].iter().rev().fold(0, |value: u64, &byte| value << 8 | u64::from(byte))
        };
        let clear = |range: core::ops::Range<usize>| bytes[range].iter().all(|&byte| byte == 0);
        Self {
            attributes: number(0, 8),
            xfam: number(8, 8),
            max_vcpus: number(16, 2) as u16,
            num_l2_vms: bytes[18],
            msr_config_ctls: bytes[19],
            eptp_controls: number(24, 8),
            config_flags: number(32, 8),
            tsc_frequency: number(40, 2) as u16,
            reserved_clear: [clear(20..24), clear(42..80), clear(232..256)],
        }
    }

    /// Level of the entries in the S-EPT root.
    pub(crate) const fn root_level(&self) -> u8 {
        (self.eptp_controls >> 3 & 7) as u8
    }

    /// What the TD keeps of it.
    pub(crate) fn controls(&self) -> Controls {
        Controls {
            attributes: self.attributes,
            xfam: self.xfam,
            max_vcpus: self.max_vcpus.into(),
            tsc_frequency: self.tsc_frequency,
            config_flags: self.config_flags,
            td_ctls: u64::from(self.attributes & ATTRIBUTE_SEPT_VE_DISABLE != 0),
            hp_lock_timeout: HP_LOCK_TIMEOUT,
            ..Controls::default()
        }
    }

    const fn attributes_valid(&self) -> bool {
        self.attributes & !ATTRIBUTES == 0
            && (self.attributes & MIGRATABLE == 0 || self.attributes & (ATTRIBUTE_DEBUG | PERFMON) == 0)
    }

    fn xfam_valid(&self) -> bool {
        let bit = |number: u32| self.xfam >> number & 1;
        self.xfam & XFAM.0 == XFAM.0
            && self.xfam & !XFAM.1 == 0
            && (bit(5) == 0 || bit(2) == 1)
            && bit(5) == bit(6)
            && bit(5) == bit(7)
            && bit(11) == bit(12)
            && bit(17) == bit(18)
    }

    const fn eptp_valid(&self, max_pa_bits: u32) -> bool {
        let wide = self.config_flags & 1 != 0;
        let levels_valid = match self.root_level() {
            3 => !wide,
            4 => max_pa_bits >= 49,
            _ => false,
        };
        // Write-back, no accessed and dirty bits, no base.
        levels_valid && self.eptp_controls & !0x38 == 6
    }

    /// The checks in the order of the module; the TD has `pages` TDCX pages.
    pub(crate) fn check(&self, max_pa_bits: u32, pages: usize) -> Answer {
        let [before_eptp, after_tsc, after_measurements] = self.reserved_clear;
        let invalid = |operand: Operand| Status::OPERAND_INVALID.of(operand);
        let checks = [
            (self.attributes_valid(), invalid(Operand::Attributes)),
            (self.xfam_valid(), invalid(Operand::Xfam)),
            (self.max_vcpus > 0, invalid(Operand::MaxVcpus)),
            (self.num_l2_vms <= 3, invalid(Operand::NumL2Vms)),
            (pages >= MIN_TDCX + usize::from(self.num_l2_vms), Status::TDCS_NOT_ALLOCATED),
            (before_eptp, invalid(Operand::Rdx)),
            (self.config_flags & !CONFIG_FLAGS == 0, invalid(Operand::ConfigFlags)),
            (self.eptp_valid(max_pa_bits), invalid(Operand::EptpControls)),
            ((4..=400).contains(&self.tsc_frequency), invalid(Operand::TscFrequency)),
            (after_tsc && self.msr_config_ctls & !1 == 0 && after_measurements, invalid(Operand::Rdx)),
        ];
        checks.into_iter().find(|&(holds, _)| !holds).map_or(Ok(()), |(_, status)| Err(status))
    }
}
