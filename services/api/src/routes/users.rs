//! People: let in, given a role, locked out, erased.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use domain::{
    Grant, UserId,
    user::{Command, Rejection, Source},
};
use futures::{StreamExt, TryStreamExt, stream};
use readmodel::users::{self, User as Row};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    auth::{Profile, Setup},
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
};

/// Profiles that are unsealed at the same time.
const AT_ONCE: usize = 16;

/// Who is to be let in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserBody {
    /// To sign in with: 1 to 64 of a-z, 0-9 and `. _ @ + -`. Case does not count.
    #[schema(example = "ann")]
    name: String,
    /// What others see.
    display_name: Option<String>,
    email: Option<String>,
    grant: Grant,
}

/// A user was made.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserCreated {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    id: Uuid,
    setup: Option<Link>,
}

/// A link by which a user chooses a password: good for an hour, and once.
#[derive(Serialize, ToSchema)]
pub(crate) struct Link {
    /// Shown this once, and not to a repetition of the same request.
    token: String,
    /// The page to open, where it is known where browsers reach Sluice.
    url: Option<String>,
    expires_at: DateTime<Utc>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct SetupIssued {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    setup: Option<Link>,
}

/// A person.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserView {
    id: Uuid,
    /// None of whom was erased.
    name: Option<String>,
    display_name: Option<String>,
    email: Option<String>,
    source: Source,
    grant: Grant,
    standing: StandingView,
    has_password: bool,
    /// Until when a setup link is open.
    setup_expires_at: Option<DateTime<Utc>>,
    signed_in_at: Option<DateTime<Utc>>,
    created_by: String,
    created_at: DateTime<Utc>,
    /// Of the last event that changed it.
    sequence: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = UserStanding)]
enum StandingView {
    Enabled,
    Disabled,
    Erased,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct UserPath {
    /// Id of the user.
    #[param(value_type = uuid::Uuid)]
    id: UserId,
}

impl UserView {
    async fn of(api: &Api, row: Row) -> Result<Self, Error> {
        let profile =
            if row.erased { None } else { api.auth.people.open_profile(UserId(row.id), &row.profile).await? };
        let (name, display_name, email) =
            profile.map_or((None, None, None), |profile| (Some(profile.name), profile.display_name, profile.email));
        let standing = match (row.erased, row.disabled) {
            (true, _) => StandingView::Erased,
            (false, true) => StandingView::Disabled,
            (false, false) => StandingView::Enabled,
        };
        Ok(Self {
            id: row.id,
            name,
            display_name,
            email,
            source: row.source,
            grant: Grant { role: row.role, projects: row.projects },
            standing,
            has_password: row.has_password,
            setup_expires_at: row.setup_expires_at.filter(|end| runtime::clock::now() < *end),
            signed_in_at: row.signed_in_at,
            created_by: row.created_by,
            created_at: row.created_at,
            sequence: row.sequence,
        })
    }
}

impl Link {
    fn of(api: &Api, Setup { token, expires_at }: Setup) -> Self {
        // Behind a `#`: what stands there no server gets to see, nor its log.
        let url = api.auth.public_url().map(|url| format!("{}/setup#token={token}", url.trim_end_matches('/')));
        Self { token, url, expires_at }
    }
}

/// Everybody, in the order in which they came.
#[utoipa::path(
    get,
    path = "/users",
    tag = "users",
    operation_id = "list_users",
    params(AtLeast),
    responses((status = 200, body = [UserView]))
)]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Vec<UserView>>, Error> {
    api.visible(query.at_least).await?;
    let rows = users::list(&api.pool).await?;
    let views = stream::iter(rows.into_iter().map(|row| UserView::of(&api, row))).buffered(AT_ONCE);
    Ok(Json(views.try_collect().await?))
}

/// What people are called who stand in events and lists as `user:<id>`, by their id. Those who were erased have no name.
#[utoipa::path(
    get,
    path = "/people",
    tag = "users",
    operation_id = "people",
    params(AtLeast),
    responses((status = 200, body = BTreeMap<Uuid, String>))
)]
pub(crate) async fn people(
    State(api): State<Api>,
    Query(query): Query<AtLeast>,
) -> Result<Json<BTreeMap<Uuid, String>>, Error> {
    api.visible(query.at_least).await?;
    let rows = users::list(&api.pool).await?.into_iter().filter(|row| !row.erased);
    let names = rows.map(async |row| {
        let profile = api.auth.people.open_profile(UserId(row.id), &row.profile).await?;
        Ok::<_, Error>(profile.map(|profile| (row.id, profile.shown().to_owned())))
    });
    let names: Vec<_> = stream::iter(names).buffered(AT_ONCE).try_collect().await?;
    Ok(Json(names.into_iter().flatten().collect()))
}

/// A person.
#[utoipa::path(
    get,
    path = "/users/{id}",
    tag = "users",
    operation_id = "get_user",
    params(UserPath, AtLeast),
    responses((status = 200, body = UserView))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<UserView>, Error> {
    api.visible(query.at_least).await?;
    let row = users::get(&api.pool, path.id.0).await?.ok_or(Rejection::Unknown)?;
    Ok(Json(UserView::of(&api, row).await?))
}

/// Let somebody in: the answer holds the link by which they choose a password.
#[utoipa::path(
    post,
    path = "/users",
    tag = "users",
    operation_id = "create_user",
    params(IdempotencyKey),
    request_body = UserBody,
    responses((status = 202, body = UserCreated))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<UserBody>,
) -> Result<Taken<UserCreated>, Error> {
    let UserBody { name, display_name, email, grant } = asked.body;
    let profile = Profile::checked(&name, display_name.as_deref(), email.as_deref())?;
    let id = UserId(idempotency::id(&asked.context, "user"));
    let made = api.auth.create(id, &profile, grant, false, &asked.context).await?;
    if made.events.is_empty() {
        return Ok(Taken(UserCreated { sequence: made.sequence, id: id.0, setup: None }));
    }
    let context = following(&asked.context);
    let (sequence, setup) = api.auth.issue_setup(id, &context).await?;
    Ok(Taken(UserCreated { sequence, id: id.0, setup: setup.map(|setup| Link::of(&api, setup)) }))
}

/// Change what somebody may do, from the next request on.
#[utoipa::path(
    put,
    path = "/users/{id}/grant",
    tag = "users",
    operation_id = "grant_user",
    params(UserPath, IdempotencyKey),
    request_body = Grant,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn grant(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Grant>,
) -> Result<Taken<Accepted>, Error> {
    let committed = api.auth.change(path.id, Command::Grant { grant: asked.body }, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Lock somebody out, from the next request on. Their sessions and personal tokens are over for good.
#[utoipa::path(
    post,
    path = "/users/{id}/disable",
    tag = "users",
    operation_id = "disable_user",
    params(UserPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn disable(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let committed = api.auth.change(path.id, Command::Disable, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Let somebody in again.
#[utoipa::path(
    post,
    path = "/users/{id}/enable",
    tag = "users",
    operation_id = "enable_user",
    params(UserPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn enable(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let committed = api.auth.change(path.id, Command::Enable, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Make it impossible, for good, to learn who somebody was. What they did stays, under their id.
#[utoipa::path(
    post,
    path = "/users/{id}/erase",
    tag = "users",
    operation_id = "erase_user",
    params(UserPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn erase(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let committed = api.auth.erase(path.id, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Make a new setup link; the one before is good for nothing.
#[utoipa::path(
    post,
    path = "/users/{id}/setup",
    tag = "users",
    operation_id = "issue_setup",
    params(UserPath, IdempotencyKey),
    responses((status = 202, body = SetupIssued))
)]
pub(crate) async fn set_up(
    State(api): State<Api>,
    Path(path): Path<UserPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<SetupIssued>, Error> {
    let (sequence, setup) = api.auth.issue_setup(path.id, &asked.context).await?;
    Ok(Taken(SetupIssued { sequence, setup: setup.map(|setup| Link::of(&api, setup)) }))
}

/// A further command of the same request.
fn following(context: &domain::Context) -> domain::Context {
    let command_id = idempotency::id(context, "setup");
    domain::Context { command_id, ..context.clone() }
}
