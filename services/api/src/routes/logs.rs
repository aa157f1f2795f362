//! Output of a stage's containers and deployment steps.

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
    extract::{Path, Query},
    problem::{Error, Problem},
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
    fn from(LogEntry { sequence, source, deployment, line }: LogEntry) -> Self {
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
        (status = "default", body = Problem),
    )
)]
pub(crate) async fn read(
    State(api): State<Api>,
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
    let lines = api.log.logs().read(filter, tail, query.follow).map_ok(Line::from).map_err(Error::from);
    let lines = lines.try_filter(move |line| future::ready(seen.is_none_or(|seen| line.sequence > seen)));
    if !query.follow {
        return Ok(Json(lines.try_collect::<Vec<_>>().await?).into_response());
    }
    Ok(sse(&api, lines.map(|line| event(&line?))))
}

fn event(line: &Line) -> Result<Event, Error> {
    let event = Event::default().id(line.sequence.to_string()).event("line");
    Ok(event.data(serde_json::to_string(line).map_err(Error::Encode)?))
}
