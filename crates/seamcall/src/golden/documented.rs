//! The documentation of every leaf says what it takes, where it may be called, how it fails, and who says so.

use std::{format, string::String, vec::Vec};

const SOURCES: [&str; 13] = [
    include_str!("../export.rs"),
    include_str!("../mem/page.rs"),
    include_str!("../mem/range.rs"),
    include_str!("../mem/rw.rs"),
    include_str!("../mem/sept.rs"),
    include_str!("../mem/split.rs"),
    include_str!("../mng.rs"),
    include_str!("../mr.rs"),
    include_str!("../phymem.rs"),
    include_str!("../sys/config.rs"),
    include_str!("../sys/life.rs"),
    include_str!("../sys/read.rs"),
    include_str!("../vp.rs"),
];

/// The public functions whose documentation names a leaf and its number, with that documentation.
fn leaves(source: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut doc = String::new();
    for line in source.lines() {
        match line.strip_prefix("///") {
            Some(text) => doc = doc + text + "\n",
            None if line.starts_with("pub fn ") || line.starts_with("pub unsafe fn ") => {
                if doc.starts_with(" TDH.") {
                    let words: Vec<&str> = doc.split_whitespace().collect();
                    found.push((String::from(line), words.join(" ")));
                }
                doc.clear();
            }
            // Attributes stand between the two, on one line or more.
            None if line.starts_with("#[") || line.starts_with("    ") || line == ")]" => {}
            None => doc.clear(),
        }
    }
    found
}

#[test]
fn every_leaf_is_documented() {
    let found: Vec<_> = SOURCES.into_iter().flat_map(leaves).collect();
    assert_eq!(found.len(), 64, "{:#?}", found.iter().map(|leaf| &leaf.0).collect::<Vec<_>>());
    for (function, doc) in found {
        let says = |any: &[&str]| any.iter().any(|word| doc.contains(word));
        assert!(says(&["Operand"]), "{function}: operands");
        assert!(says(&["# Errors"]), "{function}: errors");
        assert!(
            says(&["In check order", "in check order", "common errors", "As [`", "None of its own"]),
            "{function}: order of errors"
        );
        assert!(says(&["Source: TDX module ABI"]), "{function}: source");
        let states = [
            "p state",
            "Lifecycle",
            "lifecycle",
            "Module state",
            "module state",
            "State as",
            "State:",
            "Entry ",
            "Any type",
            "not be assigned",
            "must not be",
            "teardown",
            "in use at",
        ];
        assert!(says(&states), "{function}: accepted states");
    }
}

/// A public function over a transport is a leaf, a helper that says which leaves it calls, or an operand.
#[test]
fn no_leaf_hides() {
    for source in SOURCES {
        let documented: Vec<String> = leaves(source).into_iter().map(|leaf| leaf.0).collect();
        for line in
            source.lines().filter(|line| line.starts_with("pub fn ") || line.starts_with("pub unsafe fn "))
        {
            assert!(
                documented.iter().any(|known| known == line)
                    || !(line.contains("<T: Transport") || line.contains("<T: VpEnter")),
                "{}",
                format!("{line} is no documented leaf")
            );
        }
    }
}

const TYPES: [&str; 14] = [
    include_str!("../entry/mod.rs"),
    include_str!("../exit/map_gpa.rs"),
    include_str!("../exit/mod.rs"),
    include_str!("../features/mod.rs"),
    include_str!("../layout/fatal.rs"),
    include_str!("../layout/gpa_list.rs"),
    include_str!("../layout/pamt.rs"),
    include_str!("../layout/params.rs"),
    include_str!("../layout/sept.rs"),
    include_str!("../layout/tdmr.rs"),
    include_str!("../leaf.rs"),
    include_str!("../metadata/mod.rs"),
    include_str!("../operand.rs"),
    include_str!("../status/detail.rs"),
];

/// A type that holds facts of the ABI, and what a leaf takes or gives, says where they come from.
#[test]
fn every_fact_has_its_source() {
    let mut types = 0;
    for source in TYPES.into_iter().chain(SOURCES) {
        let mut doc = String::new();
        for line in source.lines().map(str::trim_start) {
            if let Some(text) = line.strip_prefix("///") {
                doc += text;
            } else if line.starts_with("pub struct ") || line.starts_with("pub enum ") {
                // What a macro makes is documented where it is called.
                if !line.contains('$') && !line.contains("MaybeTainted") && !line.contains("MapGpaError") {
                    types += 1;
                    assert!(doc.contains("Source:"), "{line}");
                }
                doc.clear();
            } else if line.is_empty() || line.ends_with('}') {
                doc.clear();
            }
        }
    }
    assert!(types >= 40, "{types} types");
}
