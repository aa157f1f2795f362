//! `docs/ASVS.md` says of every requirement by which tests it is met: the tests are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Requirements of levels 1 and 2 in ASVS 5.0.0, by section: the numbers run from 1, but for those of level 3.
const REQUIREMENTS: &[(&str, &[u32])] = &[
    ("6.1", &[1, 2, 3]),
    ("6.2", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ("6.3", &[1, 2, 3, 4]),
    ("6.4", &[1, 2, 3, 4]),
    ("6.5", &[1, 2, 3, 4, 5]),
    ("6.6", &[1, 2, 3]),
    ("6.8", &[1, 2, 3, 4]),
    ("7.1", &[1, 2, 3]),
    ("7.2", &[1, 2, 3, 4]),
    ("7.3", &[1, 2]),
    ("7.4", &[1, 2, 3, 4, 5]),
    ("7.5", &[1, 2]),
    ("7.6", &[1, 2]),
    ("8.1", &[1, 2]),
    ("8.2", &[1, 2, 3]),
    ("8.3", &[1]),
    ("8.4", &[1]),
    ("9.1", &[1, 2, 3]),
    ("9.2", &[1, 2, 3, 4]),
    ("10.1", &[1, 2]),
    ("10.2", &[1, 2]),
    ("10.3", &[1, 2, 3, 4]),
    ("10.4", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ("10.5", &[1, 2, 3, 4, 5]),
    ("10.6", &[1, 2]),
    ("10.7", &[1, 2, 3]),
    ("16.1", &[1]),
    ("16.2", &[1, 2, 3, 4, 5]),
    ("16.3", &[1, 2, 3, 4]),
    ("16.4", &[1, 2, 3]),
    ("16.5", &[1, 2, 3]),
];

/// Names of the tests in a source file: functions with the attribute, and cases against the hostile provider.
fn tests(source: &str) -> impl Iterator<Item = &str> {
    let cases = source.contains("cases! {");
    let mut attribute = false;
    source.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with("#[") {
            attribute |= line.ends_with("test]");
            return None;
        }
        if cases && let Some(name) = line.strip_suffix("(lab) {") {
            return Some(name);
        }
        let name =
            line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        name.filter(|_| std::mem::take(&mut attribute))
    })
}

fn collect(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() && !path.ends_with("node_modules") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).expect("readable");
            found.extend(tests(&source).map(str::to_owned));
        }
    }
}

#[test]
fn every_requirement_is_judged_and_every_test_that_is_named_exists() {
    let root = Path::new(ROOT);
    let mut known = BTreeSet::new();
    for part in ["services", "shared"] {
        collect(&root.join(part), &mut known);
    }
    let table = fs::read_to_string(root.join("docs/ASVS.md")).expect("the table");
    let mut judged = BTreeMap::new();
    for line in table.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = line.trim_end_matches(" |").splitn(3, " | ").collect();
        let [number, verdict, why] = cells[..] else { continue };
        if !number.starts_with(|first: char| first.is_ascii_digit()) {
            continue;
        }
        // Only tests are named in words with so many underscores.
        let named = why.split('`').skip(1).step_by(2).filter(|name| known.contains(*name) || looks_like_a_test(name));
        let named: Vec<&str> = named.collect();
        for name in &named {
            assert!(known.contains(*name), "{number}: there is no test {name}");
        }
        match verdict {
            "met" => assert!(!named.is_empty(), "{number} is met, but by which test?"),
            "n/a" | "deviation" => assert!(!why.is_empty(), "{number}: why?"),
            other => panic!("{number}: {other} is no verdict"),
        }
        assert_eq!(judged.insert(number.to_owned(), verdict), None, "{number} is there twice");
    }
    let wanted = REQUIREMENTS.iter().flat_map(|(section, all)| all.iter().map(move |n| format!("{section}.{n}")));
    let wanted: BTreeSet<String> = wanted.collect();
    assert_eq!(judged.into_keys().collect::<BTreeSet<_>>(), wanted);
}

/// Unlike `LOG_FORMAT=json` or `sluice session list`.
fn looks_like_a_test(name: &str) -> bool {
    name.contains('_') && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
