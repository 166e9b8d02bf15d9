use super::*;
use crate::scenario::Scenario;

#[test]
fn json_is_as_documented() {
    let scenario = Scenario::parse("s.txt", b"ram 0 1G\nunshare 0x12345000 8K\nmerge\n").unwrap();
    let (planned, at) =
        (Resources { vmemmap_pages: 518, index_nodes: 73, ..Resources::default() }, 0x1234_6000);
    let skipped = vec![Skipped { start: 0x1234_5000, len: 4096, reason: "poisoned" }];
    let stopped = OpReport {
        skipped,
        planned,
        demotes: 2,
        ..OpReport::new(&scenario.ops[1], Outcome::Again).because(Some(at), "pinned")
    };
    let report = Report {
        scenario: "s".to_owned(),
        orders: vec![18, 9, 0],
        module: "1.5.28".to_owned(),
        ops: vec![stopped, OpReport::new(&scenario.ops[2], Outcome::Ok)],
        layout: vec![LayoutRun { start: 0, order: 18, count: 1, state: FolioState::Private }],
        leaves: vec![
            LeafRun { start: 0, level: LeafLevel::Block1G, count: 1, state: LeafState::Mapped },
            LeafRun { start: 0xc000_0000, level: LeafLevel::Page4K, count: 2, state: LeafState::Free },
        ],
        totals: Final {
            pool_balance: Resources { sept_pages: -1, ..Resources::default() },
            ..Final::default()
        },
    };
    let zero = r#"{"vmemmap_pages":0,"vmemmap_tables":0,"index_nodes":0,"sept_pages":0,"mirror_pages":0,"dpamt_pages":0}"#;
    let want = [
        r#"{"scenario":"s","orders":[18,9,0],"module":"1.5.28","ops":["#,
        r#"{"line":2,"op":"unshare","start":"0x12345000","len":8192,"result":"again","at":"0x12346000","#,
        r#""skipped":[{"start":"0x12345000","len":4096,"reason":"poisoned"}],"#,
        r#""planned":{"vmemmap_pages":518,"vmemmap_tables":0,"index_nodes":73,"#,
        r#""sept_pages":0,"mirror_pages":0,"dpamt_pages":0},"#,
        r#""used":R,"releasable":R,"released":R,"retained":R,"#,
        r#""demotes":2,"promotes":0,"seamcalls":0,"fences":0,"blocked_windows":0},"#,
        r#"{"line":3,"op":"merge","start":"0x0","len":0,"result":"ok","at":null,"skipped":[],"#,
        r#""planned":R,"used":R,"releasable":R,"released":R,"retained":R,"#,
        r#""demotes":0,"promotes":0,"seamcalls":0,"fences":0,"blocked_windows":0}],"#,
        r#""layout":[{"start":"0x0","order":18,"count":1,"state":"private"}],"#,
        r#""leaves":[{"start":"0x0","level":"1G","count":1,"state":"mapped"},"#,
        r#"{"start":"0xc0000000","level":"4K","count":2,"state":"free"}],"#,
        r#""final":{"pages_verified":0,"pages_lost":0,"pages_poisoned":0,"#,
        r#""invariant_checks":0,"invariant_violations":0,"pool_balance":"#,
        r#"{"vmemmap_pages":0,"vmemmap_tables":0,"index_nodes":0,"sept_pages":-1,"mirror_pages":0,"dpamt_pages":0},"#,
        r#""installed_templates":0,"vmemmap_pages_in_use":0,"elapsed_ns":0}}"#,
    ];
    assert_eq!(serde_json::to_string(&report).unwrap(), want.concat().replace(":R,", &format!(":{zero},")));
}

#[test]
fn resources_add_up() {
    let a = Resources {
        vmemmap_pages: 1,
        vmemmap_tables: 2,
        index_nodes: 3,
        sept_pages: 4,
        mirror_pages: 5,
        dpamt_pages: 6,
    };
    assert_eq!(a.pages(), 18);
    assert_eq!([a, a].into_iter().sum::<Resources>() - a, a);
    assert!((a - a).is_zero());
    assert_eq!((a - a - a).dpamt_pages, -6);
}
