//! Encodings of VMCS fields. Source: Intel SDM volume 3, appendix B.

use core::ops::RangeInclusive;

pub(super) const EPT_POINTER: u64 = 0x201a;
pub(super) const GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
pub(super) const LINK_POINTER: u64 = 0x2800;

pub(super) const PIN_BASED: u64 = 0x4000;
pub(super) const PROC_BASED: u64 = 0x4002;
pub(super) const VM_EXIT: u64 = 0x400c;
pub(super) const VM_ENTRY: u64 = 0x4012;
pub(super) const PROC_BASED_2: u64 = 0x401e;
pub(super) const INSTRUCTION_ERROR: u64 = 0x4400;
pub(super) const EXIT_REASON: u64 = 0x4402;
pub(super) const EXIT_QUALIFICATION: u64 = 0x6400;

pub(super) const GUEST_ES_LIMIT: u64 = 0x4800;
pub(super) const GUEST_CS_LIMIT: u64 = 0x4802;
pub(super) const GUEST_SS_LIMIT: u64 = 0x4804;
pub(super) const GUEST_DS_LIMIT: u64 = 0x4806;
pub(super) const GUEST_FS_LIMIT: u64 = 0x4808;
pub(super) const GUEST_GS_LIMIT: u64 = 0x480a;
pub(super) const GUEST_TR_LIMIT: u64 = 0x480e;
pub(super) const GUEST_ES_ATTRIBUTES: u64 = 0x4814;
pub(super) const GUEST_CS_ATTRIBUTES: u64 = 0x4816;
pub(super) const GUEST_SS_ATTRIBUTES: u64 = 0x4818;
pub(super) const GUEST_DS_ATTRIBUTES: u64 = 0x481a;
pub(super) const GUEST_FS_ATTRIBUTES: u64 = 0x481c;
pub(super) const GUEST_GS_ATTRIBUTES: u64 = 0x481e;
pub(super) const GUEST_LDTR_ATTRIBUTES: u64 = 0x4820;
pub(super) const GUEST_TR_ATTRIBUTES: u64 = 0x4822;
pub(super) const GUEST_CR0: u64 = 0x6800;
pub(super) const GUEST_CR4: u64 = 0x6804;
pub(super) const GUEST_DR7: u64 = 0x681a;
pub(super) const GUEST_RIP: u64 = 0x681e;
pub(super) const GUEST_RFLAGS: u64 = 0x6820;

pub(super) const HOST_CS: u64 = 0x0c02;
pub(super) const HOST_SS: u64 = 0x0c04;
pub(super) const HOST_TR: u64 = 0x0c0c;
pub(super) const HOST_CR0: u64 = 0x6c00;
pub(super) const HOST_CR3: u64 = 0x6c02;
pub(super) const HOST_CR4: u64 = 0x6c04;
pub(super) const HOST_TR_BASE: u64 = 0x6c0a;
pub(super) const HOST_GDTR_BASE: u64 = 0x6c0c;
pub(super) const HOST_IDTR_BASE: u64 = 0x6c0e;
pub(super) const HOST_RSP: u64 = 0x6c14;
pub(super) const HOST_RIP: u64 = 0x6c16;

/// Fields that an entry looks at and that are zero here: no event, no hook, no MSR, null selectors, bases of zero.
/// Neighbours in a range are two apart.
pub(super) const ZERO: [RangeInclusive<u64>; 18] = [
    0x0800..=0x080e, // guest selectors
    0x0c00..=0x0c0a, // host selectors
    0x2802..=0x2802, // guest IA32_DEBUGCTL
    0x4004..=0x400a, // exception bitmap, page-fault filter, CR3 targets
    0x400e..=0x4010, // MSRs at exits
    0x4014..=0x4016, // MSRs and event at entries
    0x480c..=0x480c, // guest LDTR limit
    0x4810..=0x4812, // guest GDTR and IDTR limits
    0x4824..=0x4826, // guest interruptibility and activity
    0x482a..=0x482a, // guest IA32_SYSENTER_CS
    0x4c00..=0x4c00, // host IA32_SYSENTER_CS
    0x6000..=0x6006, // CR0 and CR4 masks and shadows
    0x6802..=0x6802, // guest CR3
    0x6806..=0x6818, // guest bases
    0x681c..=0x681c, // guest RSP
    0x6822..=0x6826, // guest pending debug exceptions, IA32_SYSENTER_ESP and EIP
    0x6c06..=0x6c08, // host FS and GS bases
    0x6c10..=0x6c12, // host IA32_SYSENTER_ESP and EIP
];
