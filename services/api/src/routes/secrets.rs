//! Secrets of a project: their values go to the vault and never come back out of the API.

use axum::extract::State;
use domain::{
    Aggregate, Key, Slug,
    project::{Command, Project},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
    sealed,
};

const LARGEST_VALUE: usize = 32 << 10;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct SecretPath {
    /// Slug of the project.
    #[param(value_type = String, example = "shop")]
    project: Slug,
    /// Name of the secret: 1 to 60 letters, digits, `_` and `-`.
    #[param(example = "db-password")]
    name: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretBody {
    /// Goes to the vault; never shown again.
    #[schema(write_only)]
    value: String,
}

/// Set a secret. What is deployed from now on runs with it; what runs already keeps the value that it started with.
#[utoipa::path(
    put,
    path = "/projects/{project}/secrets/{name}",
    tag = "secrets",
    operation_id = "set_secret",
    params(SecretPath, IdempotencyKey),
    request_body = SecretBody,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn set(
    State(api): State<Api>,
    Path(SecretPath { project, name }): Path<SecretPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<SecretBody>,
) -> Result<Taken<Accepted>, Error> {
    let SecretBody { value } = asked.body;
    if value.is_empty() || value.len() > LARGEST_VALUE || value.contains('\0') {
        return Err(Error::invalid("value", "must be 1 to 32768 bytes without a null byte"));
    }
    let key = Key::<Project>::project(&project);
    // Each value lies at a place of its own: releases that may be gone back to keep theirs.
    let vault = format!("secret/{project}/{name}/{}", runtime::clock::new_id());
    let command = Command::SetSecret { name, vault: vault.clone() };
    api.log.fold(&key).await?.state.decide(command.clone())?;
    let committed = sealed::keep(&api.log, &vault, value, &key, |_| command, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Forget a secret that nothing declared refers to. What runs keeps the value that it started with.
#[utoipa::path(
    delete,
    path = "/projects/{project}/secrets/{name}",
    tag = "secrets",
    operation_id = "remove_secret",
    params(SecretPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(SecretPath { project, name }): Path<SecretPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let key = Key::<Project>::project(&project);
    let committed = api.log.execute(&key, Command::RemoveSecret { name }, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}
