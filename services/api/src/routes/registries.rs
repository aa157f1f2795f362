//! Registries, and the credentials for them. Passwords go to the vault and never come back out of the API.

use axum::{Json, extract::State};
use domain::{
    Aggregate, Context, Key,
    push::{LOOKS, Poll, registry_key},
    registry::{Command, Registry as Aggregated, RegistrySettings},
};
use eventlog::Committed;
use readmodel::registries::{self, Registry};
use serde::{Deserialize, Serialize};
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

/// A registry as it is declared, and how asking it went.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Known {
    #[serde(flatten)]
    registry: Registry,
    /// None where it was not asked yet: stages with a policy make that happen.
    last_poll: Option<Poll>,
}

/// The registries that something is declared for.
#[utoipa::path(
    get,
    path = "/registries",
    tag = "registries",
    operation_id = "list_registries",
    params(AtLeast),
    responses((status = 200, body = [Known]))
)]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Vec<Known>>, Error> {
    api.visible(query.at_least).await?;
    let looks = api.log.bucket(LOOKS);
    let mut known = vec![];
    for registry in registries::list(&api.pool).await? {
        let last = looks.get(&registry_key(&Key::registry(&registry.host)?)).await?;
        let last_poll = last.and_then(|last| serde_json::from_slice(&last.value).ok());
        known.push(Known { registry, last_poll });
    }
    Ok(Json(known))
}

/// Declare a registry, or change it to what is declared. Another URL or user name ends the password that is kept.
#[utoipa::path(
    put,
    path = "/registries/{host}",
    tag = "registries",
    operation_id = "apply_registry",
    params(RegistryPath, IdempotencyKey),
    request_body = RegistrySettings,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn configure(
    State(api): State<Api>,
    Path(path): Path<RegistryPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<RegistrySettings>,
) -> Result<Taken<Accepted>, Error> {
    let command = Command::Configure { host: path.host.to_ascii_lowercase(), settings: asked.body };
    Ok(Taken(Accepted { sequence: carry_out(&api, command, &asked.context).await?.sequence }))
}

/// Forget everything that is declared for a registry.
#[utoipa::path(
    delete,
    path = "/registries/{host}",
    tag = "registries",
    operation_id = "remove_registry",
    params(RegistryPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(path): Path<RegistryPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let command = Command::Remove { host: path.host.to_ascii_lowercase() };
    Ok(Taken(Accepted { sequence: carry_out(&api, command, &asked.context).await?.sequence }))
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
pub(crate) async fn set_credentials(
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
pub(crate) async fn remove_credentials(
    State(api): State<Api>,
    Path(path): Path<RegistryPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    let command = Command::RemoveCredentials { host: path.host.to_ascii_lowercase() };
    Ok(Taken(Accepted { sequence: carry_out(&api, command, &asked.context).await?.sequence }))
}

/// Carries `command` out. A password that it ends goes.
pub(super) async fn carry_out(api: &Api, command: Command, context: &Context) -> Result<Committed, Error> {
    let place = |registry: Aggregated| Some(registry.credentials?.secret);
    sealed::end(&api.log, &Key::registry(command.host())?, command, context, place).await
}
