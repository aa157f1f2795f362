//! Children that cannot outlive their owner.

use std::{
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a child may take to end after its stop signal before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// A loopback port that was free a moment ago, below the ephemeral range: a client that keeps reconnecting to a
/// stopped server on an ephemeral port may end up connected to itself.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// `program`, to be killed by the kernel with `signal` when the thread that spawned it ends, however it ends.
/// With `user`, it runs as that user.
pub(crate) fn tethered(program: &Path, signal: &str, user: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.arg("--").arg(program);
    command
}

/// A running server. Dropping it stops it and waits for its end.
pub(crate) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

impl Server {
    /// Starts `command` with its output in the file `log`. `stop` is the signal for an orderly end.
    pub(crate) fn spawn(name: &'static str, command: &mut Command, log: PathBuf, stop: Signal) -> Result<Server> {
        let output = File::create(&log).with_context(|| format!("creating the log of {name}"))?;
        let errors = output.try_clone().with_context(|| format!("opening the log of {name}"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // A terminal's Ctrl-C is for us: what we started ends after what uses it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Server { name, child, log, stop })
    }

    /// Waits until `probe` answers true. Ends early, with the tail of the log, when the server has exited.
    pub(crate) async fn ready(&mut self, deadline: Duration, probe: impl AsyncFn() -> bool) -> Result<()> {
        let end = Instant::now() + deadline;
        while !probe().await {
            if let Some(status) = self.child.try_wait().with_context(|| format!("watching {}", self.name))? {
                bail!("{} ended at start with {status}:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > end {
                bail!("{} was not ready within {deadline:?}:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends the server without a chance to clean up, as a crash would.
    pub(crate) fn kill(&mut self) {
        // Both fail only when the child has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the process where it stands, as SIGSTOP does: it holds its connections and answers nothing.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("signalling {}", self.name))
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = self.signal(self.stop);
        // One that is frozen would not hear of it.
        let _ = self.thaw();
        let end = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                self.kill();
                return;
            }
            thread::sleep(PROBE_INTERVAL);
        }
    }
}

/// The program `name`: what `scripts/install` brought for the project alone, else from PATH or where Debian keeps
/// servers.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let tools = workspace().join(".tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["venv/bin", "registry/usr/bin", "peers/usr/bin", "peers/usr/sbin"]
        .map(|directory| tools.join(directory))
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The root of the workspace this crate was compiled in.
pub(crate) fn workspace() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.join("../..").canonicalize().unwrap_or_else(|_| crate_directory.to_path_buf())
}

/// A random secret for a server that lives as long as one test.
pub(crate) fn random_secret() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Runs `work` to its end on a thread of its own: for a `drop`, which may run inside a runtime and cannot await.
pub(crate) fn in_own_runtime(work: impl AsyncFnOnce() -> Result<()> + Send) -> Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        });
        thread.join().unwrap_or_else(|_| bail!("the thread panicked"))
    })
}
