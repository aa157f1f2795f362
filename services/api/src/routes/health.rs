//! Whether everything works.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use domain::{
    node::{NodeHealth, health_subject},
    push::WATCHERS,
};
use http::StatusCode;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::Api;

const LIMIT: Duration = Duration::from_secs(2);
/// How long the projector may take to catch up with the log before it counts as behind.
const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    status: Status,
    /// Of Sluice.
    version: &'static str,
    postgres: Part,
    nats: Part,
    docker: Docker,
    projector: Projector,
    watcher: Watcher,
}

#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HealthStatus)]
enum Status {
    Ok,
    Degraded,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PartHealth)]
struct Part {
    ok: bool,
    error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DockerHealth)]
struct Docker {
    ok: bool,
    /// Of the engine.
    version: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProjectorHealth)]
struct Projector {
    ok: bool,
    /// Events that the read models have not seen; none where it cannot be told.
    lag: Option<u64>,
    error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WatcherHealth)]
struct Watcher {
    ok: bool,
    /// Watchers that live and share the work; none where it cannot be told.
    watchers: Option<usize>,
    error: Option<String>,
}

/// Whether every part answers: 200 if so, else 503 with the same body.
#[utoipa::path(
    get,
    path = "/health",
    tag = "meta",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(crate) async fn health(State(api): State<Api>) -> Response {
    let (postgres, nats, docker, projector, watcher) =
        tokio::join!(postgres(&api), nats(&api), docker(&api), projector(&api), watcher(&api));
    let ok = postgres.ok && nats.ok && docker.ok && projector.ok && watcher.ok;
    let (code, status) =
        if ok { (StatusCode::OK, Status::Ok) } else { (StatusCode::SERVICE_UNAVAILABLE, Status::Degraded) };
    let health = Health { status, version: env!("CARGO_PKG_VERSION"), postgres, nats, docker, projector, watcher };
    (code, Json(health)).into_response()
}

// Anyone may ask, so causes, which may hold addresses and names, stay in the log.

async fn postgres(api: &Api) -> Part {
    match timeout(LIMIT, readmodel::healthy(&api.pool)).await {
        Ok(Ok(())) => Part { ok: true, error: None },
        Ok(Err(_)) | Err(_) => Part { ok: false, error: Some("PostgreSQL does not answer".into()) },
    }
}

async fn nats(api: &Api) -> Part {
    match timeout(LIMIT, api.log.healthy()).await {
        Ok(Ok(())) => Part { ok: true, error: None },
        Ok(Err(_)) | Err(_) => Part { ok: false, error: Some("NATS does not answer".into()) },
    }
}

async fn docker(api: &Api) -> Docker {
    let down = |error: &str| Docker { ok: false, version: None, error: Some(error.to_owned()) };
    match api.log.request(&health_subject(&api.node), vec![], LIMIT).await.map(|reply| serde_json::from_slice(&reply)) {
        Ok(Ok(NodeHealth { docker: Some(version), .. })) => Docker { ok: true, version: Some(version), error: None },
        Ok(Ok(NodeHealth { docker: None, error })) => down(error.as_deref().unwrap_or("Docker does not answer")),
        Ok(Err(_)) => down("the deployer's answer cannot be read"),
        Err(_) => down("the deployer does not answer"),
    }
}

async fn projector(api: &Api) -> Projector {
    let unknown = || Projector { ok: false, lag: None, error: Some("cannot be told".into()) };
    let asked = async { (api.log.last_sequence().await, readmodel::state(&api.pool).await) };
    let Ok((Ok(last), Ok(before))) = timeout(LIMIT, asked).await else { return unknown() };
    if before.error.is_some() {
        let lag = Some(last.saturating_sub(before.sequence));
        return Projector {
            ok: false,
            lag,
            error: Some("stopped by an event that it cannot read; see its log".into()),
        };
    }
    match api.progress.reached(last, CATCH_UP).await {
        Ok(()) => Projector { ok: true, lag: Some(0), error: None },
        Err(behind) => {
            let position = behind.position.unwrap_or(before.sequence);
            // In the middle of a replay it is behind, but on its way.
            let moves = position > before.sequence;
            let error = (!moves).then(|| "does not move: is it running?".to_owned());
            Projector { ok: moves, lag: Some(last.saturating_sub(position)), error }
        }
    }
}

/// By the entries that watchers renew, and that end ten seconds after the last renewal.
async fn watcher(api: &Api) -> Watcher {
    match timeout(LIMIT, api.log.bucket(WATCHERS).keys()).await {
        Ok(Ok(present)) if present.is_empty() => Watcher {
            ok: false,
            watchers: Some(0),
            error: Some("no watcher lives: nothing is taken by policies, promoted, or heard by webhooks".into()),
        },
        Ok(Ok(present)) => Watcher { ok: true, watchers: Some(present.len()), error: None },
        Ok(Err(_)) | Err(_) => Watcher { ok: false, watchers: None, error: Some("cannot be told".into()) },
    }
}
