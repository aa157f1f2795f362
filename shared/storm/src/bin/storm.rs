//! `storm SLUICE`: a storm over an installation of that binary. `KILLS` (50), `SEED` (a new one) and `FAULTS` (all:
//! `kill_all stop cut full_disk slow_database clock`) say which; `target/report/storm.json` says how it went.
#![expect(clippy::print_stderr, reason = "a program for developers")]

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use storm::{Storm, schedule::Kind};

fn main() -> ExitCode {
    match storm().and_then(|storm| storm::run(&storm)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn storm() -> Result<Storm> {
    let mut arguments = env::args_os().skip(1);
    let sluice = arguments.next().map(PathBuf::from).context("usage: storm SLUICE, the binary under test")?;
    let number = |name: &str| match env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().map(Some).with_context(|| format!("{name} must be a number")),
        _ => Ok(None),
    };
    Ok(Storm {
        sluice: sluice.canonicalize().with_context(|| format!("there is no {}", sluice.display()))?,
        seed: number("SEED")?.unwrap_or_else(rand::random),
        kills: number("KILLS")?.map_or(Ok(50), usize::try_from)?,
        kinds: kinds(&env::var("FAULTS").unwrap_or_default())?,
        report: "target/report".into(),
    })
}

fn kinds(text: &str) -> Result<Vec<Kind>> {
    if text.trim().is_empty() {
        return Ok(Kind::ALL.to_vec());
    }
    let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    text.split([' ', ','])
        .filter(|name| !name.is_empty())
        .map(|name| match known(name) {
            Some(kind) => Ok(kind),
            None => bail!("FAULTS: there is no fault {name}; there are {}", Kind::ALL.map(Kind::name).join(", ")),
        })
        .collect()
}
