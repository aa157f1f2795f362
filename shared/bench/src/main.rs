//! `bench SLUICE [MEASURE...]` measures the release binary beside its peers, in the same run on the same machine.
//!
//! Owns every published figure. Each measure is one module that sets up its own parts, measures ours and the peers
//! in turns, round by round, and takes everything down again. Prints a table, writes `target/report/bench.json`, and
//! fails when a target is missed. Must never be a dependency of anything.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod append;
mod configuration;
mod deployed;
mod deployments;
mod edge;
mod history;
mod identity;
mod latency;
mod machine;
mod memory;
mod naive;
mod overhead;
mod parts;
mod polls;
mod procfs;
mod queue;
mod rebuild;
mod report;
mod row;
mod start;
mod switches;
mod webhook;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use report::Report;
use row::Row;

const REPORT: &str = "target/report/bench.json";
/// Fewer rounds say nothing about the spread.
const FEWEST_ROUNDS: usize = 5;

type Measuring<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>>> + 'a>>;

type Measure = for<'a> fn(&'a Bench) -> Measuring<'a>;

/// Every measure, in the order in which it runs.
const MEASURES: &[(&str, Measure)] = &[
    ("deployments", |bench| Box::pin(deployments::run(bench))),
    ("overhead", |bench| Box::pin(overhead::run(bench))),
    ("append", |bench| Box::pin(append::run(bench))),
    ("latency", |bench| Box::pin(latency::run(bench))),
    ("rebuild", |bench| Box::pin(rebuild::run(bench))),
    ("edge", |bench| Box::pin(edge::run(bench))),
    ("switches", |bench| Box::pin(switches::run(bench))),
    ("configuration", |bench| Box::pin(configuration::run(bench))),
    ("webhook", |bench| Box::pin(webhook::run(bench))),
    ("identity", |bench| Box::pin(identity::run(bench))),
    ("polls", |bench| Box::pin(polls::run(bench))),
    ("queue", |bench| Box::pin(queue::run(bench))),
    ("memory", |bench| Box::pin(memory::run(bench))),
    ("start", |bench| Box::pin(start::run(bench))),
];

/// What every measure gets.
pub(crate) struct Bench {
    /// The release binary.
    pub(crate) sluice: PathBuf,
    pub(crate) rounds: usize,
    began: Instant,
}

impl Bench {
    /// A line of progress, for whoever waits.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = tokio::select! {
        ended = run() => ended,
        // What was started is taken down, as at any other end.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met.
async fn run() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let sluice = arguments.next().context("usage: bench PATH-OF-SLUICE [MEASURE...]")?;
    let wanted: Vec<String> = arguments.collect();
    let names: Vec<&str> = MEASURES.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no measure {unknown}; there are: {}", names.join(", "));
    }
    let rounds = runtime::env::parse("ROUNDS", FEWEST_ROUNDS)?;
    ensure!(rounds >= FEWEST_ROUNDS, "ROUNDS={rounds}: fewer than {FEWEST_ROUNDS} rounds say nothing about the spread");
    let sluice = Path::new(&sluice).canonicalize().with_context(|| format!("finding {sluice}"))?;
    let bench = Bench { sluice, rounds, began: Instant::now() };

    let mut report = Report::new(rounds)?;
    for (name, measure) in MEASURES {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            bench.say(name);
            // A measure that fails keeps no other from being taken.
            match measure(&bench).await {
                Ok(rows) => report.add(name, rows)?,
                Err(error) => report.failed(name, format!("{error:#}")),
            }
            // What was measured is kept, should a later measure fail.
            report.write(Path::new(REPORT))?;
        }
    }
    println!("{}", report.table());
    println!("wrote {REPORT}");
    Ok(report.met())
}
