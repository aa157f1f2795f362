//! What must hold once everything runs again and is quiet, whatever was killed before.
//!
//! [`Evidence`] is what was found: the log, the engine, the edge, the routes, the work queue and the read models.
//! [`judge`] is pure and says what of it should not be. [`Scene::verdict`] gathers the one and asks the other.

mod evidence;
mod gather;
mod history;
mod present;
mod sightings;
#[cfg(test)]
mod tests;

pub use evidence::{Accepted, Asked, Container, Deployed, Evidence, Made, Network, key};
pub use gather::{DEPLOYMENT, Scene, View};
use serde::{Deserialize, Serialize};
pub use sightings::Sightings;

/// The counts of what went wrong, and a sentence for each. All zero is as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Requests that were answered with 202, each counted once however often it was sent.
    pub accepted: u64,
    /// Accepted, and then not in the log, or without an outcome.
    pub lost: u64,
    /// Done twice: outcomes, steps, commands, deployments of one key, containers, sets that run.
    pub doubled: u64,
    /// Read models, routes or answers that are not what the events say.
    pub diverged: u64,
    /// Containers, networks, volumes, routes and commands that belong to nothing any more.
    pub orphaned: u64,
    /// What was expected, and what was found instead.
    pub findings: Vec<String>,
}

/// One thing that should not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Lost,
    Doubled,
    Diverged,
    Orphaned,
}

impl Verdict {
    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Adds another verdict to this one, e.g. of another installation.
    pub fn add(&mut self, other: Verdict) {
        self.accepted += other.accepted;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.diverged += other.diverged;
        self.orphaned += other.orphaned;
        self.findings.extend(other.findings);
    }

    fn found(&mut self, fault: Fault, sentence: impl Into<String>) {
        match fault {
            Fault::Lost => self.lost += 1,
            Fault::Doubled => self.doubled += 1,
            Fault::Diverged => self.diverged += 1,
            Fault::Orphaned => self.orphaned += 1,
        }
        self.findings.push(sentence.into());
    }
}

/// What `evidence` shows.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    history::judge(evidence, &mut verdict);
    present::judge(evidence, &mut verdict);
    verdict
}
