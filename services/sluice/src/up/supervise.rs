//! Child processes: started, watched, started again when they die, and stopped in order.
//!
//! A child with a `pid_file` may outlive us; the next supervisor finds it there and adopts it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::{
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// What to run, and how to end it.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(&'static str, OsString)>,
    /// File for its output; with none it shares ours.
    pub(super) output: Option<PathBuf>,
    pub(super) stop: Signal,
    /// After the stop signal; then it is killed.
    pub(super) grace: Duration,
    /// Ends by itself when we die: it holds the other end of a pipe.
    pub(super) tied: bool,
    /// Lives on when we die, and is found again by its process id in this file.
    pub(super) pid_file: Option<PathBuf>,
}

/// A child under supervision, until [`Supervised::stop`].
pub(super) struct Supervised {
    name: &'static str,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long was healthy: the next pause is short again.
const SETTLED: Duration = Duration::from_secs(30);
/// How often an adopted process, which cannot be waited for, is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Starts the child, or adopts the one that still runs; an error means that it could not be started.
pub(super) fn supervise(spec: Spec) -> Result<Supervised> {
    let first = match still_running(&spec) {
        Some(pid) => {
            tracing::info!(child = spec.name, pid = pid.as_raw_pid(), "still runs; adopting it");
            Process::Adopted(pid)
        }
        None => spawn(&spec)?,
    };
    let name = spec.name;
    let stopping = CancellationToken::new();
    let task = tokio::spawn(keep_alive(spec, first, stopping.clone()));
    Ok(Supervised { name, stopping, task })
}

/// Whether the child outlived an earlier supervisor and will be adopted.
pub(super) fn survived(spec: &Spec) -> bool {
    still_running(spec).is_some()
}

impl Supervised {
    /// Ends the child: its stop signal, its grace, then SIGKILL.
    pub(super) async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(child = self.name, %error, "the supervising task failed");
        }
    }
}

enum Process {
    Ours {
        child: Box<Child>,
        /// Kept open as long as we live: its end is how a tied child learns of ours.
        _tie: Option<ChildStdin>,
    },
    Adopted(Pid),
}

impl Process {
    async fn ended(&mut self) -> io::Result<String> {
        match self {
            Self::Ours { child, .. } => Ok(child.wait().await?.to_string()),
            Self::Adopted(pid) => {
                while test_kill_process(*pid).is_ok() {
                    sleep(LOOK).await;
                }
                Ok("gone".to_owned())
            }
        }
    }

    fn signal(&self, name: &str, signal: Signal) {
        let pid = match self {
            Self::Ours { child, .. } => child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw),
            Self::Adopted(pid) => Some(*pid),
        };
        let Some(pid) = pid else { return };
        if let Err(error) = kill_process(pid, signal) {
            tracing::warn!(child = name, %error, "could not be signalled");
        }
    }
}

/// The process of the pid file, if it is what `spec` would start and not another that got its number.
fn still_running(spec: &Spec) -> Option<Pid> {
    let pid = fs::read_to_string(spec.pid_file.as_ref()?).ok()?.trim().parse().ok().and_then(Pid::from_raw)?;
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    let ours =
        spec.args.iter().all(|arg| command_line.split(|byte| *byte == 0).any(|part| part == arg.as_encoded_bytes()));
    ours.then_some(pid)
}

fn spawn(spec: &Spec) -> Result<Process> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).envs(spec.env.iter().map(|(name, value)| (name, value)));
    // A group of its own: a Ctrl-C in the terminal reaches us alone, and we stop the others in order.
    command.process_group(0).current_dir("/").stdin(if spec.tied { Stdio::piped() } else { Stdio::null() });
    if let Some(path) = &spec.output {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    let mut child =
        command.spawn().with_context(|| format!("starting {} ({})", spec.name, spec.program.to_string_lossy()))?;
    if let (Some(path), Some(pid)) = (&spec.pid_file, child.id()) {
        runtime::files::replace(path, pid.to_string().as_bytes(), 0o600)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    // Waiting for a child closes its standard input, unless it is held elsewhere.
    let tie = child.stdin.take();
    Ok(Process::Ours { child: Box::new(child), _tie: tie })
}

async fn keep_alive(spec: Spec, mut process: Process, stopping: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        tokio::select! {
            ended = process.ended() => match ended {
                Ok(status) => tracing::error!(child = spec.name, %status, "ended by itself; starting it again"),
                Err(error) => tracing::error!(child = spec.name, %error, "cannot be waited for; starting it again"),
            },
            () = stopping.cancelled() => return end(&spec, process).await,
        }
        if started.elapsed() > SETTLED {
            pause = FIRST_PAUSE;
        }
        process = loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = stopping.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match spawn(&spec) {
                Ok(process) => break process,
                Err(error) => tracing::error!(child = spec.name, error = format!("{error:#}"), "trying again"),
            }
        };
    }
}

async fn end(spec: &Spec, mut process: Process) {
    process.signal(spec.name, spec.stop);
    if timeout(spec.grace, process.ended()).await.is_err() {
        tracing::warn!(child = spec.name, "did not end in time; killing it");
        process.signal(spec.name, Signal::KILL);
        if timeout(spec.grace, process.ended()).await.is_err() {
            tracing::error!(child = spec.name, "outlives SIGKILL; giving up on it");
        }
    }
    if let Some(path) = &spec.pid_file
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(child = spec.name, %error, "its pid file could not be removed");
    }
}
