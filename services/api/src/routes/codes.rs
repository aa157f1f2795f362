//! Signing in at a command line by what a browser shows.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use domain::{Context, Grant, Slug, TokenId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{NoQuery, tokens};
use crate::{
    Api,
    auth::Principal,
    extract::{Query, Said},
    problem::Error,
};

#[derive(Serialize, ToSchema)]
pub(crate) struct SignInCode {
    /// For the command line that asks for it, and for nobody else: who has it may act in your name.
    code: String,
    /// What to do with it.
    #[schema(example = "type it where `sluice login --browser` asks for it")]
    hint: &'static str,
    expires_at: DateTime<Utc>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CodeBody {
    #[schema(write_only)]
    code: String,
    /// What the token is called in lists.
    #[schema(value_type = String, example = "laptop")]
    token_name: Slug,
    /// Less than one's own; left out, it is the same.
    grant: Option<Grant>,
    /// At most a year from now; left out, it is 90 days.
    expires_at: Option<DateTime<Utc>>,
}

/// Show, to somebody who has signed in with a browser, a code to sign in with at a command line: once, within two
/// minutes. A sign-in at the provider that was begun with this address as `return_to` ends here.
#[utoipa::path(get, path = "/auth/code", tag = "auth", operation_id = "sign_in_code", responses((status = 200, body = SignInCode)))]
pub(crate) async fn show(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    caller: Principal,
) -> Result<Json<SignInCode>, Error> {
    let (code, expires_at) = api.auth.issue_code(&caller).await?;
    let hint = "type it where `sluice login --browser` asks for it, and show it to nobody";
    Ok(Json(SignInCode { code, hint, expires_at }))
}

/// Sign in at a command line by the code that a browser shows: the answer is a personal token, shown this once.
#[utoipa::path(
    post,
    path = "/auth/code",
    tag = "auth",
    operation_id = "sign_in_by_code",
    request_body = CodeBody,
    responses((status = 200, body = tokens::Created))
)]
pub(crate) async fn redeem(
    State(api): State<Api>,
    Query(NoQuery {}): Query<NoQuery>,
    said: Said<CodeBody>,
) -> Result<Json<tokens::Created>, Error> {
    api.auth.same_site(&said.parts)?;
    let attempt = api.auth.attempt(said.source, &said.request_id).await?;
    let CodeBody { code, token_name, grant, expires_at } = said.body;
    let made = async {
        let caller = api.auth.redeem(&code).await?.ok_or(Error::BadCode)?;
        let context = Context { request_id: Some(said.request_id.clone()), ..runtime::clock::context(&*caller.actor) };
        let grant = grant.unwrap_or_else(|| caller.grant.clone());
        let id = TokenId(context.command_id);
        tokens::make(&api, &caller, None, id, (token_name, grant, true, expires_at), &context).await
    };
    Ok(Json(attempt.ended(made.await).await?))
}
