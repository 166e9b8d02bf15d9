//! The lines of a trace.

use seamcall::Regs;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::number::{Hex, Named, flag, number, optional};
use super::platform::{Header, PamtRow, one};

/// Any line.
#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) header: Option<Box<Header>>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) seq: Option<u64>,
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "number")]
    i: u64,
    pub(super) leaf: Option<String>,
    #[serde(default, deserialize_with = "number")]
    ver: u64,
    #[serde(default, deserialize_with = "optional")]
    td: Option<usize>,
    #[serde(default, deserialize_with = "optional")]
    vcpu: Option<usize>,
    #[serde(default, deserialize_with = "optional")]
    lp: Option<u32>,
    #[serde(rename = "in")]
    input: Option<Input>,
    out: Option<Output>,
    pub(super) end: Option<End>,
}

/// What a line is about, whatever it says.
#[derive(Deserialize)]
pub(super) struct Outline {
    pub(super) leaf: Option<String>,
    pub(super) end: Option<IgnoredAny>,
}

/// One step.
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) leaf: String,
    pub(super) version: u64,
    pub(super) td: Option<usize>,
    pub(super) vcpu: Option<usize>,
    /// The logical processor; the first one makes the calls of which nothing is said.
    pub(super) lp: Option<u32>,
    pub(super) input: Input,
    pub(super) out: Output,
}

impl Step {
    pub(super) fn from_line(line: Line) -> Result<Self, String> {
        let input = line.input.unwrap_or_default();
        let leaf = line.leaf.ok_or("neither a step nor an end")?;
        // What is done to the machine need not have an outcome.
        let out = line.out.or_else(|| leaf.starts_with("SIM.").then(Output::default));
        Ok(Self {
            number: line.i,
            leaf,
            version: line.ver,
            td: line.td.or(input.td),
            vcpu: line.vcpu.or(input.vcpu),
            lp: line.lp.or(input.lp),
            input,
            out: out.ok_or("a step without output")?,
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
    rbx: Hex,
    rbp: Hex,
    rsi: Hex,
    rdi: Hex,
    r14: Hex,
    r15: Hex,
    #[serde(deserialize_with = "optional")]
    td: Option<usize>,
    #[serde(deserialize_with = "optional")]
    vcpu: Option<usize>,
    #[serde(deserialize_with = "optional")]
    lp: Option<u32>,
    pub(super) hold: Hex,
    pub(super) pa: Hex,
    pub(super) gpa: Hex,
    #[serde(deserialize_with = "number")]
    pub(super) level: u8,
    pub(super) mode: String,
    pub(super) what: String,
    pub(super) after: Hex,
    pub(super) value: Hex,
    #[serde(deserialize_with = "flag")]
    pub(super) host_if: bool,
    pub(super) op_state: Named,
    pub(super) lifecycle: Named,
    #[serde(deserialize_with = "flag")]
    pub(super) fatal: bool,
    /// Bytes, two hexadecimal digits each.
    pub(super) data: String,
}

impl Input {
    /// The registers that only VP.ENTER exchanges.
    pub(super) const fn others(&self) -> [u64; 6] {
        [self.rbx.0, self.rbp.0, self.rsi.0, self.rdi.0, self.r14.0, self.r15.0]
    }

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
    rbx: Option<Hex>,
    rbp: Option<Hex>,
    rsi: Option<Hex>,
    rdi: Option<Hex>,
    r14: Option<Hex>,
    r15: Option<Hex>,
    pub(super) entered: Option<bool>,
    pub(super) ok: Option<bool>,
    #[serde(deserialize_with = "optional")]
    pub(super) level: Option<u8>,
    /// Bytes, two hexadecimal digits each.
    pub(super) data: Option<String>,
}

impl Output {
    /// The registers that only VP.ENTER exchanges, when `input` went in.
    pub(super) fn others(&self, input: [u64; 6]) -> [u64; 6] {
        let given = [self.rbx, self.rbp, self.rsi, self.rdi, self.r14, self.r15];
        core::array::from_fn(|index| given[index].map_or(input[index], |hex| hex.0))
    }

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

/// What the trace says of the end of a sequence.
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
    #[serde(default = "one", deserialize_with = "number")]
    pub(super) n: u64,
}

#[derive(Deserialize)]
pub(super) struct EndTd {
    #[serde(deserialize_with = "number")]
    pub(super) td: usize,
    #[serde(default, deserialize_with = "flag")]
    pub(super) reclaimed: bool,
    pub(super) lifecycle: Option<Named>,
    pub(super) fatal: Option<Hex>,
    pub(super) chldcnt: Option<Hex>,
    pub(super) op_state: Option<Named>,
    pub(super) td_epoch: Option<Hex>,
    pub(super) refcount: Option<[Hex; 2]>,
    pub(super) vcpu_epoch: Option<Vec<Hex>>,
    pub(super) sept: Option<Vec<SeptRow>>,
}

/// S-EPT entries with consecutive addresses and pages.
#[derive(Deserialize)]
pub(super) struct SeptRow {
    pub(super) gpa: Hex,
    #[serde(deserialize_with = "number")]
    pub(super) lvl: u8,
    pub(super) st: String,
    #[serde(default)]
    pub(super) hpa: Hex,
    #[serde(default)]
    pub(super) accept_counter: Hex,
    /// All 64 bits of the first entry, where the trace has them.
    pub(super) raw: Option<Hex>,
    #[serde(default, deserialize_with = "flag")]
    pub(super) hp: bool,
    #[serde(default, deserialize_with = "flag")]
    pub(super) locked: bool,
    #[serde(default = "one", deserialize_with = "number")]
    pub(super) n: u64,
}
