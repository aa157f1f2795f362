//! Credentials for registries. Passwords go to the vault and never come back out of the API.

use axum::{Json, extract::State};
use domain::{Aggregate, Context, Key, registry::Command};
use eventlog::Committed;
use readmodel::registries::{self, Registry};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
    sealed,
};

const LONGEST_PASSWORD: usize = 64 << 10;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct RegistryPath {
    /// `host[:port]` of the registry.
    #[param(example = "127.0.0.1:5000")]
    host: String,
}

/// How to sign in to a registry.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CredentialsBody {
    username: String,
    /// Goes to the vault; never shown again.
    #[schema(write_only)]
    password: String,
}

/// The registries that credentials are kept for.
#[utoipa::path(
    get,
    path = "/registries",
    tag = "registries",
    operation_id = "list_registries",
    params(AtLeast),
    responses((status = 200, body = [Registry]))
)]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Vec<Registry>>, Error> {
    api.visible(query.at_least).await?;
    Ok(Json(registries::list(&api.pool).await?))
}

/// Keep credentials for a registry, in place of earlier ones.
#[utoipa::path(
    put,
    path = "/registries/{host}/credentials",
    tag = "registries",
    operation_id = "set_credentials",
    params(RegistryPath, IdempotencyKey),
    request_body = CredentialsBody,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn set(
    State(api): State<Api>,
    Path(path): Path<RegistryPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<CredentialsBody>,
) -> Result<Taken<Accepted>, Error> {
    let CredentialsBody { username, password } = asked.body;
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        return Err(Error::invalid("password", "must be 1 to 65536 bytes"));
    }
    let key = Key::registry(&path.host)?;
    let before = api.log.load(&key).await?.state;
    // A name of its own: what the current credentials point to must not change for a command that
    // is refused, nor be mixed with another that comes at the same time.
    let secret = format!("{}/{}", key.secret(), runtime::clock::new_id());
    let host = path.host.to_ascii_lowercase();
    let set = |version| {
        let (host, username, secret) = (host.clone(), username.clone(), secret.clone());
        Command::SetCredentials { host, username, secret, version }
    };
    before.decide(set(0))?;
    let committed = sealed::keep(&api.log, &secret, password, &key, set, &asked.context).await?;
    if let Some(replaced) = before.credentials.filter(|_| !committed.events.is_empty()) {
        api.log.vault().delete(&replaced.secret).await?;
    }
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Forget the credentials for a registry.
#[utoipa::path(
    delete,
    path = "/registries/{host}/credentials",
    tag = "registries",
    operation_id = "remove_credentials",
    params(RegistryPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(path): Path<RegistryPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    Ok(Taken(Accepted { sequence: forget(&api, &path.host, &asked.context).await?.sequence }))
}

/// Takes away what is kept for `host`, the password first of all in the log.
pub(super) async fn forget(api: &Api, host: &str, context: &Context) -> Result<Committed, Error> {
    let key = Key::registry(host)?;
    let before = api.log.load(&key).await?.state;
    let command = Command::RemoveCredentials { host: host.to_ascii_lowercase() };
    let committed = api.log.execute(&key, command, context).await?;
    if let Some(removed) = before.credentials {
        api.log.vault().delete(&removed.secret).await?;
    }
    Ok(committed)
}
