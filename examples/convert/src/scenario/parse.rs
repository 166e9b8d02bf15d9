//! From text to a checked scenario.

use std::path::Path;

use super::number;
use super::operands::{Operands, Reason, aligned, choose, quote};
use super::{AcceptLevel, Backing, Expect, Op, PAGE, Region, Regions, Scenario, ScenarioError, Td, Verb};
use crate::report::Outcome;

const SIZE_2M: u64 = 2 << 20;
const YES_NO: [(&str, bool); 2] = [("yes", true), ("no", false)];
const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];
const LEVELS: [(&str, AcceptLevel); 2] = [("4K", AcceptLevel::Page4K), ("2M", AcceptLevel::Block2M)];
const RESULTS: [(&str, Outcome); 4] =
    [("ok", Outcome::Ok), ("noop", Outcome::Noop), ("again", Outcome::Again), ("refused", Outcome::Refused)];

pub(super) fn scenario(file: &str, text: &[u8]) -> Result<Scenario, ScenarioError> {
    let mut parser = Parser::default();
    for (number, bytes) in (1..).zip(text.split(|&b| b == b'\n')) {
        parser.line(number, bytes).map_err(|reason| ScenarioError::Malformed {
            file: file.to_owned(),
            line: number,
            reason,
        })?;
    }
    Ok(Scenario {
        file: file.to_owned(),
        name: Path::new(file).file_stem().map_or_else(|| file.to_owned(), |s| s.to_string_lossy().into()),
        td: parser.td,
        backing: parser.backing.unwrap_or_default(),
        ram: parser.ram.iter().collect(),
        ops: parser.ops,
    })
}

/// What the lines so far have said.
#[derive(Debug, Default)]
struct Parser {
    td: Td,
    backing: Option<Backing>,
    ram: Regions,
    images: Regions,
    ops: Vec<Op>,
    /// Whether a verb was seen at all.
    begun: bool,
    /// Whether RAM was declared.
    has_ram: bool,
    /// Whether the guest has accepted or touched memory.
    running: bool,
    /// Whether the verb before was an operation.
    after_operation: bool,
}

impl Parser {
    fn line(&mut self, line: usize, bytes: &[u8]) -> Result<(), Reason> {
        let text = str::from_utf8(bytes).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to() + 1))?;
        let text = text.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        let Some(name) = words.next() else { return Ok(()) };
        let mut operands = Operands::new(words);
        let after_operation = std::mem::take(&mut self.after_operation);
        match name {
            "td" => self.td(&mut operands)?,
            "backing" => self.backing(&mut operands)?,
            "expect" => self.expect(line, after_operation, &mut operands)?,
            _ => {
                let verb = self.verb(name, &mut operands)?;
                self.after_operation = verb.is_operation();
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                self.ops.push(Op { line, text, verb, expect: None });
            }
        }
        self.begun = true;
        Ok(())
    }

    fn td(&mut self, operands: &mut Operands<'_>) -> Result<(), Reason> {
        if self.begun {
            return Err("`td` is not the first verb".to_owned());
        }
        let [gpaw, levels, vcpus] = operands.keys(["gpaw", "levels", "vcpus"])?;
        if let Some(value) = gpaw {
            self.td.gpaw = one_of("gpaw", value, [48, 52])?;
        }
        if let Some(value) = levels {
            self.td.levels = one_of("levels", value, [4, 5])?;
        }
        if let Some(value) = vcpus {
            let vcpus = number::parse(value)?;
            self.td.vcpus = (1..=64).find(|&n| u64::from(n) == vcpus).ok_or("vcpus is not 1 to 64")?;
        }
        if self.td.gpaw == 52 && self.td.levels != 5 {
            return Err("gpaw=52 needs levels=5".to_owned());
        }
        Ok(())
    }

    fn backing(&mut self, operands: &mut Operands<'_>) -> Result<(), Reason> {
        if self.has_ram {
            return Err("`backing` after `ram`".to_owned());
        }
        if self.backing.is_some() {
            return Err("`backing` is given twice".to_owned());
        }
        let size = operands.word("SIZE")?;
        let bytes = number::parse(size)?;
        if ![1 << 30, SIZE_2M, PAGE].contains(&bytes) {
            return Err(format!("backing size is {}, not 1G, 2M or 4K", quote(size)));
        }
        let [hvo] = operands.keys(["hvo"])?;
        let hvo = hvo.map_or(Ok(true), |value| choose("hvo", value, &ON_OFF))?;
        self.backing = Some(Backing { size: bytes, hvo });
        Ok(())
    }

    fn expect(&mut self, line: usize, allowed: bool, operands: &mut Operands<'_>) -> Result<(), Reason> {
        let Some(op) = self.ops.last_mut().filter(|_| allowed) else {
            return Err("`expect` is not directly after an operation".to_owned());
        };
        let result = choose("RESULT", operands.word("RESULT")?, &RESULTS)?;
        let [at] = operands.keys(["at"])?;
        let at = at.map(number::parse).transpose()?;
        if let Some(gpa) = at {
            if result != Outcome::Again {
                return Err("`at=` without `again`".to_owned());
            }
            aligned("at", gpa, PAGE)?;
        }
        op.expect = Some(Expect { line, result, at });
        Ok(())
    }

    fn verb(&mut self, name: &str, operands: &mut Operands<'_>) -> Result<Verb, Reason> {
        let verb = match name {
            "memory" => memory(operands)?,
            "ram" => self.ram(operands)?,
            "image" => self.image(operands)?,
            "accept" => self.accept(operands)?,
            "unshare" => {
                let Region { start, len } = self.region(operands)?;
                let [accept] = operands.keys(["accept"])?;
                let accept = accept.map_or(Ok(true), |value| choose("accept", value, &YES_NO))?;
                Verb::Unshare { start, len, accept }
            }
            "poison" => self.poison(operands)?,
            "merge" => Verb::Merge,
            "check" => Verb::Check,
            _ => {
                let make = on_region(name).ok_or_else(|| format!("unknown verb {}", quote(name)))?;
                let Region { start, len } = self.region(operands)?;
                make(start, len)
            }
        };
        operands.end()?;
        self.running |= matches!(verb, Verb::Accept { .. } | Verb::Touch { .. });
        Ok(verb)
    }

    fn ram(&mut self, operands: &mut Operands<'_>) -> Result<Verb, Reason> {
        let unit = self.backing.unwrap_or_default().size;
        let region = operands.region(unit, self.td.shared_bit())?;
        self.ram.insert(region).map_err(|gpa| format!("{gpa:#x} is RAM already"))?;
        self.has_ram = true;
        Ok(Verb::Ram { start: region.start, len: region.len })
    }

    fn image(&mut self, operands: &mut Operands<'_>) -> Result<Verb, Reason> {
        if self.running {
            return Err("`image` after `accept` or `touch`".to_owned());
        }
        let region = self.region(operands)?;
        self.images.insert(region).map_err(|gpa| format!("{gpa:#x} is in an image already"))?;
        Ok(Verb::Image { start: region.start, len: region.len })
    }

    fn accept(&self, operands: &mut Operands<'_>) -> Result<Verb, Reason> {
        let Region { start, len } = self.region(operands)?;
        let [level] = operands.keys(["level"])?;
        let level = level.map(|value| choose("level", value, &LEVELS)).transpose()?;
        if level == Some(AcceptLevel::Block2M) {
            aligned("START", start, SIZE_2M)?;
            aligned("LEN", len, SIZE_2M)?;
        }
        Ok(Verb::Accept { start, len, level })
    }

    fn poison(&self, operands: &mut Operands<'_>) -> Result<Verb, Reason> {
        let gpa = operands.page("GPA")?;
        self.ram.cover(Region { start: gpa, len: PAGE }).map_err(not_ram)?;
        let consumed = match operands.next() {
            None => false,
            Some("consumed") => true,
            Some(word) => return Err(format!("extra operand {}", quote(word))),
        };
        Ok(Verb::Poison { gpa, consumed })
    }

    /// `START LEN`, all of it RAM.
    fn region(&self, operands: &mut Operands<'_>) -> Result<Region, Reason> {
        let region = operands.region(PAGE, self.td.shared_bit())?;
        self.ram.cover(region).map_err(not_ram)?;
        Ok(region)
    }
}

fn memory(operands: &mut Operands<'_>) -> Result<Verb, Reason> {
    let pages = operands.word("PAGES")?;
    Ok(Verb::Memory(if pages == "unlimited" { None } else { Some(number::parse(pages)?) }))
}

/// `value` as one of two numbers.
fn one_of(key: &str, value: &str, choices: [u32; 2]) -> Result<u32, Reason> {
    let [a, b] = choices;
    let number = number::parse(value)?;
    choices
        .into_iter()
        .find(|&choice| u64::from(choice) == number)
        .ok_or_else(|| format!("{key} is {}, not {a} or {b}", quote(value)))
}

/// The verbs whose only operands are `START LEN`.
fn on_region(name: &str) -> Option<fn(u64, u64) -> Verb> {
    Some(match name {
        "touch" => |start, len| Verb::Touch { start, len },
        "fill" => |start, len| Verb::Fill { start, len },
        "hostfill" => |start, len| Verb::HostFill { start, len },
        "share" => |start, len| Verb::Share { start, len },
        "pin" => |start, len| Verb::Pin { start, len },
        "unpin" => |start, len| Verb::Unpin { start, len },
        "punch" => |start, len| Verb::Punch { start, len },
        _ => return None,
    })
}

fn not_ram(gpa: u64) -> Reason {
    format!("{gpa:#x} is not RAM")
}
