//! Child processes: started, watched, started again when they die, and stopped in order.
//!
//! A child with a pid file may outlive us; the next supervisor finds it there and adopts it. Such a child may also hand
//! over to another process, which writes itself into the file: then that one is watched in its place, and the one
//! before ends when it is done.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid},
};
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
    /// Lives on when we die, and names itself in this file as soon as it serves.
    pub(super) pid_file: Option<PathBuf>,
}

/// A child under supervision, until [`Supervised::stop`].
pub(super) struct Supervised {
    name: &'static str,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

/// Before a child that died right after its start is started again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long did not die of its start: another is started at once.
const SETTLED: Duration = Duration::from_secs(1);
/// How often is looked whether a child has handed over, or an adopted one has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Starts the child, or adopts the one that still runs; an error means that it could not be started.
pub(super) fn supervise(spec: Spec) -> Result<Supervised> {
    let first = match still_running(&spec) {
        Some(adopted) => {
            tracing::info!(child = spec.name, pid = ?adopted.pid(), "still runs; adopting it");
            adopted
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
    /// Started by another: watched by a descriptor that never means a later process of the same number.
    Adopted { pid: Pid, descriptor: OwnedFd },
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        match self {
            Self::Ours { child, .. } => child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw),
            Self::Adopted { pid, .. } => Some(*pid),
        }
    }

    async fn ended(&mut self) -> io::Result<String> {
        match self {
            Self::Ours { child, .. } => Ok(child.wait().await?.to_string()),
            Self::Adopted { descriptor, .. } => {
                while !has_ended(descriptor)? {
                    sleep(LOOK).await;
                }
                // Where its parent died and we are the first process of a container, it has become ours to reap.
                let reaped = waitid(WaitId::PidFd(descriptor.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                tracing::debug!(?reaped, "an adopted process ended");
                Ok("gone".to_owned())
            }
        }
    }

    fn signal(&self, name: &str, signal: Signal) {
        let sent = match self {
            Self::Ours { .. } => match self.pid() {
                Some(pid) => kill_process(pid, signal),
                None => return,
            },
            Self::Adopted { descriptor, .. } => pidfd_send_signal(descriptor, signal),
        };
        if let Err(error) = sent {
            tracing::warn!(child = name, %error, "could not be signalled");
        }
    }
}

fn has_ended(descriptor: &OwnedFd) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&Timespec::default()))? > 0)
}

/// The process of the pid file, if it is what `spec` would start and not another that got its number.
fn still_running(spec: &Spec) -> Option<Process> {
    let pid = named(spec)?;
    // First the descriptor: from then on the number cannot come to mean another process.
    let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    let mut words = command_line.split(|byte| *byte == 0).skip(1);
    let ours = spec.args.iter().all(|arg| words.next() == Some(arg.as_encoded_bytes())) && words.all(<[u8]>::is_empty);
    ours.then_some(Process::Adopted { pid, descriptor })
}

fn named(spec: &Spec) -> Option<Pid> {
    fs::read_to_string(spec.pid_file.as_ref()?).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

fn spawn(spec: &Spec) -> Result<Process> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).envs(spec.env.iter().map(|(name, value)| (name, value)));
    // A group of its own: a Ctrl-C in the terminal reaches us alone, and we stop the others in order.
    command.process_group(0).current_dir("/").stdin(if spec.tied { Stdio::piped() } else { Stdio::null() });
    if let Some(path) = &spec.output {
        // Where one process hands over to another, both write to it.
        let mut file = File::options();
        match &spec.pid_file {
            Some(_) => file.append(true),
            None => file.write(true).truncate(true),
        };
        let file = file.create(true).open(path).with_context(|| format!("creating {}", path.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    let mut child =
        command.spawn().with_context(|| format!("starting {} ({})", spec.name, spec.program.to_string_lossy()))?;
    // Waiting for a child closes its standard input, unless it is held elsewhere.
    let tie = child.stdin.take();
    Ok(Process::Ours { child: Box::new(child), _tie: tie })
}

async fn keep_alive(spec: Spec, mut process: Process, stopping: CancellationToken) {
    // Those that have handed over and serve on what they have.
    let mut leaving: Vec<Process> = Vec::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let pid = process.pid();
        let ended = tokio::select! {
            ended = process.ended() => ended,
            next = handed_over(&spec, pid, &mut leaving) => {
                tracing::info!(child = spec.name, pid = ?next.pid(), "handed over to another process; following it");
                leaving.push(std::mem::replace(&mut process, next));
                continue;
            }
            () = stopping.cancelled() => {
                leaving.push(process);
                break;
            }
        };
        if let Some(next) = successor(&spec, &mut leaving) {
            tracing::info!(child = spec.name, pid = ?next.pid(), "ended, and another process serves; following it");
            process = next;
            continue;
        }
        match ended {
            Ok(status) => tracing::error!(child = spec.name, %status, "ended by itself; starting it again"),
            Err(error) => tracing::error!(child = spec.name, %error, "cannot be waited for; starting it again"),
        }
        // One that has handed over takes back when its successor dies: it is to have the time.
        let mut wait = if started.elapsed() < SETTLED {
            pause
        } else {
            pause = FIRST_PAUSE;
            if leaving.is_empty() { Duration::ZERO } else { FIRST_PAUSE }
        };
        let next = loop {
            tokio::select! {
                () = sleep(wait) => {}
                () = stopping.cancelled() => break None,
            }
            if !wait.is_zero() {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            wait = pause;
            if let Some(next) = successor(&spec, &mut leaving) {
                break Some(next);
            }
            match spawn(&spec) {
                Ok(process) => break Some(process),
                Err(error) => tracing::error!(child = spec.name, error = format!("{error:#}"), "trying again"),
            }
        };
        match next {
            Some(next) => process = next,
            None => break,
        }
    }
    // One that has taken over in this moment is not known yet.
    if let Some(next) = successor(&spec, &mut leaving) {
        leaving.push(next);
    }
    end(&spec, leaving).await;
}

/// The process that serves in place of one that has ended: one that took back, or another.
fn successor(spec: &Spec, leaving: &mut Vec<Process>) -> Option<Process> {
    let named = still_running(spec)?;
    match leaving.iter().position(|process| process.pid() == named.pid()) {
        Some(known) => Some(leaving.swap_remove(known)),
        None => Some(named),
    }
}

/// Waits until the pid file names another process than `pid`. Those that have left meanwhile are forgotten.
async fn handed_over(spec: &Spec, pid: Option<Pid>, leaving: &mut Vec<Process>) -> Process {
    if spec.pid_file.is_none() {
        return std::future::pending().await;
    }
    loop {
        sleep(LOOK).await;
        let mut index = 0;
        while let Some(process) = leaving.get_mut(index) {
            match timeout(Duration::ZERO, process.ended()).await {
                Ok(_) => drop(leaving.swap_remove(index)),
                Err(_) => index += 1,
            }
        }
        if named(spec) != pid
            && let Some(next) = successor(spec, leaving)
        {
            return next;
        }
    }
}

/// Ends them all, the last one first.
async fn end(spec: &Spec, mut processes: Vec<Process>) {
    for process in &processes {
        process.signal(spec.name, spec.stop);
    }
    while let Some(mut process) = processes.pop() {
        if timeout(spec.grace, process.ended()).await.is_err() {
            tracing::warn!(child = spec.name, "did not end in time; killing it");
            process.signal(spec.name, Signal::KILL);
            if timeout(spec.grace, process.ended()).await.is_err() {
                tracing::error!(child = spec.name, "outlives SIGKILL; giving up on it");
            }
        }
    }
    if let Some(path) = &spec.pid_file
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(child = spec.name, %error, "its pid file could not be removed");
    }
}
