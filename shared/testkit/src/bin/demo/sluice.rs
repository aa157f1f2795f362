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
        let deployment = self.followed(&["deploy", "shop", "dev", version]).await?;
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

    /// How the deployment that a command line looks on at has ended.
    pub(crate) async fn follow(&self, arguments: &[&str]) -> Result<String> {
        Ok(text(&self.followed(arguments).await?["status"]))
    }

    async fn followed(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.installation.output(&[arguments, &["--follow", "--json"]].concat()).await?;
        let documents: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("reading the answer of `sluice {}`", arguments.join(" ")))?;
        let last = documents.into_iter().next_back().and_then(|mut last| last.get_mut("deployment").map(Value::take));
        last.with_context(|| {
            let complained = String::from_utf8_lossy(&output.stderr);
            format!("`sluice {}` did not tell how it ended: {complained}", arguments.join(" "))
        })
    }

    /// The one document that a command line answers with, whether what it says is welcome or not.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.installation.output(&[arguments, &["--json"]].concat()).await?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`sluice {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    /// A command line that must succeed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.installation.run(arguments).await
    }

    /// The whole configuration, as a file.
    pub(crate) async fn export(&self) -> Result<String> {
        self.run(&["export"]).await
    }

    /// Makes everything as an export says.
    pub(crate) async fn apply_all(&self, configuration: &str) -> Result<()> {
        let file = self.installation.write("all.yaml", configuration)?;
        self.run(&["apply", "-f", &file.display().to_string(), "--yes"]).await.map(drop)
    }

    /// A command line of somebody else, which must succeed.
    pub(crate) async fn run_as(&self, token: &str, arguments: &[&str]) -> Result<()> {
        let output = self.installation.output_as(token, arguments).await?;
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`sluice {}` of another: {complained}", arguments.join(" "));
        Ok(())
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
