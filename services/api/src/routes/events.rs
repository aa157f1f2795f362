//! Events: searched in the index, followed live.

use std::{convert::Infallible, str::FromStr, time::Duration};

use axum::{
    Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use http::HeaderMap;
use readmodel::events::{self, Filter, Page};
use serde::Deserialize;
use utoipa::IntoParams;

use super::page_size;
use crate::{
    Api,
    auth::{Principal, watched},
    extract::Query,
    live::Frame,
    pattern::Pattern,
    problem::Error,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// A NATS pattern: `*` stands for one token, a last `>` for one or more.
    #[param(example = "sluice.events.stage.shop.*.deployment.>")]
    subject: Option<String>,
    project: Option<String>,
    stage: Option<String>,
    /// A whole CloudEvents type.
    #[param(example = "dev.sluice.stage.deployment.succeeded.v1")]
    r#type: Option<String>,
    /// Text that occurs anywhere in the event.
    q: Option<String>,
    /// Only those behind this position; the oldest then come first.
    after: Option<u64>,
    /// Only those before this position.
    before: Option<u64>,
    /// 1 to 500; 50 where it is left out.
    limit: Option<u16>,
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StreamQuery {
    /// A NATS pattern: `*` stands for one token, a last `>` for one or more. All events without it.
    #[param(example = "sluice.events.stage.shop.*.deployment.>")]
    subject: Option<String>,
    /// Begin behind this position; with what comes next where it is left out. A `Last-Event-ID`
    /// header counts for more.
    after: Option<u64>,
}

/// Events, the newest first.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    operation_id = "list_events",
    params(ListQuery),
    responses((status = 200, body = Page))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, Error> {
    if let Some(subject) = &query.subject {
        pattern(subject)?;
    }
    api.visible(query.at_least).await?;
    let filter = Filter {
        within: caller.within(),
        subject: query.subject,
        project: query.project,
        stage: query.stage,
        kind: query.r#type,
        text: query.q,
        after: query.after,
        before: query.before,
    };
    Ok(Json(events::find(&api.pool, &filter, page_size(query.limit)?).await?))
}

/// Events as they happen, as server-sent events: the id is the sequence, the event is the type, the
/// data is the CloudEvent. Reconnecting with `Last-Event-ID` misses nothing and repeats nothing.
#[utoipa::path(
    get,
    path = "/events/stream",
    tag = "events",
    operation_id = "stream_events",
    params(
        StreamQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "Sequence of the last event that was seen"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
    )
)]
pub(crate) async fn stream(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let pattern = pattern(query.subject.as_deref().unwrap_or(">"))?;
    let after = last_event_id(&headers)?.or(query.after);
    let frames = api.live.listen(&api.log, pattern, after).await?;
    let listener = caller.clone();
    let frames = frames.try_filter(move |frame| future::ready(listener.sees(frame.project.as_deref())));
    sse(&api, caller, frames.map(|frame| frame.map(|frame| event(&frame)))).await
}

fn event(frame: &Frame) -> Event {
    Event::default().id(frame.sequence.to_string()).event(&frame.kind).data(&frame.body)
}

fn pattern(text: &str) -> Result<Pattern, Error> {
    text.parse().map_err(|problem: &str| Error::invalid("subject", problem))
}

/// Where a stream is to be resumed.
pub(super) fn last_event_id<Id: FromStr>(headers: &HeaderMap) -> Result<Option<Id>, Error> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let sequence = value.to_str().ok().and_then(|text| text.parse().ok());
    sequence.map(Some).ok_or_else(|| Error::invalid("Last-Event-ID", "must be the id of an event of this stream"))
}

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(1);

/// A stream that ends with the API, and with what the listener was let in by; whoever listened connects again.
pub(super) async fn sse<S>(api: &Api, caller: Principal, events: S) -> Result<Response, Error>
where
    S: Stream<Item = Result<Event, Error>> + Send + 'static,
{
    let events = watched(&api.auth, &api.live, caller, events).await?;
    // Something to read at once tells the client that it is connected.
    let opening = stream::once(future::ready(Event::default().retry(RETRY).comment("sluice")));
    let events = opening
        .chain(events.take_while(|event| future::ready(proceed(event))).filter_map(|event| future::ready(event.ok())))
        .take_until(api.shutdown.clone().cancelled_owned())
        .map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// The answer has begun, so all that can be said of an error is that the stream ends.
fn proceed(event: &Result<Event, Error>) -> bool {
    if let Err(error) = event {
        tracing::error!(error = error as &dyn std::error::Error, "a stream has ended early");
    }
    event.is_ok()
}
