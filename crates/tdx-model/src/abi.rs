//! Numbers of the ABI: leaves, status codes, operand ids, page types, operation states.
//!
//! TDX module ABI, "Completion status", "Leaf numbers" and "Physical page types".

/// A completion status: bits 63:32 are the code, 31:0 the operand id or another detail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(
    /// The value of RAX.
    pub u64,
);

impl Status {
    /// No answer of the module but of SEAMCALL itself (VMfailInvalid), in the form that hosts give it: there is no module
    /// any more.
    pub const VM_FAIL_INVALID: Self = Self(0x8000_FF00_FFFF_0000);

    /// The code without its detail.
    #[must_use]
    pub const fn code(self) -> u64 {
        self.0 & 0xFFFF_FFFF_0000_0000
    }

    /// This status naming an operand.
    #[must_use]
    pub const fn of(self, operand: Operand) -> Self {
        Self(self.0 | operand as u64)
    }

    /// This status with a raw detail in bits 31:0.
    #[must_use]
    pub const fn detail(self, detail: u32) -> Self {
        Self(self.0 | detail as u64)
    }

    /// The name of the code, as in the ABI, if the model knows it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(status, _)| status.0 == self.code()).map(|(_, name)| *name)
    }
}

impl core::fmt::Debug for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}|{:#x}", self.0 & 0xFFFF_FFFF),
            None => write!(f, "{:#018x}", self.0),
        }
    }
}

/// The id of an operand in bits 31:0 of a status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "each is the operand of that name in the ABI")]
pub enum Operand {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    Attributes = 64,
    Xfam = 65,
    ConfigFlags = 66,
    EptpControls = 67,
    MaxVcpus = 68,
    TscFrequency = 70,
    NumL2Vms = 71,
    GpaListEntry = 97,
    Tdr = 128,
    SeptTree = 146,
    TdEpoch = 169,
    OpState = 172,
    KeyTable = 186,
    WbCache = 188,
}

impl Operand {
    /// R9, R10 or R11: the register that carries the L2 page of virtual machine 1, 2 or 3.
    pub(crate) const fn l2_page(vm: usize) -> Self {
        match vm {
            1 => Self::R9,
            2 => Self::R10,
            _ => Self::R11,
        }
    }
}

macro_rules! statuses {
    ($($name:ident = $value:literal),* $(,)?) => {
        impl Status {
            $(#[doc = concat!("`TDX_", stringify!($name), "`.")] pub const $name: Self = Self($value);)*
        }
        const NAMES: &[(Status, &str)] = &[$((Status::$name, concat!("TDX_", stringify!($name)))),*];
    };
}

statuses! {
    SUCCESS = 0,
    NON_RECOVERABLE_TD = 0x6000_0002_0000_0000,
    NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x6000_0005_0000_0000,
    INTERRUPTED_RESUMABLE = 0x8000_0003_0000_0000,
    INTERRUPTED_RESTARTABLE = 0x8000_0004_0000_0000,
    OPERAND_INVALID = 0xC000_0100_0000_0000,
    OPERAND_ADDR_RANGE_ERROR = 0xC000_0101_0000_0000,
    OPERAND_BUSY = 0x8000_0200_0000_0000,
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201_0000_0000,
    RND_NO_ENTROPY = 0x8000_0203_0000_0000,
    OPERAND_BUSY_HOST_PRIORITY = 0x8000_0204_0000_0000,
    HOST_PRIORITY_BUSY_TIMEOUT = 0x9000_0205_0000_0000,
    PAGE_METADATA_INCORRECT = 0xC000_0300_0000_0000,
    PAGE_NOT_FREE = 0xC000_0303_0000_0000,
    HPA_RANGE_NOT_FREE = 0xC000_0304_0000_0000,
    NO_PAMT_PAGE_PAIR = 0xC000_0305_0000_0000,
    PAMT_PAGE_NOT_EMPTY = 0xC000_0306_0000_0000,
    MISSING_PAMT_PAGE_PAIR = 0x8000_0308_0000_0000,
    TD_ASSOCIATED_PAGES_EXIST = 0xC000_0400_0000_0000,
    SYS_INIT_NOT_PENDING = 0xC000_0500_0000_0000,
    SYS_LP_INIT_NOT_DONE = 0xC000_0502_0000_0000,
    SYS_LP_INIT_DONE = 0xC000_0503_0000_0000,
    SYS_NOT_READY = 0xC000_0505_0000_0000,
    SYS_SHUTDOWN = 0xC000_0506_0000_0000,
    SYS_KEY_CONFIG_NOT_PENDING = 0xC000_0507_0000_0000,
    SYS_LP_INIT_NOT_PENDING = 0xC000_050B_0000_0000,
    SYS_CONFIG_NOT_PENDING = 0xC000_050C_0000_0000,
    TD_FATAL = 0xE000_0604_0000_0000,
    TD_NON_DEBUG = 0xC000_0605_0000_0000,
    TDCS_NOT_ALLOCATED = 0xC000_0606_0000_0000,
    LIFECYCLE_STATE_INCORRECT = 0xC000_0607_0000_0000,
    X2APIC_ID_NOT_UNIQUE = 0xC000_0621_0000_0000,
    OP_STATE_INCORRECT = 0xC000_0608_0000_0000,
    NO_VCPUS = 0xC000_0609_0000_0000,
    TDCX_NUM_INCORRECT = 0xC000_0610_0000_0000,
    VCPU_STATE_INCORRECT = 0xC000_0700_0000_0000,
    VCPU_ASSOCIATED = 0x8000_0701_0000_0000,
    VCPU_NOT_ASSOCIATED = 0x8000_0702_0000_0000,
    MAX_VCPUS_EXCEEDED = 0xC000_0705_0000_0000,
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810_0000_0000,
    KEY_CONFIGURED = 0x0000_0815_0000_0000,
    WBCACHE_NOT_COMPLETE = 0x8000_0817_0000_0000,
    HKID_NOT_FREE = 0xC000_0820_0000_0000,
    NO_HKID_READY_TO_WBCACHE = 0x0000_0821_0000_0000,
    WBCACHE_RESUME_ERROR = 0xC000_0823_0000_0000,
    FLUSHVP_NOT_DONE = 0x8000_0824_0000_0000,
    INVALID_TDMR = 0xC000_0A00_0000_0000,
    NON_ORDERED_TDMR = 0xC000_0A01_0000_0000,
    TDMR_OUTSIDE_CMRS = 0xC000_0A02_0000_0000,
    TDMR_ALREADY_INITIALIZED = 0x0000_0A03_0000_0000,
    INVALID_PAMT = 0xC000_0A10_0000_0000,
    PAMT_OUTSIDE_CMRS = 0xC000_0A11_0000_0000,
    PAMT_OVERLAP = 0xC000_0A12_0000_0000,
    INVALID_RESERVED_IN_TDMR = 0xC000_0A20_0000_0000,
    NON_ORDERED_RESERVED_IN_TDMR = 0xC000_0A21_0000_0000,
    EPT_WALK_FAILED = 0xC000_0B00_0000_0000,
    EPT_ENTRY_NOT_PRESENT = 0xC000_0B03_0000_0000,
    GPA_RANGE_NOT_BLOCKED = 0xC000_0B06_0000_0000,
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0B07_0000_0000,
    TLB_TRACKING_NOT_DONE = 0xC000_0B08_0000_0000,
    EPT_INVALID_PROMOTE_CONDITIONS = 0xC000_0B09_0000_0000,
    PAGE_ALREADY_ACCEPTED = 0x0000_0B0A_0000_0000,
    PAGE_SIZE_MISMATCH = 0xC000_0B0B_0000_0000,
    EPT_ENTRY_STATE_INCORRECT = 0xC000_0B0D_0000_0000,
    EPT_PAGE_NOT_FREE = 0xC000_0B0E_0000_0000,
    L2_SEPT_WALK_FAILED = 0xC000_0B0F_0000_0000,
    L2_SEPT_ENTRY_NOT_FREE = 0xC000_0B10_0000_0000,
    PAGE_ATTR_INVALID = 0xC000_0B11_0000_0000,
    L2_SEPT_PAGE_NOT_PROVIDED = 0xC000_0B12_0000_0000,
    METADATA_FIELD_ID_INCORRECT = 0xC000_0C00_0000_0000,
    METADATA_FIELD_NOT_WRITABLE = 0xC000_0C01_0000_0000,
    METADATA_FIELD_NOT_READABLE = 0xC000_0C02_0000_0000,
    METADATA_FIELD_VALUE_NOT_VALID = 0xC000_0C03_0000_0000,
    METADATA_WR_MASK_NOT_VALID = 0xC000_0C0A_0000_0000,
    METADATA_FIRST_FIELD_ID_IN_CONTEXT = 0x0000_0C0B_0000_0000,
}

macro_rules! leaves {
    ($($name:ident = $number:literal, $label:literal),* $(,)?) => {
        /// A SEAMCALL leaf that the model knows.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Leaf { $(#[doc = concat!("`", $label, "`.")] $name = $number),* }

        impl Leaf {
            /// Every leaf of the model.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The leaf of that number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The name in the ABI.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }
        }
    };
}

leaves! {
    VpEnter = 0, "TDH.VP.ENTER",
    MngAddCx = 1, "TDH.MNG.ADDCX",
    PageAdd = 2, "TDH.MEM.PAGE.ADD",
    SeptAdd = 3, "TDH.MEM.SEPT.ADD",
    VpAddCx = 4, "TDH.VP.ADDCX",
    PageRelocate = 5, "TDH.MEM.PAGE.RELOCATE",
    PageAug = 6, "TDH.MEM.PAGE.AUG",
    RangeBlock = 7, "TDH.MEM.RANGE.BLOCK",
    MngKeyConfig = 8, "TDH.MNG.KEY.CONFIG",
    MngCreate = 9, "TDH.MNG.CREATE",
    VpCreate = 10, "TDH.VP.CREATE",
    MngRd = 11, "TDH.MNG.RD",
    MemRd = 12, "TDH.MEM.RD",
    MngWr = 13, "TDH.MNG.WR",
    MemWr = 14, "TDH.MEM.WR",
    PageDemote = 15, "TDH.MEM.PAGE.DEMOTE",
    MrExtend = 16, "TDH.MR.EXTEND",
    MrFinalize = 17, "TDH.MR.FINALIZE",
    VpFlush = 18, "TDH.VP.FLUSH",
    MngVpFlushDone = 19, "TDH.MNG.VPFLUSHDONE",
    MngKeyFreeId = 20, "TDH.MNG.KEY.FREEID",
    MngInit = 21, "TDH.MNG.INIT",
    VpInit = 22, "TDH.VP.INIT",
    PagePromote = 23, "TDH.MEM.PAGE.PROMOTE",
    PhymemPageRdmd = 24, "TDH.PHYMEM.PAGE.RDMD",
    SeptRd = 25, "TDH.MEM.SEPT.RD",
    VpRd = 26, "TDH.VP.RD",
    MngKeyReclaimId = 27, "TDH.MNG.KEY.RECLAIMID",
    PhymemPageReclaim = 28, "TDH.PHYMEM.PAGE.RECLAIM",
    PageRemove = 29, "TDH.MEM.PAGE.REMOVE",
    SeptRemove = 30, "TDH.MEM.SEPT.REMOVE",
    SysKeyConfig = 31, "TDH.SYS.KEY.CONFIG",
    SysInfo = 32, "TDH.SYS.INFO",
    SysInit = 33, "TDH.SYS.INIT",
    SysRd = 34, "TDH.SYS.RD",
    SysLpInit = 35, "TDH.SYS.LP.INIT",
    SysTdmrInit = 36, "TDH.SYS.TDMR.INIT",
    MemTrack = 38, "TDH.MEM.TRACK",
    RangeUnblock = 39, "TDH.MEM.RANGE.UNBLOCK",
    PhymemCacheWb = 40, "TDH.PHYMEM.CACHE.WB",
    PhymemPageWbinvd = 41, "TDH.PHYMEM.PAGE.WBINVD",
    VpWr = 43, "TDH.VP.WR",
    SysLpShutdown = 44, "TDH.SYS.LP.SHUTDOWN",
    SysConfig = 45, "TDH.SYS.CONFIG",
    SysShutdown = 52, "TDH.SYS.SHUTDOWN",
    PhymemPamtAdd = 58, "TDH.PHYMEM.PAMT.ADD",
    PhymemPamtRemove = 59, "TDH.PHYMEM.PAMT.REMOVE",
    ExportBlockw = 65, "TDH.EXPORT.BLOCKW",
    ExportUnblockw = 75, "TDH.EXPORT.UNBLOCKW",
}

/// Type of a physical page in the PAMT.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PageType {
    /// Not assigned; for a larger entry also "look below".
    Nda = 0,
    /// In a reserved area of its TDMR.
    Rsvd = 1,
    /// Private memory of a TD.
    Reg = 3,
    /// TD root.
    Tdr = 4,
    /// Extension page of a TDCS or a TDVPS.
    Tdcx = 5,
    /// vCPU root.
    Tdvpr = 6,
    /// Secure EPT page, not the root.
    Ept = 8,
    /// A 2 MiB entry that points at a pair of Dynamic PAMT pages.
    Pamt = 15,
}

impl PageType {
    /// Decodes the stored byte.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Rsvd,
            3 => Self::Reg,
            4 => Self::Tdr,
            5 => Self::Tdcx,
            6 => Self::Tdvpr,
            8 => Self::Ept,
            15 => Self::Pamt,
            _ => Self::Nda,
        }
    }
}

/// TD life cycle, as kept in the TDR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Lifecycle {
    /// After MNG.CREATE.
    HkidAssigned = 0,
    /// After the last KEY.CONFIG.
    KeysConfigured = 1,
    /// After VPFLUSHDONE.
    Blocked = 2,
    /// After KEY.FREEID.
    Teardown = 3,
}

impl Lifecycle {
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::HkidAssigned),
            1 => Some(Self::KeysConfigured),
            2 => Some(Self::Blocked),
            3 => Some(Self::Teardown),
            _ => None,
        }
    }
}

/// TD operation states (numbers of the ABI) and the sets of them that leaves allow.
pub mod op_state {
    /// Before MNG.INIT.
    pub const UNINITIALIZED: u8 = 0;
    /// After MNG.INIT.
    pub const INITIALIZED: u8 = 1;
    /// After MR.FINALIZE.
    pub const RUNNABLE: u8 = 2;
    const UNINIT: u16 = 1 << 0;
    const INIT: u16 = 1 << 1;
    const RUN: u16 = 1 << 2;
    const LIVE_EXPORT: u16 = 1 << 3;
    const PAUSED_EXPORT: u16 = 1 << 4;
    const POST_EXPORT: u16 = 1 << 5;
    const MEM_IMPORT: u16 = 1 << 6;
    const STATE_IMPORT: u16 = 1 << 7;
    const POST_IMPORT: u16 = 1 << 8;
    const LIVE_IMPORT: u16 = 1 << 9;
    const FAILED_IMPORT: u16 = 1 << 10;

    pub(crate) const ANY: u16 = 0x7FF;
    pub(crate) const FRESH: u16 = UNINIT;
    pub(crate) const BUILD: u16 = INIT;
    pub(crate) const VP_BUILD: u16 = INIT | STATE_IMPORT;
    pub(crate) const ENTER: u16 = RUN | LIVE_EXPORT | LIVE_IMPORT;
    pub(crate) const AUG: u16 = INIT | RUN | LIVE_EXPORT | LIVE_IMPORT;
    pub(crate) const SEPT_ADD: u16 = AUG | MEM_IMPORT | STATE_IMPORT | POST_IMPORT;
    pub(crate) const REWORK: u16 =
        INIT | RUN | LIVE_EXPORT | PAUSED_EXPORT | POST_EXPORT | POST_IMPORT | LIVE_IMPORT;
    pub(crate) const PAGE_REMOVE: u16 = REWORK | FAILED_IMPORT;
    pub(crate) const SEPT_ANY: u16 = ANY & !UNINIT;
    pub(crate) const TRACK: u16 = SEPT_ANY & !FAILED_IMPORT;
    pub(crate) const MEM_WR: u16 = SEPT_ANY & !(PAUSED_EXPORT | POST_EXPORT);
    pub(crate) const BLOCKW: u16 = LIVE_EXPORT;
    pub(crate) const UNBLOCKW: u16 = RUN | LIVE_EXPORT | PAUSED_EXPORT | POST_EXPORT;
    /// States in which a running vCPU may hold translations: blocking and tracking are enforced.
    pub(crate) const TRACKED: u16 = RUN | LIVE_EXPORT | LIVE_IMPORT;
    /// States in which PAGE.REMOVE leaves REMOVED instead of FREE.
    pub(crate) const IMPORTING: u16 = MEM_IMPORT | STATE_IMPORT | POST_IMPORT | LIVE_IMPORT;

    /// Whether `state` is in the set `mask`.
    pub(crate) const fn within(state: u8, mask: u16) -> bool {
        state < 16 && mask & (1 << state) != 0
    }
}

/// "No page" in an operand.
pub const NULL_PA: u64 = u64::MAX;
/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Bytes covered by an entry of `level` (0 = 4 KiB).
#[must_use]
pub const fn size_of_level(level: u8) -> u64 {
    PAGE << (9 * level as u32)
}
