//! The installation of the demo: one project, deployed to and watched through the command line, as a person does.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::Docker;
use tokio::time::Duration;

use crate::{Deployment, Step};

/// An installation of its own: data directory, ports, NATS and PostgreSQL.
pub(crate) struct Sluice {
    installation: testkit::Sluice,
}

impl Sluice {
    pub(crate) async fn up(program: &Path, docker: &Docker) -> Result<Sluice> {
        let mut installation = testkit::Sluice::prepare(program, docker.host())?;
        installation.set("LOG", "error");
        installation.start().await?;
        Ok(Sluice { installation })
    }

    pub(crate) fn api(&self) -> &str {
        self.installation.api()
    }

    pub(crate) fn edge(&self) -> &str {
        self.installation.edge()
    }

    pub(crate) async fn apply(&self, declaration: &str) -> Result<()> {
        self.installation.apply(declaration).await
    }

    /// Deploys to shop/dev and waits until it has ended, well or not.
    pub(crate) async fn deploy(&self, version: &'static str) -> Result<Deployment> {
        let began = Instant::now();
        let output = self.installation.output(&["deploy", "shop", "dev", version, "--follow", "--json"]).await?;
        let documents: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .context("reading the answer of `sluice deploy`")?;
        let deployment = documents
            .last()
            .and_then(|document| document.get("deployment"))
            .with_context(|| format!("`sluice deploy` of version {version} did not tell how it ended"))?;
        let steps = deployment["steps"].as_array().context("a deployment has steps")?;
        Ok(Deployment {
            version,
            outcome: text(&deployment["status"]),
            elapsed: began.elapsed(),
            steps: steps
                .iter()
                .map(|step| Step {
                    name: text(&step["step"]),
                    elapsed: Duration::from_millis(step["elapsed_ms"].as_u64().unwrap_or_default()),
                })
                .collect(),
            reason: deployment["failure"]["message"].as_str().map(str::to_owned),
        })
    }

    /// Ends the project, and with it its containers, then everything else in good order, as Ctrl-C does.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let output = self.installation.output(&["project", "archive", "shop"]).await?;
        ensure!(output.status.success(), "`sluice project archive` ended with {}", output.status);
        self.installation.stop().await
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
