//! The header of a trace: the machine that each of its sequences starts from.

use serde::Deserialize;

use super::number::{Hex, Named, flag, number, optional};

#[derive(Deserialize)]
pub(super) struct Header {
    #[serde(default)]
    pub(super) module: String,
    #[serde(deserialize_with = "number")]
    pub(super) max_pa_bits: u32,
    pub(super) hkid: Hkid,
    pub(super) seamrr: Range,
    pub(super) tdmrs: Vec<Tdmr>,
    pub(super) sys_state: Option<Named>,
    #[serde(default)]
    pub(super) tds: Vec<Td>,
    #[serde(default)]
    pub(super) pamt_initial: Vec<PamtRow>,
    pub(super) dynamic_pamt: Option<bool>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) packages: Option<u32>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) cache_sub_blocks: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Hkid {
    #[serde(deserialize_with = "number")]
    pub(super) start_bit: u32,
    #[serde(deserialize_with = "number")]
    pub(super) bits: u32,
    #[serde(deserialize_with = "number")]
    pub(super) private_min: u16,
    #[serde(deserialize_with = "number")]
    pub(super) private_max: u16,
    #[serde(deserialize_with = "number")]
    pub(super) global_private: u16,
}

#[derive(Deserialize)]
pub(super) struct Range {
    pub(super) base: Hex,
    pub(super) size: Hex,
}

#[derive(Deserialize)]
pub(super) struct Tdmr {
    pub(super) base: Hex,
    pub(super) size: Hex,
    pub(super) last_initialized: Option<Hex>,
    /// `last_initialized` in whole GiB.
    pub(super) usable_end: Option<Hex>,
    #[serde(default)]
    pub(super) reserved: Vec<Reserved>,
}

impl Tdmr {
    /// The end of what TDMR.INIT has completed: all of the region if the header does not say.
    pub(super) fn initialized_end(&self) -> u64 {
        let whole = self.base.0 + self.size.0;
        let end = self.last_initialized.or(self.usable_end).map_or(whole, |end| end.0);
        self.usable_end.map_or(end, |usable| end.min(usable.0 | ((1 << 30) - 1)))
    }
}

#[derive(Deserialize)]
pub(super) struct Reserved {
    pub(super) pa: Option<Hex>,
    #[serde(default)]
    pub(super) offset: Hex,
    pub(super) size: Hex,
}

#[derive(Deserialize)]
pub(super) struct Td {
    #[serde(default, deserialize_with = "optional")]
    pub(super) td: Option<usize>,
    pub(super) tdr: Hex,
    #[serde(deserialize_with = "number")]
    pub(super) hkid: u16,
    pub(super) lifecycle: Named,
    #[serde(default, deserialize_with = "flag")]
    pub(super) fatal: bool,
    #[serde(default)]
    pub(super) tdcx: Vec<Hex>,
    #[serde(default, deserialize_with = "number")]
    pub(super) chldcnt: u64,
    #[serde(default)]
    pub(super) op_state: Named,
    #[serde(default, deserialize_with = "optional")]
    pub(super) gpaw: Option<u8>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) shared_bit: Option<u32>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) eptp_pwl: Option<u8>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) sept_levels: Option<u8>,
    pub(super) sept_root_page: Option<Hex>,
    #[serde(default, deserialize_with = "flag")]
    pub(super) debug: bool,
    #[serde(default, deserialize_with = "number")]
    pub(super) td_epoch: u64,
    #[serde(default)]
    pub(super) epoch_refcount: [Hex; 2],
    #[serde(default, deserialize_with = "number")]
    pub(super) num_l2_vms: u8,
    #[serde(default, deserialize_with = "optional")]
    pub(super) num_vcpus: Option<u32>,
    #[serde(default)]
    pub(super) vcpus: Vec<Vcpu>,
}

impl Td {
    /// GPA width 52: said by itself or by the place of the shared bit.
    pub(super) fn is_wide(&self) -> bool {
        self.gpaw.map_or(self.shared_bit == Some(51), |gpaw| gpaw != 0)
    }

    /// Level of the entries in the root: said by itself or by the depth.
    pub(super) fn root_level(&self) -> Result<u8, String> {
        let level =
            self.eptp_pwl.or_else(|| self.sept_levels.map(|levels| levels.wrapping_sub(1))).unwrap_or(3);
        if matches!(level, 3 | 4) {
            Ok(level)
        } else {
            Err(format!("a Secure EPT with a root of level {level}"))
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Vcpu {
    #[serde(default, deserialize_with = "optional")]
    pub(super) vcpu: Option<usize>,
    pub(super) tdvpr: Hex,
    #[serde(default)]
    pub(super) tdcx: Vec<Hex>,
    pub(super) state: String,
    #[serde(default, deserialize_with = "number")]
    pub(super) vcpu_epoch: u64,
    #[serde(default, deserialize_with = "optional")]
    pub(super) lp: Option<u32>,
}

/// PAMT entries with consecutive addresses.
#[derive(Deserialize, Clone)]
pub(super) struct PamtRow {
    pub(super) pa: Hex,
    #[serde(deserialize_with = "number")]
    pub(super) lvl: u8,
    pub(super) pt: String,
    #[serde(default)]
    pub(super) owner: Hex,
    #[serde(default)]
    pub(super) bepoch: Hex,
    /// Dynamic PAMT: the pages that hold the 4 KiB entries.
    pub(super) pair: Option<[Hex; 2]>,
    #[serde(default = "one", deserialize_with = "number")]
    pub(super) n: u64,
}

pub(super) const fn one() -> u64 {
    1
}
