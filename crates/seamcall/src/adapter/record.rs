//! Writing calls down.

use crate::{Call, EnterCall, GuestRegs, Leaf, Regs, Transport, VpEnter};
use core::fmt::Write as _;
use std::{
    io::{self, Write},
    string::String,
    sync::{Mutex, PoisonError},
};

/// Writes one JSON line for each call, with what went in and what came out.
///
/// ```text
/// {"seq":0,"i":4,"leaf":"TDH.MEM.TRACK","ver":0,"in":{"rcx":"0x101000000"},"out":{"rax":"0x0"}}
/// ```
///
/// `in` has the registers that are not 0, `out` has `rax` and each other register that the call changed. A selector
/// that is no known leaf is `"leaf":"RAW"` with its `rax` in `in`. `i` counts calls in the order they returned.
///
/// ```
/// use seamcall::{Regs, Tdr, Transport, Call, adapter::Recorder, mem};
/// # struct Module;
/// # impl Transport for Module {
/// #     fn call(&self, call: Call<'_>) -> Regs { Regs { rax: 0, ..call.regs() } }
/// # }
/// # let td = Tdr::new(sept_core::Hpa::new(0x1000).unwrap()).unwrap();
/// let recorder = Recorder::new(Module, Vec::new(), 0);
/// mem::track(&recorder, td)?;
/// let line = br#"{"seq":0,"i":0,"leaf":"TDH.MEM.TRACK","ver":0,"in":{"rcx":"0x1000"},"out":{"rax":"0x0"}}"#;
/// assert_eq!(recorder.finish()?.trim_ascii_end(), line);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Recorder<T, W> {
    inner: T,
    sink: Mutex<Sink<W>>,
}

#[derive(Debug)]
struct Sink<W> {
    out: W,
    seq: u64,
    next: u64,
    failed: Option<io::Error>,
}

impl<T: Transport, W: Write> Recorder<T, W> {
    /// Records the calls of `inner` to `out`, as sequence `seq`.
    pub const fn new(inner: T, out: W, seq: u64) -> Self {
        Self { inner, sink: Mutex::new(Sink { out, seq, next: 0, failed: None }) }
    }

    /// The transport inside.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// Ends the recording and gives the sink back, flushed.
    ///
    /// # Errors
    ///
    /// The first error that writing or flushing met. Nothing was recorded after it; the calls themselves were made.
    pub fn finish(self) -> io::Result<W> {
        let mut sink = self.sink.into_inner().unwrap_or_else(PoisonError::into_inner);
        match sink.failed {
            Some(error) => Err(error),
            None => sink.out.flush().map(|()| sink.out),
        }
    }
}

impl<T, W: Write> Recorder<T, W> {
    fn write<const N: usize>(&self, input: &Named<N>, output: &Named<N>) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.failed.is_none() {
            let text = line(sink.seq, sink.next, input, output);
            sink.failed = sink.out.write_all(text.as_bytes()).err();
            sink.next = sink.next.saturating_add(1);
        }
    }
}

impl<T: Transport, W: Write> Transport for Recorder<T, W> {
    fn call(&self, call: Call<'_>) -> Regs {
        let input = call.regs();
        let out = self.inner.call(call);
        self.write(&named(&input), &named(&out));
        out
    }
}

/// An entry is recorded with the registers of the guest, when it has exited.
impl<T: VpEnter, W: Write> VpEnter for Recorder<T, W> {
    fn enter(&self, call: EnterCall<'_>) -> GuestRegs {
        let input = call.regs();
        let out = self.inner.enter(call);
        self.write(&named_guest(&input), &named_guest(&out));
        out
    }
}

/// `RAX`, then the other registers by name.
type Named<const N: usize> = (u64, [(&'static str, u64); N]);

const fn named(regs: &Regs) -> Named<8> {
    let others = [
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
    ];
    (regs.rax, others)
}

const fn named_guest(regs: &GuestRegs) -> Named<14> {
    let others = [
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rbx", regs.rbx),
        ("rbp", regs.rbp),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
    ];
    (regs.rax, others)
}

fn line<const N: usize>(seq: u64, index: u64, input: &Named<N>, output: &Named<N>) -> String {
    let (rax, input) = *input;
    let leaf = Leaf::from_rax(rax);
    let known = leaf.name().filter(|_| leaf.rax() == rax);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = match known {
        Some(name) => {
            write!(text, r#"{{"seq":{seq},"i":{index},"leaf":"{name}","ver":{}"#, leaf.interface())
        }
        None => write!(text, r#"{{"seq":{seq},"i":{index},"leaf":"RAW""#),
    };
    let set = input.into_iter().filter(|(_, value)| *value != 0);
    let rax = known.is_none().then_some(("rax", rax));
    object(&mut text, "in", set.chain(rax));
    let changed = output.1.into_iter().zip(input).filter(|(now, was)| now != was);
    object(&mut text, "out", [("rax", output.0)].into_iter().chain(changed.map(|(now, _)| now)));
    text.push_str("}\n");
    text
}

fn object(text: &mut String, name: &str, fields: impl Iterator<Item = (&'static str, u64)>) {
    let _ = write!(text, r#","{name}":{{"#);
    for (index, (register, value)) in fields.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, r#"{comma}"{register}":"{value:#x}""#);
    }
    text.push('}');
}
