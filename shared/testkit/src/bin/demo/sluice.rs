//! The real `sluice up`, and its command line, as a person uses them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::{Docker, free_port, nats_server};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{Deployment, Step};

const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// An installation of its own: data directory, ports, NATS and PostgreSQL.
pub(crate) struct Sluice {
    program: PathBuf,
    up: Child,
    data: TempDir,
    environment: Vec<(&'static str, String)>,
    api: String,
    edge: String,
}

impl Sluice {
    pub(crate) async fn up(program: &Path, docker: &Docker) -> Result<Sluice> {
        // PostgreSQL's user must be able to pass through.
        let data = tempfile::Builder::new()
            .prefix("sluice-demo-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .context("creating the data directory")?;
        let api = format!("127.0.0.1:{}", free_port());
        let edge = format!("127.0.0.1:{}", free_port());
        let environment = vec![
            ("DATA_DIR", data.path().display().to_string()),
            ("API_LISTEN", api.clone()),
            ("EDGE_LISTEN", edge.clone()),
            ("DOCKER_HOST", docker.host().to_owned()),
            ("NATS_SERVER", nats_server()?.display().to_string()),
            ("LOG", "error".to_owned()),
        ];
        let mut up = command(program, &environment, &["up"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut lines = BufReader::new(up.stdout.take().context("the output of `sluice up`")?).lines();
        let running = async {
            while let Some(line) = lines.next_line().await.context("reading what `sluice up` says")? {
                if line.contains("Sluice is running") {
                    return Ok(());
                }
            }
            bail!("`sluice up` ended")
        };
        timeout(START_LIMIT, running).await.context("`sluice up` did not become ready")??;
        Ok(Sluice { program: program.to_owned(), up, data, environment, api, edge })
    }

    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    pub(crate) fn edge(&self) -> &str {
        &self.edge
    }

    pub(crate) async fn apply(&self, declaration: &str) -> Result<()> {
        let file = self.data.path().join("sluice.yaml");
        fs::write(&file, declaration).context("writing the declaration")?;
        let (code, _) = self.run(&["project", "apply", "-f", &file.display().to_string()]).await?;
        ensure!(code == Some(0), "`sluice project apply` ended with {code:?}");
        Ok(())
    }

    /// Deploys to shop/dev and waits until it has ended, well or not.
    pub(crate) async fn deploy(&self, version: &'static str) -> Result<Deployment> {
        let began = Instant::now();
        let (_, documents) = self.run(&["deploy", "shop", "dev", version, "--follow"]).await?;
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
        let (code, _) = self.run(&["project", "archive", "shop"]).await?;
        ensure!(code == Some(0), "`sluice project archive` ended with {code:?}");
        self.interrupt()?;
        let status = timeout(STOP_LIMIT, self.up.wait()).await.context("`sluice up` does not stop")??;
        ensure!(status.success(), "`sluice up` ended with {status}");
        Ok(())
    }

    fn interrupt(&self) -> Result<()> {
        let pid = self.up.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("`sluice up` has ended")?;
        kill_process(pid, Signal::INT).context("interrupting `sluice up`")
    }

    /// Exit code and the JSON documents, one a line, of a command. What it says on stderr passes through.
    async fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, Vec<Value>)> {
        let output = command(&self.program, &self.environment, arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await
            .with_context(|| format!("starting `sluice {}`", arguments.join(" ")))?;
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>();
        let documents = documents.with_context(|| format!("reading the answer of `sluice {}`", arguments.join(" ")))?;
        Ok((output.status.code(), documents))
    }
}

/// After a failure. A kill would leave the edge, which outlives a crash of the rest by design.
impl Drop for Sluice {
    fn drop(&mut self) {
        let end = Instant::now() + STOP_LIMIT;
        if self.interrupt().is_ok() {
            while matches!(self.up.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Nothing of the surrounding environment leads elsewhere.
fn command(program: &Path, environment: &[(&'static str, String)], arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for name in ["DATABASE_URL", "NATS_URL", "API_URL", "API_TOKEN", "ADMIN_TOKEN", "NODE"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (name, value))).args(arguments);
    command
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
