//! Deployments through `sluice deploy`.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use testkit::{Docker, Ended, Sluice};

use super::{DRAIN, HOST, IMAGES, STOP_GRACE, Strategy};
use crate::{Bench, deployed::Deployed};

pub(super) struct Ours {
    installation: Sluice,
}

/// When a release was replaced.
pub(super) struct Replaced {
    /// Its drain did not begin before.
    from: DateTime<Utc>,
    /// Whatever is opened from here on is opened to its successor.
    to: DateTime<Utc>,
}

impl Ours {
    pub(super) async fn start(bench: &Bench, docker: &Docker) -> Result<Ours> {
        let mut installation = Sluice::prepare(&bench.sluice, docker.host())?;
        installation.set("LOG", "error");
        installation.start().await?;
        Ok(Ours { installation })
    }

    pub(super) fn address(&self) -> &str {
        self.installation.edge()
    }

    /// Declares the stage anew and deploys the first version to it.
    pub(super) async fn create(&self, strategy: Strategy) -> Result<()> {
        let strategy = match strategy {
            Strategy::BlueGreen => "blue-green",
            Strategy::Recreate => "recreate",
        };
        let declaration = format!(
            "project: bench
stages:
  shop:
    port: 8080
    health: {{ check: image, interval: 500ms, timeout: 2s, retries: 2, start_period: 5s }}
    strategy: {strategy}
    drain: {}ms
    stop_grace: {}s
    keep: 0
    route: {{ host: {HOST} }}
",
            DRAIN.as_millis(),
            STOP_GRACE.as_secs()
        );
        self.installation.apply(&declaration).await?;
        self.update(IMAGES[0]).await.map(drop)
    }

    pub(super) async fn update(&self, image: &str) -> Result<Replaced> {
        let output = self.installation.output(&["deploy", "bench", "shop", image, "--follow", "--json"]).await?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let documents: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .context("reading the answer of `sluice deploy`")?;
        let last = documents.last().and_then(|document| document.get("deployment"));
        let deployed = Deployed::read(last.with_context(|| format!("`sluice deploy` did not end well: {complaint}"))?)?;
        // Recreate takes the old release off the route first, blue-green only with the switch.
        let off = deployed.step("hold").or_else(|_| deployed.step("switch"))?;
        Ok(Replaced { from: off.began(), to: off.at })
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        let archived = self.installation.output(&["project", "archive", "bench"]).await?;
        ensure!(archived.status.success(), "`sluice project archive` ended with {}", archived.status);
        self.installation.stop().await
    }
}

/// Whether a websocket had to end: the release that it was opened to had been replaced, and the drain was over.
pub(super) fn was_due(ended: &Ended, replaced: &[Replaced], at: impl Fn(std::time::Instant) -> DateTime<Utc>) -> bool {
    let drain = TimeDelta::from_std(DRAIN).unwrap_or(TimeDelta::MAX);
    replaced.iter().any(|replaced| at(ended.opened) <= replaced.to && at(ended.ended) >= replaced.from + drain)
}
