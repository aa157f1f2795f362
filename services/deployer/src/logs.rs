//! Output of containers: its end for failures, all of it for the followers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bollard::container::LogOutput;
use chrono::{DateTime, Utc};
use eventlog::{LogLine, LogRef, LogStream};
use futures::TryStreamExt;
use tokio::task::{AbortHandle, JoinSet};

use crate::{
    Node,
    docker::{Container, Engine, EngineError},
    labels::Labels,
};

/// A failure carries this much output.
const TAIL_LINES: usize = 50;
const TAIL_LINE: usize = 1024;
const TAIL_BYTES: usize = 16 * 1024;

/// The last lines that a container wrote. Best effort: the failure they explain must not be lost over them.
pub(crate) async fn tail(engine: &Engine, container: &str) -> Vec<String> {
    let output = match engine.log_tail(container, TAIL_LINES).await {
        Ok(output) => output,
        Err(error) => {
            tracing::debug!(%error, container, "no output for a failure");
            return vec![];
        }
    };
    let text: Vec<u8> = output.into_iter().flat_map(|chunk| chunk.into_bytes()).collect();
    bounded(&String::from_utf8_lossy(&text))
}

/// The end of `text`, within the limits of what an event may carry.
fn bounded(text: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut size = 0;
    for line in text.lines().rev().take(TAIL_LINES) {
        let line = clean(&line[..line.floor_char_boundary(TAIL_LINE)]);
        size += line.len();
        if size > TAIL_BYTES {
            break;
        }
        kept.push(line);
    }
    kept.reverse();
    kept
}

/// Without what could move a reader's cursor or change their colours.
fn clean(line: &str) -> String {
    line.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Copies the output of running containers into the log stream. Owns one task per container.
pub(crate) struct Followers {
    node: Arc<Node>,
    tasks: JoinSet<()>,
    following: HashMap<String, (AbortHandle, Arc<AtomicI64>)>,
}

impl Followers {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, tasks: JoinSet::new(), following: HashMap::new() }
    }

    /// Follows `container` from where its output was left.
    pub(crate) async fn follow(&mut self, container: &Container) {
        while self.tasks.try_join_next().is_some() {}
        let from = reference(&self.node, container).await;
        let after = match self.following.remove(&container.id) {
            // It may be about to end with the container's last life; the next one takes up what it left.
            Some((task, after)) => {
                task.abort();
                after
            }
            None => Arc::new(AtomicI64::new(last_kept(&self.node, &from).await)),
        };
        let work = copy(self.node.clone(), container.clone(), from, after.clone());
        let task = self.tasks.spawn(work);
        self.following.insert(container.id.clone(), (task, after));
    }

    /// Follows `container` unless that is done already.
    pub(crate) async fn keep_following(&mut self, container: &Container) {
        if self.following.get(&container.id).is_none_or(|(task, _)| task.is_finished()) {
            self.follow(container).await;
        }
    }

    /// Whose containers are gone need no memory.
    pub(crate) fn retain(&mut self, containers: &[Container]) {
        self.following.retain(|id, (task, _)| !task.is_finished() || containers.iter().any(|c| c.id == *id));
    }
}

/// Copies until the container ends. `after` is the time of the last line copied, in nanoseconds.
async fn copy(node: Arc<Node>, container: Container, from: LogRef, after: Arc<AtomicI64>) {
    let copied: Result<(), EngineError> = async {
        // Docker takes whole seconds here; what comes twice is told by its time.
        let since = i32::try_from(after.load(Ordering::Relaxed) / 1_000_000_000).unwrap_or_default();
        let mut output = std::pin::pin!(node.engine.follow_log(&container.id, since).await?);
        while let Some(chunk) = output.try_next().await? {
            let Some(line) = line(&chunk) else { continue };
            let time = line.time.timestamp_nanos_opt().unwrap_or_default();
            if time > after.load(Ordering::Relaxed) {
                after.store(time, Ordering::Relaxed);
                node.log.logs().append(&from, vec![line]);
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = copied {
        tracing::debug!(%error, container = container.name, "following a container's output ended");
    }
}

fn line(chunk: &LogOutput) -> Option<LogLine> {
    let stream = match chunk {
        LogOutput::StdErr { .. } => LogStream::Stderr,
        LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => LogStream::Stdout,
    };
    let text = String::from_utf8_lossy(chunk.as_ref());
    let (time, text) = text.split_once(' ').unwrap_or((&text, ""));
    let time = DateTime::parse_from_rfc3339(time.trim()).ok()?.with_timezone(&Utc);
    Some(LogLine { time, stream, text: text.trim_end().to_owned() })
}

/// Its output is that of the deployment which runs on it now.
async fn reference(node: &Node, container: &Container) -> LogRef {
    let Labels { place, set, .. } = &container.labels;
    let deployment = match node.log.fold(&place.key()).await {
        Ok(loaded) => loaded.state.runs_on(*set),
        Err(error) => {
            tracing::debug!(%error, container = container.name, "its output is kept as that of who made it");
            None
        }
    };
    LogRef {
        project: place.project.clone(),
        stage: place.stage.clone(),
        deployment: deployment.unwrap_or(*set),
        source: container.name.clone(),
    }
}

/// When the last line of a container that an earlier process copied was written, in nanoseconds.
async fn last_kept(node: &Node, from: &LogRef) -> i64 {
    let last = node.log.logs().last(from).await.unwrap_or_else(|error| {
        tracing::debug!(%error, container = from.source, "some of its output may be kept twice");
        None
    });
    last.and_then(|time| time.timestamp_nanos_opt()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_end_of_the_output_and_no_more() {
        let lines: String = (0..200).map(|n| format!("line {n}\n")).collect();
        let kept = bounded(&lines);
        assert_eq!((kept.len(), kept[49].as_str()), (50, "line 199"));
        let long = format!("{}\n", "ä".repeat(5000)).repeat(50);
        let kept = bounded(&long);
        assert!(kept.iter().all(|line| line.len() <= TAIL_LINE));
        assert!(kept.iter().map(String::len).sum::<usize>() <= TAIL_BYTES);
        assert_eq!(bounded("a\x1b[31mred\r\n"), ["a\u{fffd}[31mred"]);
        assert!(bounded("").is_empty());
    }

    #[test]
    fn a_line_has_the_engines_time() {
        let message = "2026-11-23T04:31:00.123456789Z hello world\n".into();
        let line = line(&LogOutput::StdErr { message }).expect("a line");
        assert_eq!((line.stream, line.text.as_str()), (LogStream::Stderr, "hello world"));
        assert_eq!(line.time.timestamp_subsec_nanos(), 123_456_789);
    }
}
