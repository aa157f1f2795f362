//! API tokens: made, shown once, listed, revoked.

use axum::{Json, extract::State};
use domain::{
    Grant, Key, Role, Slug, TokenId,
    token::{Command, Holder},
};
use readmodel::tokens::{self, Token};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api, auth,
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
    sealed,
};

/// Who is to hold a new token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenBody {
    /// The actor of everything that is done with it.
    #[schema(value_type = String, example = "ci")]
    name: Slug,
    role: Role,
}

/// A token was made.
#[derive(Serialize, ToSchema)]
pub(crate) struct Created {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    id: Uuid,
    /// Shown this once, and not to a repetition of the same request.
    token: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TokenPath {
    /// Id of the token.
    #[param(value_type = uuid::Uuid)]
    id: TokenId,
}

/// The tokens that are good for something.
#[utoipa::path(
    get,
    path = "/tokens",
    tag = "tokens",
    operation_id = "list_tokens",
    params(AtLeast),
    responses((status = 200, body = [Token]))
)]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Vec<Token>>, Error> {
    api.visible(query.at_least).await?;
    Ok(Json(tokens::list(&api.pool, None).await?))
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
    let TokenBody { name, role } = asked.body;
    let id = TokenId(idempotency::id(&asked.context, "token"));
    let token = auth::new_token(id);
    let secret = format!("token/{id}/{}", runtime::clock::new_id());
    let grant = Grant::everywhere(role);
    let holder = |version| Holder { name, grant, owner: None, secret: secret.clone(), version, expires_at: None };
    let command = |version| Command::Create(holder(version));
    let (key, digest) = (Key::token(id), auth::digest(&token));
    let committed = sealed::keep(&api.log, &secret, digest, &key, command, &asked.context).await?;
    let token = (!committed.events.is_empty()).then_some(token);
    Ok(Taken(Created { sequence: committed.sequence, id: id.0, token }))
}

/// Make a token useless, from the next request on.
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
    let key = Key::token(path.id);
    let committed = api.log.execute(&key, Command::Revoke, &asked.context).await?;
    if let Some(holder) = api.log.load(&key).await?.state.holder {
        api.log.vault().delete(&holder.secret).await?;
    }
    Ok(Taken(Accepted { sequence: committed.sequence }))
}
