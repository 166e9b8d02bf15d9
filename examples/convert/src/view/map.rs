//! A picture of the block layout: rows of 64 cells, 80 columns in all.
//!
//! Three lines a row: what the memory is, what maps it, and the smallest folio order. Colour repeats what the characters say.

use std::io::{self, Write};
use std::ops::Range;

use anstyle::Style;

use super::style::{BAD, FAINT, GOOD, HEAD, MIXED, PLAIN, SMALL, WARN};
use crate::report::{FolioState, LayoutRun, LeafLevel, LeafRun, LeafState, Report};
use crate::scenario::{PAGE, Size};

/// Columns before the cells.
const MARGIN: usize = 16;
const CELLS: u64 = 64;
const LARGEST_ROW: u64 = 1 << 30;
const SMALLEST_ROW: u64 = 2 << 20;
/// Rows that a TD on small folios should fit in.
const ROWS: u64 = 16;

const LEGEND: &str = "
  memory       . private   # shared   + both   ! poisoned
  S-EPT leaf   G 1G   M 2M   k 4K (the smallest in the cell)   - none
               p pending   B blocked (if any in the cell is)
  folio order  the smallest in the cell: 0 to 9, a = 10 to i = 18
";

/// Draws the layout of `report`, whose blocks have `block` bytes.
pub(super) fn draw(out: &mut dyn Write, report: &Report, block: u64) -> io::Result<()> {
    let picture = Picture::new(report, block);
    let cell = picture.row / CELLS;
    writeln!(out, "{HEAD}block layout{HEAD:#}, {} a row, {} a cell", Size(picture.row), Size(cell))?;
    let quarter = |n: u64| Size(n * picture.row / 4);
    writeln!(out, "{:MARGIN$}{:16}{:16}{:16}{}", "", "0", quarter(1), quarter(2), quarter(3))?;
    for Group { start, rows, lines: [memory, leaves, orders] } in picture.groups() {
        line(out, &format!("{start:#x}"), &memory)?;
        line(out, "  S-EPT leaf", &leaves)?;
        line(out, "  folio order", &orders)?;
        if rows > 1 {
            let end = start + rows * picture.row;
            writeln!(out, "{FAINT}{:MARGIN$}{} more like it, up to {end:#x}{FAINT:#}", "", rows - 1)?;
        }
    }
    writeln!(out, "{LEGEND}")
}

/// Like rows, one behind the other.
#[derive(Debug)]
struct Group {
    start: u64,
    rows: u64,
    lines: [String; 3],
}

#[derive(Debug)]
struct Picture<'a> {
    layout: &'a [LayoutRun],
    leaves: &'a [LeafRun],
    /// Bytes of a row.
    row: u64,
}

impl<'a> Picture<'a> {
    fn new(report: &'a Report, block: u64) -> Self {
        let total: u64 = report.layout.iter().map(|run| run.end() - run.start).sum();
        let needed = total.div_ceil(ROWS).next_power_of_two();
        let row = if block == LARGEST_ROW { block } else { needed.clamp(SMALLEST_ROW, LARGEST_ROW) };
        Self { layout: &report.layout, leaves: &report.leaves, row }
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut next = 0;
        // The first piece of RAM at or behind `next` says where the next row is.
        while let Some(run) = overlapping(self.layout, next..u64::MAX).next() {
            let start = next.max(run.start) / self.row * self.row;
            let rows = self.alike_from(start);
            next = start + rows * self.row;
            let lines = self.lines(start);
            match groups.last_mut() {
                Some(last) if last.start + last.rows * self.row == start && last.lines == lines => {
                    last.rows += rows
                }
                _ => groups.push(Group { start, rows, lines }),
            }
        }
        groups
    }

    /// Rows from `start` on that lie in the same two runs: these need no second look.
    fn alike_from(&self, start: u64) -> u64 {
        let ends = (
            overlapping(self.layout, start..start + 1).next().map(Run::end),
            overlapping(self.leaves, start..start + 1).next().map(Run::end),
        );
        let (Some(layout), Some(leaves)) = ends else { return 1 };
        ((layout.min(leaves) - start) / self.row).max(1)
    }

    fn lines(&self, start: u64) -> [String; 3] {
        let size = self.row / CELLS;
        let cells = (0..CELLS).map(|n| self.cell(start + n * size..start + (n + 1) * size));
        cells.fold(Default::default(), |[mut memory, mut leaves, mut orders]: [String; 3], cell| {
            memory.push(cell[0]);
            leaves.push(cell[1]);
            orders.push(cell[2]);
            [memory, leaves, orders]
        })
    }

    fn cell(&self, range: Range<u64>) -> [char; 3] {
        let folios = || overlapping(self.layout, range.clone());
        let Some(order) = folios().map(|run| run.order).min() else { return [' '; 3] };
        let any = |state| folios().any(|run| run.state == state);
        let memory = match (any(FolioState::Private), any(FolioState::Shared)) {
            _ if any(FolioState::Poisoned) => '!',
            (true, true) => '+',
            (false, true) => '#',
            _ => '.',
        };
        [memory, self.leaf(range), char::from_digit(order, 36).unwrap_or('?')]
    }

    fn leaf(&self, range: Range<u64>) -> char {
        let leaves = || overlapping(self.leaves, range.clone());
        if leaves().any(|run| run.state == LeafState::Blocked) {
            return 'B';
        }
        if leaves().any(|run| run.state == LeafState::Pending) {
            return 'p';
        }
        match leaves().filter(|run| run.state == LeafState::Mapped).map(|run| run.level).min() {
            Some(LeafLevel::Page4K) => 'k',
            Some(LeafLevel::Block2M) => 'M',
            Some(LeafLevel::Block1G) => 'G',
            None => '-',
        }
    }
}

/// Consecutive like pieces.
trait Run {
    fn start(&self) -> u64;
    fn end(&self) -> u64;
}

impl Run for LayoutRun {
    fn start(&self) -> u64 {
        self.start
    }

    fn end(&self) -> u64 {
        self.start + self.count * (PAGE << self.order)
    }
}

impl Run for LeafRun {
    fn start(&self) -> u64 {
        self.start
    }

    fn end(&self) -> u64 {
        self.start + self.count * self.level.bytes()
    }
}

/// Those of the ascending `runs` that reach into `range`.
fn overlapping<R: Run>(runs: &[R], range: Range<u64>) -> impl Iterator<Item = &R> {
    let first = runs.partition_point(|run| run.end() <= range.start);
    runs.iter().skip(first).take_while(move |run| run.start() < range.end)
}

/// A label and its cells, each stretch of one character in its colour.
fn line(out: &mut dyn Write, label: &str, cells: &str) -> io::Result<()> {
    write!(out, "{label:MARGIN$}")?;
    let mut rest = cells.trim_end();
    while let Some(first) = rest.chars().next() {
        let style = paint(first);
        let (like, others) = rest.split_at(rest.find(|c| c != first).unwrap_or(rest.len()));
        write!(out, "{style}{like}{style:#}")?;
        rest = others;
    }
    writeln!(out)
}

fn paint(cell: char) -> Style {
    match cell {
        '.' | 'G' => GOOD,
        '#' | 'p' => WARN,
        '+' => MIXED,
        '!' | 'B' => BAD,
        'k' | '0' => SMALL,
        '-' => FAINT,
        _ => PLAIN,
    }
}
