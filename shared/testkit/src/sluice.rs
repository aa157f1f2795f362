//! An installation: `sluice up` as a user starts it, and its command line.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{free_port, nats_server};

const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// What would lead a `sluice` elsewhere than to this installation.
const FOREIGN: [&str; 10] = [
    "DATABASE_URL",
    "NATS_URL",
    "API_URL",
    "API_TOKEN",
    "ADMIN_PASSWORD",
    "JWT_SECRET_KEY",
    "PUBLIC_URL",
    "NODE",
    "SUPERVISED",
    "DOCKER_HOST",
];

/// A data directory and ports of its own, with or without a `sluice up` that runs on them. Dropping it ends
/// everything that it started, the edge too, which outlives its supervisor by design.
pub struct Sluice {
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
    api: String,
    edge: String,
    up: Option<Child>,
    data: TempDir,
}

impl Sluice {
    /// An installation of the binary `program` on the engine at `docker_host`, not yet started.
    pub fn prepare(program: &Path, docker_host: &str) -> Result<Sluice> {
        let data = tempfile::Builder::new()
            .prefix("sluice-test-")
            // PostgreSQL runs as another user where we are root.
            .permissions(Permissions::from_mode(0o711))
            .tempdir()
            .context("creating the data directory")?;
        let api = format!("127.0.0.1:{}", free_port());
        let edge = format!("127.0.0.1:{}", free_port());
        let environment = vec![
            ("DATA_DIR", data.path().display().to_string()),
            // Where the command line keeps who signed in.
            ("XDG_CONFIG_HOME", data.path().join("config").display().to_string()),
            ("API_LISTEN", api.clone()),
            ("EDGE_LISTEN", edge.clone()),
            ("DOCKER_HOST", docker_host.to_owned()),
            ("NATS_SERVER", nats_server()?.display().to_string()),
        ];
        Ok(Sluice { program: program.to_owned(), environment, api, edge, up: None, data })
    }

    /// Adds to the environment of everything that is started from here on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.into()));
    }

    /// Starts `sluice up`, waits until it says that it runs, and signs in as its first administrator.
    pub async fn start(&mut self) -> Result<()> {
        self.start_only().await?;
        if !self.path("config").exists() {
            let password = fs::read_to_string(self.path("admin-password")).context("reading the first password")?;
            self.sign_in("admin", &password).await?;
        }
        Ok(())
    }

    /// The commands that come act in the name of `name`.
    pub async fn sign_in(&self, name: &str, password: &str) -> Result<()> {
        let output = self.output_with_input(&["login", name], password).await?;
        ensure!(output.status.success(), "signing in: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A new token with every permission, for what speaks to the API itself.
    pub async fn token(&self, name: &str) -> Result<String> {
        let made = self.json(&["token", "create", name, "--role", "admin"]).await?;
        Ok(made["token"].as_str().context("a new token shows its text")?.to_owned())
    }

    async fn start_only(&mut self) -> Result<()> {
        let log =
            File::options().create(true).append(true).open(self.log()).context("opening the log of `sluice up`")?;
        let mut up = self
            .command(["up"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let mut lines = BufReader::new(up.stdout.take().context("the output of `sluice up`")?).lines();
        self.up = Some(up);
        let running = async {
            while let Some(line) = lines.next_line().await.context("reading what `sluice up` says")? {
                if line.contains("Sluice is running") {
                    return Ok(());
                }
            }
            bail!("`sluice up` ended")
        };
        let running = timeout(READY_LIMIT, running).await.context("`sluice up` hangs").flatten();
        running.with_context(|| format!("`sluice up` did not become ready; its log:\n{}", self.log_text()))
    }

    /// Ends `sluice up` as Ctrl-C does.
    pub async fn stop(&mut self) -> Result<()> {
        let mut up = self.up.take().context("`sluice up` does not run")?;
        interrupt(&up)?;
        let status = timeout(STOP_LIMIT, up.wait()).await.context("`sluice up` does not stop")??;
        ensure!(status.success(), "`sluice up` ended with {status}; its log:\n{}", self.log_text());
        Ok(())
    }

    /// Kills the supervisor as a crash would: what it ran notices, but for the edge.
    pub async fn kill(&mut self) -> Result<()> {
        let mut up = self.up.take().context("`sluice up` does not run")?;
        up.kill().await.context("killing `sluice up`")
    }

    /// The process id of a part at this moment: `up` itself, or the child whose command line names it (`api`,
    /// `projector`, `deployer`, `edge`, `nats-server`, `postgres`).
    pub fn pid(&self, part: &str) -> Result<Pid> {
        if part == "edge" {
            let text = fs::read_to_string(self.path("edge.pid")).context("reading edge.pid")?;
            return text.trim().parse().ok().and_then(Pid::from_raw).context("edge.pid holds no process id");
        }
        let up = self.up.as_ref().and_then(Child::id).context("`sluice up` does not run")?;
        if part == "up" {
            return Pid::from_raw(up.cast_signed()).context("a process id");
        }
        let children = fs::read_to_string(format!("/proc/{up}/task/{up}/children")).context("reading its children")?;
        let named = |pid: &&str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).map(|word| Path::new(OsStr::new(text(word))).file_name());
            words.any(|word| word == Some(OsStr::new(part)))
        };
        let pid = children.split_whitespace().find(named).with_context(|| format!("{part} does not run"))?;
        pid.parse().ok().and_then(Pid::from_raw).context("a process id")
    }

    /// What the command line answers to `arguments`, however it ends.
    pub async fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.output_with_input(arguments, "").await
    }

    /// The same, signed in with `token` instead.
    pub async fn output_as(&self, token: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        command.env("API_TOKEN", token);
        converse(command, arguments, "").await
    }

    /// The same, with `input` on its standard input.
    pub async fn output_with_input(&self, arguments: &[&str], input: &str) -> Result<Output> {
        converse(self.command(arguments), arguments, input).await
    }
    /// A command line that must succeed; its standard output.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments).await?;
        let [said, complained] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        ensure!(
            output.status.success(),
            "`sluice {}` ended with {}\n{said}\n{complained}\n--- log:\n{}",
            arguments.join(" "),
            output.status,
            self.log_text(),
        );
        Ok(said.into_owned())
    }

    /// The one JSON document of a command that must succeed.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(&[arguments, &["--json"]].concat()).await?;
        serde_json::from_str(&said).with_context(|| format!("reading the answer of {arguments:?}: {said}"))
    }

    /// Declares projects and stages, as a YAML file does.
    pub async fn apply(&self, declaration: &str) -> Result<()> {
        let file = self.write("sluice.yaml", declaration)?;
        self.run(&["project", "apply", "-f", &file.display().to_string()]).await.map(drop)
    }

    /// A file in the data directory.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Address and port of the API.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// Address and port that take traffic.
    pub fn edge(&self) -> &str {
        &self.edge
    }

    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// What `sluice up` and the edge have written so far.
    pub fn log_text(&self) -> String {
        let text = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        ["up.log", "edge.log"].map(text).join("--- edge:\n")
    }

    fn log(&self) -> PathBuf {
        self.path("up.log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a (impl AsRef<OsStr> + ?Sized + 'a)>) -> Command {
        let mut command = Command::new(&self.program);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).args(arguments);
        command
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        let end = Instant::now() + STOP_LIMIT;
        let wait = |runs: &mut dyn FnMut() -> bool| {
            while runs() && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
        };
        if let Some(mut up) = self.up.take()
            && interrupt(&up).is_ok()
        {
            wait(&mut || matches!(up.try_wait(), Ok(None)));
        }
        // After a kill of its supervisor.
        if let Ok(edge) = self.pid("edge")
            && kill_process(edge, Signal::TERM).is_ok()
        {
            wait(&mut || test_kill_process(edge).is_ok());
        }
    }
}

/// Runs a command line to its end, with `input` on its standard input.
async fn converse(mut command: Command, arguments: &[&str], input: &str) -> Result<Output> {
    let what = || format!("`sluice {}`", arguments.join(" "));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", what()))?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let talk = async {
        // A command that does not read it has closed it by then.
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
        child.wait_with_output().await
    };
    let output = timeout(COMMAND_LIMIT, talk).await.with_context(|| format!("{} hangs", what()))?;
    output.with_context(|| format!("running {}", what()))
}

fn interrupt(up: &Child) -> Result<()> {
    let pid = up.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("`sluice up` has ended")?;
    kill_process(pid, Signal::INT).context("interrupting `sluice up`")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
