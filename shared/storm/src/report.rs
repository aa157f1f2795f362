//! `storm.json`, and what a person reads.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{schedule::Schedule, verdict::Verdict};

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) kills: usize,
    /// By kind, kills too.
    pub(crate) faults: BTreeMap<&'static str, usize>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    pub(crate) http_requests: u64,
    pub(crate) http_failed_while_edge_lived: usize,
    /// Those that the storm itself made impossible to answer.
    pub(crate) http_failed_excused: usize,
    /// By cause: seconds in which a failure is excused, of the average stage.
    pub(crate) excused_s: BTreeMap<&'static str, f64>,
    pub(crate) http_failures: Vec<String>,
    pub(crate) http_slowest_ms: u64,
    pub(crate) excused_reasons: BTreeMap<String, u64>,
    /// From the start of a killed edge until it takes connections.
    pub(crate) edge_back_ms: Vec<u64>,
    /// Requests that got no answer, or one that says to try again.
    pub(crate) requests_repeated: u64,
    /// Requests that were refused, by code.
    pub(crate) requests_refused: BTreeMap<String, u64>,
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// Ends of parts that were not of the storm's making.
    pub(crate) ended_by_themselves: BTreeMap<&'static str, u64>,
    /// Of the storm itself, such as a fault that could not be taken back.
    pub(crate) troubles: Vec<String>,
    pub(crate) elapsed_s: u64,
    pub(crate) logs: String,
    pub(crate) schedule: Schedule,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        let Verdict { lost, doubled, diverged, orphaned, findings, .. } = &self.verdict;
        lost + doubled + diverged + orphaned == 0
            && findings.is_empty()
            && self.http_failed_while_edge_lived == 0
            && self.troubles.is_empty()
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join("storm.json");
        let text = serde_json::to_vec_pretty(self).context("writing the report as JSON")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    pub(crate) fn text(&self) -> String {
        let list = |counts: &BTreeMap<&'static str, usize>| {
            counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
        };
        let Verdict { accepted, lost, doubled, diverged, orphaned, findings } = &self.verdict;
        let mut lines = vec![
            format!("seed {}, {} kills in {} s", self.seed, self.kills, self.elapsed_s),
            format!("  faults          {}", list(&self.faults)),
            format!("  accepted        {accepted}"),
            format!("  lost            {lost}"),
            format!("  doubled         {doubled}"),
            format!("  diverged        {diverged}"),
            format!("  orphaned        {orphaned}"),
            format!("  http requests   {}", self.http_requests),
            format!("  http failed     {} while the edge lived", self.http_failed_while_edge_lived),
            format!("  edge back in    {} ms at most", self.edge_back_ms.last().unwrap_or(&0)),
        ];
        lines
            .extend(findings.iter().chain(&self.http_failures).chain(&self.troubles).map(|line| format!("  ! {line}")));
        if !self.is_clean() {
            lines.push(format!("  logs and events: {}", self.logs));
        }
        lines.join("\n")
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
