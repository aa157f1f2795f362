//! Signing in at the OpenID provider, and which provider that is.

use axum::{
    Extension, Json,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use domain::{
    Context, Key,
    address::Source,
    sso::{Command, Settings, Sso},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Accepted, IdempotencyKey, NoQuery, Taken};
use crate::{
    Api,
    auth::SignedIn,
    extract::{Asked, Nothing, Query},
    oidc::{Provider, Report},
    problem::Error,
    rim::RequestId,
    sealed,
};

const LONGEST_SECRET: usize = 1024;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Start {
    /// The path on this server to come back to.
    #[serde(default = "root")]
    #[param(example = "/projects/shop")]
    return_to: String,
}

fn root() -> String {
    "/".into()
}

/// How people sign in here.
#[derive(Serialize, ToSchema)]
pub(crate) struct Methods {
    /// With a name and a password, always: who administers must get in when the provider does not answer.
    password: bool,
    provider: Option<Button>,
}

/// For the button that leads to the provider.
#[derive(Serialize, ToSchema)]
struct Button {
    label: String,
    /// Where it leads, whole: a sign-in must begin at the address at which it ends. `?return_to=` says where to go then.
    #[schema(example = "https://sluice.example.com/auth/oidc/start")]
    start: String,
}

/// The provider that counts.
#[derive(Serialize, ToSchema)]
pub(crate) struct Declared {
    managed_by: ManagedBy,
    settings: Settings,
    has_secret: bool,
    /// What has to be registered at the provider.
    redirect_uri: String,
}

/// Who says which provider it is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ManagedBy {
    /// The variables `OIDC_*` of the API: they alone count, and it can be changed only there.
    Environment,
    /// An administrator, here.
    Settings,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientSecret {
    /// Goes to the vault; never shown again.
    #[schema(write_only)]
    secret: String,
}

/// Go to the provider to sign in.
#[utoipa::path(get, path = "/auth/oidc/start", tag = "auth", operation_id = "oidc_start", params(Start), responses((status = 303)))]
pub(crate) async fn start(
    State(api): State<Api>,
    Query(query): Query<Start>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let provider = provider(&api).await?;
    let browser = api.auth.cookies.read_browser(&headers);
    let begun = api.flow.begin(&provider, &query.return_to, browser).await.map_err(Error::NotLetIn)?;
    let cookie = api.auth.cookies.set_browser(&begun.browser).ok_or(Error::Panicked)?;
    see(&begun.location, cookie)
}

/// Come back from the provider: the answer sets the session's cookie.
#[utoipa::path(get, path = "/auth/oidc/callback", tag = "auth", operation_id = "oidc_callback", responses((status = 303)))]
pub(crate) async fn callback(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
    Extension(source): Extension<Source>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    match come_back(&api, query.as_deref().unwrap_or_default(), &headers, &request_id).await {
        Ok((signed_in, return_to)) => {
            let cookie = api.auth.cookies.set(&signed_in.handle).ok_or(Error::Panicked)?;
            see(&return_to, cookie)
        }
        Err(error) => {
            if let Error::NotLetIn(refusal) = &error {
                api.auth.refused(source, refusal, &request_id).await;
            }
            Err(error)
        }
    }
}

/// The session, and where its holder wanted to go.
async fn come_back(api: &Api, query: &str, headers: &HeaderMap, request_id: &str) -> Result<(SignedIn, String), Error> {
    let provider = provider(api).await?;
    let browser = api.auth.cookies.read_browser(headers);
    let verified = api.flow.finish(&provider, query, browser).await.map_err(Error::NotLetIn)?;
    let before = api.auth.held(headers).await;
    let signed_in = api.auth.sign_in_provided(&verified, request_id, before).await?;
    Ok((signed_in, verified.return_to))
}

/// How people sign in here.
#[utoipa::path(
    get,
    path = "/auth/methods",
    tag = "auth",
    operation_id = "sign_in_methods",
    responses((status = 200, body = Methods))
)]
pub(crate) async fn methods(State(api): State<Api>, Query(NoQuery {}): Query<NoQuery>) -> Result<Json<Methods>, Error> {
    let settings = api.flow.settings().await?;
    let button = settings.map(|settings| Button { label: settings.label, start: api.flow.start() });
    Ok(Json(Methods { password: true, provider: button }))
}

/// The provider that counts.
#[utoipa::path(
    get,
    path = "/auth/provider",
    tag = "auth",
    operation_id = "get_provider",
    responses((status = 200, body = Declared))
)]
pub(crate) async fn get(State(api): State<Api>, Query(NoQuery {}): Query<NoQuery>) -> Result<Json<Declared>, Error> {
    let provider = provider(&api).await?;
    Ok(Json(Declared {
        managed_by: if api.flow.by_environment() { ManagedBy::Environment } else { ManagedBy::Settings },
        redirect_uri: provider.callback(),
        has_secret: provider.secret.is_some(),
        settings: provider.settings,
    }))
}

/// Declare the provider, or change it to what is declared. Another issuer or client id ends the client secret.
#[utoipa::path(
    put,
    path = "/auth/provider",
    tag = "auth",
    operation_id = "apply_provider",
    params(IdempotencyKey),
    request_body = Settings,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn configure(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Settings>,
) -> Result<Taken<Accepted>, Error> {
    ours(&api)?;
    carry_out(&api, Command::Configure { settings: asked.body }, &asked.context).await
}

/// Forget the provider that is stored here: whoever came from there stays known, and cannot sign in.
#[utoipa::path(
    delete,
    path = "/auth/provider",
    tag = "auth",
    operation_id = "remove_provider",
    params(IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    carry_out(&api, Command::Remove, &asked.context).await
}

/// Keep the client secret, in place of an earlier one.
#[utoipa::path(
    put,
    path = "/auth/provider/secret",
    tag = "auth",
    operation_id = "set_client_secret",
    params(IdempotencyKey),
    request_body = ClientSecret,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn set_secret(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<ClientSecret>,
) -> Result<Taken<Accepted>, Error> {
    ours(&api)?;
    let ClientSecret { secret } = asked.body;
    if secret.is_empty() || secret.len() > LONGEST_SECRET || secret.chars().any(char::is_control) {
        return Err(Error::invalid("secret", "must be 1 to 1024 characters, without control characters"));
    }
    let key = Key::<Sso>::sso();
    let before = api.log.load(&key).await?.state.secret;
    let place = key.secret(&runtime::clock::new_id().to_string());
    let command = |version| Command::SetSecret { secret: place.clone(), version };
    let committed = sealed::keep(&api.log, &place, secret, &key, command, &asked.context).await?;
    if let Some(replaced) = before.filter(|_| !committed.events.is_empty()) {
        api.log.vault().delete(&replaced.secret).await?;
    }
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Forget the client secret.
#[utoipa::path(
    delete,
    path = "/auth/provider/secret",
    tag = "auth",
    operation_id = "remove_client_secret",
    params(IdempotencyKey),
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn remove_secret(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Accepted>, Error> {
    carry_out(&api, Command::RemoveSecret, &asked.context).await
}

/// Ask the provider what it says about itself, and tell what of it is good.
#[utoipa::path(
    post,
    path = "/auth/provider/test",
    tag = "auth",
    operation_id = "test_provider",
    responses((status = 200, body = Report))
)]
pub(crate) async fn test(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    _asked: Asked<Nothing>,
) -> Result<Json<Report>, Error> {
    Ok(Json(api.flow.probe(&provider(&api).await?).await))
}

/// Refuses what would be stored and count for nothing.
fn ours(api: &Api) -> Result<(), Error> {
    if api.flow.by_environment() { Err(Error::ProviderOfEnvironment) } else { Ok(()) }
}

async fn provider(api: &Api) -> Result<Provider, Error> {
    api.flow.provider().await?.ok_or(Error::NoProvider)
}

/// Carries `command` out. A secret that it ends goes.
async fn carry_out(api: &Api, command: Command, context: &Context) -> Result<Taken<Accepted>, Error> {
    let place = |sso: Sso| Some(sso.secret?.secret);
    let committed = sealed::end(&api.log, &Key::<Sso>::sso(), command, context, place).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

fn see(location: &str, cookie: HeaderValue) -> Result<Response, Error> {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_str(location).map_err(|_| Error::Panicked)?);
    headers.insert(header::SET_COOKIE, cookie);
    Ok(response)
}
