//! What the demo saw: as a table for people, as JSON for programs, and the verdict.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::{Chat, Report};

use crate::{Deployment, release::Release};

/// Everything that was seen.
pub(crate) struct Demo {
    pub(crate) deployments: [Deployment; 3],
    pub(crate) load: Report,
    pub(crate) sockets: Chat,
    /// The second act; none until it was played.
    pub(crate) release: Option<Release>,
    pub(crate) elapsed: Duration,
}

impl Demo {
    pub(crate) fn new(deployments: [Deployment; 3], sockets: Chat) -> Demo {
        Demo { deployments, load: Report::default(), sockets, release: None, elapsed: Duration::ZERO }
    }

    /// Good: no failed request, and each version fared as it deserved.
    pub(crate) fn judge(&self) -> Result<()> {
        let [first, second, third] = &self.deployments;
        first.check("succeeded")?;
        second.check("succeeded")?;
        third.check("failed")?;
        ensure!(self.load.failed == 0, "{} of {} requests failed", self.load.failed, self.load.requests);
        ensure!(self.sockets.refused.is_empty(), "{} websockets could not be opened", self.sockets.refused.len());
        let answered: Vec<&str> = self.load.versions.keys().map(String::as_str).collect();
        ensure!(answered == ["1", "2"], "the versions that answered are {answered:?}, not 1 and 2");
        self.release.as_ref().context("the second act was not played")?.judge()
    }

    /// Websockets that were ended, by reason.
    fn ends(&self) -> BTreeMap<&str, u64> {
        let mut ends = BTreeMap::new();
        for ended in &self.sockets.ended {
            *ends.entry(ended.reason.as_str()).or_default() += 1;
        }
        ends
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<22}{value}");
        };
        row("requests", self.load.requests.to_string());
        row("failed", self.load.failed.to_string());
        for (reason, count) in &self.load.failures {
            row("", format!("{count} x {reason}"));
        }
        for (version, count) in &self.load.versions {
            row(&format!("answered by version {version}"), count.to_string());
        }
        let [half, most, worst] = [0.5, 0.99, 1.0].map(|quantile| milliseconds(self.load.latency(quantile)));
        row("latency", format!("p50 {half} ms, p99 {most} ms, worst {worst} ms (a few are slow on purpose: 300 ms)"));
        let Chat { opened, echoes, refused, .. } = &self.sockets;
        row("websockets", format!("{opened} opened, {echoes} echoes, {} refused", refused.len()));
        for (reason, count) in &self.ends() {
            row("", format!("{count} ended by the drain: {reason}"));
        }
        if let Some(reason) = refused.first() {
            row("", reason.clone());
        }
        let _ = writeln!(text, "\n{:<9}{:<12}{:<12}{:>9}", "version", "outcome", "step", "ms");
        for deployment in &self.deployments {
            let whole = ("in all".to_owned(), deployment.elapsed);
            let steps = deployment.steps.iter().map(|step| (step.name.clone(), step.elapsed)).chain([whole]);
            for (number, (step, elapsed)) in steps.enumerate() {
                let (version, outcome) =
                    if number == 0 { (deployment.version, deployment.outcome.as_str()) } else { ("", "") };
                let _ = writeln!(text, "{version:<9}{outcome:<12}{step:<12}{:>9}", milliseconds(elapsed));
            }
            if let Some(reason) = &deployment.reason {
                let _ = writeln!(text, "{:<9}{reason}", "");
            }
        }
        if let Some(Release { load, refused: (gate, reason), verified }) = &self.release {
            let _ = writeln!(text, "\nfrom stage to stage");
            let _ = writeln!(text, "{:<22}by `{gate}`: {reason}", "refused");
            let events: Vec<String> = verified.iter().map(u64::to_string).collect();
            let _ = writeln!(text, "{:<22}{} (from {} events)", "proofs verified", verified.len(), events.join(", "));
            let _ = writeln!(text, "{:<22}{} requests, {} failed", "rollback under load", load.requests, load.failed);
        }
        text
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let deployments: Vec<_> = self
            .deployments
            .iter()
            .map(|deployment| {
                let steps: Vec<_> = deployment
                    .steps
                    .iter()
                    .map(|step| json!({ "step": step.name, "elapsed_ms": milliseconds(step.elapsed) }))
                    .collect();
                json!({
                    "version": deployment.version, "outcome": deployment.outcome,
                    "elapsed_ms": milliseconds(deployment.elapsed), "steps": steps, "reason": deployment.reason,
                })
            })
            .collect();
        let latency: BTreeMap<_, _> = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
            .map(|(name, quantile)| (name, milliseconds(self.load.latency(quantile))))
            .into();
        let sockets = &self.sockets;
        let document = json!({
            "requests": self.load.requests, "failed": self.load.failed, "failures": self.load.failures,
            "versions": self.load.versions, "latency_ms": latency, "elapsed_ms": milliseconds(self.elapsed),
            "websockets": {
                "opened": sockets.opened, "echoes": sockets.echoes, "ended": self.ends(), "refused": sockets.refused,
            },
            "deployments": deployments,
            "release": self.release.as_ref().map(|release| json!({
                "refused": { "gate": release.refused.0, "reason": release.refused.1 },
                "proofs_verified": release.verified.len(),
                "rollback": { "requests": release.load.requests, "failed": release.load.failed },
            })),
        });
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).context("creating the directory of the report")?;
        }
        fs::write(path, serde_json::to_vec_pretty(&document)?).with_context(|| format!("writing {}", path.display()))
    }
}

/// Whole ones, which also fit in JSON's numbers.
fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
