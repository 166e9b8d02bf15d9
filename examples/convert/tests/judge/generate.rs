//! Random scenarios, the same ones each time, and the shortest part of one that still fails.

use std::fmt::Write as _;

use convert::options::{Merge, Module, Options, OrderChoice};
use convert::scenario::Scenario;

/// A small generator of numbers (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0dd_ba11)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

const P: u64 = 4 << 10;
const M: u64 = 2 << 20;
const G: u64 = 1 << 30;

/// What the lines are made for.
struct Maker {
    random: Random,
    /// RAM declared so far.
    ram: Vec<(u64, u64)>,
    /// Pages that lines return to, so that they meet.
    hot: Vec<u64>,
    unit: u64,
    text: String,
    memory: bool,
}

/// A scenario of about `lines` operations.
pub(crate) fn scenario(seed: u64, lines: u64) -> String {
    let mut random = Random::new(seed);
    let unit = random.one_of(&[G, G, M, M, P]);
    let hvo = if random.below(4) == 0 { "off" } else { "on" };
    let td = random.one_of(&["", "td gpaw=48 levels=5 vcpus=1\n", "td gpaw=52 levels=5\n", "td vcpus=3\n"]);
    let backing = match unit {
        G => "1G",
        M => "2M",
        _ => "4K",
    };
    let text = format!("{td}backing {backing} hvo={hvo}\n");
    let high = if td.contains("52") && random.below(2) == 0 { 1 << 50 } else { 0 };
    let mut maker =
        Maker { random, ram: Vec::new(), hot: Vec::new(), unit, text, memory: seed.is_multiple_of(3) };
    let base = high + maker.random.one_of(&[0, 0, G, 512 * G]);
    match unit {
        G => {
            maker.declare(base, G);
            if maker.random.below(3) == 0 {
                let at = base + maker.random.one_of(&[G, 2 * G]);
                maker.declare(at, G);
            }
        }
        M => {
            let first = base + maker.random.one_of(&[0, M, G - 2 * M]);
            let len = M * (1 + maker.random.below(3));
            maker.declare(first, len);
            let hole = M * maker.random.below(2);
            let len = M * (1 + maker.random.below(2));
            maker.declare(first + 8 * M + hole, len);
        }
        _ => {
            let first = base + P * maker.random.one_of(&[0, 1, 500, 512]);
            let len = P * (1 + maker.random.below(1200));
            maker.declare(first, len);
        }
    }
    maker.images();
    if unit != G || maker.random.below(3) > 0 {
        for (start, len) in maker.ram.clone() {
            if maker.random.below(4) > 0 {
                maker.line(format!("accept {start:#x} {len:#x}"));
            }
        }
    }
    let late = maker.random.below(lines);
    for line in 0..lines {
        if line == late && maker.random.below(3) == 0 {
            let end = maker.ram.iter().map(|(start, len)| start + len).max().unwrap();
            let hole = unit * maker.random.below(2);
            maker.declare(end + hole, unit);
        }
        maker.operation();
    }
    maker.line("check".to_owned());
    maker.line("memory unlimited".to_owned());
    maker.line("merge".to_owned());
    maker.text
}

impl Maker {
    fn line(&mut self, line: String) {
        writeln!(self.text, "{line}").unwrap();
    }

    fn declare(&mut self, start: u64, len: u64) {
        self.line(format!("ram {start:#x} {len:#x}"));
        self.ram.push((start, len));
        for at in [start, start + len, start + len / 2, start + M, start + 3 * M] {
            self.hot.push(at - at % P);
        }
        let at = start + P * self.random.below(len / P);
        self.hot.push(at);
    }

    /// A range inside RAM, often around a hot address, often aligned.
    fn range(&mut self) -> (u64, u64) {
        loop {
            let near = self.random.one_of(&self.hot.clone());
            let len = match self.random.below(8) {
                0..=2 => P,
                3 => P * (1 + self.random.below(20)),
                4 => M,
                5 => M * (1 + self.random.below(3)),
                6 => M + P * self.random.below(3) - P,
                _ => self.random.one_of(&[self.unit, 16 * P, 256 * P, 4 * M, G]),
            };
            let back = match self.random.below(5) {
                0 | 1 => 0,
                2 => P,
                3 => len,
                _ => P * self.random.below(len / P),
            };
            let Some(start) = near.checked_sub(back) else { continue };
            if self.is_ram(start, len) {
                return (start, len);
            }
        }
    }

    /// Whether all of a range is RAM; regions that touch are one.
    fn is_ram(&self, start: u64, len: u64) -> bool {
        let mut at = start;
        while at < start + len {
            match self.ram.iter().find(|(first, len)| *first <= at && at < first + len) {
                Some((first, len)) => at = first + len,
                None => return false,
            }
        }
        true
    }

    fn images(&mut self) {
        if self.random.below(3) > 0 {
            return;
        }
        let (start, len) = self.range();
        let len = len.min(700 * P);
        if self.random.below(4) == 0 {
            self.line(format!("share {start:#x} {P:#x}"));
        }
        if self.random.below(6) == 0 {
            self.line(format!("poison {start:#x}"));
        }
        self.line(format!("image {start:#x} {len:#x}"));
        if self.random.below(4) == 0 {
            self.line(format!("punch {start:#x} {P:#x}"));
        }
        if self.random.below(6) == 0 {
            self.line("merge".to_owned());
        }
    }

    fn operation(&mut self) {
        let (start, mut len) = self.range();
        let range = format!("{start:#x} {len:#x}");
        let line = match self.random.below(32) {
            0..=3 => format!("accept {range}"),
            4 => format!("accept {range} level=4K"),
            5 if start % M == 0 && len % M == 0 => format!("accept {range} level=2M"),
            5 | 6 => format!("touch {range}"),
            7 | 8 => {
                len = len.min(64 * P);
                format!("fill {start:#x} {len:#x}")
            }
            9 => {
                len = len.min(64 * P);
                format!("hostfill {start:#x} {len:#x}")
            }
            10..=15 => format!("share {range}"),
            16..=20 => format!("unshare {range}"),
            21 => format!("unshare {range} accept=no"),
            22 => format!("pin {range}"),
            23 | 24 => format!("unpin {range}"),
            25 if self.memory => format!("memory {}", self.random.below(12)),
            26 if self.memory => "memory unlimited".to_owned(),
            25 | 26 if !self.memory => format!("poison {start:#x}"),
            27 | 28 => format!("punch {range}"),
            29 if self.random.below(4) == 0 => "check".to_owned(),
            30 => "merge".to_owned(),
            31 if self.random.below(20) == 0 && !self.memory => format!("poison {start:#x} consumed"),
            _ => format!("share {start:#x} {P:#x}"),
        };
        self.line(line);
    }
}

/// Options for the `seed`-th scenario.
pub(crate) fn options(seed: u64) -> Options {
    let mut random = Random::new(!seed);
    let orders =
        ["18,9,0", "all", "18,9,0", "all", "9,0", "18,0", "0", "18,12,6,0", "17,10,8,3,0", "30,18,9,0"];
    let modules = [Module::V1_5_28, Module::V2_0_08, Module::V1_5_01];
    let merge = if seed % 3 == 1 && random.below(2) == 0 { Merge::Lazy } else { Merge::Eager };
    let orders: &str = random.one_of(&orders);
    Options { orders: orders.parse::<OrderChoice>().unwrap(), merge, module: random.one_of(&modules) }
}

/// The lines of `text` without which it no longer fails.
pub(crate) fn shrink(text: &str, fails: impl Fn(&Scenario) -> bool) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let mut size = lines.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < lines.len() {
            let mut fewer = lines.clone();
            fewer.drain(at..(at + size).min(lines.len()));
            let scenario = Scenario::parse("judge", fewer.join("\n").as_bytes());
            if scenario.is_ok_and(|scenario| fails(&scenario)) {
                lines = fewer;
            } else {
                at += size;
            }
        }
        if size == 1 {
            return lines.join("\n") + "\n";
        }
        size = size.div_ceil(2);
    }
}
