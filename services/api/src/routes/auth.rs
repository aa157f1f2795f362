//! Signing in and out, and one's own account.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use domain::{
    Context, Grant, Key, Slug, TokenId,
    session::Method,
    user::{Source, User},
};
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Accepted, NoQuery, tokens};
use crate::{
    Api,
    auth::{Principal, SignedIn, Who},
    extract::{Asked, Nothing, Query, Said},
    problem::Error,
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoginBody {
    name: String,
    #[schema(write_only)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetupBody {
    /// What stands behind the `#` of the link.
    #[schema(write_only)]
    token: String,
    /// 8 to 128 characters.
    #[schema(write_only)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignInBody {
    name: String,
    #[schema(write_only)]
    password: String,
    /// What the token is called in lists.
    #[schema(value_type = String, example = "laptop")]
    token_name: Slug,
    /// Less than one's own; left out, it is the same.
    grant: Option<Grant>,
    /// At most a year from now; left out, it is 90 days.
    expires_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasswordBody {
    /// The present one.
    #[schema(write_only)]
    current: String,
    /// 8 to 128 characters.
    #[schema(write_only)]
    new: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct SignedOut {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    /// Where a browser goes to sign out at the provider, too; none where there is no need.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
}

/// Who asks.
#[derive(Serialize, ToSchema)]
pub(crate) struct Me {
    /// Of events that one causes.
    actor: String,
    /// None for a machine.
    id: Option<Uuid>,
    name: Option<String>,
    display_name: Option<String>,
    email: Option<String>,
    source: Option<Source>,
    grant: Grant,
    via: Via,
    /// When what one came with is over, if it is not used before.
    until: Option<DateTime<Utc>>,
}

/// What somebody signed in with.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Via {
    Session,
    PersonalToken,
    MachineToken,
}

impl Me {
    async fn of(api: &Api, caller: &Principal) -> Result<Self, Error> {
        let (id, via) = match caller.who {
            Who::Session { user, .. } => (Some(user), Via::Session),
            Who::Token { user: Some(user), .. } => (Some(user), Via::PersonalToken),
            Who::Token { user: None, .. } => (None, Via::MachineToken),
        };
        let person = match id {
            Some(id) => api.log.fold(&Key::<User>::user(id)).await?.state.person.clone(),
            None => None,
        };
        let profile = match (&id, &person) {
            (Some(id), Some(person)) => api.auth.people.open_profile(*id, &person.profile).await?,
            _ => None,
        };
        let (name, display_name, email) =
            profile.map_or((None, None, None), |profile| (Some(profile.name), profile.display_name, profile.email));
        Ok(Self {
            actor: caller.actor.to_string(),
            id: id.map(|id| id.0),
            name,
            display_name,
            email,
            source: person.map(|person| person.source),
            grant: caller.grant.clone(),
            via,
            until: caller.until,
        })
    }
}

/// Sign in with a name and a password: the answer sets the session's cookie.
#[utoipa::path(
    post,
    path = "/auth/login",
    tag = "auth",
    operation_id = "login",
    request_body = LoginBody,
    responses((status = 200, body = Me))
)]
pub(crate) async fn login(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    said: Said<LoginBody>,
) -> Result<Response, Error> {
    api.auth.same_site(&said.parts)?;
    let attempt = api.auth.attempt(said.source, &said.request_id).await?;
    let signed_in = async {
        let proven = api.auth.verify(&said.body.name, &said.body.password).await?;
        let before = api.auth.held(&said.parts.headers).await;
        api.auth.sign_in(proven, Method::Password, &context(&said.request_id), before).await
    };
    let signed_in = attempt.ended(signed_in.await).await?;
    welcome(&api, &signed_in).await
}

/// Choose a password by a setup link, once: the answer sets the session's cookie.
#[utoipa::path(
    post,
    path = "/auth/setup",
    tag = "auth",
    operation_id = "set_up",
    request_body = SetupBody,
    responses((status = 200, body = Me))
)]
pub(crate) async fn set_up(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    said: Said<SetupBody>,
) -> Result<Response, Error> {
    api.auth.same_site(&said.parts)?;
    let attempt = api.auth.attempt(said.source, &said.request_id).await?;
    let SetupBody { token, password } = said.body;
    let signed_in = api.auth.set_up(&token, &password, &context(&said.request_id)).await;
    let signed_in = attempt.ended(signed_in).await?;
    welcome(&api, &signed_in).await
}

/// Sign in at a command line: the answer is a personal token, shown this once.
#[utoipa::path(
    post,
    path = "/auth/token",
    tag = "auth",
    operation_id = "sign_in",
    request_body = SignInBody,
    responses((status = 200, body = tokens::Created))
)]
pub(crate) async fn token(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    said: Said<SignInBody>,
) -> Result<Json<tokens::Created>, Error> {
    api.auth.same_site(&said.parts)?;
    let attempt = api.auth.attempt(said.source, &said.request_id).await?;
    let SignInBody { name, password, token_name, grant, expires_at } = said.body;
    let made = async {
        let proven = api.auth.verify(&name, &password).await?;
        let person = api.log.fold(&Key::<User>::user(proven.user)).await?;
        let person = person.state.enabled().ok_or(Error::BadCredentials)?;
        let mut context = context(&said.request_id);
        context.actor = format!("user:{}", proven.user);
        let token = TokenId(context.command_id);
        let caller = Principal {
            actor: context.actor.as_str().into(),
            grant: person.grant.clone(),
            who: Who::Token { user: Some(proven.user), token },
            until: None,
        };
        let grant = grant.unwrap_or_else(|| person.grant.clone());
        tokens::make(&api, &caller, Some(proven), token, (token_name, grant, true, expires_at), &context).await
    };
    Ok(Json(attempt.ended(made.await).await?))
}

/// Sign out: the session ends, or the personal token does.
#[utoipa::path(
    post,
    path = "/auth/logout",
    tag = "auth",
    operation_id = "logout",
    responses((status = 200, body = SignedOut))
)]
pub(crate) async fn logout(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Response, Error> {
    let sequence = api.auth.sign_out(&asked.caller, &asked.context).await?;
    let mut response = Json(SignedOut { sequence, location: at_provider(&api, &asked.caller).await }).into_response();
    if matches!(asked.caller.who, Who::Session { .. }) {
        set_cookie(&mut response, api.auth.cookies.clear())?;
    }
    Ok(response)
}

/// Where somebody who came from the provider signs out there, too. Here they are signed out in any case.
async fn at_provider(api: &Api, caller: &Principal) -> Option<String> {
    let Who::Session { session, .. } = caller.who else { return None };
    let found = async {
        if !api.auth.came_from_provider(session).await? {
            return Ok(None);
        }
        let id_token = api.auth.take_id_token(session).await?;
        Ok::<_, Error>(api.flow.provider().await?.map(|provider| (provider, id_token)))
    };
    match found.await {
        Ok(Some((provider, id_token))) => api.flow.logout_url(&provider, id_token.as_ref()).await,
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "somebody stays signed in at the provider");
            None
        }
    }
}

/// Who one is, and what one may do.
#[utoipa::path(get, path = "/auth/me", tag = "auth", operation_id = "me", responses((status = 200, body = Me)))]
pub(crate) async fn me(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    caller: Principal,
) -> Result<Json<Me>, Error> {
    Ok(Json(Me::of(&api, &caller).await?))
}

/// Change one's own password. Every session and personal token ends; the one that asked goes on as a new session.
#[utoipa::path(
    post,
    path = "/auth/password",
    tag = "auth",
    operation_id = "change_password",
    request_body = PasswordBody,
    responses((status = 200, body = Accepted))
)]
pub(crate) async fn password(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    source: axum::Extension<domain::address::Source>,
    asked: Asked<PasswordBody>,
) -> Result<Response, Error> {
    let id = asked.caller.user().ok_or(Error::NotSignedIn)?;
    let request_id = asked.context.request_id.clone().unwrap_or_default();
    let attempt = api.auth.attempt(source.0, &request_id).await?;
    let proven = api.auth.proves(id, &asked.body.current).await;
    attempt.ended(proven.and_then(|proven| proven.ok_or(Error::WrongPassword))).await?;
    let (sequence, proven) = api.auth.choose_password(id, &asked.body.new, &asked.context).await?;
    let mut response = Json(Accepted { sequence }).into_response();
    if matches!(asked.caller.who, Who::Session { .. }) {
        let signed_in = api.auth.sign_in(proven, Method::Password, &context(&request_id), None).await?;
        set_cookie(&mut response, api.auth.cookies.set(&signed_in.handle))?;
    }
    Ok(response)
}

fn context(request_id: &str) -> Context {
    Context { request_id: Some(request_id.to_owned()), ..runtime::clock::context("anonymous") }
}

async fn welcome(api: &Api, signed_in: &SignedIn) -> Result<Response, Error> {
    let mut response = Json(Me::of(api, &signed_in.principal).await?).into_response();
    set_cookie(&mut response, api.auth.cookies.set(&signed_in.handle))?;
    Ok(response)
}

fn set_cookie(response: &mut Response, cookie: Option<HeaderValue>) -> Result<(), Error> {
    response.headers_mut().insert(header::SET_COOKIE, cookie.ok_or(Error::Panicked)?);
    Ok(())
}
