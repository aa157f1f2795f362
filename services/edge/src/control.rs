//! `sluice edge upgrade`: how it is asked for, and how it is answered.
//!
//! A unix socket in a directory that only its owner may enter. One line of JSON asks, several answer.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

/// How long who connects may take to ask: it is a program of ours, on this machine.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// A path is not longer than this.
const LONGEST_QUESTION: u64 = 16 << 10;
/// How often an upgrade is asked for where the edge hung up on the question.
const TRIES: usize = 3;
/// For all of an upgrade; longer than all of its own deadlines together.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// The binary that is to be the new edge.
    upgrade: PathBuf,
}

/// What happens during an upgrade, in this order; the last is `Done`, `Refused` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Answer {
    /// The new process runs.
    Started {
        pid: u32,
    },
    /// It has the routes, has probed the upstreams, and follows NATS unless that is away.
    Ready,
    Done(Upgraded),
    /// Not now; nothing was done.
    Refused {
        reason: String,
    },
    /// The edge that served before serves on.
    Failed {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    pub old_pid: u32,
    pub new_pid: u32,
    /// How many the old process still serves, idle ones included.
    pub connections: usize,
    /// When the old process ends at the latest.
    pub until: DateTime<Utc>,
}

/// Why there was no upgrade.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("no edge answers at {}", path.display())]
    NoEdge { path: PathBuf, source: io::Error },
    #[error("the edge refuses: {0}")]
    Refused(String),
    #[error("the upgrade failed, and the edge that served before serves on: {0}")]
    Failed(String),
    /// It may have been killed in the middle.
    #[error("the edge did not say how the upgrade ended")]
    NoAnswer,
}

/// Asks the edge at the socket `path` to hand over to a new process that runs `program`; tells `progress` each step.
pub async fn upgrade(path: &Path, program: &Path, mut progress: impl FnMut(&Answer)) -> Result<Upgraded, UpgradeError> {
    let mut heard = false;
    for _ in 1..TRIES {
        match ask(path, program, &mut |answer| {
            heard = true;
            progress(answer);
        })
        .await
        {
            // Another took over between the connection and the question, most likely.
            Err(UpgradeError::NoAnswer) if !heard => {}
            done => return done,
        }
    }
    ask(path, program, &mut progress).await
}

async fn ask(path: &Path, program: &Path, progress: &mut impl FnMut(&Answer)) -> Result<Upgraded, UpgradeError> {
    let connected = UnixStream::connect(path).await;
    let mut stream = connected.map_err(|source| UpgradeError::NoEdge { path: path.to_owned(), source })?;
    let mut question = serde_json::to_vec(&Question { upgrade: program.to_owned() }).unwrap_or_default();
    question.push(b'\n');
    let asked = async {
        stream.write_all(&question).await.map_err(|_| UpgradeError::NoAnswer)?;
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(answer) = serde_json::from_str(&line) else { break };
            progress(&answer);
            match answer {
                Answer::Started { .. } | Answer::Ready => {}
                Answer::Done(upgraded) => return Ok(upgraded),
                Answer::Refused { reason } => return Err(UpgradeError::Refused(reason)),
                Answer::Failed { reason } => return Err(UpgradeError::Failed(reason)),
            }
        }
        Err(UpgradeError::NoAnswer)
    };
    timeout(ANSWER_LIMIT, asked).await.unwrap_or(Err(UpgradeError::NoAnswer))
}

/// The edge's end.
pub(crate) struct Control {
    listener: Option<UnixListener>,
}

/// Someone who wants an upgrade.
pub(crate) struct Asked {
    pub(crate) program: PathBuf,
    stream: UnixStream,
}

impl Control {
    /// Listens at `path` from now on, in place of whoever did before. An edge that cannot serves nevertheless.
    pub(crate) fn open(path: Option<&Path>) -> Self {
        let listener = path.and_then(|path| match bind(path) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "cannot listen for `sluice edge upgrade`");
                None
            }
        });
        Self { listener }
    }

    /// The next one that asks. May be dropped at any time.
    pub(crate) async fn next(&self) -> Asked {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            let asked = match listener.accept().await {
                Ok((stream, _)) => {
                    timeout(ASK_LIMIT, Asked::read(stream)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
                }
                Err(error) => Err(error),
            };
            match asked {
                Ok(asked) => return asked,
                Err(error) => {
                    tracing::warn!(%error, "what was asked of the edge cannot be read");
                    // Out of file descriptors, perhaps: nothing tells when there are some again.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Tells everybody who asks, for as long as it runs.
    pub(crate) async fn refuse(&self, reason: &str) {
        loop {
            self.next().await.answer(&Answer::Refused { reason: reason.to_owned() }).await;
        }
    }
}

impl Asked {
    async fn read(mut stream: UnixStream) -> io::Result<Self> {
        let mut line = Vec::new();
        BufReader::new((&mut stream).take(LONGEST_QUESTION)).read_until(b'\n', &mut line).await?;
        let question: Question = serde_json::from_slice(&line)?;
        Ok(Self { program: question.upgrade, stream })
    }

    /// Who asked may be gone by now; the upgrade goes on.
    pub(crate) async fn answer(&mut self, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        let _ = timeout(ASK_LIMIT, self.stream.write_all(&line)).await;
    }
}

/// In a directory that nobody else may enter, and under its name only once it listens.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let fresh = path.with_extension(std::process::id().to_string());
    let bound = (|| {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(listener)
    })();
    if bound.is_err() {
        // The first error is the one that counts.
        fs::remove_file(&fresh).ok();
    }
    bound
}
