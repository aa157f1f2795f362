//! Output of a stage's containers and deployment steps.

use std::{
    fmt::{self, Display},
    num::ParseIntError,
    str::FromStr,
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response, sse::Event},
};
use chrono::{DateTime, Utc};
use domain::{DeploymentId, Key, project::Project};
use eventlog::{LogEntry, LogFilter, LogStream};
use futures::{StreamExt, TryStreamExt, future};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    StagePath,
    events::{last_event_id, sse},
};
use crate::{
    Api,
    auth::Principal,
    extract::{Path, Query},
    problem::Error,
};

const DEFAULT_TAIL: usize = 100;
const LONGEST_TAIL: usize = 10_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// Last lines to begin with, up to 10000; 100 where it is left out.
    tail: Option<usize>,
    /// Only of this deployment.
    #[param(value_type = Option<uuid::Uuid>)]
    deployment: Option<DeploymentId>,
    /// Go on with every line as it comes, as server-sent events.
    #[serde(default)]
    follow: bool,
}

/// A line of output.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Line {
    /// Position in the log of output; lines that came together share it.
    sequence: u64,
    time: DateTime<Utc>,
    #[schema(value_type = uuid::Uuid)]
    deployment: DeploymentId,
    /// `step`, or the container's name.
    source: String,
    stream: Output,
    text: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Output {
    Stdout,
    Stderr,
    /// What the deployer itself says about a step.
    Step,
}

impl From<LogEntry> for Line {
    fn from(LogEntry { sequence, index: _, source, deployment, line }: LogEntry) -> Self {
        let stream = match line.stream {
            LogStream::Stdout => Output::Stdout,
            LogStream::Stderr => Output::Stderr,
            LogStream::Step => Output::Step,
        };
        Self { sequence, time: line.time, deployment, source, stream, text: line.text }
    }
}

/// The last lines of a stage's output; with `follow`, a stream of server-sent events.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}/logs",
    tag = "stages",
    operation_id = "read_logs",
    params(StagePath, LogQuery),
    responses(
        (status = 200, content(([Line] = "application/json"), (Line = "text/event-stream"))),
    )
)]
pub(crate) async fn read(
    State(api): State<Api>,
    caller: Principal,
    Path(path): Path<StagePath>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let tail = query.tail.unwrap_or(DEFAULT_TAIL);
    if tail > LONGEST_TAIL {
        return Err(Error::invalid("tail", format!("must be at most {LONGEST_TAIL}")));
    }
    // An archived stage's output can still be read, so only the project must be known.
    let project = api.log.load(&Key::<Project>::project(&path.project)).await?;
    project.state.name.ok_or(domain::project::Rejection::Unknown)?;
    let seen = last_event_id(&headers)?.filter(|_| query.follow);
    // Whoever comes back wants everything since, not the tail again.
    let tail = seen.map_or(tail, |_| LONGEST_TAIL);
    let filter = LogFilter { project: path.project, stage: path.stage, deployment: query.deployment };
    let entries = api.log.logs().read(filter, tail, query.follow).map_err(Error::from);
    if !query.follow {
        return Ok(Json(entries.map_ok(Line::from).try_collect::<Vec<_>>().await?).into_response());
    }
    let unseen = entries.try_filter(move |entry| future::ready(seen.is_none_or(|seen| Place::of(entry) > seen)));
    Box::pin(sse(&api, caller, unseen.map(|entry| event(entry?)))).await
}

/// Where a line stands: the position of the message it came in, and its place in that. Both are in its
/// id, so that whoever was cut off in the middle of a message misses nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64, usize);

impl Place {
    fn of(entry: &LogEntry) -> Self {
        Self(entry.sequence, entry.index)
    }
}

impl FromStr for Place {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (message, line) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self(message.parse()?, line.parse()?))
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

fn event(entry: LogEntry) -> Result<Event, Error> {
    let event = Event::default().id(Place::of(&entry).to_string()).event("line");
    Ok(event.data(serde_json::to_string(&Line::from(entry)).map_err(Error::Encode)?))
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_place_reads_back_and_sorts_by_message_then_line() {
        let places = [Place(7, 0), Place(7, 2), Place(7, 10), Place(9, 0)];
        assert!(places.is_sorted());
        assert!(places.iter().all(|place| place.to_string().parse() == Ok(*place)));
        assert!("7.x".parse::<Place>().is_err());
    }
}
