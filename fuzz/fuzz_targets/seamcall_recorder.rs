//! Recorded lines: JSON, one for each call, from which both register files can be had again.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::adapter::Recorder;
use seamcall::{Call, Leaf, Regs, Transport};
use serde_json::Value;
use std::cell::Cell;

#[derive(Arbitrary, Debug)]
struct Input {
    sequence: u64,
    calls: Vec<Pair>,
}

#[derive(Arbitrary, Debug)]
struct Pair {
    known: Option<(u8, u8)>,
    before: [u64; 9],
    after: [Option<u64>; 9],
}

fn regs([rax, rcx, rdx, r8, r9, r10, r11, r12, r13]: [u64; 9]) -> Regs {
    Regs { rax, rcx, rdx, r8, r9, r10, r11, r12, r13 }
}

/// Answers with what was laid out for the next call.
#[derive(Debug, Default)]
struct Next(Cell<Regs>);

impl Transport for Next {
    fn call(&self, _: Call<'_>) -> Regs {
        self.0.get()
    }
}

fuzz_target!(|input: Input| {
    let recorder = Recorder::new(Next::default(), Vec::new(), input.sequence);
    let calls: Vec<(Regs, Regs)> = input.calls.iter().map(Pair::registers).collect();
    for (before, after) in &calls {
        recorder.inner().0.set(*after);
        // SAFETY: what answers is a cell; no memory is concerned.
        assert_eq!(recorder.call(unsafe { Call::from_regs(*before) }), *after);
    }
    let text = String::from_utf8(recorder.finish().unwrap()).unwrap();
    assert_eq!(text.lines().count(), calls.len());
    for (index, (line, (before, after))) in text.lines().zip(calls).enumerate() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!((value["seq"].as_u64(), value["i"].as_u64()), (Some(input.sequence), Some(index as u64)));
        let name = value["leaf"].as_str().unwrap();
        let rax = match Leaf::ALL.iter().find(|leaf| leaf.name() == Some(name)) {
            Some(leaf) => leaf.version(u8::try_from(value["ver"].as_u64().unwrap()).unwrap()).rax(),
            None => {
                assert_eq!((name, value.get("ver")), ("RAW", None));
                0
            }
        };
        let input = put(Regs { rax, ..Regs::new() }, &value["in"], |now, _| now != 0);
        assert_eq!(input, before, "{line}");
        assert!(value["out"].get("rax").is_some());
        assert_eq!(put(input, &value["out"], |now, was| now != was), after, "{line}");
    }
});

impl Pair {
    fn registers(&self) -> (Regs, Regs) {
        let mut before = self.before;
        if let Some((leaf, version)) = self.known {
            before[0] = Leaf::ALL[usize::from(leaf) % Leaf::ALL.len()].version(version).rax();
        }
        let after = std::array::from_fn(|register| self.after[register].unwrap_or(before[register]));
        (regs(before), regs(after))
    }
}

/// Sets what `object` lists; only what `worth` listing is there, `rax` apart.
fn put(regs: Regs, object: &Value, worth: impl Fn(u64, u64) -> bool) -> Regs {
    let get = |name: &str, before: u64| match object.get(name) {
        None => before,
        Some(value) => {
            let digits = value.as_str().unwrap().strip_prefix("0x").unwrap();
            let now = u64::from_str_radix(digits, 16).unwrap();
            assert_eq!(format!("{now:x}"), digits);
            assert!(name == "rax" || worth(now, before), "{name} says nothing");
            now
        }
    };
    Regs {
        rax: get("rax", regs.rax),
        rcx: get("rcx", regs.rcx),
        rdx: get("rdx", regs.rdx),
        r8: get("r8", regs.r8),
        r9: get("r9", regs.r9),
        r10: get("r10", regs.r10),
        r11: get("r11", regs.r11),
        r12: get("r12", regs.r12),
        r13: get("r13", regs.r13),
    }
}
