//! A Docker engine in a network of its own, where it may change what it likes, and a way for clients to get in.

use std::{fs::File, path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use testkit::{Docker, find_program};
use tokio::{
    process::{Child, Command},
    runtime::{Builder, EnterGuard, Runtime},
    time::timeout,
};

const COMMAND_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Namespace {
    docker: Docker,
    /// Its threads are in the engine's network.
    runtime: Option<Runtime>,
}

impl Namespace {
    pub(super) async fn start() -> Result<Namespace> {
        let docker = Docker::start_in_namespace().await?;
        let file = Arc::new(File::open(docker.namespace()?).context("opening the engine's network namespace")?);
        let enter = move || move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        let tried = std::thread::spawn(enter.clone()).join();
        tried.ok().context("entering the engine's network")?.context("entering the engine's network")?;
        let mut builder = Builder::new_multi_thread();
        builder.on_thread_start(move || enter().expect("what could be entered once can be entered again"));
        let runtime = builder.enable_all().build().context("starting threads in the engine's network")?;
        Ok(Namespace { docker, runtime: Some(runtime) })
    }

    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Tasks that are spawned under this guard have their sockets in the engine's network.
    pub(super) fn enter(&self) -> Option<EnterGuard<'_>> {
        self.runtime.as_ref().map(Runtime::enter)
    }

    /// Starts `program` in the engine's network, for as long as the child is held.
    pub(super) fn spawn(&self, program: &Path, arguments: &[String]) -> Result<Child> {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "nsenter"])
            .arg(format!("--net={}", self.docker.namespace()?.display()))
            .arg("--")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))
    }

    /// A command of Docker's own client, as people use it; what it prints.
    pub(super) async fn docker_command(&self, arguments: &[&str]) -> Result<String> {
        let what = || format!("`docker {}`", arguments.join(" "));
        let program = find_program("docker").context("no docker client found: install Debian's docker.io package")?;
        let mut command = Command::new(program);
        command.args(["--host", self.docker.host()]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(COMMAND_LIMIT, command.output()).await.with_context(|| format!("{} hangs", what()))?;
        let output = output.with_context(|| format!("running {}", what()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {complaint}", what(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would block, which a task may not.
            runtime.shutdown_background();
        }
    }
}
