//! A recorded line, read back with the rules of its format: what is not listed in `in` was 0, what is not listed in
//! `out` did not change.
#![expect(clippy::indexing_slicing, reason = "a test may fail by panicking")]

use seamcall::{Leaf, Regs};
use serde_json::Value;

pub(crate) struct Line {
    pub(crate) seq: u64,
    pub(crate) index: u64,
    pub(crate) leaf: String,
    version: u8,
    input: Value,
    output: Value,
}

pub(crate) fn parse(text: &str) -> Line {
    let value: Value = serde_json::from_str(text).unwrap();
    Line {
        seq: value["seq"].as_u64().unwrap(),
        index: value["i"].as_u64().unwrap(),
        leaf: value["leaf"].as_str().unwrap().to_owned(),
        version: value["ver"].as_u64().map_or(0, |version| u8::try_from(version).unwrap()),
        input: value["in"].clone(),
        output: value["out"].clone(),
    }
}

fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
}

fn put(regs: Regs, object: &Value) -> Regs {
    let get = |name: &str, before: u64| object.get(name).map_or(before, hex);
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

impl Line {
    pub(crate) fn input(&self) -> Regs {
        let leaf = Leaf::ALL.iter().find(|leaf| leaf.name() == Some(self.leaf.as_str()));
        let rax = leaf.map_or(0, |leaf| leaf.version(self.version).rax());
        put(Regs { rax, ..Regs::new() }, &self.input)
    }

    pub(crate) fn output(&self, input: Regs) -> Regs {
        put(input, &self.output)
    }
}
