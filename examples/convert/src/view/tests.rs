use anstream::StripStream;

use super::*;
use crate::outcome::UniformCost;
use crate::report::{FolioState, LayoutRun, LeafLevel, LeafRun, LeafState, Outcome, Resources, Skipped};

fn plain(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
    let mut out = StripStream::new(Vec::new());
    write(&mut out).unwrap();
    let text = String::from_utf8(out.into_inner()).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    text
}

fn folios(start: u64, order: u32, count: u64, state: FolioState) -> LayoutRun {
    LayoutRun { start, order, count, state }
}

fn leaves(start: u64, level: LeafLevel, count: u64, state: LeafState) -> LeafRun {
    LeafRun { start, level, count, state }
}

fn rows(report: &Report, block: u64) -> Vec<String> {
    let text = plain(|out| map::draw(out, report, block));
    text.lines().skip(2).take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_shared_page_shows_in_its_cell() {
    use FolioState::{Private, Shared};
    use LeafLevel::{Block1G, Block2M, Page4K};
    use LeafState::{Free, Mapped};
    let page = 0x4234_5000;
    let report = Report {
        layout: vec![
            folios(0, 18, 1, Private),
            folios(0x4000_0000, 9, 17, Private),
            folios(0x4220_0000, 0, 0x145, Private),
            folios(page, 0, 1, Shared),
            folios(page + 4096, 0, 512 - 0x146, Private),
            folios(0x4240_0000, 9, 512 - 18, Private),
        ],
        leaves: vec![
            leaves(0, Block1G, 1, Mapped),
            leaves(0x4000_0000, Block2M, 17, Mapped),
            leaves(0x4220_0000, Page4K, 0x145, Mapped),
            leaves(page, Page4K, 1, Free),
            leaves(page + 4096, Page4K, 512 - 0x146, Mapped),
            leaves(0x4240_0000, Block2M, 512 - 18, Mapped),
        ],
        ..Report::default()
    };
    let want = [
        format!("{:16}{}", "0x0", ".".repeat(64)),
        format!("{:16}{}", "  S-EPT leaf", "G".repeat(64)),
        format!("{:16}{}", "  folio order", "i".repeat(64)),
        format!("{:16}..+{}", "0x40000000", ".".repeat(61)),
        format!("{:16}MMk{}", "  S-EPT leaf", "M".repeat(61)),
        format!("{:16}990{}", "  folio order", "9".repeat(61)),
    ];
    assert_eq!(rows(&report, 1 << 30), want);
}

#[test]
fn like_rows_are_drawn_once_at_any_size() {
    let tib = 1 << 40;
    let report = Report {
        layout: vec![
            folios(0, 18, 1 << 17, FolioState::Private),
            folios(tib << 10, 18, 1024, FolioState::Private),
        ],
        leaves: vec![
            leaves(0, LeafLevel::Block1G, 1 << 17, LeafState::Mapped),
            leaves(tib << 10, LeafLevel::Block1G, 1024, LeafState::Mapped),
        ],
        ..Report::default()
    };
    let rows = rows(&report, 1 << 30);
    assert_eq!(rows.len(), 8);
    assert_eq!(rows[3].trim(), "131071 more like it, up to 0x800000000000");
    assert_eq!(&rows[4][..17], "0x4000000000000 .");
}

#[test]
fn small_folios_get_small_cells() {
    use FolioState::{Poisoned, Private, Shared};
    let start = 4 << 30;
    let report = Report {
        layout: vec![
            folios(start, 0, 8, Shared),
            folios(start + 0x8000, 0, 503, Private),
            folios(start + 0x1f_f000, 0, 1, Poisoned),
            folios(start + 0x20_0000, 9, 1, Private),
        ],
        leaves: vec![
            leaves(start, LeafLevel::Page4K, 8, LeafState::Free),
            leaves(start + 0x8000, LeafLevel::Page4K, 8, LeafState::Blocked),
            leaves(start + 0x1_0000, LeafLevel::Page4K, 496, LeafState::Mapped),
            leaves(start + 0x20_0000, LeafLevel::Block2M, 1, LeafState::Pending),
        ],
        ..Report::default()
    };
    let want = [
        format!("{:16}#{}!", "0x100000000", ".".repeat(62)),
        format!("{:16}-B{}", "  S-EPT leaf", "k".repeat(62)),
        format!("{:16}{}", "  folio order", "0".repeat(64)),
        format!("{:16}{}", "0x100200000", ".".repeat(64)),
        format!("{:16}{}", "  S-EPT leaf", "p".repeat(64)),
        format!("{:16}{}", "  folio order", "9".repeat(64)),
    ];
    assert_eq!(rows(&report, 2 << 20), want);
}

#[test]
fn no_memory_is_an_empty_picture() {
    for block in [1 << 30, 2 << 20, 4096] {
        assert!(rows(&Report::default(), block).is_empty());
    }
}

/// A run of one share that is stopped by a pin, as the engine would tell it.
fn show(quiet: bool) -> (String, String) {
    let text = b"ram 0 1G\nshare 0x12345000 4K\nunshare 0x12345000 8K\nexpect ok\n";
    let scenario = Scenario::parse("dir/case.txt", text).unwrap();
    let [_, share, unshare] = scenario.ops.as_slice() else { panic!("{scenario:?}") };
    let used = Resources {
        vmemmap_pages: 518,
        index_nodes: 73,
        sept_pages: 2,
        mirror_pages: 2,
        ..Resources::default()
    };
    let shared = OpReport { planned: used, used, demotes: 2, fences: 3, ..OpReport::new(share, Outcome::Ok) };
    let mut stopped = OpReport::new(unshare, Outcome::Again).because(Some(0x1234_5000), "pinned");
    stopped.skipped.push(Skipped { start: 0x1234_6000, len: 4096, reason: "poisoned" });
    let unmet = UnmetExpect::of(unshare, &stopped).unwrap();

    let (mut out, mut err) = (StripStream::new(Vec::new()), StripStream::new(Vec::new()));
    let mut view = View::new(&mut out, &mut err, &scenario, quiet);
    view.started(&scenario, &Options::default());
    view.progress(Phase::Accept, 1, 2);
    view.op(share, &shared);
    view.op(unshare, &stopped);
    view.unmet(&unmet);
    let mut outcome = RunOutcome { reserved: used, unmet: vec![unmet], ..RunOutcome::default() };
    outcome.report.ops = vec![shared, stopped];
    outcome.report.totals.pages_verified = 262_144;
    outcome.report.totals.pool_balance = used;
    outcome.uniform = UniformCost::of_block(18, true, false);
    outcome.saved_vmemmap_pages = 3577;
    view.finish(&outcome);
    view.into_result().unwrap();
    (plain(|o| o.write_all(&out.into_inner())), String::from_utf8(err.into_inner()).unwrap())
}

#[test]
fn a_run_reads_well() {
    let (out, err) = show(false);
    assert_eq!(
        err,
        "dir/case.txt:4: expected ok, came again at 0x12345000 (line 3: unshare 0x12345000 8K)\n"
    );
    for part in [
        "TD       gpaw 48, 4 levels, 2 vCPUs, TDX module 1.5.28\n",
        "RAM      1 GiB: 1G at 0x0\n",
        "    2  share 0x12345000 4K            ok         522+73    522+73    2    -    3\n",
        "    3  unshare 0x12345000 8K          again           -         -    -    -    -\n",
        "       at 0x12345000: pinned\n       skipped 0x12346000 4K: poisoned\n",
        "vmemmap pages                 518          518            0               4095\n",
        "index nodes                    73           73            0               4161\n",
        "vmemmap saved now    3577 pages (13.9 MiB)\n",
        "pools                522+73 (pages+nodes) against",
        "case: FAILED: 1 expectation unmet, 0.00 s\n",
    ] {
        assert!(out.contains(part), "{part}\nis not in\n{out}");
    }
}

#[test]
fn a_quiet_run_is_one_line_and_its_failures() {
    let (out, err) = show(true);
    assert_eq!(out, "case: FAILED: 1 expectation unmet, 0.00 s\n");
    assert_eq!(err.lines().count(), 1);
}

#[test]
fn nothing_is_written_after_a_failure() {
    let scenario = Scenario::default_boot().unwrap();
    let mut full = &mut [0_u8; 16][..];
    let mut err = Vec::new();
    let mut view = View::new(&mut full, &mut err, &scenario, false);
    view.started(&scenario, &Options::default());
    view.finish(&RunOutcome::default());
    assert_eq!(view.into_result().unwrap_err().kind(), io::ErrorKind::WriteZero);
}
