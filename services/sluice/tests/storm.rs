//! A short storm over a whole installation, each role in a network of its own: ten kills, and hangs, cuts and a full
//! disk between them.

use std::path::Path;

use storm::{Storm, schedule::Kind};

#[test]
fn ten_kills_leave_nothing_amiss() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let storm = Storm {
        sluice: env!("CARGO_BIN_EXE_sluice").into(),
        seed: 2026,
        kills: 10,
        kinds: Kind::ALL.to_vec(),
        report: report.to_owned(),
    };
    let clean = storm::run(&storm).expect("the storm runs");
    assert!(clean, "see {} and the logs beside it", report.join("storm.json").display());
}
