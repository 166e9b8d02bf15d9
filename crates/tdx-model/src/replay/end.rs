//! The state at the end of a sequence, as the trace dumps it.

use core::fmt::Debug;

use super::format::{End, EndTd, SeptRow};
use super::header::{LIFECYCLES, OP_STATES, page_type_name};
use super::platform::PamtRow;
use crate::abi::{Lifecycle, PAGE, PageType, size_of_level};
use crate::memory::CHUNK;
use crate::pamt::PamtEntry;
use crate::sept::{self, EntryState};
use crate::state::State;

/// What differs: which part, expected, got.
type Differences = Vec<(String, String, String)>;

/// One PAMT entry.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Page {
    pub(super) pa: u64,
    pub(super) level: u8,
    pub(super) kind: String,
    pub(super) owner: u64,
    pub(super) bepoch: u64,
}

/// One S-EPT entry.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    pub(super) gpa: u64,
    pub(super) level: u8,
    pub(super) state: String,
    pub(super) hpa: u64,
    pub(super) counter: u64,
    pub(super) host_priority: bool,
    pub(super) locked: bool,
}

/// What the trace says of the end; what it leaves out is not compared.
pub(super) fn compare(state: &State, end: &End) -> Differences {
    let mut differences = Vec::new();
    let (pages, stale) = dump_pamt(state);
    if let Some(rows) = &end.pamt {
        compare_rows("pamt", rows.iter().flat_map(expand_pages).collect(), pages, &mut differences);
    }
    if let Some(rows) = &end.nda_stale_owner {
        let rows = rows.iter().flat_map(|row| (0..row.n).map(|index| (row.pa.0 + index * PAGE, row.owner.0)));
        compare_rows("stale owner", rows.collect(), stale, &mut differences);
    }
    for td in &end.tds {
        compare_td(state, td, &mut differences);
    }
    differences
}

/// Compares two lists as sets and tells the rows that only one of them has.
fn compare_rows<T: Ord + Debug>(
    what: &str,
    mut expected: Vec<T>,
    mut got: Vec<T>,
    differences: &mut Differences,
) {
    expected.sort();
    got.sort();
    let missing = expected.iter().filter(|row| got.binary_search(row).is_err());
    differences.extend(missing.map(|row| (what.to_owned(), format!("{row:x?}"), "nothing such".to_owned())));
    let extra = got.iter().filter(|row| expected.binary_search(row).is_err());
    differences.extend(extra.map(|row| (what.to_owned(), "nothing such".to_owned(), format!("{row:x?}"))));
}

fn expand_pages(row: &PamtRow) -> impl Iterator<Item = Page> {
    (0..row.n).map(|index| Page {
        pa: row.pa.0 + index * size_of_level(row.lvl),
        level: row.lvl,
        kind: row.pt.clone(),
        owner: row.owner.0,
        bepoch: row.bepoch.0,
    })
}

/// Every assigned page, and the free ones whose owner field is stale.
pub(super) fn dump_pamt(state: &State) -> (Vec<Page>, Vec<(u64, u64)>) {
    let (mut pages, mut stale) = (Vec::new(), Vec::new());
    let mut note = |pa: u64, level: u8, entry: PamtEntry| match entry.kind() {
        PageType::Nda if level == 0 && entry.owner() != 0 => stale.push((pa, entry.owner())),
        PageType::Nda | PageType::Rsvd => {}
        kind => {
            let kind = page_type_name(kind).to_owned();
            pages.push(Page { pa, level, kind, owner: entry.owner(), bepoch: entry.bepoch });
        }
    };
    for (gib, base) in state.mem.gibs.iter().zip((0..).step_by(1 << 30)) {
        let Some(gib) = gib else { continue };
        note(base, 2, gib.own);
        for (chunk, start) in gib.chunks.iter().zip((base..).step_by(CHUNK as usize)) {
            note(start, 1, chunk.own);
            let entries = chunk.fine.iter().flat_map(|fine| fine.entries);
            entries.zip((start..).step_by(PAGE as usize)).for_each(|(entry, pa)| note(pa, 0, entry));
        }
    }
    (pages, stale)
}

fn compare_td(state: &State, expected: &EndTd, differences: &mut Differences) {
    let name = |what: &str| format!("td {} {what}", expected.td);
    let Some(td) = state.tds.get(expected.td).and_then(Option::as_ref) else {
        if !expected.reclaimed {
            differences.push((name("TDR"), "in use".to_owned(), "reclaimed".to_owned()));
        }
        return;
    };
    let mut check = |what: &str, expected: String, got: String| {
        if expected != got {
            differences.push((name(what), expected, got));
        }
    };
    if expected.reclaimed {
        return check("TDR", "reclaimed".to_owned(), "in use".to_owned());
    }
    let states = [
        ("lifecycle", &expected.lifecycle, &LIFECYCLES[..], td.lifecycle as u8),
        ("op_state", &expected.op_state, &OP_STATES[..], td.op_state),
    ];
    for (what, expected, names, got) in states {
        if let Some(named) = expected {
            let number = named.number_in(names).map_or_else(|unknown| unknown, |number| number.to_string());
            check(what, number, got.to_string());
        }
    }
    let numbers = [
        ("fatal", expected.fatal, u64::from(td.fatal)),
        ("chldcnt", expected.chldcnt, td.chldcnt),
        ("td_epoch", expected.td_epoch, td.td_epoch),
    ];
    for (what, expected, got) in numbers {
        if let Some(expected) = expected {
            check(what, expected.0.to_string(), got.to_string());
        }
    }
    if let Some(refcount) = expected.refcount.map(|counts| counts.map(|count| count.0)) {
        check("refcount", format!("{refcount:?}"), format!("{:?}", td.refcount));
    }
    if let Some(epochs) = &expected.vcpu_epoch {
        let epochs: Vec<u64> = epochs.iter().map(|epoch| epoch.0).collect();
        // vCPUs created on the way need not be listed.
        let got: Vec<u64> = td.vcpus.iter().map(|vcpu| vcpu.epoch).take(epochs.len()).collect();
        check("vcpu_epoch", format!("{epochs:?}"), format!("{got:?}"));
    }
    if let Some(rows) = &expected.sept {
        let mut got = Vec::new();
        if td.lifecycle == Lifecycle::KeysConfigured {
            dump_table(state, td.root, 0, td.root_level, &mut got);
        }
        compare_rows(&name("sept"), rows.iter().flat_map(expand_entries).collect(), got, differences);
        for (row, raw) in rows.iter().filter_map(|row| Some((row, row.raw?.0))) {
            let slot = state.walk_tables(td, row.gpa.0, row.lvl);
            let got = slot.map(|(table, index)| state.mem.table(table)[index]);
            if got != Some(raw) {
                let place = format!("sept {:#x} level {} raw", row.gpa.0, row.lvl);
                differences.push((name(&place), format!("{raw:#x}"), format!("{got:x?}")));
            }
        }
    }
}

fn expand_entries(row: &SeptRow) -> impl Iterator<Item = Entry> {
    (0..row.n).map(|index| {
        let offset = index * size_of_level(row.lvl);
        Entry {
            gpa: row.gpa.0 + offset,
            level: row.lvl,
            state: spelled(&row.st),
            hpa: if row.hpa.0 == 0 { 0 } else { row.hpa.0 + offset },
            counter: row.accept_counter.0,
            host_priority: row.hp,
            locked: row.locked,
        }
    })
}

/// The name a state has in traces: that of the ABI.
fn state_name(state: EntryState) -> String {
    let mut name = String::new();
    for letter in format!("{state:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A state's name as [`state_name`] spells it, from that or the short forms in the module's own names.
fn spelled(name: &str) -> String {
    let words = name.strip_prefix("SEPT_STATE_").unwrap_or(name);
    let words = words.split('_').map(|word| match word {
        "PEND" => "PENDING",
        "EXP" => "EXPORTED",
        "BLK" => "BLOCKED",
        "BLKW" => "BLOCKEDW",
        other => other,
    });
    words.collect::<Vec<_>>().join("_").replace("BLOCKED_W", "BLOCKEDW")
}

/// Every entry of a table that is not pristine, and of the tables below it, blocked or not.
pub(super) fn dump_table(state: &State, table: u32, gpa: u64, level: u8, rows: &mut Vec<Entry>) {
    for (index, &raw) in state.mem.table(table).iter().enumerate() {
        if raw == sept::FREE {
            continue;
        }
        let gpa = gpa | (index as u64) << (12 + 9 * u32::from(level));
        let entry_state = sept::state_of(raw);
        let is_table = entry_state.is_in(sept::TABLES);
        let pending = level == 1 && entry_state.any_pending();
        let names_page = is_table || raw & sept::LEAF != 0;
        let hpa = sept::address(&state.cfg, raw & !state.lock_bit(), level);
        rows.push(Entry {
            gpa,
            level,
            state: state_name(entry_state),
            hpa: if names_page { hpa } else { 0 },
            counter: if pending { sept::accept_counter(raw) } else { 0 },
            host_priority: raw & sept::HOST_PRIORITY != 0,
            locked: raw & state.lock_bit() != 0,
        });
        if let Some(child) = state.mem.table_at(hpa).filter(|_| is_table) {
            dump_table(state, child, gpa, level - 1, rows);
        }
    }
}
