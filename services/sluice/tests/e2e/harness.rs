//! The real thing: `sluice up` as a user starts it, a real engine, a real registry, the real command line.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use bollard::query_parameters::RemoveImageOptions;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::{Docker, Registry, SampleImage, free_port};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Sluice {
    child: Option<Child>,
    data: TempDir,
    environment: Vec<(&'static str, String)>,
    pub(crate) edge: String,
    pub(crate) api: String,
    pub(crate) docker: Docker,
    pub(crate) registry: Registry,
}

impl Sluice {
    /// A fresh installation, ready to use.
    pub(crate) async fn up() -> Sluice {
        Sluice::up_on(Docker::connect_or_start().await.expect("an engine")).await
    }

    pub(crate) async fn up_on(docker: Docker) -> Sluice {
        let registry = Registry::start().await.expect("a registry");
        let data = TempDir::with_prefix("sluice-e2e-").expect("a directory");
        // PostgreSQL runs as another user where we are root.
        std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let api = format!("127.0.0.1:{}", free_port());
        let edge = format!("127.0.0.1:{}", free_port());
        let environment = vec![
            ("DATA_DIR", data.path().display().to_string()),
            ("API_LISTEN", api.clone()),
            ("EDGE_LISTEN", edge.clone()),
            ("DOCKER_HOST", docker.host().to_owned()),
            ("NATS_SERVER", testkit::nats_server().expect("a nats-server").display().to_string()),
        ];
        let mut sluice = Sluice { child: None, data, environment, edge, api, docker, registry };
        sluice.start().await;
        sluice
    }

    /// Starts `sluice up` and waits until it says that it runs.
    pub(crate) async fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut child = self
            .command(&["up"])
            .stdout(Stdio::piped())
            .stderr(log)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("sluice starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.expect("readable") {
                if line.contains("Sluice is running") {
                    return true;
                }
            }
            false
        };
        let ready = timeout(READY_LIMIT, ready).await;
        assert!(ready == Ok(true), "`sluice up` did not become ready:\n{}", self.log_text());
        self.child = Some(child);
    }

    /// As Ctrl-C does.
    pub(crate) async fn stop(&mut self) {
        let mut child = self.child.take().expect("running");
        send(&child, Signal::INT);
        let status = timeout(STOP_LIMIT, child.wait()).await.expect("stops in time").expect("waited for");
        assert!(status.success(), "{status}:\n{}", self.log_text());
    }

    /// The supervisor dies as in a crash; nothing gets to say goodbye.
    pub(crate) async fn kill_supervisor(&mut self) {
        let mut child = self.child.take().expect("running");
        send(&child, Signal::KILL);
        child.wait().await.expect("waited for");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SLUICE);
        command.args(args).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("DATABASE_URL").env_remove("NATS_URL");
        command
    }

    /// A command line that must succeed; its standard output.
    pub(crate) async fn run(&self, args: &[&str]) -> String {
        let output = self.output(args).await;
        assert!(
            output.status.success(),
            "sluice {}: {}\n{}\n{}\n--- log:\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_text(),
        );
        String::from_utf8(output.stdout).expect("text")
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?} gave {error}: {text}"))
    }

    /// A command line that must fail: exit code and standard error.
    pub(crate) async fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.output(args).await;
        assert!(
            !output.status.success(),
            "sluice {} succeeded: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().expect("an exit code"), said)
    }

    pub(crate) async fn output(&self, args: &[&str]) -> Output {
        let running = self.command(args).stdin(Stdio::null()).kill_on_drop(true).output();
        timeout(COMMAND_LIMIT, running).await.unwrap_or_else(|_| panic!("{args:?} hangs")).expect("sluice runs")
    }

    /// With `input` on standard input.
    pub(crate) async fn run_with_input(&self, args: &[&str], input: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sluice runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("written");
        drop(stdin);
        timeout(COMMAND_LIMIT, child.wait_with_output()).await.expect("in time").expect("ran")
    }

    /// Applies a project `shop` whose stages are given as YAML under `stages:`, indented by two.
    pub(crate) async fn apply(&self, stages: &str) {
        let file = self.write("sluice.yaml", &format!("project: shop\nstages:\n{stages}"));
        self.run(&["project", "apply", "-f", &file.display().to_string()]).await;
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.data.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Pushes an image to the registry under `shop:<tag>`; its full reference.
    pub(crate) async fn push(&self, image: SampleImage, tag: &str) -> String {
        let local = format!("sluice-e2e-{}:{tag}", self.registry.address().replace([':', '.'], "-"));
        image.load(&self.docker, &local).await.expect("loaded");
        let reference = self.registry.push(&self.docker, &local, &format!("shop:{tag}")).await.expect("pushed");
        // Only the registry has it from here on: deploying must pull.
        self.forget(&[&local, &reference]).await;
        reference
    }

    /// Takes images away from the engine.
    pub(crate) async fn forget(&self, names: &[&str]) {
        for name in names {
            self.docker.client().remove_image(name, None::<RemoveImageOptions>, None).await.expect("removed");
        }
    }

    /// GET through the edge: status and body.
    pub(crate) async fn get(&self, host: &str, path: &str) -> (u16, String) {
        let request = reqwest::Client::new().get(format!("http://{}{path}", self.edge)).header("host", host);
        let response = request.send().await.expect("the edge answers");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    /// Waits until a step of the deployment is done.
    pub(crate) async fn step_done(&self, deployment: &str, step: &str) {
        let done = async {
            loop {
                let shown = self.json(&["deployment", deployment]).await;
                if shown["steps"].as_array().is_some_and(|steps| steps.iter().any(|s| s["step"] == step)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(COMMAND_LIMIT, done).await.unwrap_or_else(|_| panic!("{step} is not reached:\n{}", self.log_text()));
    }

    fn log(&self) -> PathBuf {
        self.data.path().join("up.log")
    }

    pub(crate) fn log_text(&self) -> String {
        let text = |name: &str| std::fs::read_to_string(self.data.path().join(name)).unwrap_or_default();
        ["up.log", "edge.log"].map(text).join("--- edge:\n")
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("running");
    kill_process(pid, signal).expect("signalled");
}

impl Drop for Sluice {
    fn drop(&mut self) {
        // A failed test must not leave its edge behind: it outlives the supervisor by design.
        if let Ok(pid) = std::fs::read_to_string(self.data.path().join("edge.pid"))
            && let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw)
        {
            kill_process(pid, Signal::TERM).ok();
        }
    }
}
