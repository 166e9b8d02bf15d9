//! Writing the lines of a trace that a recorder of calls does not write.

use std::io::{self, Write};

use seamcall::Regs;
use sept_core::Hpa;
use serde_json::{Map, Value, json};

use super::end;
use super::ops::TDCALLS;
use crate::abi::{Lifecycle, Status};
use crate::config::{HkidLayout, ModuleVersion, Tdmr};
use crate::guest::{Accept, TdCall};
use crate::machine::Machine;
use crate::state::State;
use crate::td::Td;

/// What a trace has to say about the platform it was taken on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// The module.
    pub version: ModuleVersion,
    /// Whether Dynamic PAMT is enabled.
    pub dynamic_pamt: bool,
    /// Physical address bits, key id bits included.
    pub max_pa_bits: u32,
    /// Where key ids sit, and which are private.
    pub hkid: HkidLayout,
    /// First byte and bytes of the module's own range.
    pub seamrr: (u64, u64),
    /// Memory the module may use.
    pub tdmrs: Vec<Tdmr>,
    /// Number of packages.
    pub packages: u32,
}

impl Machine {
    /// What a trace taken on this machine says about it.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.with(|state| Platform {
            version: state.cfg.profile.version,
            dynamic_pamt: state.cfg.profile.dynamic_pamt,
            max_pa_bits: state.cfg.max_pa_bits,
            hkid: state.cfg.hkid,
            seamrr: state.cfg.seamrr,
            tdmrs: state.cfg.tdmrs.clone(),
            packages: state.cfg.packages,
        })
    }
}

fn hex(value: u64) -> Value {
    Value::String(format!("{value:#x}"))
}

/// The operands by name.
const fn named(regs: &Regs) -> [(&'static str, u64); 8] {
    let Regs { rcx, rdx, r8, r9, r10, r11, r12, r13, .. } = *regs;
    [
        ("rcx", rcx),
        ("rdx", rdx),
        ("r8", r8),
        ("r9", r9),
        ("r10", r10),
        ("r11", r11),
        ("r12", r12),
        ("r13", r13),
    ]
}

fn object(registers: impl IntoIterator<Item = (&'static str, u64)>) -> Value {
    registers.into_iter().map(|(name, value)| (name.to_owned(), hex(value))).collect::<Map<_, _>>().into()
}

impl Platform {
    fn header(&self) -> Value {
        let tdmrs = self.tdmrs.iter().map(|tdmr| {
            let reserved = tdmr.reserved.iter().map(|&(pa, size)| json!({"pa": hex(pa), "size": hex(size)}));
            json!({
                "base": hex(tdmr.base),
                "size": hex(tdmr.size),
                "last_initialized": hex(tdmr.initialized_end),
                "reserved": reserved.collect::<Vec<_>>(),
            })
        });
        json!({"header": {
            "module": format!("TDX module {}", self.version),
            "dynamic_pamt": self.dynamic_pamt,
            "max_pa_bits": self.max_pa_bits,
            "packages": self.packages,
            "hkid": {
                "start_bit": self.hkid.start_bit,
                "bits": self.hkid.bits,
                "private_min": self.hkid.private_min,
                "private_max": self.hkid.private_max,
                "global_private": self.hkid.global,
            },
            "seamrr": {"base": hex(self.seamrr.0), "size": hex(self.seamrr.1)},
            "tdmrs": tdmrs.collect::<Vec<_>>(),
        }})
    }
}

/// Writes a trace around the lines of seamcall's `adapter::Recorder`: the header, the begin and the end of a sequence,
/// and what no SEAMCALL shows.
///
/// A recorder writes VP.ENTER when it returns. Where calls of other processors came while the guest ran,
/// [`entered`](Self::entered) tells when it began; an ACCEPT that made the vCPU exit is then in the recorder's line.
///
/// TDs and vCPUs are numbered in the order of their creation.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    sequence: u64,
}

impl<W: Write> TraceWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// Those of the writer, as in all the functions here.
    pub fn new(mut out: W, platform: &Platform) -> io::Result<Self> {
        writeln!(out, "{}", platform.header())?;
        Ok(Self { out, sequence: 0 })
    }

    fn line(&mut self, mut line: Value) -> io::Result<()> {
        line["seq"] = self.sequence.into();
        writeln!(self.out, "{line}")
    }

    fn pseudo(&mut self, leaf: &str, input: Value, output: Value) -> io::Result<()> {
        self.line(json!({"leaf": leaf, "in": input, "out": output}))
    }

    /// Begins a sequence: the platform is as in the header, without any TD.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn begin(&mut self, sequence: u64, name: &str) -> io::Result<()> {
        self.sequence = sequence;
        self.line(json!({"name": name}))
    }

    /// The host wrote bytes that the module is to read (TD_PARAMS), within one page.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn memory(&mut self, at: Hpa, bytes: &[u8]) -> io::Result<()> {
        let data: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.pseudo("SIM.WRITE", json!({"pa": hex(at.raw()), "data": data}), json!({}))
    }

    /// A vCPU was entered, or was not.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn entered(&mut self, td: usize, vcpu: usize, answer: Result<(), Status>) -> io::Result<()> {
        let out = match answer {
            Ok(()) => json!({"entered": true}),
            Err(status) => json!({"entered": false, "rax": hex(status.0)}),
        };
        self.pseudo("SIM.VCPU_ENTER", json!({"td": td, "vcpu": vcpu}), out)
    }

    /// A vCPU left for a reason that its memory did not give.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn exited(&mut self, td: usize, vcpu: usize) -> io::Result<()> {
        self.pseudo("SIM.VCPU_EXIT", json!({"td": td, "vcpu": vcpu}), json!({}))
    }

    /// A guest executed PAGE.ACCEPT with that RCX.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn accepted(&mut self, td: usize, vcpu: usize, rcx: u64, outcome: &Accept) -> io::Result<()> {
        let input = Regs { rax: 6, rcx, ..Regs::new() };
        let outcome = match *outcome {
            Accept::Returned(status) => TdCall::Returned(Regs { rax: status.0, ..input }),
            Accept::Exit(exit) => TdCall::Exit(exit),
            Accept::Interrupted => TdCall::Interrupted,
        };
        self.called(td, vcpu, input, &outcome)
    }

    /// A guest executed PAGE.ACCEPT (6), PAGE.ATTR.RD (23) or PAGE.ATTR.WR (24) with these registers. A leaf that is none
    /// of these is not written.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn called(&mut self, td: usize, vcpu: usize, regs: Regs, outcome: &TdCall) -> io::Result<()> {
        let Some((name, _)) = TDCALLS.iter().find(|&&(_, leaf)| leaf == regs.rax & 0xFFFF) else {
            return Ok(());
        };
        let set = named(&regs).into_iter().filter(|&(_, value)| value != 0);
        let mut out = match outcome {
            TdCall::Returned(got) => {
                let pairs = named(got).into_iter().zip(named(&regs)).filter(|(now, was)| now != was);
                object(pairs.map(|(now, _)| now).chain([("rax", got.rax)]))
            }
            TdCall::Interrupted => json!({}),
            TdCall::Exit(exit) => {
                let Regs { rax, rcx, rdx, r8, r9, .. } = exit.regs;
                object([("rax", rax), ("rcx", rcx), ("rdx", rdx), ("r8", r8), ("r9", r9)])
            }
        };
        out["kind"] = match outcome {
            TdCall::Returned(_) => "ret",
            TdCall::Interrupted => "interrupted",
            TdCall::Exit(_) => "tdexit",
        }
        .into();
        let version = regs.rax >> 16;
        self.line(
            json!({"leaf": name, "ver": version, "td": td, "vcpu": vcpu, "in": object(set), "out": out}),
        )
    }

    /// Ends the sequence. Of hardware nothing more is known than what its calls answered.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn end(&mut self) -> io::Result<()> {
        self.line(json!({"end": {}}))
    }

    /// Ends the sequence with the state of the machine it was recorded on.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn end_with(&mut self, machine: &Machine) -> io::Result<()> {
        let end = machine.with(|state| dump(state));
        self.line(json!({"end": end}))
    }
}

fn dump(state: &State) -> Value {
    let (pages, stale) = end::dump_pamt(state);
    let pages = pages.iter().map(|page| {
        let (pa, owner, bepoch) = (hex(page.pa), hex(page.owner), hex(page.bepoch));
        json!({"pa": pa, "lvl": page.level, "pt": page.kind, "owner": owner, "bepoch": bepoch})
    });
    let stale = stale.iter().map(|&(pa, owner)| json!({"pa": hex(pa), "owner": hex(owner)}));
    let tds = state.tds.iter().enumerate().map(|(number, td)| match td {
        Some(td) => dump_td(state, number, td),
        None => json!({"td": number, "reclaimed": true}),
    });
    json!({
        "pamt": pages.collect::<Vec<_>>(),
        "nda_stale_owner": stale.collect::<Vec<_>>(),
        "tds": tds.collect::<Vec<_>>(),
    })
}

fn dump_td(state: &State, number: usize, td: &Td) -> Value {
    let mut row = json!({
        "td": number,
        "lifecycle": td.lifecycle as u8,
        "fatal": td.fatal,
        "chldcnt": td.chldcnt,
    });
    if td.lifecycle == Lifecycle::KeysConfigured {
        let mut entries = Vec::new();
        end::dump_table(state, td.root, 0, td.root_level, &mut entries);
        let entries = entries.iter().map(|entry| {
            json!({
                "gpa": hex(entry.gpa),
                "lvl": entry.level,
                "st": entry.state,
                "hpa": hex(entry.hpa),
                "accept_counter": entry.counter,
                "hp": entry.host_priority,
                "locked": entry.locked,
            })
        });
        row["op_state"] = td.op_state.into();
        row["td_epoch"] = td.td_epoch.into();
        row["refcount"] = json!(td.refcount);
        row["vcpu_epoch"] = td.vcpus.iter().map(|vcpu| vcpu.epoch).collect();
        row["sept"] = entries.collect();
    }
    row
}
