//! One step of a sequence: perform it, compare what came out.

use std::collections::HashMap;

use seamcall::Regs;

use super::format::{Input, Output, Step};
use super::header::{LIFECYCLES, OP_STATES, Start};
use crate::abi::{Leaf, Lifecycle, PAGE};
use crate::faults::Interrupts;
use crate::foreign::{Hold, TdLock};
use crate::guest::{TdCall, TdExit};
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
    locks: Vec<(LockName, Mode, Hold)>,
}

/// TD, what, and of an entry where.
type LockName = (usize, String, u64, u8);

/// Leaves of the module that the model does not have: system information in bulk, module update, service TDs and the
/// transport of a migration.
const OTHER_LEAVES: [u16; 21] =
    [37, 48, 49, 53, 64, 66, 68, 70, 71, 72, 73, 74, 80, 81, 82, 83, 84, 85, 86, 87, 96];

/// What [`simulate`] can do.
const PSEUDO_OPERATIONS: [&str; 13] = [
    "VCPU_ENTER",
    "VCPU_EXIT",
    "SET_INTERRUPT_PENDING",
    "CLEAR_INTERRUPT",
    "HOLD_HPA",
    "DROP_HPA",
    "LOCK",
    "UNLOCK",
    "SET_OP_STATE",
    "SET_LIFECYCLE",
    "SET_FATAL",
    "WRITE",
    "READ",
];

/// Whether a step of that name can be performed.
pub(super) fn knows(leaf: &str) -> bool {
    match leaf.strip_prefix("SIM.") {
        Some(pseudo) => PSEUDO_OPERATIONS.contains(&pseudo),
        None => {
            leaf == "RAW"
                || TDCALLS.iter().any(|&(name, _)| name == leaf)
                || Leaf::ALL.iter().any(|known| known.name() == leaf)
        }
    }
}

pub(super) fn perform(
    state: &mut Session<'_>,
    holds: &mut Holds,
    start: &Start,
    step: &Step,
) -> Result<Outcome, String> {
    let differences = if let Some(pseudo) = step.leaf.strip_prefix("SIM.") {
        return simulate(state, holds, start, pseudo, step);
    } else if let Some(&(_, leaf)) = TDCALLS.iter().find(|(name, _)| *name == step.leaf) {
        tdcall(state, start, step, leaf)?
    } else if step.leaf == Leaf::VpEnter.name() && is_exit(step) {
        vp_enter(state, step)
    } else if step.leaf == "RAW" {
        let rax = step.input.rax.0;
        // With other bits the dispatcher refuses it before it looks for the leaf.
        if u16::try_from(rax).is_ok_and(|leaf| OTHER_LEAVES.contains(&leaf)) {
            return Ok(Outcome::Unknown);
        }
        call(state, step, rax)
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

/// Whether VP.ENTER came back because the guest was left, not because it was refused.
fn is_exit(step: &Step) -> bool {
    let rax = step.out.rax.map_or(0, |hex| hex.0);
    // VMX exit reasons, and classes of TD exits in the upper bits.
    rax >> 32 == 0 || matches!(rax >> 60, 4 | 6 | 9)
}

/// A VP.ENTER that a recorder wrote when it returned. Unless the trace has told before that the vCPU is inside, it enters now.
/// What the guest did is known of an ACCEPT that made it exit, which is made and compared; all else is the guest's own.
fn vp_enter(state: &mut Session<'_>, step: &Step) -> Differences {
    let rcx = step.input.regs(0).rcx;
    let tdvpr = rcx & VCPU_PAGE;
    let inside = |state: &State| state.vcpu_of(tdvpr).filter(|&(td, vcpu)| state.td(td).vcpus[vcpu].inside);
    let expected = step.out.regs(step.input.regs(0));
    if inside(state).is_none()
        && let Err(out) = state.enter_guest(step.lp.unwrap_or(0), rcx)
    {
        return compare_regs(&expected, &out);
    }
    let Some((td, vcpu)) = inside(state) else { return Vec::new() };
    let violation =
        TdExit { regs: expected }.ept_violation().filter(|violation| violation.kind == ACCEPT_EXIT);
    if let Some(violation) = violation {
        let rcx = violation.gpa | u64::from(violation.requested_level);
        let got = state.tdcall(td, vcpu, Regs { rax: TDCALLS[0].1, rcx, ..Regs::default() });
        return match got {
            TdCall::Exit(TdExit { regs }) => compare_regs(&expected, &regs),
            other => vec![("kind", "tdexit".to_owned(), format!("{other:x?}"))],
        };
    }
    state.exit_vcpu(td, vcpu);
    Vec::new()
}

/// Bits 51:12 of VP.ENTER's RCX.
const VCPU_PAGE: u64 = 0x000F_FFFF_FFFF_F000;
/// Type of an EPT violation exit: PAGE.ACCEPT.
const ACCEPT_EXIT: u8 = 1;

/// A SEAMCALL on the logical processor that the trace names, or the first.
fn call(state: &mut Session<'_>, step: &Step, rax: u64) -> Differences {
    let input = step.input.regs(rax);
    let got = state.seamcall(step.lp.unwrap_or(0), input);
    match step.out.kind.as_deref() {
        Some("fatal") => differ("kind", &"fatal", &if state.is_halted() { "fatal" } else { "ret" }),
        None | Some("ret") => {
            let others = step.input.others();
            let mut differences = compare_regs(&step.out.regs(input), &got);
            differences.extend(differ("rbx to r15", &step.out.others(others), &others));
            differences
        }
        Some(kind) => vec![("kind", kind.to_owned(), "ret".to_owned())],
    }
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

/// Guest calls that the model knows.
pub(super) const TDCALLS: [(&str, u64); 3] =
    [("TDG.MEM.PAGE.ACCEPT", 6), ("TDG.MEM.PAGE.ATTR.RD", 23), ("TDG.MEM.PAGE.ATTR.WR", 24)];

/// A guest's call.
fn tdcall(state: &mut Session<'_>, start: &Start, step: &Step, leaf: u64) -> Result<Differences, String> {
    let (tdvpr, _) = start.vcpu(state, step)?;
    let (td, vcpu) = state.vcpu_of(tdvpr).ok_or("the vCPU is gone")?;
    if !state.td(td).vcpus[vcpu].inside {
        return Ok(vec![("vcpu", "in guest mode".to_owned(), "outside".to_owned())]);
    }
    let input = step.input.regs(leaf | step.version << 16);
    let got = state.tdcall(td, vcpu, input);
    let expected = step.out.kind.as_deref().unwrap_or("ret");
    Ok(match (expected, got) {
        ("ret", TdCall::Returned(regs)) => compare_regs(&step.out.regs(input), &regs),
        ("interrupted", TdCall::Interrupted) => Vec::new(),
        ("tdexit", TdCall::Exit(TdExit { regs })) => compare_regs(&step.out.regs(Regs::default()), &regs),
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
            let (tdvpr, _) = start.vcpu(state, step)?;
            let (td, vcpu) = state.vcpu_of(tdvpr).ok_or("the vCPU is gone")?;
            if state.td(td).vcpus[vcpu].inside {
                state.exit_vcpu(td, vcpu);
            }
            Vec::new()
        }
        "SET_INTERRUPT_PENDING" => {
            let host_interruptible = input.host_if;
            let line = Interrupts { after: input.after.0, events: input.value.0, host_interruptible };
            state.faults.set_interrupts(Some(line));
            Vec::new()
        }
        "CLEAR_INTERRUPT" => {
            state.faults.set_interrupts(None);
            Vec::new()
        }
        "HOLD_HPA" => hold_page(state, holds, input, out)?,
        "DROP_HPA" => {
            if let Some(hold) = holds.pages.remove(&input.hold.0) {
                state.drop_hold(hold);
            }
            Vec::new()
        }
        "LOCK" => lock(state, holds, step)?,
        "UNLOCK" => {
            unlock(state, holds, step)?;
            Vec::new()
        }
        "SET_OP_STATE" | "SET_LIFECYCLE" | "SET_FATAL" => {
            set_td(state, pseudo, step)?;
            Vec::new()
        }
        "WRITE" => {
            write_memory(state, input)?;
            Vec::new()
        }
        "READ" => read_memory(state, input, out),
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

/// What the module has left in ordinary memory.
fn read_memory(state: &State, input: &Input, out: &Output) -> Differences {
    let expected = out.data.clone().unwrap_or_default();
    let bytes = state.mem.read_bytes(input.pa.0);
    let start = (input.pa.0 % PAGE) as usize;
    let got = bytes[start..]
        .iter()
        .take(expected.len() / 2)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    differ("data", &expected, &got)
}

fn enter(state: &mut Session<'_>, start: &Start, step: &Step) -> Result<Differences, String> {
    let (tdvpr, lp) = start.vcpu(state, step)?;
    let status = state.enter_guest(lp, tdvpr).err().map(|out| crate::Status(out.rax));
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
        holds.pages.insert(input.hold.0, hold);
        differences.extend(differ("level", &out.level, &Some(level)));
    }
    Ok(differences)
}

fn lock_name(step: &Step) -> Result<LockName, String> {
    let (td, input) = (step.td.ok_or("a lock without TD")?, &step.input);
    let place = if input.what == "SEPT_ENTRY" { (input.gpa.0, input.level) } else { (0, 0) };
    Ok((td, input.what.clone(), place.0, place.1))
}

fn lock(state: &mut State, holds: &mut Holds, step: &Step) -> Result<Differences, String> {
    let name = lock_name(step)?;
    let td = Some(name.0).filter(|&td| matches!(state.tds.get(td), Some(Some(_)))).ok_or("no such TD")?;
    let whole = if name.1 == "SEPT_ENTRY" { Mode::Exclusive } else { mode(&step.input)? };
    let got = match name.1.as_str() {
        "SEPT_TREE" => state.hold_td(td, TdLock::SeptTree, whole),
        "OP_STATE" => state.hold_td(td, TdLock::OpState, whole),
        "EPOCH" => state.hold_td(td, TdLock::Epoch, whole),
        "SEPT_ENTRY" => state.hold_entry(td, name.2, name.3),
        other => return Err(format!("unknown lock {other}")),
    };
    let differences = differ("ok", &step.out.ok, &Some(got.is_some()));
    if let Some(hold) = got {
        holds.locks.push((name, whole, hold));
    }
    Ok(differences)
}

/// Gives back the last lock of that name (and mode, if one is said). One that was not got is nothing to give back.
fn unlock(state: &mut State, holds: &mut Holds, step: &Step) -> Result<(), String> {
    let name = lock_name(step)?;
    let wanted = if step.input.mode.is_empty() { None } else { Some(mode(&step.input)?) };
    let any_mode = wanted.is_none() || name.1 == "SEPT_ENTRY";
    let is_it = |held: &(LockName, Mode, Hold)| held.0 == name && (any_mode || Some(held.1) == wanted);
    if let Some(position) = holds.locks.iter().rposition(is_it) {
        state.drop_hold(holds.locks.remove(position).2);
    }
    Ok(())
}

fn set_td(state: &mut State, what: &str, step: &Step) -> Result<(), String> {
    let (td, input) = (step.td, &step.input);
    let td = td.and_then(|td| state.tds.get_mut(td)).and_then(Option::as_mut).ok_or("no such TD")?;
    match what {
        "SET_OP_STATE" => td.op_state = input.op_state.number_in(&OP_STATES)?,
        "SET_LIFECYCLE" => {
            let number = input.lifecycle.number_in(&LIFECYCLES)?;
            td.lifecycle = Lifecycle::from_number(number).ok_or("unknown life cycle")?;
        }
        _ => td.fatal = input.fatal,
    }
    Ok(())
}
