//! Webhooks as they are declared. What is sent to them is taken in `crate::hooks`.

use axum::{Json, extract::State};
use domain::{
    Context, Key, Slug,
    hook::{Command, Hook as Aggregate, HookSettings, Rejection},
};
use eventlog::Committed;
use readmodel::hooks::{self, Hook};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api, auth,
    extract::{Asked, Nothing, Path, Query},
    problem::Error,
    sealed,
};

const SHORTEST_SECRET: usize = 16;
const LONGEST_SECRET: usize = 1024;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct HookPath {
    /// Name of the hook: part of the address that is sent to.
    #[param(value_type = String, example = "images")]
    name: Slug,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookSecretBody {
    /// 16 to 1024 bytes; made here where it is left out. Goes to the vault.
    #[serde(default)]
    #[schema(write_only)]
    secret: Option<String>,
}

/// A hook has a new secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct HookSecret {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    /// Shown this once where it was made here, and not to a repetition of the same request.
    secret: Option<String>,
}

/// The webhooks.
#[utoipa::path(
    get,
    path = "/hooks",
    tag = "hooks",
    operation_id = "list_hooks",
    params(AtLeast),
    responses((status = 200, body = [Hook]))
)]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<AtLeast>) -> Result<Json<Vec<Hook>>, Error> {
    api.visible(query.at_least).await?;
    Ok(Json(hooks::list(&api.pool).await?))
}

/// Create a webhook, or change it to what is declared. It takes messages once it has a secret.
#[utoipa::path(
    put,
    path = "/hooks/{name}",
    tag = "hooks",
    operation_id = "apply_hook",
    params(HookPath, IdempotencyKey),
    request_body = HookSettings,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn apply(
    State(api): State<Api>,
    Path(HookPath { name }): Path<HookPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<HookSettings>,
) -> Result<Taken<Accepted>, Error> {
    let command = Command::Configure { settings: asked.body };
    Ok(Taken(Accepted { sequence: carry_out(&api, &name, command, &asked.context).await?.sequence }))
}

/// Give a webhook a secret, in place of the earlier one.
#[utoipa::path(
    put,
    path = "/hooks/{name}/secret",
    tag = "hooks",
    operation_id = "set_hook_secret",
    params(HookPath, IdempotencyKey),
    request_body = Option<HookSecretBody>,
    responses((status = 202, body = HookSecret))
)]
pub(crate) async fn set_secret(
    State(api): State<Api>,
    Path(HookPath { name }): Path<HookPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<HookSecretBody>,
) -> Result<Taken<HookSecret>, Error> {
    let given = asked.body.secret;
    if given.as_ref().is_some_and(|given| !(SHORTEST_SECRET..=LONGEST_SECRET).contains(&given.len())) {
        return Err(Error::invalid("secret", format!("must be {SHORTEST_SECRET} to {LONGEST_SECRET} bytes")));
    }
    let key = Key::<Aggregate>::hook(&name);
    let before = api.log.load(&key).await?.state;
    before.settings.ok_or(Rejection::Unknown)?;
    let made = given.is_none().then(auth::random_secret);
    let secret = given.or_else(|| made.clone()).unwrap_or_default();
    let place = format!("hook/{name}/{}", runtime::clock::new_id());
    let command = |version| Command::SetSecret { secret: place.clone(), version };
    let committed = sealed::keep(&api.log, &place, secret, &key, command, &asked.context).await?;
    let written = !committed.events.is_empty();
    if let Some(replaced) = before.secret.filter(|_| written) {
        api.log.vault().delete(&replaced.secret).await?;
    }
    Ok(Taken(HookSecret { sequence: committed.sequence, secret: made.filter(|_| written) }))
}

/// Remove a webhook.
#[utoipa::path(
    delete,
    path = "/hooks/{name}",
    tag = "hooks",
    operation_id = "remove_hook",
    params(HookPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(HookPath { name }): Path<HookPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    Ok(Taken(Accepted { sequence: carry_out(&api, &name, Command::Remove, &asked.context).await?.sequence }))
}

/// Carries `command` out on a hook. A secret that it ends goes.
pub(super) async fn carry_out(api: &Api, name: &Slug, command: Command, context: &Context) -> Result<Committed, Error> {
    let place = |hook: Aggregate| Some(hook.secret?.secret);
    sealed::end(&api.log, &Key::hook(name), command, context, place).await
}
