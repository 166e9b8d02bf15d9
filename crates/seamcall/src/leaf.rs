//! Leaf numbers and interface versions: what goes into `RAX`.

use core::fmt;

/// A SEAMCALL leaf and the version of its interface.
///
/// ```
/// use seamcall::Leaf;
/// assert_eq!(Leaf::MEM_PAGE_DEMOTE.rax(), 0xf);
/// assert_eq!(Leaf::MEM_SEPT_REMOVE.version(1).rax(), 0x1_001e);
/// assert_eq!(Leaf::MEM_TRACK.to_string(), "TDH.MEM.TRACK");
/// ```
///
/// Names are for all leaves of modules 1.5 and 2.0; functions for those that this crate covers.
///
/// Source: TDX module ABI, "SEAMCALL (TDH) leaf functions"; `include/tdx_api_defs.h`,
/// `src/vmm_dispatcher/tdx_vmm_dispatcher.c` of modules 1.5.01, 1.5.34 and 2.0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf {
    number: u16,
    version: u8,
}

macro_rules! leaves {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Leaf {
            $(
                #[doc = concat!("`", $text, "`, leaf ", $number, ", version 0.")]
                pub const $name: Self = Self::new($number);
            )*

            /// Every named leaf, version 0.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The ABI's name of the leaf; `None` for a number that this crate does not know.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.number {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

leaves! {
    VP_ENTER = 0, "TDH.VP.ENTER";
    MNG_ADDCX = 1, "TDH.MNG.ADDCX";
    MEM_PAGE_ADD = 2, "TDH.MEM.PAGE.ADD";
    MEM_SEPT_ADD = 3, "TDH.MEM.SEPT.ADD";
    VP_ADDCX = 4, "TDH.VP.ADDCX";
    MEM_PAGE_RELOCATE = 5, "TDH.MEM.PAGE.RELOCATE";
    MEM_PAGE_AUG = 6, "TDH.MEM.PAGE.AUG";
    MEM_RANGE_BLOCK = 7, "TDH.MEM.RANGE.BLOCK";
    MNG_KEY_CONFIG = 8, "TDH.MNG.KEY.CONFIG";
    MNG_CREATE = 9, "TDH.MNG.CREATE";
    VP_CREATE = 10, "TDH.VP.CREATE";
    MNG_RD = 11, "TDH.MNG.RD";
    MEM_RD = 12, "TDH.MEM.RD";
    MNG_WR = 13, "TDH.MNG.WR";
    MEM_WR = 14, "TDH.MEM.WR";
    MEM_PAGE_DEMOTE = 15, "TDH.MEM.PAGE.DEMOTE";
    MR_EXTEND = 16, "TDH.MR.EXTEND";
    MR_FINALIZE = 17, "TDH.MR.FINALIZE";
    VP_FLUSH = 18, "TDH.VP.FLUSH";
    MNG_VPFLUSHDONE = 19, "TDH.MNG.VPFLUSHDONE";
    MNG_KEY_FREEID = 20, "TDH.MNG.KEY.FREEID";
    MNG_INIT = 21, "TDH.MNG.INIT";
    VP_INIT = 22, "TDH.VP.INIT";
    MEM_PAGE_PROMOTE = 23, "TDH.MEM.PAGE.PROMOTE";
    PHYMEM_PAGE_RDMD = 24, "TDH.PHYMEM.PAGE.RDMD";
    MEM_SEPT_RD = 25, "TDH.MEM.SEPT.RD";
    VP_RD = 26, "TDH.VP.RD";
    MNG_KEY_RECLAIMID = 27, "TDH.MNG.KEY.RECLAIMID";
    PHYMEM_PAGE_RECLAIM = 28, "TDH.PHYMEM.PAGE.RECLAIM";
    MEM_PAGE_REMOVE = 29, "TDH.MEM.PAGE.REMOVE";
    MEM_SEPT_REMOVE = 30, "TDH.MEM.SEPT.REMOVE";
    SYS_KEY_CONFIG = 31, "TDH.SYS.KEY.CONFIG";
    SYS_INFO = 32, "TDH.SYS.INFO";
    SYS_INIT = 33, "TDH.SYS.INIT";
    SYS_RD = 34, "TDH.SYS.RD";
    SYS_LP_INIT = 35, "TDH.SYS.LP.INIT";
    SYS_TDMR_INIT = 36, "TDH.SYS.TDMR.INIT";
    SYS_RDALL = 37, "TDH.SYS.RDALL";
    MEM_TRACK = 38, "TDH.MEM.TRACK";
    MEM_RANGE_UNBLOCK = 39, "TDH.MEM.RANGE.UNBLOCK";
    PHYMEM_CACHE_WB = 40, "TDH.PHYMEM.CACHE.WB";
    PHYMEM_PAGE_WBINVD = 41, "TDH.PHYMEM.PAGE.WBINVD";
    MEM_SEPT_WR = 42, "TDH.MEM.SEPT.WR";
    VP_WR = 43, "TDH.VP.WR";
    SYS_LP_SHUTDOWN = 44, "TDH.SYS.LP.SHUTDOWN";
    SYS_CONFIG = 45, "TDH.SYS.CONFIG";
    SERVTD_BIND = 48, "TDH.SERVTD.BIND";
    SERVTD_PREBIND = 49, "TDH.SERVTD.PREBIND";
    SYS_SHUTDOWN = 52, "TDH.SYS.SHUTDOWN";
    SYS_UPDATE = 53, "TDH.SYS.UPDATE";
    PHYMEM_PAMT_ADD = 58, "TDH.PHYMEM.PAMT.ADD";
    PHYMEM_PAMT_REMOVE = 59, "TDH.PHYMEM.PAMT.REMOVE";
    EXPORT_ABORT = 64, "TDH.EXPORT.ABORT";
    EXPORT_BLOCKW = 65, "TDH.EXPORT.BLOCKW";
    EXPORT_RESTORE = 66, "TDH.EXPORT.RESTORE";
    EXPORT_MEM = 68, "TDH.EXPORT.MEM";
    EXPORT_PAUSE = 70, "TDH.EXPORT.PAUSE";
    EXPORT_TRACK = 71, "TDH.EXPORT.TRACK";
    EXPORT_STATE_IMMUTABLE = 72, "TDH.EXPORT.STATE.IMMUTABLE";
    EXPORT_STATE_TD = 73, "TDH.EXPORT.STATE.TD";
    EXPORT_STATE_VP = 74, "TDH.EXPORT.STATE.VP";
    EXPORT_UNBLOCKW = 75, "TDH.EXPORT.UNBLOCKW";
    IMPORT_ABORT = 80, "TDH.IMPORT.ABORT";
    IMPORT_END = 81, "TDH.IMPORT.END";
    IMPORT_COMMIT = 82, "TDH.IMPORT.COMMIT";
    IMPORT_MEM = 83, "TDH.IMPORT.MEM";
    IMPORT_TRACK = 84, "TDH.IMPORT.TRACK";
    IMPORT_STATE_IMMUTABLE = 85, "TDH.IMPORT.STATE.IMMUTABLE";
    IMPORT_STATE_TD = 86, "TDH.IMPORT.STATE.TD";
    IMPORT_STATE_VP = 87, "TDH.IMPORT.STATE.VP";
    MEM_SCAN_RANGE = 92, "TDH.MEM.SCAN.RANGE";
    MEM_SCAN_COMP = 93, "TDH.MEM.SCAN.COMP";
    MEM_SCAN_CONFIG = 94, "TDH.MEM.SCAN.CONFIG";
    MEM_SCAN_RESET = 95, "TDH.MEM.SCAN.RESET";
    MIG_STREAM_CREATE = 96, "TDH.MIG.STREAM.CREATE";
    SERVTD_REBIND = 97, "TDH.SERVTD.REBIND";
    IOMMU_SETREG = 128, "TDH.IOMMU.SETREG";
    IOMMU_GETREG = 129, "TDH.IOMMU.GETREG";
    SPDM_CREATE = 130, "TDH.SPDM.CREATE";
    SPDM_DELETE = 131, "TDH.SPDM.DELETE";
    IDE_STREAM_CREATE = 132, "TDH.IDE.STREAM.CREATE";
    IDE_STREAM_BLOCK = 133, "TDH.IDE.STREAM.BLOCK";
    IDE_STREAM_DELETE = 134, "TDH.IDE.STREAM.DELETE";
    IDE_STREAM_IDEKMREQ = 135, "TDH.IDE.STREAM.IDEKMREQ";
    IDE_STREAM_IDEKMRSP = 136, "TDH.IDE.STREAM.IDEKMRSP";
    DEVIF_CREATE = 137, "TDH.DEVIF.CREATE";
    DEVIF_REMOVE = 138, "TDH.DEVIF.REMOVE";
    DEVIF_REQUEST = 139, "TDH.DEVIF.REQUEST";
    DEVIF_RESPONSE = 140, "TDH.DEVIF.RESPONSE";
    DMAR_ADD = 150, "TDH.DMAR.ADD";
    DMAR_BLOCK = 151, "TDH.DMAR.BLOCK";
    DMAR_READ = 152, "TDH.DMAR.READ";
    DMAR_REMOVE = 153, "TDH.DMAR.REMOVE";
    MMIO_MT_ADD = 154, "TDH.MMIO.MT.ADD";
    MMIO_MT_SET = 155, "TDH.MMIO.MT.SET";
    MMIO_MT_RD = 156, "TDH.MMIO.MT.RD";
    MMIO_MT_REMOVE = 157, "TDH.MMIO.MT.REMOVE";
    MMIO_MAP = 158, "TDH.MMIO.MAP";
    MMIO_BLOCK = 159, "TDH.MMIO.BLOCK";
    MMIO_UNMAP = 160, "TDH.MMIO.UNMAP";
    IQ_INV_REQUEST = 161, "TDH.IQ.INV.REQUEST";
    IQ_INV_PROCESS = 162, "TDH.IQ.INV.PROCESS";
    MEM_SHARED_SEPT_WR = 163, "TDH.MEM.SHARED.SEPT.WR";
    DEVIF_MT_ADD = 164, "TDH.DEVIF.MT.ADD";
    DEVIF_MT_REMOVE = 165, "TDH.DEVIF.MT.REMOVE";
    DEVIF_MT_RD = 166, "TDH.DEVIF.MT.RD";
}

impl Leaf {
    /// The leaf with this number, named or not, version 0.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self { number, version: 0 }
    }

    /// The same leaf with another interface version.
    #[must_use]
    pub const fn version(self, version: u8) -> Self {
        Self { number: self.number, version }
    }

    /// The leaf that `rax` selects: number in bits 15:0, version in bits 23:16, the rest ignored.
    #[must_use]
    pub const fn from_rax(rax: u64) -> Self {
        let [low, high, version, ..] = rax.to_le_bytes();
        Self { number: u16::from_le_bytes([low, high]), version }
    }

    /// The leaf number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.number
    }

    /// The interface version.
    #[must_use]
    pub const fn interface(self) -> u8 {
        self.version
    }

    /// The selector to load into `RAX`.
    #[must_use]
    pub const fn rax(self) -> u64 {
        self.number as u64 | (self.version as u64) << 16
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "leaf {}", self.number)?,
        }
        match self.version {
            0 => Ok(()),
            version => write!(f, " v{version}"),
        }
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
