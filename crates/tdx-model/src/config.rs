//! What a machine is made of: module version, key ids, TDMRs, SEAM range.

/// The TDX module whose answers are given. (TDX module ABI, "Version differences".)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum ModuleVersion {
    /// 1.5.01: static PAMT, DEMOTE always tests for an interrupt.
    V1_5_01,
    /// 1.5.28: key id kept in S-EPT entries, DEMOTE of a TD without L2 VMs is never interrupted.
    #[default]
    V1_5_28,
    /// 2.0.08: Dynamic PAMT, lock and alias bits moved, removed-page hint.
    V2_0_08,
}

impl core::str::FromStr for ModuleVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        match text {
            "1.5.01" => Ok(Self::V1_5_01),
            "1.5.28" => Ok(Self::V1_5_28),
            "2.0.08" => Ok(Self::V2_0_08),
            _ => Err(UnknownVersion),
        }
    }
}

impl core::fmt::Display for ModuleVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::V1_5_01 => "1.5.01",
            Self::V1_5_28 => "1.5.28",
            Self::V2_0_08 => "2.0.08",
        })
    }
}

/// The text names no module version of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownVersion;

impl core::fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("unknown module version: one of 1.5.01, 1.5.28, 2.0.08 is needed")
    }
}

impl core::error::Error for UnknownVersion {}

/// The switches in which module versions differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Version these switches describe.
    pub version: ModuleVersion,
    /// Dynamic PAMT can be enabled (TDX_FEATURES0 bit 36).
    pub dynamic_pamt_capable: bool,
    /// Dynamic PAMT is enabled: PAMT.ADD/REMOVE, R12/R13 of DEMOTE and PROMOTE.
    pub dynamic_pamt: bool,
    /// DEMOTE of a TD without L2 VMs never returns INTERRUPTED_RESTARTABLE (TDX_FEATURES0 bit 51).
    pub enhanced_demote_interruptibility: bool,
    /// Operand id of UNBLOCK's TLB_TRACKING_NOT_DONE: SEPT_TREE (false) or RCX (true).
    pub unblock_error_is_rcx: bool,
    /// The key id is part of the address in S-EPT entries, and stripped on output.
    pub hkid_in_sept_entry: bool,
    /// PROMOTE takes the tree lock exclusively and no child locks.
    pub promote_tree_exclusive: bool,
    /// Bit of an S-EPT entry that is its lock.
    pub entry_lock_bit: u32,
    /// Bits of an S-EPT entry that say that L2 VM 1, 2, 3 has an entry there too.
    pub alias_bits: [u32; 3],
    /// A removed page whose PAMT pair became empty is returned with bit 62 set.
    pub removed_page_hint: bool,
    /// RDMD takes a level and reports non-leaf entries and page pairs.
    pub rdmd_v2: bool,
    /// Pages are to be flushed from the cache before they are given to the module (TDX_FEATURES0 bit 23, which 1.5.01 does
    /// not have; hosts do it for every module).
    pub clflush_before_alloc: bool,
}

impl Profile {
    /// The switches of `version`, with Dynamic PAMT enabled where the version has it.
    #[must_use]
    pub const fn of(version: ModuleVersion) -> Self {
        let new = matches!(version, ModuleVersion::V2_0_08);
        Self {
            version,
            dynamic_pamt_capable: !matches!(version, ModuleVersion::V1_5_01),
            dynamic_pamt: new,
            enhanced_demote_interruptibility: matches!(version, ModuleVersion::V1_5_28),
            unblock_error_is_rcx: new,
            hkid_in_sept_entry: !matches!(version, ModuleVersion::V1_5_01),
            promote_tree_exclusive: false,
            entry_lock_bit: if new { 59 } else { 11 },
            alias_bits: if new { [57, 58, 60] } else { [58, 59, 60] },
            removed_page_hint: new,
            rdmd_v2: new,
            clflush_before_alloc: true,
        }
    }

    /// The same with Dynamic PAMT enabled or not, where the version is capable of it.
    #[must_use]
    pub const fn with_dynamic_pamt(mut self, enabled: bool) -> Self {
        self.dynamic_pamt = enabled && self.dynamic_pamt_capable;
        self.removed_page_hint = self.dynamic_pamt;
        self
    }

    /// TDX_FEATURES0 as SYS.RD reports it: what 1.5.01 has, and what the switches add.
    #[must_use]
    pub const fn features0(&self) -> u64 {
        // Bits 0 to 5, 7 to 11, 16 to 19: among them TD partitioning (7), host priority (10), RBP left alone (18).
        let mut features = 0x000F_0FBF;
        if self.clflush_before_alloc && !matches!(self.version, ModuleVersion::V1_5_01) {
            features |= 1 << 23;
        }
        if self.dynamic_pamt_capable {
            features |= 1 << 36;
        }
        if self.removed_page_hint {
            features |= 1 << 38;
        }
        if self.enhanced_demote_interruptibility {
            features |= 1 << 51;
        }
        features
    }
}

/// Where key ids sit in a physical address and which are private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HkidLayout {
    /// Lowest address bit of the key id.
    pub start_bit: u32,
    /// Number of key id bits.
    pub bits: u32,
    /// First private key id.
    pub private_min: u16,
    /// Last private key id.
    pub private_max: u16,
    /// The module's own key id.
    pub global: u16,
}

impl HkidLayout {
    /// The address bits that hold a key id.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        ((1 << self.bits) - 1) << self.start_bit
    }
}

/// A trust domain memory region with its reserved areas (absolute addresses).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tdmr {
    /// First byte, a multiple of 1 GiB.
    pub base: u64,
    /// Bytes, a multiple of 1 GiB.
    pub size: u64,
    /// End of what TDMR.INIT has completed. A 1 GiB block is usable only when all of it is.
    pub initialized_end: u64,
    /// `(first byte, bytes)` of each reserved area, 4 KiB granular.
    pub reserved: Vec<(u64, u64)>,
}

impl Tdmr {
    const GIB: u64 = 1 << 30;

    /// Whether the module may use memory at `hpa`.
    #[must_use]
    pub fn usable(&self, hpa: u64) -> bool {
        let end = self.initialized_end.min(self.base + self.size) & !(Self::GIB - 1);
        (self.base..end).contains(&hpa)
    }

    /// Whether any of the `bytes` at `hpa` is reserved.
    #[must_use]
    pub fn reserved(&self, hpa: u64, bytes: u64) -> bool {
        self.reserved.iter().any(|&(base, size)| hpa < base + size && base < hpa + bytes)
    }
}

/// Everything that does not change after the machine was built.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) profile: Profile,
    pub(crate) max_pa_bits: u32,
    pub(crate) hkid: HkidLayout,
    pub(crate) seamrr: (u64, u64),
    pub(crate) tdmrs: Vec<Tdmr>,
    /// `(first byte, bytes)` of each convertible memory range; `None`: all memory is convertible.
    pub(crate) convertible: Option<Vec<(u64, u64)>>,
    pub(crate) packages: u32,
    /// How many processors LP.INIT must have been made on before SYS.CONFIG.
    pub(crate) logical_processors: u32,
    /// Pieces in which CACHE.WB writes back; between two of them it can be interrupted.
    pub(crate) cache_sub_blocks: u64,
    pub(crate) audit: bool,
    pub(crate) tracking_enforced: bool,
    pub(crate) cold: bool,
    /// ACCEPTs in a row that host priority refuses before the vCPU exits; the module counts time instead.
    pub(crate) host_priority_patience: Option<u32>,
}

impl Config {
    /// Bits 51:12 of an entry that are an address, not a key id.
    pub(crate) const fn address_mask(&self) -> u64 {
        0x000F_FFFF_FFFF_F000 & !self.hkid.mask()
    }

    /// Whether `hpa` is a well-formed private address: no key id, and 52 bits, whatever the platform has.
    pub(crate) const fn plain(&self, hpa: u64) -> bool {
        hpa & self.hkid.mask() == 0 && hpa >> 52 == 0
    }

    /// Whether the module may use the `bytes` at `hpa`, aligned to their number, as ordinary shared memory.
    pub(crate) fn shared_operand(&self, hpa: u64, bytes: u64) -> bool {
        let key = (hpa & self.hkid.mask()) >> self.hkid.start_bit;
        let address = hpa & !self.hkid.mask();
        let (base, size) = self.seamrr;
        hpa.is_multiple_of(bytes)
            && hpa >> self.max_pa_bits == 0
            && key < u64::from(self.hkid.private_min)
            && !(address < base + size && base < address + bytes)
    }
}
