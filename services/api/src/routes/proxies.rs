//! Reverse proxies of the user's own. Passwords for admin APIs go to the vault and never come back out of the API.

use std::time::Duration;

use axum::{Json, extract::State};
use domain::{
    Aggregate, Context, FieldError, Key, Slug,
    node::{ProxyCompared, ProxyQuestion, proxy_subject},
    proxy::{self, Command, Credentials, Drift, Proxy, Settings},
    settings::StageSettings,
    traffic::{ROUTES, Route},
};
use eventlog::Committed;
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
/// A proxy may take its time with each route.
const COMPARE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct ProxyPath {
    /// Name of the proxy.
    #[param(value_type = String, example = "front")]
    proxy: Slug,
}

/// How to sign in to a proxy's admin API.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxyCredentials {
    username: String,
    /// Goes to the vault; never shown again.
    #[schema(write_only)]
    password: String,
}

/// The proxies that stages may lie behind.
#[utoipa::path(
    get,
    path = "/proxies",
    tag = "proxies",
    operation_id = "list_proxies",
    params(AtLeast),
    responses((status = 200, body = [readmodel::proxies::Proxy]))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(query): Query<AtLeast>,
) -> Result<Json<Vec<readmodel::proxies::Proxy>>, Error> {
    api.visible(query.at_least).await?;
    Ok(Json(readmodel::proxies::list(&api.pool).await?))
}

/// Declare a proxy, or change it to what is declared. Another admin API forgets the password for the one before. What is
/// deployed already follows with its next deployment.
#[utoipa::path(
    put,
    path = "/proxies/{proxy}",
    tag = "proxies",
    operation_id = "set_proxy",
    params(ProxyPath, IdempotencyKey),
    request_body = Settings,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn set(
    State(api): State<Api>,
    Path(path): Path<ProxyPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Settings>,
) -> Result<Taken<Accepted>, Error> {
    let mut errors = Vec::new();
    for (project, stage, settings) in behind(&api, &path.proxy).await? {
        errors.extend(asked.body.check_stage(&settings, &format!("{project}.{stage}")).into_iter().map(|error| {
            // What the proxy is to be does not go with what a stage wants of it.
            FieldError { field: "mode".into(), problem: format!("{}: {}", error.field, error.problem) }
        }));
    }
    if !errors.is_empty() {
        return Err(Error::Invalid(errors));
    }
    let command = Command::Configure(asked.body);
    Ok(Taken(Accepted { sequence: carry_out(&api, &path.proxy, command, &asked.context).await?.sequence }))
}

/// Carries `command` out on a proxy. A password that it ends goes.
pub(super) async fn carry_out(api: &Api, name: &Slug, command: Command, context: &Context) -> Result<Committed, Error> {
    if matches!(command, Command::Remove) {
        unused(api, name).await?;
    }
    let place = |proxy: Proxy| Some(proxy.credentials?.secret);
    sealed::end(&api.log, &Key::proxy(name), command, context, place).await
}

/// Keep the password for a proxy's admin API, in place of an earlier one.
#[utoipa::path(
    put,
    path = "/proxies/{proxy}/credentials",
    tag = "proxies",
    operation_id = "set_proxy_credentials",
    params(ProxyPath, IdempotencyKey),
    request_body = ProxyCredentials,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn sign_in(
    State(api): State<Api>,
    Path(path): Path<ProxyPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<ProxyCredentials>,
) -> Result<Taken<Accepted>, Error> {
    let ProxyCredentials { username, password } = asked.body;
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        return Err(Error::invalid("password", "must be 1 to 65536 bytes"));
    }
    let key = Key::<Proxy>::proxy(&path.proxy);
    let before = api.log.load(&key).await?.state;
    // A name of its own, as for registries.
    let secret = format!("{}/{}", key.secret(), runtime::clock::new_id());
    let set =
        |version| Command::SetCredentials(Credentials { username: username.clone(), secret: secret.clone(), version });
    before.decide(set(0))?;
    let committed = sealed::keep(&api.log, &secret, password, &key, set, &asked.context).await?;
    forget(&api, before.credentials.filter(|_| !committed.events.is_empty())).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Forget a proxy that no stage lies behind.
#[utoipa::path(
    delete,
    path = "/proxies/{proxy}",
    tag = "proxies",
    operation_id = "remove_proxy",
    params(ProxyPath, IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(path): Path<ProxyPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    Ok(Taken(Accepted { sequence: carry_out(&api, &path.proxy, Command::Remove, &asked.context).await?.sequence }))
}

/// Whatever still needs the proxy: a stage that routes by it, or one that its routes lead to.
async fn unused(api: &Api, name: &Slug) -> Result<(), Error> {
    if let Some((project, stage, _)) = behind(api, name).await?.into_iter().next() {
        return Err(Error::ProxyInUse { proxy: name.clone(), by: format!("{project}.{stage} routes by it") });
    }
    match in_use(api).await?.into_iter().find(|(_, proxy)| proxy == name) {
        Some((place, proxy)) => {
            Err(Error::ProxyInUse { proxy, by: format!("it serves {place} until its next deployment") })
        }
        None => Ok(()),
    }
}

/// The stages, as `project.stage`, whose routes lead by a proxy now, and which one it is.
pub(super) async fn in_use(api: &Api) -> Result<Vec<(String, Slug)>, Error> {
    let mut led = Vec::new();
    for place in api.log.bucket(ROUTES).keys().await? {
        let entry = api.log.bucket(ROUTES).get(&place).await?;
        let route = entry.and_then(|entry| serde_json::from_slice::<Route>(&entry.value).ok());
        led.extend(route.and_then(|route| route.front).map(|front| (place, front.proxy)));
    }
    led.sort();
    Ok(led)
}

/// What the proxy holds, host by host, beside what it should.
#[utoipa::path(
    get,
    path = "/proxies/{proxy}/drift",
    tag = "proxies",
    operation_id = "proxy_drift",
    params(ProxyPath),
    responses((status = 200, body = [Drift]))
)]
pub(crate) async fn drift(
    State(api): State<Api>,
    Path(path): Path<ProxyPath>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Json<Vec<Drift>>, Error> {
    compare(&api, path.proxy, false).await
}

/// Set right what differs, and tell what did.
#[utoipa::path(
    post,
    path = "/proxies/{proxy}/repair",
    tag = "proxies",
    operation_id = "repair_proxy",
    params(ProxyPath, IdempotencyKey),
    responses((status = 200, body = [Drift]))
)]
pub(crate) async fn repair(
    State(api): State<Api>,
    Path(path): Path<ProxyPath>,
    Query(NoQuery {}): Query<NoQuery>,
    _asked: Asked<Nothing>,
) -> Result<Json<Vec<Drift>>, Error> {
    compare(&api, path.proxy, true).await
}

/// Asks the node, which is the one that reaches the proxy.
async fn compare(api: &Api, proxy: Slug, repair: bool) -> Result<Json<Vec<Drift>>, Error> {
    if api.log.load(&Key::<Proxy>::proxy(&proxy)).await?.state.settings.is_none() {
        return Err(proxy::Rejection::Unknown.into());
    }
    let question = serde_json::to_vec(&ProxyQuestion { proxy, repair }).map_err(Error::Reply)?;
    match api.log.request(&proxy_subject(&api.node), question, COMPARE_LIMIT).await {
        Ok(reply) => {
            let compared: ProxyCompared = serde_json::from_slice(&reply).map_err(Error::Reply)?;
            compared.map(Json).map_err(Error::Resolve)
        }
        Err(eventlog::Error::NobodyAnswers { .. } | eventlog::Error::Unavailable { .. }) => {
            Err(Error::NoDeployer { node: api.node.to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

/// The stages that are declared to lie behind `proxy`.
async fn behind(api: &Api, proxy: &Slug) -> Result<Vec<(String, String, StageSettings)>, Error> {
    api.visible(Some(api.log.last_sequence().await?)).await?;
    let mut stages = Vec::new();
    for project in readmodel::projects::list(&api.pool, false).await? {
        let through =
            |settings: &StageSettings| settings.route.as_ref().is_some_and(|r| r.proxy.as_ref() == Some(proxy));
        let found = project.stages.into_iter().filter(|(_, settings)| through(settings));
        stages.extend(found.map(|(stage, settings)| (project.slug.clone(), stage, settings)));
    }
    Ok(stages)
}

async fn forget(api: &Api, replaced: Option<Credentials>) -> Result<(), Error> {
    if let Some(replaced) = replaced {
        api.log.vault().delete(&replaced.secret).await?;
    }
    Ok(())
}
