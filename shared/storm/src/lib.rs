//! Development only: faults at every moment of a deployment, and the verdict on what is left.
//!
//! [`run`] is the storm: a seeded schedule of faults and deployments over a whole installation, each role in a network
//! of its own, under HTTP load; and the report on it. [`verdict`] says what must hold afterwards.

mod enter;
mod faults;
mod keeper;
mod load;
mod net;
mod outages;
mod parts;
mod random;
mod report;
mod requests;
mod run;
pub mod schedule;
pub mod stages;
pub mod verdict;

use std::path::PathBuf;

use anyhow::{Context, Result};
use enter::Place;
use schedule::Kind;

/// What to run.
#[derive(Debug, Clone)]
pub struct Storm {
    /// The binary under test.
    pub sluice: PathBuf,
    pub seed: u64,
    pub kills: usize,
    /// Faults beside kills, of which there always are some.
    pub kinds: Vec<Kind>,
    /// Where `storm.json` goes, and the directory `storm` with the logs.
    pub report: PathBuf,
}

/// Runs the storm; whether everything that should be zero is. To be called first in the program, by root: the program
/// starts itself again, with the same arguments, in namespaces of its own, and only the first call returns.
pub fn run(storm: &Storm) -> Result<bool> {
    match Place::here() {
        Place::Outside => enter::outside(),
        Place::First => enter::leave(enter::first()),
        Place::Inside(directory) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let ended = runtime.context("starting the runtime").and_then(|runtime| {
                let ended = runtime.block_on(Box::pin(run::storm(storm, &directory)));
                runtime.shutdown_background();
                ended
            });
            enter::leave(ended)
        }
    }
}

/// A line for people.
#[expect(clippy::print_stderr, reason = "progress of a program for developers")]
fn say(what: &str) {
    eprintln!("{what}");
}
