//! Who is signed in.

use axum::{Json, extract::State};
use domain::{
    Key, SessionId,
    session::{Command, Reason, Rejection, Session},
};
use readmodel::sessions::{self, Session as Row};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    auth::Principal,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct SessionPath {
    /// Id of the session.
    #[param(value_type = uuid::Uuid)]
    id: SessionId,
}

/// Open sessions, the newest first: an administrator sees all of them, everybody else their own.
#[utoipa::path(
    get,
    path = "/sessions",
    tag = "sessions",
    operation_id = "list_sessions",
    params(AtLeast),
    responses((status = 200, body = [Row]))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<AtLeast>,
) -> Result<Json<Vec<Row>>, Error> {
    api.visible(query.at_least).await?;
    let now = runtime::clock::now();
    let user = match caller.user() {
        _ if caller.grant.administers() => None,
        Some(user) => Some(user.0),
        None => return Ok(Json(vec![])),
    };
    Ok(Json(sessions::open(&api.pool, now, user).await?))
}

/// End a session, from the next request on: one's own, or as an administrator any.
#[utoipa::path(
    delete,
    path = "/sessions/{id}",
    tag = "sessions",
    operation_id = "end_session",
    params(SessionPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn end(
    State(api): State<Api>,
    Path(path): Path<SessionPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let key = Key::<Session>::session(path.id);
    let session = api.log.fold(&key).await?;
    let holder = session.state.opening.as_ref().map(|opening| opening.user);
    if !asked.caller.grant.administers() && (holder.is_none() || holder != asked.caller.user()) {
        return Err(Rejection::Unknown.into());
    }
    let committed = api.log.execute(&key, Command::End { reason: Reason::Ended }, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}
