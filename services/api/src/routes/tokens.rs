//! API tokens: made, shown once, listed, revoked.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{
    Context, Grant, Key, Role, Slug, TokenId,
    token::{self, Command, Holder, Owner},
    user::{self, User},
};
use futures::{StreamExt, TryStreamExt, stream};
use readmodel::tokens::{self, Token};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    auth::{self, Principal, Proven},
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
    sealed,
};

/// How long a personal token is good where nothing is said.
const PERSONAL: TimeDelta = TimeDelta::days(90);
const LONGEST: TimeDelta = TimeDelta::days(366);
/// Tokens that are asked after at the same time.
const AT_ONCE: usize = 16;

/// Who is to hold a new token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenBody {
    /// The actor of everything that is done with it.
    #[schema(value_type = String, example = "ci")]
    name: Slug,
    role: Role,
    /// The projects that the role is good for; left out, it is good for the whole installation.
    #[schema(value_type = Option<Vec<String>>)]
    projects: Option<BTreeSet<Slug>>,
    /// One's own: it acts in one's own name, is never good for more than one is oneself, and ends with a new password.
    /// A machine's, which only administrators make, stands for itself.
    #[serde(default)]
    personal: bool,
    /// At most a year from now; left out, a personal token is good for 90 days and a machine's until it is revoked.
    expires_at: Option<DateTime<Utc>>,
}

/// A token, and when it was used.
#[derive(Serialize, ToSchema)]
#[schema(as = TokenView)]
pub(crate) struct View {
    #[serde(flatten)]
    token: Token,
    /// To the minute; none where it never was.
    last_used_at: Option<DateTime<Utc>>,
}

impl View {
    async fn of(api: &Api, token: Token) -> Result<Self, Error> {
        let last_used_at = api.auth.uses.last(TokenId(token.id)).await?;
        Ok(Self { token, last_used_at })
    }
}

/// A token was made.
#[derive(Serialize, ToSchema)]
pub(crate) struct Created {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    id: Uuid,
    /// Shown this once, and not to a repetition of the same request.
    token: Option<String>,
    expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TokenPath {
    /// Id of the token.
    #[param(value_type = uuid::Uuid)]
    id: TokenId,
}

/// The tokens that were not revoked: an administrator sees all of them, everybody else their own.
#[utoipa::path(
    get,
    path = "/tokens",
    tag = "tokens",
    operation_id = "list_tokens",
    params(AtLeast),
    responses((status = 200, body = [View]))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<AtLeast>,
) -> Result<Json<Vec<View>>, Error> {
    api.visible(query.at_least).await?;
    let owner = match caller.user() {
        _ if caller.grant.administers() => None,
        Some(user) => Some(user.0),
        None => return Ok(Json(vec![])),
    };
    let tokens = tokens::list(&api.pool, owner).await?;
    let views = stream::iter(tokens.into_iter().map(|token| View::of(&api, token))).buffered(AT_ONCE);
    Ok(Json(views.try_collect().await?))
}

/// Make a token for a program, or for a person at a command line.
#[utoipa::path(
    post,
    path = "/tokens",
    tag = "tokens",
    operation_id = "create_token",
    params(IdempotencyKey),
    request_body = TokenBody,
    responses((status = 202, body = Created))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<TokenBody>,
) -> Result<Taken<Created>, Error> {
    let TokenBody { name, role, projects, personal, expires_at } = asked.body;
    let grant = Grant { role, projects };
    let id = TokenId(idempotency::id(&asked.context, "token"));
    Ok(Taken(make(&api, &asked.caller, None, id, (name, grant, personal, expires_at), &asked.context).await?))
}

/// Makes what the caller asks for, as far as they may: a name, what it is good for, whether it is their own, and its end.
/// For who has `proven` who they are it is a sign-in.
pub(super) async fn make(
    api: &Api,
    caller: &Principal,
    proven: Option<Proven>,
    id: TokenId,
    (name, grant, personal, expires_at): (Slug, Grant, bool, Option<DateTime<Utc>>),
    context: &Context,
) -> Result<Created, Error> {
    if !grant.within(&caller.grant) || !(personal || caller.grant.administers()) {
        return Err(Error::AboveGrant(caller.grant.clone()));
    }
    let owner = match caller.user().filter(|_| personal) {
        None if personal => return Err(Error::NotSignedIn),
        None => None,
        Some(_) if let Some(Proven { user, epoch }) = proven => Some(Owner { user, epoch }),
        Some(user) => {
            let found = api.log.fold(&Key::<User>::user(user)).await?;
            Some(Owner { user, epoch: found.state.enabled().ok_or(user::Rejection::Disabled)?.epoch })
        }
    };
    let end = expires_at.or_else(|| owner.map(|_| context.time + PERSONAL));
    if expires_at.is_some_and(|end| end <= context.time || end > context.time + LONGEST) {
        return Err(Error::invalid("expires_at", "must lie ahead, within a year"));
    }
    // What a token makes does not outlive it.
    let end = match caller.who {
        auth::Who::Token { .. } => end.into_iter().chain(caller.until).min(),
        auth::Who::Session { .. } => end,
    };
    let token = auth::new_token(id);
    let secret = format!("token/{id}/{}", runtime::clock::new_id());
    let holder = |version| Holder { name, grant, owner, secret: secret.clone(), version, expires_at: end };
    let (create, digest) = (|version| Command::Create(holder(version)), auth::digest(&token));
    let committed = match proven {
        Some(proven) => api.auth.sign_in_by_token(proven, (id, &secret, create), digest, context).await?,
        None => sealed::keep(&api.log, &secret, digest, &Key::token(id), create, context).await?,
    };
    let token = (!committed.events.is_empty()).then_some(token);
    Ok(Created { sequence: committed.sequence, id: id.0, token, expires_at: end })
}

/// Make a token useless, from the next request on: one's own, or as an administrator any.
#[utoipa::path(
    delete,
    path = "/tokens/{id}",
    tag = "tokens",
    operation_id = "revoke_token",
    params(TokenPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn revoke(
    State(api): State<Api>,
    Path(path): Path<TokenPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let found = api.log.fold(&Key::<token::Token>::token(path.id)).await?;
    let owner = found.state.holder.as_ref().and_then(|holder| holder.owner).map(|owner| owner.user);
    if !asked.caller.grant.administers() && (owner.is_none() || owner != asked.caller.user()) {
        return Err(token::Rejection::Unknown.into());
    }
    Ok(Taken(Accepted { sequence: api.auth.revoke(path.id, &asked.context).await? }))
}
