use super::*;

const RAM: &str = "ram 0x0 2G\n";

fn parse(text: &str) -> Scenario {
    Scenario::parse("test.txt", text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

/// The error as `line: reason`; every error names the file.
fn error(text: impl AsRef<[u8]>) -> String {
    let error = Scenario::parse("dir/test.txt", text.as_ref()).unwrap_err().to_string();
    error.strip_prefix("dir/test.txt:").unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// The reason why `line` is malformed after 2 GiB of RAM.
fn reason(line: &str) -> String {
    let error = error(format!("{RAM}{line}\ncheck\n"));
    error.strip_prefix("2: ").unwrap_or_else(|| panic!("{error}")).to_owned()
}

fn shipped() -> Vec<(String, Vec<u8>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn shipped_scenarios_are_well_formed() {
    let files = shipped();
    assert_eq!(files.len(), 7);
    for (file, text) in files {
        let scenario = Scenario::parse(&file, &text).unwrap();
        assert!(!scenario.ops.is_empty(), "{file}");
    }
}

#[test]
fn the_default_is_a_linux_boot() {
    let boot = Scenario::default_boot().unwrap();
    assert_eq!(boot.name, "td-boot-4g");
    assert_eq!(boot.td, Td { gpaw: 48, levels: 4, vcpus: 2 });
    assert_eq!(boot.backing, Backing { size: 1 << 30, hvo: true });
    assert_eq!(boot.ram_bytes(), 4 << 30);
    assert_eq!(boot.ram[1], Region { start: 4 << 30, len: 2 << 30 });
    assert_eq!(boot.ops[0].verb, Verb::Ram { start: 0, len: 2 << 30 });
    assert_eq!(boot.ops.last().map(|op| op.verb), Some(Verb::Check));
}

#[test]
fn an_empty_scenario_is_legal() {
    for text in ["", "\n\n", "# nothing\n", "\r\n", "td", "td gpaw=48"] {
        let scenario = parse(text);
        assert_eq!((scenario.td, scenario.backing), (Td::default(), Backing::default()));
        assert!(scenario.ram.is_empty() && scenario.ops.is_empty());
    }
}

#[test]
fn every_verb() {
    let scenario = parse(
        "td gpaw=52 levels=5 vcpus=64\nbacking 2M hvo=off\nmemory 0x10\nmemory unlimited\nram 0x0 4M\nimage 0 4K\n\
         accept 0 2M\naccept 0 2M level=4K\naccept 0 2M level=2M\ntouch 0 4K\nfill 0 4K\nhostfill 0 4K\nshare 0 4K\n\
         unshare 0 4K\nunshare 0 4K accept=yes\nunshare 0 4K accept=no\npin 0 4K\nunpin 0 4K\npoison 0x1000\n\
         poison 0x1000 consumed\npunch 0 4K\nmerge\ncheck\n",
    );
    assert_eq!(scenario.td, Td { gpaw: 52, levels: 5, vcpus: 64 });
    assert_eq!(scenario.backing, Backing { size: 2 << 20, hvo: false });
    assert_eq!(scenario.backing.order(), 9);
    let (start, len) = (0, 4096);
    let two = 2 << 20;
    let verbs: Vec<_> = scenario.ops.iter().map(|op| op.verb).collect();
    assert_eq!(
        verbs,
        [
            Verb::Memory(Some(16)),
            Verb::Memory(None),
            Verb::Ram { start, len: 4 << 20 },
            Verb::Image { start, len },
            Verb::Accept { start, len: two, level: None },
            Verb::Accept { start, len: two, level: Some(AcceptLevel::Page4K) },
            Verb::Accept { start, len: two, level: Some(AcceptLevel::Block2M) },
            Verb::Touch { start, len },
            Verb::Fill { start, len },
            Verb::HostFill { start, len },
            Verb::Share { start, len },
            Verb::Unshare { start, len, accept: true },
            Verb::Unshare { start, len, accept: true },
            Verb::Unshare { start, len, accept: false },
            Verb::Pin { start, len },
            Verb::Unpin { start, len },
            Verb::Poison { gpa: 0x1000, consumed: false },
            Verb::Poison { gpa: 0x1000, consumed: true },
            Verb::Punch { start, len },
            Verb::Merge,
            Verb::Check,
        ]
    );
}

#[test]
fn lines_keep_their_number_and_text() {
    let scenario =
        parse("# head\r\n\r\nram  0x0\t1G # all of it\r\nshare 0 4K#\r\n\r\n# why\nexpect again at=0x1000\n");
    let [ram, share] = scenario.ops.as_slice() else { panic!("{scenario:?}") };
    assert_eq!((ram.line, ram.text.as_str(), ram.expect), (3, "ram 0x0 1G", None));
    assert_eq!((share.line, share.text.as_str()), (4, "share 0 4K"));
    assert_eq!(share.expect, Some(Expect { line: 7, result: Outcome::Again, at: Some(0x1000) }));
}

#[test]
fn numbers() {
    for (word, value) in [
        ("0", 0),
        ("0x0", 0),
        ("4096", 4096),
        ("0xdeadBEEF", 0xdead_beef),
        ("4K", 4096),
        ("3M", 3 << 20),
        ("0x10G", 16 << 30),
        ("2T", 2 << 40),
        ("18446744073709551615", u64::MAX),
        ("0xffffffffffffffff", u64::MAX),
        ("16777215T", 16_777_215 << 40),
    ] {
        assert_eq!(number::parse(word), Ok(value), "{word}");
    }
    for word in [
        "", "K", "0x", "0xK", "x10", "0X10", "+1", "-1", "1_000", "1.5G", "4k", "4KB", "4KK", "0xg", "４",
        "é",
    ] {
        assert!(number::parse(word).unwrap_err().ends_with("is not a number"), "{word}");
    }
    for word in ["18446744073709551616", "0x10000000000000000", "16777216T", "0xffffffffffffffffK"] {
        assert!(number::parse(word).unwrap_err().ends_with("does not fit in 64 bits"), "{word}");
    }
    for (bytes, text) in
        [(0, "0"), (4096, "4K"), (0x20_1000, "2052K"), (3 << 30, "3G"), (1 << 60, "1048576T"), (5, "5")]
    {
        assert_eq!(Size(bytes).to_string(), text);
    }
}

#[test]
fn unknown_words() {
    assert_eq!(reason("shore 0 4K"), "unknown verb `shore`");
    assert_eq!(reason("Share 0 4K"), "unknown verb `Share`");
    assert_eq!(reason("unshare 0 4K accpt=no"), "unknown key `accpt`");
    assert_eq!(reason("unshare 0 4K =no"), "unknown key ``");
    assert_eq!(reason("unshare 0 4K accept=maybe"), "accept is `maybe`, not yes or no");
    assert_eq!(reason("accept 0 2M level=1G"), "level is `1G`, not 4K or 2M");
    assert_eq!(reason("poison 0 twice"), "extra operand `twice`");
    assert_eq!(error("td gpaw=48 cpus=2"), "1: unknown key `cpus`");
    assert_eq!(error("backing 1G hvo=1"), "1: hvo is `1`, not on or off");
    for result in ["error", "OK", "done"] {
        let expected = format!("3: RESULT is `{result}`, not ok or noop or again or refused");
        assert_eq!(error(format!("{RAM}check\nexpect {result}")), expected);
    }
}

#[test]
fn missing_and_extra_operands() {
    for verb in
        ["ram", "accept", "touch", "fill", "hostfill", "share", "unshare", "pin", "unpin", "punch", "image"]
    {
        assert_eq!(reason(verb), "START is missing");
        assert_eq!(reason(&format!("{verb} 0x0")), "LEN is missing");
        assert_eq!(reason(&format!("{verb} zero 4K")), "`zero` is not a number");
        let again = if verb == "ram" { "ram 2G 1G 4K".to_owned() } else { format!("{verb} 0 4K 4K") };
        assert_eq!(reason(&again), "extra operand `4K`");
    }
    assert_eq!(reason("memory"), "PAGES is missing");
    assert_eq!(reason("memory lots"), "`lots` is not a number");
    assert_eq!(reason("memory 5 6"), "extra operand `6`");
    assert_eq!(reason("poison"), "GPA is missing");
    assert_eq!(reason("poison 0 consumed consumed"), "extra operand `consumed`");
    assert_eq!(reason("merge now"), "extra operand `now`");
    assert_eq!(reason("check 0 4K"), "extra operand `0`");
    assert_eq!(error("backing"), "1: SIZE is missing");
    assert_eq!(error("backing 1G on"), "1: extra operand `on`");
    assert_eq!(error("td 48"), "1: extra operand `48`");
    assert_eq!(error("td gpaw="), "1: `` is not a number");
    assert_eq!(error(format!("{RAM}check\nexpect")), "3: RESULT is missing");
    assert_eq!(error(format!("{RAM}check\nexpect ok now")), "3: extra operand `now`");
    assert_eq!(reason("unshare 0 4K accept=no accept=no"), "`accept` is given twice");
    assert_eq!(error("td vcpus=1 vcpus=1"), "1: `vcpus` is given twice");
}

#[test]
fn bad_ranges() {
    assert_eq!(reason("share 0 0"), "LEN is zero");
    assert_eq!(reason("share 0x800 4K"), "START 0x800 is not a multiple of 4K");
    assert_eq!(reason("share 0 4097"), "LEN 0x1001 is not a multiple of 4K");
    assert_eq!(reason("share 0xfffffffffffff000 4K"), "0xfffffffffffff000 + 0x1000 wraps");
    assert_eq!(reason("share 99999999999999999999 4K"), "`99999999999999999999` does not fit in 64 bits");
    assert_eq!(reason("share 0 16777216T"), "`16777216T` does not fit in 64 bits");
    assert_eq!(reason("share 2G 4K"), "0x80000000 is not RAM");
    assert_eq!(reason("share 0x7ffff000 8K"), "0x80000000 is not RAM");
    assert_eq!(reason("poison 2G"), "0x80000000 is not RAM");
    assert_eq!(reason("poison 0x10"), "GPA 0x10 is not a multiple of 4K");
    let bit = "the range ends at 0x800000001000, above the shared bit 0x800000000000";
    assert_eq!(reason("share 0x800000000000 4K"), bit);
    assert_eq!(reason("accept 0x1000 2M level=2M"), "START 0x1000 is not a multiple of 2M");
    assert_eq!(reason("accept 0 0x201000 level=2M"), "LEN 0x201000 is not a multiple of 2M");
}

#[test]
fn ranges_may_cross_regions_but_not_holes() {
    let regions = "ram 0 1G\nram 2G 1G\nram 1G 1G\nram 4G 1G\n";
    assert_eq!(parse(&format!("{regions}share 0x3ffff000 2G")).ram.len(), 2);
    assert_eq!(error(format!("{regions}share 0 5G")), "5: 0xc0000000 is not RAM");
    assert_eq!(error("ram 0 1G\nshare 1G 4K\nram 1G 1G"), "2: 0x40000000 is not RAM");
}

#[test]
fn bad_ram() {
    assert_eq!(reason("ram 1G 1G"), "0x40000000 is RAM already");
    assert_eq!(error("ram 1G 1G\nram 0 4G"), "2: 0x40000000 is RAM already");
    assert_eq!(error("ram 0 2M"), "1: LEN 0x200000 is not a multiple of 1G");
    assert_eq!(error("ram 2M 1G"), "1: START 0x200000 is not a multiple of 1G");
    assert_eq!(error("backing 2M\nram 4K 2M"), "2: START 0x1000 is not a multiple of 2M");
    assert_eq!(error("ram 0 1K"), "1: LEN 0x400 is not a multiple of 1G");
    assert_eq!(parse("ram 0 128T").ram_bytes(), 1 << 47);
    assert_eq!(parse("td gpaw=52 levels=5\nram 0 2048T").ram_bytes(), 1 << 51);
    assert!(error("ram 1G 128T").starts_with("1: the range ends at 0x800040000000, above"));
    assert!(error("td gpaw=52 levels=5\nram 1G 2048T").starts_with("2: the range ends at"));
    assert_eq!(error("ram 0xffffffffc0000000 1G"), "1: 0xffffffffc0000000 + 0x40000000 wraps");
}

#[test]
fn bad_order_of_verbs() {
    assert_eq!(reason("td"), "`td` is not the first verb");
    assert_eq!(error("td\ntd"), "2: `td` is not the first verb");
    assert_eq!(error("backing 1G\ntd"), "2: `td` is not the first verb");
    assert_eq!(reason("backing 1G"), "`backing` after `ram`");
    assert_eq!(error("backing 1G\nbacking 1G"), "2: `backing` is given twice");
    for verb in ["accept", "touch"] {
        let expected = "3: `image` after `accept` or `touch`";
        assert_eq!(error(format!("{RAM}{verb} 0 4K\nimage 1G 4K")), expected);
    }
    assert_eq!(error(format!("{RAM}image 0 8K\nimage 4K 8K")), "3: 0x1000 is in an image already");
    assert_eq!(parse(&format!("{RAM}image 0 8K\nimage 8K 8K\n")).ops.len(), 3);
}

#[test]
fn bad_machines() {
    for size in ["1T", "512M", "0", "8K"] {
        assert_eq!(
            error(format!("backing {size}")),
            format!("1: backing size is `{size}`, not 1G, 2M or 4K")
        );
    }
    assert_eq!(error("backing huge"), "1: `huge` is not a number");
    assert_eq!(error("td gpaw=50"), "1: gpaw is `50`, not 48 or 52");
    assert_eq!(error("td levels=3"), "1: levels is `3`, not 4 or 5");
    assert_eq!(error("td gpaw=52"), "1: gpaw=52 needs levels=5");
    assert_eq!(error("td levels=4 gpaw=52"), "1: gpaw=52 needs levels=5");
    for count in ["0", "65", "0xffffffffffffffff"] {
        assert_eq!(error(format!("td vcpus={count}")), "1: vcpus is not 1 to 64");
    }
}

#[test]
fn bad_expectations() {
    let misplaced = "`expect` is not directly after an operation";
    assert_eq!(error("expect ok"), format!("1: {misplaced}"));
    assert_eq!(reason("expect ok"), misplaced);
    assert_eq!(error(format!("{RAM}memory 5\nexpect ok")), format!("3: {misplaced}"));
    assert_eq!(error(format!("{RAM}check\nexpect ok\nexpect ok")), format!("4: {misplaced}"));
    assert_eq!(error(format!("{RAM}check\nexpect ok at=0")), "3: `at=` without `again`");
    assert_eq!(error(format!("{RAM}check\nexpect again at=1")), "3: at 0x1 is not a multiple of 4K");
    assert_eq!(error(format!("{RAM}check\nexpect again on=0")), "3: unknown key `on`");
    for verb in ["merge", "image 0 4K", "poison 0"] {
        assert!(parse(&format!("{RAM}{verb}\nexpect refused")).ops[1].expect.is_some());
    }
}

#[test]
fn bad_bytes() {
    assert_eq!(error(b"ram 0 1G\nshare \xff 4K\n"), "2: not UTF-8 at byte 7");
    assert_eq!(error("\u{1b}[31m"), "1: unknown verb `\\u{1b}[31m`");
    let long = error("x".repeat(10_000));
    assert!(long.len() < 80 && long.ends_with("...`"), "{long}");
}

#[test]
fn unreadable_files_say_why() {
    let missing = Scenario::read(Path::new("/no/such/file")).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/file: "), "{missing}");
    let endless = Scenario::read_from("zeros", io::repeat(b'\n')).unwrap_err();
    assert!(matches!(endless, ScenarioError::Unreadable { .. }));
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn no_bytes_make_the_parser_panic() {
    let mut random = Random(1);
    for _ in 0..2_000 {
        let text: Vec<u8> = (0..random.below(200)).map(|_| random.below(256) as u8).collect();
        let _ = Scenario::parse("random", &text);
    }
}

#[test]
fn whatever_passes_keeps_its_promises() {
    let words = b"td backing ram image accept share poison expect again at= level=2M gpaw=52 0x 0xffffffffffffffff 16777215T \
                  0x7ffffffff000 4K 1G # \n = \xc3 \xc3\xa9";
    let words: Vec<_> = words.split(|&b| b == b' ').collect();
    let mut random = Random(2);
    let mut passed = 0;
    for (file, text) in shipped().iter().cycle().take(3_000) {
        let mut text = text[..text.len().min(600)].to_vec();
        for _ in 0..=random.below(2) {
            let at = random.below(text.len());
            match random.below(4) {
                0 => text.truncate(at),
                1 => text[at] = random.below(256) as u8,
                2 => drop(text.remove(at)),
                _ => {
                    let word = words[random.below(words.len())];
                    text.splice(at..at, word.iter().copied());
                }
            }
            if text.is_empty() {
                break;
            }
        }
        let Ok(scenario) = Scenario::parse(file, &text) else { continue };
        passed += 1;
        for op in &scenario.ops {
            let Some(region) = op.verb.region() else { continue };
            assert!(region.len > 0 && region.start % PAGE == 0 && region.len % PAGE == 0, "{op:?}");
            assert!(
                scenario.ram.iter().any(|r| r.start <= region.start && region.end() <= r.end()),
                "{op:?}"
            );
            assert!(region.end() <= scenario.td.shared_bit(), "{op:?}");
        }
    }
    assert!(passed > 100, "{passed}");
}
