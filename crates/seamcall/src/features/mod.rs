//! What a module can do.

#[cfg(test)]
mod tests;

use bitflags::bitflags;

bitflags! {
    /// TDX_FEATURES0, read with [`sys::read`](crate::sys::read) from
    /// [`PlatformField::TDX_FEATURES0`](crate::PlatformField::TDX_FEATURES0). Unknown bits are kept.
    ///
    /// Source: TDX module ABI, TDX_FEATURES0; `include/tdx_api_defs.h` of modules 1.5.01 to 2.0.08; bit 23: Linux.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Features0: u64 {
        /// TD migration.
        const TD_MIGRATION = 1 << 0;
        /// Update of the module that keeps TDs.
        const TD_PRESERVING = 1 << 1;
        /// Service TDs.
        const SERVICE_TD = 1 << 2;
        /// VP.RD and VP.WR.
        const VP_RDWR = 1 << 3;
        /// Relaxed memory-management concurrency.
        const RELAXED_MEM_MNG_CONCURRENCY = 1 << 4;
        /// CPUID virtualisation.
        const CPUID_VIRT = 1 << 5;
        /// TDX-IO (TDX Connect).
        const TDX_IO = 1 << 6;
        /// TD partitioning: L2 VMs.
        const TD_PARTITIONING = 1 << 7;
        /// Local attestation.
        const LOCAL_ATTESTATION = 1 << 8;
        /// TD entry enhancements.
        const TD_ENTRY_ENHANCEMENTS = 1 << 9;
        /// Locks that prefer the host.
        const HOST_PRIORITY_LOCKS = 1 << 10;
        /// `IA32_ARCH_CAPABILITIES` can be configured.
        const CONFIG_IA32_ARCH_CAPABILITIES = 1 << 11;
        /// Sealing by hardware.
        const HW_SEALING = 1 << 12;
        /// EPT violations on pending pages, version 2.
        const PENDING_EPT_VIOLATION_V2 = 1 << 16;
        /// Family, model and stepping can be configured.
        const FMS_CONFIG = 1 << 17;
        /// RBP is left alone by VP.ENTER.
        const NO_RBP_MOD = 1 << 18;
        /// Fewer TLB invalidations for L2 VMs.
        const L2_TLB_INVD_OPT = 1 << 19;
        /// CPU topology can be enumerated.
        const TOPOLOGY_ENUM = 1 << 20;
        /// TD partitioning together with migration.
        const PARTITIONED_TD_MIGRATION = 1 << 21;
        /// The host must flush the cache lines of a page before it hands it over.
        const CLFLUSH_BEFORE_ALLOC = 1 << 23;
        /// Event filters.
        const EVENT_FILTER = 1 << 24;
        /// Attribute [`Attributes::ICSSD`](crate::Attributes::ICSSD).
        const ICSSD = 1 << 25;
        /// Profiling by fixed counters 1 and 2.
        const FIXED_CTR12_PROF = 1 << 26;
        /// MAXPA virtualisation.
        const MAXPA_VIRT = 1 << 27;
        /// Advanced performance extensions (APX).
        const APX = 1 << 28;
        /// CPUID leaf 2 is virtual.
        const CPUID2_VIRT = 1 << 29;
        /// Fewer #VE.
        const VE_REDUCTION = 1 << 30;
        /// Event filters with more operators.
        const ENHANCED_EVENT_FILTER = 1 << 31;
        /// TDX Connect together with TD partitioning.
        const TDX_CONNECT_PARTITIONING = 1 << 32;
        /// MAXGPA virtualisation.
        const MAXGPA_VIRT = 1 << 33;
        /// Dynamic PAMT.
        const DYNAMIC_PAMT = 1 << 36;
        /// Diagnostics of fatal errors.
        const FATAL_DIAGNOSTICS = 1 << 37;
        /// Page release.
        const PAGE_RELEASE = 1 << 38;
        /// Bit 39 (NRX; also called module extensions).
        const NRX = 1 << 39;
        /// Enhanced interrupt state.
        const ENHANCED_INTERRUPT_STATE = 1 << 40;
        /// Export without write-blocking.
        const NON_BLOCKING_EXPORT = 1 << 41;
        /// Bit 42 (`perf_mask`).
        const PERF_MASK = 1 << 42;
        /// Scan during export and restore.
        const SCAN_EXPORT_RESTORE = 1 << 43;
        /// Per-page status of imports.
        const IMPORT_PAGE_STATUS = 1 << 44;
        /// Enhanced interrupt virtualisation.
        const ENHANCED_INTERRUPT_VIRT = 1 << 45;
        /// #VE information on interrupts.
        const VE_INFO_ON_INTERRUPT = 1 << 46;
        /// Compatibility of updates.
        const UPDATE_COMPATIBILITY = 1 << 47;
        /// Service TDs can be bound again.
        const SERVTD_REBIND = 1 << 48;
        /// TD and VM ids.
        const TDID_VMID = 1 << 49;
        /// DEMOTE of a TD without L2 VMs is never interrupted.
        const ENHANCED_DEMOTE_INTERRUPTIBILITY = 1 << 51;
        /// Migration of read-only debug TDs.
        const DEBUG_RO_MIGRATION = 1 << 52;
        /// The module can be disabled.
        const SYS_DISABLE = 1 << 53;
        /// Lists report the number of errors.
        const LIST_ERROR_COUNT = 1 << 54;
        /// Sealing keys of 128 bits.
        const SEAL_KEY_128 = 1 << 56;
        /// Sealing keys of 256 bits.
        const SEAL_KEY_256 = 1 << 57;
        const _ = !0;
    }
}
