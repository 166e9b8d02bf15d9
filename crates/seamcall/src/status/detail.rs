//! Bits 31:0 of a status: which operand, which level, which count.

use super::{SOFTWARE_CLASS, Status};
use core::fmt;

/// Statuses of this class name a place in a list of fields, not an operand.
const METADATA_CLASS: u8 = 0x0c;

/// What a status was about: a register, a field of a structure, or a lock.
///
/// Source: TDX module ABI, "Function Completion Status: Operand IDs"; `include/auto_gen/tdx_error_codes_defs.h` of the
/// module, versions 1.5.01, 1.5.34 and 2.0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand(u32);

macro_rules! operands {
    ($($name:ident = $id:literal;)*) => {
        impl Operand {
            $(
                #[doc = concat!("Operand id ", $id, ".")]
                pub const $name: Self = Self($id);
            )*

            /// Every named operand.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name, if the id has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($id => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

operands! {
    RAX = 0;
    RCX = 1;
    RDX = 2;
    RBX = 3;
    RBP = 5;
    RSI = 6;
    RDI = 7;
    R8 = 8;
    R9 = 9;
    R10 = 10;
    R11 = 11;
    R12 = 12;
    R13 = 13;
    R14 = 14;
    R15 = 15;
    ATTRIBUTES = 64;
    XFAM = 65;
    CONFIG_FLAGS = 66;
    EPTP_CONTROLS = 67;
    MAX_VCPUS = 68;
    CPUID_CONFIG = 69;
    TSC_FREQUENCY = 70;
    NUM_L2_VMS = 71;
    IA32_ARCH_CAPABILITIES_CONFIG = 72;
    PAGE = 95;
    TDMR_INFO_PA = 96;
    GPA_LIST_ENTRY = 97;
    MIG_BUFF_LIST_ENTRY = 98;
    NEW_PAGE_LIST_ENTRY = 99;
    KEYNAME = 100;
    MEM_SCAN_CONTEXT = 105;
    GPA_RANGE_LIST_ENTRY = 106;
    GPA_LIST_INFO_ENTRY = 107;
    KEYSIZE_BITMAP = 108;
    TDR = 128;
    TDCX = 129;
    TDVPR = 130;
    REG_PAGE = 132;
    TDCS = 144;
    TDVPS = 145;
    SEPT_TREE = 146;
    SEPT_ENTRY = 147;
    RTMR = 168;
    TD_EPOCH = 169;
    L2_VAPIC_GPA = 170;
    MIGSC = 171;
    OP_STATE = 172;
    MIG = 173;
    SERVTD_BINDINGS = 174;
    PASID_TRK = 175;
    METADATA_FIELD = 176;
    NUM_VCPUS = 177;
    CPUID_FIXED0_BITMAP = 178;
    SYS = 184;
    TDMR = 185;
    KOT = 186;
    KET = 187;
    WBCACHE = 188;
    MEM_SCAN_STATE = 190;
    PASIDMT = 256;
    MMIOMT = 257;
    SPDMMT = 258;
    DMAR = 320;
}

impl Operand {
    /// The operand with this id, named or not.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The id.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bits 31:0 of a status, read as its code says. [`Detail::raw`] gives the same 32 bits back.
///
/// Source: TDX module ABI, "Function Completion Status"; where module 1.5.01 makes each status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Detail {
    /// Nothing.
    None,
    /// The operand that was refused or busy.
    Operand(Operand),
    /// An S-EPT level (ACCEPT: the level found).
    Level(u32),
    /// Where the walk of an L2 S-EPT stopped.
    L2 {
        /// The L2 VM, 1 to 3.
        vm: u16,
        /// The level reached.
        level: u16,
    },
    /// SYS.CONFIG: index of a TDMR, then page size, reserved area or other TDMR, by the code.
    Tdmr([u8; 4]),
    /// A CPUID leaf.
    Cpuid(u32),
    /// The address of an MSR.
    Msr(u32),
    /// The op state of the TD or the state of the vCPU that was found.
    State(u32),
    /// The x2APIC id that another vCPU has.
    X2ApicId(u32),
    /// Which one, from 0: page of a pair (PAMT.REMOVE), SMRR or package (SYS.INIT, SYS.LP.INIT), event filter
    /// (MNG.INIT), slot of a service TD.
    Index(u32),
    /// How many: key ids that the module can deal with (SYS.INIT).
    Count(u32),
    /// A VMX exit reason (VP.ENTER).
    ExitReason(u32),
    /// Something this crate has no reading for.
    Other(u32),
}

impl Detail {
    /// The 32 bits.
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Operand(operand) => operand.0,
            Self::L2 { vm, level } => (vm as u32) << 16 | level as u32,
            Self::Tdmr(bytes) => u32::from_le_bytes(bytes),
            Self::Level(raw)
            | Self::Cpuid(raw)
            | Self::Msr(raw)
            | Self::State(raw)
            | Self::X2ApicId(raw)
            | Self::Index(raw)
            | Self::Count(raw)
            | Self::ExitReason(raw)
            | Self::Other(raw) => raw,
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Operand(operand) => write!(f, "|{operand}"),
            Self::Level(level) => write!(f, "|level {level}"),
            Self::L2 { vm, level } => write!(f, "|VM {vm} level {level}"),
            Self::Tdmr([index, other, ..]) => write!(f, "|TDMR {index}, {other}"),
            Self::Cpuid(leaf) => write!(f, "|CPUID {leaf:#x}"),
            Self::Msr(address) => write!(f, "|MSR {address:#x}"),
            Self::State(state) => write!(f, "|state {state}"),
            Self::X2ApicId(id) => write!(f, "|x2APIC id {id}"),
            Self::Index(number) | Self::Count(number) => write!(f, "|{number}"),
            Self::ExitReason(reason) => write!(f, "|exit reason {reason}"),
            Self::Other(raw) => write!(f, "|{raw:#x}"),
        }
    }
}

impl Status {
    /// Bits 31:0, read as the code says.
    #[must_use]
    pub const fn detail(self) -> Detail {
        let raw = self.low();
        let [b0, b1, b2, b3] = raw.to_le_bytes();
        match self.code() {
            Self::SUCCESS if raw == 0 => Detail::None,
            Self::OPERAND_INVALID | Self::OPERAND_ADDR_RANGE_ERROR | Self::OPERAND_BUSY => {
                Detail::Operand(Operand(raw))
            }
            Self::NOT_ISSUED => Detail::Operand(Operand(raw)),
            Self::L2_SEPT_WALK_FAILED | Self::L2_SEPT_ENTRY_NOT_FREE => {
                Detail::L2 { vm: u16::from_le_bytes([b2, b3]), level: u16::from_le_bytes([b0, b1]) }
            }
            Self::PAGE_SIZE_MISMATCH | Self::PAGE_ALREADY_ACCEPTED => Detail::Level(raw),
            Self::PAMT_PAGE_NOT_EMPTY
            | Self::SMRR_NOT_LOCKED
            | Self::INVALID_SMRR_CONFIGURATION
            | Self::INVALID_PKG_ID
            | Self::EVENT_FILTER_INVALID
            | Self::EVENT_FILTER_ORDER_INVALID => Detail::Index(raw),
            Self::X2APIC_ID_NOT_UNIQUE => Detail::X2ApicId(raw),
            Self::SUCCESS => Detail::ExitReason(raw),
            Self::INCORRECT_CPUID_VALUE
            | Self::INCONSISTENT_CPUID_FIELD
            | Self::CPUID_MAX_SUBLEAVES_UNRECOGNIZED
            | Self::CPUID_LEAF_NOT_SUPPORTED => Detail::Cpuid(raw),
            Self::INVALID_TDMR
            | Self::NON_ORDERED_TDMR
            | Self::TDMR_OUTSIDE_CMRS
            | Self::INVALID_PAMT
            | Self::PAMT_OUTSIDE_CMRS
            | Self::PAMT_OVERLAP
            | Self::INVALID_RESERVED_IN_TDMR
            | Self::NON_ORDERED_RESERVED_IN_TDMR => Detail::Tdmr([b0, b1, b2, b3]),
            // Exception or NMI, a machine check among them, is reason 0.
            Self::NON_RECOVERABLE_VCPU
            | Self::NON_RECOVERABLE_TD
            | Self::NON_RECOVERABLE_TD_NON_ACCESSIBLE
            | Self::NON_RECOVERABLE_TD_WRONG_APIC_MODE
            | Self::L2_EXIT_HOST_ROUTED_ASYNC
            | Self::L2_EXIT_HOST_ROUTED_TDVMCALL
            | Self::L2_EXIT_PENDING_INTERRUPT
            | Self::TD_EXIT_ON_L2_VM_EXIT
            | Self::TD_EXIT_ON_L2_TO_L1 => Detail::ExitReason(raw),
            Self::SERVTD_NOT_BOUND => Detail::Index(raw),
            _ if raw == 0 => Detail::None,
            Self::OP_STATE_INCORRECT | Self::VCPU_STATE_INCORRECT => Detail::State(raw),
            Self::INCORRECT_MSR_VALUE | Self::INCONSISTENT_MSR => Detail::Msr(raw),
            Self::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED => Detail::Count(raw),
            // Made without a reason by the modules read.
            Self::NON_RECOVERABLE_TD_CORRUPTED_MD | Self::CROSS_TD_FAULT | Self::CROSS_TD_TRAP => {
                Detail::ExitReason(raw)
            }
            Self::TD_VMCS_FIELD_NOT_INITIALIZED | Self::TD_VMCS_FIELD_ERROR | Self::SMRR_OVERLAPS_CMR => {
                Detail::Other(raw)
            }
            _ if self.class_number() == METADATA_CLASS => Detail::Other(raw),
            _ if self.name().is_none() || self.class_number() == SOFTWARE_CLASS => Detail::Other(raw),
            _ => Detail::Operand(Operand(raw)),
        }
    }

    /// The operand the status names, if its detail is one.
    #[must_use]
    pub const fn operand(self) -> Option<Operand> {
        match self.detail() {
            Detail::Operand(operand) => Some(operand),
            _ => None,
        }
    }
}
