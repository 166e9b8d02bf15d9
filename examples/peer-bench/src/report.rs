//! What came out: a table for people, rows for programs.

use crate::{
    contender::{How, Work},
    rounds::Competitor,
};
use serde::Serialize;
use std::fmt::Write as _;

/// One work: medians in nanoseconds per operation, and how sept-core compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    work: &'static str,
    ours_ns: Option<f64>,
    floor_ns: Option<f64>,
    /// The fastest that does this work with an operation of its own.
    best_peer: Option<&'static str>,
    best_peer_ns: Option<f64>,
    ours_over_floor: Option<f64>,
    ours_over_peer: Option<f64>,
}

/// The rows, in the order of [`Work::ALL`]. `all` begins with the floor and sept-core.
pub(crate) fn rows(all: &[Competitor]) -> Vec<Row> {
    let [floor, ours, peers @ ..] = all else { return Vec::new() };
    let row = |(number, work): (usize, Work)| {
        let of = |one: &Competitor| median(&one.rounds[number]).map(rounded);
        let native = peers.iter().filter(|peer| (peer.how)(work) == How::Native);
        let best = native.filter_map(|peer| Some((of(peer)?, peer.name))).min_by(|a, b| a.0.total_cmp(&b.0));
        let (ours_ns, floor_ns, best_peer_ns) = (of(ours), of(floor), best.map(|(ns, _)| ns));
        let ratio = |to: Option<f64>| Some(rounded(ours_ns? / to?));
        Row {
            work: work.name(),
            ours_ns,
            floor_ns,
            best_peer: best.map(|(_, name)| name),
            best_peer_ns,
            ours_over_floor: ratio(floor_ns),
            ours_over_peer: ratio(best_peer_ns),
        }
    };
    Work::ALL.into_iter().enumerate().map(row).collect()
}

/// All medians and the two ratios, as text.
pub(crate) fn table(all: &[Competitor], rows: &[Row]) -> String {
    let mut text = format!("{:<13}", "ns per op");
    for one in all {
        let _ = write!(text, " {:>width$} ", one.name, width = width(one));
    }
    let _ = writeln!(text, " {:>6} {:>6}", "/floor", "/peer");
    for ((number, work), row) in Work::ALL.into_iter().enumerate().zip(rows) {
        let _ = write!(text, "{:<13}", row.work);
        for one in all {
            let mark = match (one.how)(work) {
                How::Native => " ",
                How::Emulated => "e",
                How::Subtree => "s",
            };
            let _ = match median(&one.rounds[number]) {
                Some(ns) => write!(text, " {ns:>width$.2}{mark}", width = width(one)),
                None => write!(text, " {:>width$} ", "-", width = width(one)),
            };
        }
        let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(text, " {:>6} {:>6}", ratio(row.ours_over_floor), ratio(row.ours_over_peer));
    }
    text
}

/// Of a competitor's column, without the mark.
fn width(one: &Competitor) -> usize {
    one.name.len().max(8)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// To a thousandth, which is more than is known.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn competitor(name: &'static str, how: fn(Work) -> How, merge: &[f64], split: &[f64]) -> Competitor {
        let mut one = Competitor { name, how, run: |_, _| Ok(None), rounds: Default::default() };
        for (number, work) in Work::ALL.into_iter().enumerate() {
            match work {
                Work::Merge => one.rounds[number].extend(merge),
                Work::SplitAll => one.rounds[number].extend(split),
                _ => {}
            }
        }
        one
    }

    #[test]
    fn the_best_peer_is_the_fastest_native_one() {
        let all = [
            competitor("floor", |_| How::Native, &[80.0, 100.0, 90.0], &[64.0]),
            competitor("ours", |_| How::Native, &[180.0], &[100.0, 120.0, 110.0, 300.0]),
            competitor("slow", |_| How::Native, &[], &[460.0]),
            competitor("emulates", |_| How::Emulated, &[40.0], &[1.0]),
            competitor("drops", |_| How::Subtree, &[30.0], &[2.0]),
            competitor("fast", |_| How::Native, &[], &[230.0]),
        ];
        let rows = rows(&all);
        let row = |name| rows.iter().find(|row| row.work == name).expect("a row for each work");
        let split = row("split_all");
        assert_eq!((split.best_peer, split.best_peer_ns), (Some("fast"), Some(230.0)));
        assert_eq!((split.ours_ns, split.ours_over_peer), (Some(115.0), Some(0.5)));
        assert_eq!(split.ours_over_floor, Some(1.797));
        let merge = row("merge");
        assert_eq!((merge.best_peer, merge.ours_over_peer, merge.floor_ns), (None, None, Some(90.0)));
        assert_eq!(merge.ours_over_floor, Some(2.0));
        assert_eq!(row("translate").ours_ns, None);
        let text = table(&all, &rows);
        assert!(text.lines().any(|line| line.starts_with("merge") && line.contains("40.00e")), "{text}");
    }
}
