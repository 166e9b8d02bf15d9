//! The lines of a trace.

use seamcall::Regs;
use serde::{Deserialize, Deserializer};

/// A number written as a hexadecimal string.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Hex(pub(super) u64);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").ok_or_else(|| serde::de::Error::custom("no 0x in front"))?;
        u64::from_str_radix(digits, 16).map(Hex).map_err(serde::de::Error::custom)
    }
}

/// Any line.
#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) header: Option<Box<Header>>,
    #[serde(default)]
    pub(super) seq: u64,
    pub(super) name: Option<String>,
    #[serde(default)]
    i: u64,
    leaf: Option<String>,
    #[serde(default)]
    ver: u64,
    td: Option<usize>,
    vcpu: Option<usize>,
    #[serde(default)]
    lp: u32,
    #[serde(rename = "in")]
    input: Option<Input>,
    out: Option<Output>,
    pub(super) end: Option<End>,
}

/// One step.
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) leaf: String,
    pub(super) version: u64,
    pub(super) td: Option<usize>,
    pub(super) vcpu: Option<usize>,
    pub(super) lp: u32,
    pub(super) input: Input,
    pub(super) out: Output,
}

impl Step {
    pub(super) fn from_line(line: Line) -> Result<Self, String> {
        Ok(Self {
            number: line.i,
            leaf: line.leaf.ok_or("neither a step nor an end")?,
            version: line.ver,
            td: line.td,
            vcpu: line.vcpu,
            lp: line.lp,
            input: line.input.ok_or("a step without input")?,
            out: line.out.ok_or("a step without output")?,
        })
    }
}

/// What went in: registers of a call, or parameters of a pseudo-operation.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Input {
    pub(super) rax: Hex,
    rcx: Hex,
    rdx: Hex,
    r8: Hex,
    r9: Hex,
    r10: Hex,
    r11: Hex,
    r12: Hex,
    r13: Hex,
    pub(super) td: Option<usize>,
    pub(super) vcpu: Option<usize>,
    pub(super) hold: u64,
    pub(super) pa: Hex,
    pub(super) gpa: Hex,
    pub(super) level: u8,
    pub(super) mode: String,
    pub(super) what: String,
    pub(super) after: u64,
    pub(super) value: u64,
    pub(super) host_if: u8,
    pub(super) op_state: u8,
    pub(super) lifecycle: u8,
    pub(super) fatal: u8,
    /// Bytes, two hexadecimal digits each.
    pub(super) data: String,
}

impl Input {
    /// The registers of a call with that RAX.
    pub(super) const fn regs(&self, rax: u64) -> Regs {
        Regs {
            rax,
            rcx: self.rcx.0,
            rdx: self.rdx.0,
            r8: self.r8.0,
            r9: self.r9.0,
            r10: self.r10.0,
            r11: self.r11.0,
            r12: self.r12.0,
            r13: self.r13.0,
        }
    }
}

/// What came out.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Output {
    pub(super) kind: Option<String>,
    pub(super) rax: Option<Hex>,
    pub(super) rcx: Option<Hex>,
    pub(super) rdx: Option<Hex>,
    pub(super) r8: Option<Hex>,
    pub(super) r9: Option<Hex>,
    pub(super) r10: Option<Hex>,
    pub(super) r11: Option<Hex>,
    pub(super) r12: Option<Hex>,
    pub(super) r13: Option<Hex>,
    pub(super) entered: Option<bool>,
    pub(super) ok: Option<bool>,
    pub(super) level: Option<u8>,
}

impl Output {
    /// The registers that must come out when `input` went in: what is absent is unchanged.
    pub(super) fn regs(&self, input: Regs) -> Regs {
        let or = |given: Option<Hex>, input: u64| given.map_or(input, |hex| hex.0);
        Regs {
            rax: or(self.rax, input.rax),
            rcx: or(self.rcx, input.rcx),
            rdx: or(self.rdx, input.rdx),
            r8: or(self.r8, input.r8),
            r9: or(self.r9, input.r9),
            r10: or(self.r10, input.r10),
            r11: or(self.r11, input.r11),
            r12: or(self.r12, input.r12),
            r13: or(self.r13, input.r13),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) module: String,
    pub(super) max_pa_bits: u32,
    pub(super) hkid: Hkid,
    pub(super) seamrr: Range,
    pub(super) tdmrs: Vec<Tdmr>,
    #[serde(default)]
    pub(super) tds: Vec<Td>,
    #[serde(default)]
    pub(super) pamt_initial: Vec<PamtRow>,
    pub(super) dynamic_pamt: Option<bool>,
    pub(super) packages: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct Hkid {
    pub(super) start_bit: u32,
    pub(super) bits: u32,
    pub(super) private_min: u16,
    pub(super) private_max: u16,
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
    pub(super) last_initialized: Hex,
    pub(super) reserved: Vec<Reserved>,
}

#[derive(Deserialize)]
pub(super) struct Reserved {
    pub(super) pa: Hex,
    pub(super) size: Hex,
}

#[derive(Deserialize)]
pub(super) struct Td {
    pub(super) tdr: Hex,
    pub(super) hkid: u16,
    pub(super) lifecycle: String,
    #[serde(default)]
    pub(super) fatal: bool,
    #[serde(default)]
    pub(super) tdcx: Vec<Hex>,
    pub(super) chldcnt: u64,
    pub(super) op_state: Option<String>,
    #[serde(default)]
    pub(super) gpaw: u8,
    pub(super) eptp_pwl: Option<u8>,
    #[serde(default)]
    pub(super) debug: bool,
    #[serde(default)]
    pub(super) td_epoch: u64,
    #[serde(default)]
    pub(super) epoch_refcount: [u16; 2],
    #[serde(default)]
    pub(super) num_l2_vms: u8,
    #[serde(default)]
    pub(super) vcpus: Vec<Vcpu>,
}

#[derive(Deserialize)]
pub(super) struct Vcpu {
    pub(super) tdvpr: Hex,
    pub(super) tdcx: Vec<Hex>,
    pub(super) state: String,
    pub(super) vcpu_epoch: u64,
    pub(super) lp: u32,
}

#[derive(Deserialize, Clone)]
pub(super) struct PamtRow {
    pub(super) pa: Hex,
    pub(super) lvl: u8,
    pub(super) pt: String,
    pub(super) owner: Hex,
    #[serde(default)]
    pub(super) bepoch: Hex,
    #[serde(default = "one")]
    pub(super) n: u64,
}

const fn one() -> u64 {
    1
}

#[derive(Deserialize)]
pub(super) struct End {
    pub(super) pamt: Option<Vec<PamtRow>>,
    pub(super) nda_stale_owner: Option<Vec<StaleRow>>,
    #[serde(default)]
    pub(super) tds: Vec<EndTd>,
}

#[derive(Deserialize)]
pub(super) struct StaleRow {
    pub(super) pa: Hex,
    pub(super) owner: Hex,
    #[serde(default = "one")]
    pub(super) n: u64,
}

#[derive(Deserialize)]
pub(super) struct EndTd {
    pub(super) td: usize,
    #[serde(default)]
    pub(super) reclaimed: bool,
    #[serde(default)]
    pub(super) lifecycle: u8,
    #[serde(default)]
    pub(super) fatal: bool,
    #[serde(default)]
    pub(super) chldcnt: u64,
    pub(super) op_state: Option<u8>,
    pub(super) td_epoch: Option<u64>,
    pub(super) refcount: Option<[u16; 2]>,
    pub(super) vcpu_epoch: Option<Vec<u64>>,
    pub(super) sept: Option<Vec<SeptRow>>,
}

#[derive(Deserialize)]
pub(super) struct SeptRow {
    pub(super) gpa: Hex,
    pub(super) lvl: u8,
    pub(super) st: String,
    #[serde(default)]
    pub(super) hpa: Hex,
    #[serde(default)]
    pub(super) accept_counter: u64,
    #[serde(default, deserialize_with = "flag")]
    pub(super) hp: bool,
    #[serde(default, deserialize_with = "flag")]
    pub(super) locked: bool,
    #[serde(default = "one")]
    pub(super) n: u64,
}

/// A flag written as `true` or as a number.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_bool().unwrap_or_else(|| value.as_u64().is_some_and(|number| number != 0)))
}
