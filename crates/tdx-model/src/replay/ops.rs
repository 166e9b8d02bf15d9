//! One step of a sequence: perform it, compare what came out.

use std::collections::HashMap;

use seamcall::Regs;

use super::format::{Input, Output, Step};
use super::header::Start;
use crate::abi::{Leaf, Lifecycle, PAGE};
use crate::faults::Interrupts;
use crate::foreign::{Hold, TdLock};
use crate::guest::{Accept, TdExit};
use crate::lock::Mode;
use crate::session::Session;
use crate::state::State;

/// What differs: which register or result, expected, got.
type Differences = Vec<(&'static str, String, String)>;

pub(super) enum Outcome {
    Differences(Differences),
    /// The model has no such leaf.
    Unknown,
}

/// Foreign locks of a sequence, by how the trace names them.
#[derive(Default)]
pub(super) struct Holds {
    pages: HashMap<u64, Hold>,
    locks: HashMap<(usize, String, u64, u8), Vec<Hold>>,
}

pub(super) fn perform(
    state: &mut Session<'_>,
    holds: &mut Holds,
    start: &Start,
    step: &Step,
) -> Result<Outcome, String> {
    let differences = if let Some(pseudo) = step.leaf.strip_prefix("SIM.") {
        return simulate(state, holds, start, pseudo, step);
    } else if step.leaf == "TDG.MEM.PAGE.ACCEPT" {
        accept(state, start, step)?
    } else if step.leaf == "RAW" {
        call(state, step, step.input.rax.0)
    } else {
        let leaf = Leaf::ALL.iter().find(|leaf| leaf.name() == step.leaf);
        let Some(&leaf) = leaf else { return Ok(Outcome::Unknown) };
        call(state, step, leaf as u64 | step.version << 16)
    };
    if start.audit {
        let broken = state.check_invariants();
        if let Some(first) = broken.first() {
            return Ok(Outcome::Differences(vec![("invariants", "none broken".to_owned(), first.clone())]));
        }
    }
    Ok(Outcome::Differences(differences))
}

/// A SEAMCALL on the logical processor that the trace names, or the first.
fn call(state: &mut Session<'_>, step: &Step, rax: u64) -> Differences {
    let input = step.input.regs(rax);
    let got = state.seamcall(step.lp, input);
    let mut differences = compare_regs(&step.out.regs(input), &got);
    if let Some(kind) = &step.out.kind {
        differences.push(("kind", kind.clone(), "a return".to_owned()));
    }
    differences
}

fn compare_regs(expected: &Regs, got: &Regs) -> Differences {
    let pairs = [
        ("rax", expected.rax, got.rax),
        ("rcx", expected.rcx, got.rcx),
        ("rdx", expected.rdx, got.rdx),
        ("r8", expected.r8, got.r8),
        ("r9", expected.r9, got.r9),
        ("r10", expected.r10, got.r10),
        ("r11", expected.r11, got.r11),
        ("r12", expected.r12, got.r12),
        ("r13", expected.r13, got.r13),
    ];
    let differing = pairs.into_iter().filter(|&(_, expected, got)| expected != got);
    differing.map(|(name, expected, got)| (name, format!("{expected:#x}"), format!("{got:#x}"))).collect()
}

fn differ<T: PartialEq + core::fmt::Debug>(what: &'static str, expected: &T, got: &T) -> Differences {
    if expected == got { Vec::new() } else { vec![(what, format!("{expected:?}"), format!("{got:?}"))] }
}

/// A guest's ACCEPT.
fn accept(state: &mut Session<'_>, start: &Start, step: &Step) -> Result<Differences, String> {
    let (tdvpr, _) = start.vcpu(state, step.td, step.vcpu)?;
    let (td, vcpu) = state.vcpu_of(tdvpr).ok_or("the vCPU is gone")?;
    if !state.td(td).vcpus[vcpu].inside {
        return Ok(vec![("vcpu", "in guest mode".to_owned(), "outside".to_owned())]);
    }
    let input = step.input.regs(0);
    let got = state.accept(td, vcpu, step.version as u8, input.rcx);
    let expected = step.out.kind.as_deref().unwrap_or("ret");
    Ok(match (expected, got) {
        ("ret", Accept::Returned(status)) => {
            compare_regs(&step.out.regs(input), &Regs { rax: status.0, ..input })
        }
        ("interrupted", Accept::Interrupted) => Vec::new(),
        ("tdexit", Accept::Exit(TdExit { regs })) => compare_regs(&step.out.regs(Regs::default()), &regs),
        (expected, got) => vec![("kind", expected.to_owned(), format!("{got:x?}"))],
    })
}

fn simulate(
    state: &mut Session<'_>,
    holds: &mut Holds,
    start: &Start,
    pseudo: &str,
    step: &Step,
) -> Result<Outcome, String> {
    let (input, out) = (&step.input, &step.out);
    let differences = match pseudo {
        "VCPU_ENTER" => enter(state, start, step)?,
        "VCPU_EXIT" => {
            let (tdvpr, _) = start.vcpu(state, input.td, input.vcpu)?;
            let (td, vcpu) = state.vcpu_of(tdvpr).ok_or("the vCPU is gone")?;
            if state.td(td).vcpus[vcpu].inside {
                state.exit_vcpu(td, vcpu);
            }
            Vec::new()
        }
        "SET_INTERRUPT_PENDING" => {
            let host_interruptible = input.host_if != 0;
            let line = Interrupts { after: input.after, events: input.value, host_interruptible };
            state.faults.set_interrupts(Some(line));
            Vec::new()
        }
        "CLEAR_INTERRUPT" => {
            state.faults.set_interrupts(None);
            Vec::new()
        }
        "HOLD_HPA" => hold_page(state, holds, input, out)?,
        "DROP_HPA" => {
            if let Some(hold) = holds.pages.remove(&input.hold) {
                state.drop_hold(hold);
            }
            Vec::new()
        }
        "LOCK" => lock(state, holds, input, out)?,
        "UNLOCK" => {
            if let Some(hold) = holds.locks.get_mut(&lock_name(input)?).and_then(Vec::pop) {
                state.drop_hold(hold);
            }
            Vec::new()
        }
        "SET_OP_STATE" | "SET_LIFECYCLE" | "SET_FATAL" => {
            set_td(state, pseudo, input)?;
            Vec::new()
        }
        "WRITE" => {
            write_memory(state, input)?;
            Vec::new()
        }
        _ => return Ok(Outcome::Unknown),
    };
    Ok(Outcome::Differences(differences))
}

/// What the host put into ordinary memory for the module to read.
fn write_memory(state: &mut State, input: &Input) -> Result<(), String> {
    let digits = input.data.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>();
    let bytes = bytes.filter(|_| digits.len().is_multiple_of(2)).ok_or("data is not hexadecimal")?;
    if input.pa.0 % PAGE + bytes.len() as u64 > PAGE {
        return Err("data crosses a page end".to_owned());
    }
    state.mem.write_bytes(input.pa.0, &bytes, 0);
    Ok(())
}

fn enter(state: &mut Session<'_>, start: &Start, step: &Step) -> Result<Differences, String> {
    let (tdvpr, lp) = start.vcpu(state, step.input.td, step.input.vcpu)?;
    let status = state.enter_guest(lp, tdvpr).err();
    let mut differences = differ("entered", &step.out.entered, &Some(status.is_none()));
    if let (Some(expected), Some(got)) = (step.out.rax, status) {
        differences.extend(differ("rax", &crate::Status(expected.0), &got));
    }
    Ok(differences)
}

fn mode(input: &Input) -> Result<Mode, String> {
    match input.mode.as_str() {
        "sh" => Ok(Mode::Shared),
        "ex" => Ok(Mode::Exclusive),
        other => Err(format!("unknown lock mode {other}")),
    }
}

fn hold_page(
    state: &mut State,
    holds: &mut Holds,
    input: &Input,
    out: &Output,
) -> Result<Differences, String> {
    let got = state.hold_page(input.pa.0, input.level, mode(input)?);
    let mut differences = differ("ok", &out.ok, &Some(got.is_some()));
    if let Some((hold, level)) = got {
        holds.pages.insert(input.hold, hold);
        differences.extend(differ("level", &out.level, &Some(level)));
    }
    Ok(differences)
}

fn lock_name(input: &Input) -> Result<(usize, String, u64, u8), String> {
    let td = input.td.ok_or("a lock without TD")?;
    Ok((td, format!("{} {}", input.what, input.mode), input.gpa.0, input.level))
}

fn lock(state: &mut State, holds: &mut Holds, input: &Input, out: &Output) -> Result<Differences, String> {
    let td = input.td.filter(|&td| matches!(state.tds.get(td), Some(Some(_)))).ok_or("no such TD")?;
    let got = match input.what.as_str() {
        "SEPT_TREE" => state.hold_td(td, TdLock::SeptTree, mode(input)?),
        "OP_STATE" => state.hold_td(td, TdLock::OpState, mode(input)?),
        "EPOCH" => state.hold_td(td, TdLock::Epoch, mode(input)?),
        "SEPT_ENTRY" => state.hold_entry(td, input.gpa.0, input.level),
        other => return Err(format!("unknown lock {other}")),
    };
    let differences = differ("ok", &out.ok, &Some(got.is_some()));
    if let Some(hold) = got {
        holds.locks.entry(lock_name(input)?).or_default().push(hold);
    }
    Ok(differences)
}

fn set_td(state: &mut State, what: &str, input: &Input) -> Result<(), String> {
    let td = input.td.and_then(|td| state.tds.get_mut(td)).and_then(Option::as_mut).ok_or("no such TD")?;
    match what {
        "SET_OP_STATE" => td.op_state = input.op_state,
        "SET_LIFECYCLE" => {
            td.lifecycle = Lifecycle::from_number(input.lifecycle).ok_or("unknown life cycle")?
        }
        _ => td.fatal = input.fatal != 0,
    }
    Ok(())
}
