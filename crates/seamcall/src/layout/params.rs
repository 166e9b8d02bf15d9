//! TD_PARAMS: what TDH.MNG.INIT reads.

use bitflags::bitflags;
use sept_core::{Level, TdxConfig};
use static_assertions::{const_assert, const_assert_eq};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// TD attributes, part of the measurement.
    ///
    /// Source: TDX module ABI, ATTRIBUTES; `include/tdx_api_defs.h` of modules 1.5.01 to 1.5.34.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Attributes: u64 {
        /// The host may read and write the TD's memory and state.
        const DEBUG = 1 << 0;
        /// Bit 6 of modules 1.5.34 and later: platform monitoring may profile the TD.
        const PMT_PROF = 1 << 6;
        /// Bit 16 of modules 1.5.34 and later.
        const ICSSD = 1 << 16;
        /// Bit 17 of modules 1.5.34 and later: extended service TDs.
        const SERVTDEXT = 1 << 17;
        /// Linear address space separation may be used.
        const LASS = 1 << 27;
        /// An access to a pending page exits to the host instead of raising #VE.
        const SEPT_VE_DISABLE = 1 << 28;
        /// The TD may be migrated.
        const MIGRATABLE = 1 << 29;
        /// Supervisor protection keys may be used.
        const PKS = 1 << 30;
        /// Key Locker may be used.
        const KL = 1 << 31;
        /// The TD provides attestation for others (TDX-IO).
        const TPA = 1 << 62;
        /// Performance monitoring may be used.
        const PERFMON = 1 << 63;
        const _ = !0;
    }
}

bitflags! {
    /// Controls that are not part of the measurement.
    ///
    /// Source: TDX module ABI, CONFIG_FLAGS; `include/tdx_api_defs.h` of modules 1.5.01 to 1.5.34 and 2.0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct ConfigFlags: u64 {
        /// 52-bit guest physical addresses, shared bit 51; else 48-bit, shared bit 47. Needs a 5-level S-EPT.
        const GPAW_52 = 1 << 0;
        /// The guest may change what an access to a pending page does.
        const FLEXIBLE_PENDING_VE = 1 << 1;
        /// RBP is left alone by TDG.VP.VMCALL and TDH.VP.ENTER.
        const NO_RBP_MOD = 1 << 2;
        /// The guest's MAXPA is virtual.
        const MAXPA_VIRT = 1 << 3;
        /// The guest's MAXGPA is virtual.
        const MAXGPA_VIRT = 1 << 4;
        /// TDX Connect: devices may be assigned.
        const TDX_CONNECT = 1 << 5;
        /// The guest may release pages (TDG.MEM.PAGE.RELEASE).
        const PAGE_RELEASE = 1 << 6;
        /// The guest may ask for sealing keys.
        const SEALING = 1 << 7;
        const _ = !0;
    }
}

/// EPTP_CONTROLS: memory type write-back, page-walk levels, no accessed and dirty bits.
///
/// Source: TDX module ABI, TD_PARAMS, EPTP_CONTROLS; Intel SDM, "EPT pointer".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct EptpControls(u64);

impl EptpControls {
    /// The controls for an S-EPT with the root level of `config`: `0x1e` for 4 levels, `0x26` for 5.
    #[must_use]
    pub const fn for_config(config: TdxConfig) -> Self {
        const WRITE_BACK: u64 = 6;
        Self(WRITE_BACK | (config.top().raw() as u64) << 3)
    }

    /// The 64 bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// CPUID values for one configurable leaf, `EAX` to `EDX`.
///
/// Source: TDX module ABI, TD_PARAMS, CPUID_CONFIG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
#[expect(missing_docs, reason = "each field is the register of that name")]
pub struct CpuidValue {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The 1024 bytes that [`mng::init`](crate::mng::init) points to, in shared memory, 1024-byte aligned.
///
/// ```
/// use seamcall::{Attributes, TdParams};
/// use sept_core::TdxConfig;
/// let params = TdParams::new(TdxConfig::LEVELS_5_GPAW_52, Attributes::SEPT_VE_DISABLE, 4);
/// assert_eq!(params.eptp_controls, 0x26);
/// assert_eq!(params.config(), Some(TdxConfig::LEVELS_5_GPAW_52));
/// ```
///
/// Source: TDX module ABI, TD_PARAMS; `include/tdx_api_defs.h` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(1024))]
#[expect(clippy::exhaustive_structs, reason = "fixed by the ABI")]
pub struct TdParams {
    /// [`Attributes`].
    pub attributes: u64,
    /// Extended features mask, as `XCR0` and `IA32_XSS`.
    pub xfam: u64,
    /// Most vCPUs the TD may have.
    pub max_vcpus: u16,
    /// Number of L2 VMs, 0 to 3.
    pub num_l2_vms: u8,
    /// Bit 0: `ia32_arch_capabilities_config` is used.
    pub msr_config_ctls: u8,
    /// Must be 0.
    pub reserved_0: [u8; 4],
    /// [`EptpControls`].
    pub eptp_controls: u64,
    /// [`ConfigFlags`].
    pub config_flags: u64,
    /// Virtual TSC frequency in units of 25 MHz, 4 to 400.
    pub tsc_frequency: u16,
    /// Must be 0.
    pub reserved_1: [u8; 38],
    /// Software-defined id of the TD's configuration.
    pub mr_config_id: [u8; 48],
    /// Software-defined id of the TD's owner.
    pub mr_owner: [u8; 48],
    /// Software-defined id of the owner's configuration.
    pub mr_owner_config: [u8; 48],
    /// Virtual `IA32_ARCH_CAPABILITIES`.
    pub ia32_arch_capabilities_config: u64,
    /// Must be 0 (the first words are MRCONFIGSVN and MROWNERCONFIGSVN on modules that have them).
    pub reserved_2: [u8; 24],
    /// CPUID values, in the order the module lists its configurable leaves; the rest must be 0.
    pub cpuid: [CpuidValue; 48],
}

const_assert_eq!(size_of::<TdParams>(), 1024);
const_assert_eq!(align_of::<TdParams>(), 1024);
const_assert_eq!(size_of::<CpuidValue>(), 16);
const_assert_eq!(core::mem::offset_of!(TdParams, attributes), 0);
const_assert_eq!(core::mem::offset_of!(TdParams, xfam), 8);
const_assert_eq!(core::mem::offset_of!(TdParams, max_vcpus), 16);
const_assert_eq!(core::mem::offset_of!(TdParams, num_l2_vms), 18);
const_assert_eq!(core::mem::offset_of!(TdParams, msr_config_ctls), 19);
const_assert_eq!(core::mem::offset_of!(TdParams, eptp_controls), 24);
const_assert_eq!(core::mem::offset_of!(TdParams, config_flags), 32);
const_assert_eq!(core::mem::offset_of!(TdParams, tsc_frequency), 40);
const_assert_eq!(core::mem::offset_of!(TdParams, mr_config_id), 80);
const_assert_eq!(core::mem::offset_of!(TdParams, mr_owner), 128);
const_assert_eq!(core::mem::offset_of!(TdParams, mr_owner_config), 176);
const_assert_eq!(core::mem::offset_of!(TdParams, ia32_arch_capabilities_config), 224);
const_assert_eq!(core::mem::offset_of!(TdParams, cpuid), 256);
const_assert!(EptpControls::for_config(TdxConfig::LEVELS_4).0 == 0x1e);

impl TdParams {
    /// Parameters with the S-EPT of `config`, a 1 GHz virtual TSC and everything else 0.
    #[must_use]
    pub const fn new(config: TdxConfig, attributes: Attributes, max_vcpus: u16) -> Self {
        let flags = if config.shared_bit() == 51 { ConfigFlags::GPAW_52 } else { ConfigFlags::empty() };
        Self {
            attributes: attributes.bits(),
            xfam: 0b11,
            max_vcpus,
            num_l2_vms: 0,
            msr_config_ctls: 0,
            reserved_0: [0; 4],
            eptp_controls: EptpControls::for_config(config).raw(),
            config_flags: flags.bits(),
            tsc_frequency: 40,
            reserved_1: [0; 38],
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            ia32_arch_capabilities_config: 0,
            reserved_2: [0; 24],
            cpuid: [CpuidValue { eax: 0, ebx: 0, ecx: 0, edx: 0 }; 48],
        }
    }

    /// The S-EPT these parameters ask for; `None` for a combination the module refuses.
    #[must_use]
    pub fn config(&self) -> Option<TdxConfig> {
        let gpaw_52 = ConfigFlags::from_bits_retain(self.config_flags).contains(ConfigFlags::GPAW_52);
        let [controls, ..] = self.eptp_controls.to_le_bytes();
        match (Level::new((controls >> 3) & 0b111), gpaw_52) {
            (Some(Level::L512G), false) => Some(TdxConfig::LEVELS_4),
            (Some(Level::L256T), false) => Some(TdxConfig::LEVELS_5_GPAW_48),
            (Some(Level::L256T), true) => Some(TdxConfig::LEVELS_5_GPAW_52),
            _ => None,
        }
    }
}
