//! The one error of the API, and its form on the wire: RFC 9457 problem details.
//!
//! A handler returns [`Error`]; the rim (`rim.rs`) logs it once, adds the request's id and writes
//! the body. What a caller must not learn stops here: everything internal is one sentence.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use domain::{
    FieldError, Role, administrators, handle, hook, image, node::ResolveError, project, proxy, registry, route,
    session, sso, stage, token, user,
};
use eventlog::{CommitError, ExecuteError};
use http::StatusCode;
use readmodel::promotions::Status;
use serde::Serialize;
use utoipa::ToSchema;

use crate::oidc::Refusal;

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("this needs a valid bearer token")]
    Unauthorized,
    #[error("this needs the role `{0}`")]
    Forbidden(Role),
    #[error("this lies outside the projects that you were granted")]
    OutsideGrant,
    #[error("the name or the password is wrong")]
    BadCredentials,
    #[error("this code is no longer good: it was used, is older than two minutes, or its session has ended")]
    BadCode,
    #[error("the password is not the present one")]
    WrongPassword,
    #[error("Too many failed login attempts. Please try again later.")]
    LoginRateLimited {
        /// Seconds, always the same: what is left of a block is nobody's business.
        retry_after: u64,
    },
    #[error("too many requests come from this address")]
    RateLimited { retry_after: u64 },
    #[error("too many people sign in at once")]
    TooManySignIns,
    #[error("this request comes from another site")]
    CrossSite,
    #[error("only a person has this: sign in with a name and a password")]
    NotSignedIn,
    #[error("nobody may give more than they have: you hold {0}")]
    AboveGrant(domain::Grant),
    #[error(transparent)]
    User(#[from] user::Rejection),
    #[error(transparent)]
    Handle(#[from] handle::Rejection),
    #[error(transparent)]
    Administrators(#[from] administrators::Rejection),
    #[error(transparent)]
    Session(#[from] session::Rejection),
    #[error("there is nothing at this address")]
    NoSuchPath,
    #[error("this address does not take this method")]
    MethodNotAllowed,
    #[error("this message does not prove that it comes from whom this hook is for")]
    BadSignature,
    #[error("too many messages come at once")]
    Busy,
    #[error("no watcher answers, so the registry cannot be asked")]
    NoWatcher,
    #[error("{reason}")]
    NotDeployed { code: String, reason: String, later: bool },
    #[error("the body is larger than {} KiB", .limit >> 10)]
    TooLarge { limit: usize },
    #[error("the body must be sent as `Content-Type: application/json`")]
    NotJson,
    #[error("{0}")]
    Malformed(String),
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    #[error(transparent)]
    Project(#[from] project::Rejection),
    #[error(transparent)]
    Stage(#[from] stage::Rejection),
    #[error("{host}: {rejection}")]
    Route { field: String, host: String, rejection: route::Rejection },
    /// A configuration of which some parts were applied and others not.
    #[error("{source} ({applied} of {all} changes were applied: apply the same again to complete it)")]
    Partly { applied: usize, all: usize, source: Box<Error> },
    #[error(transparent)]
    Registry(#[from] registry::Rejection),
    #[error(transparent)]
    Proxy(#[from] proxy::Rejection),
    #[error("the proxy {proxy} is in use: {by}")]
    ProxyInUse { proxy: domain::Slug, by: String },
    #[error(transparent)]
    Token(#[from] token::Rejection),
    #[error(transparent)]
    Hook(#[from] hook::Rejection),
    #[error(transparent)]
    Sso(#[from] sso::Rejection),
    #[error("nobody declared a provider to sign in at")]
    NoProvider,
    #[error("the environment of the API names the provider, and what is stored here would count for nothing")]
    ProviderOfEnvironment,
    #[error("{0}")]
    NotLetIn(Refusal),
    #[error(transparent)]
    Image(#[from] image::WithinError),
    #[error(transparent)]
    Resolve(ResolveError),
    #[error("no deployer answers for node {node}, which alone can look there")]
    NoDeployer { node: String },
    #[error("this Idempotency-Key was used before for a different request")]
    KeyReused,
    #[error("others kept changing the same thing at the same time")]
    Conflict,
    #[error(transparent)]
    NotYetVisible(#[from] readmodel::NotYet),
    #[error("only what was accepted has a proof: this promotion is {}", promotion_status(*.status))]
    NoProof { status: Status },
    #[error("the live stream has stopped")]
    StreamStopped,
    #[error("the request took too long")]
    TimedOut,
    #[error("the deployer's answer cannot be read")]
    Reply(#[source] serde_json::Error),
    #[error("writing an event as JSON")]
    Encode(#[source] serde_json::Error),
    #[error("a handler panicked")]
    Panicked,
    #[error("event log")]
    Log(#[from] eventlog::Error),
    #[error("read model")]
    ReadModel(#[from] readmodel::Error),
}

/// What a caller is told.
struct Answer {
    status: StatusCode,
    /// Stable, for scripts.
    code: String,
    detail: String,
    hint: Option<String>,
    errors: Vec<FieldError>,
}

/// An error as a body of type `application/problem+json` (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the `code` tells problems apart.
    #[schema(example = "about:blank")]
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// What happened, for people.
    detail: String,
    /// What happened, for scripts; stable.
    #[schema(example = "stage_locked")]
    code: String,
    /// Names this request in the log and in events.
    request_id: String,
    /// The fields that were refused, where it was fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(error: &Error, request_id: &str) -> Self {
        let Answer { status, code, detail, hint, errors } = error.answer();
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            code,
            request_id: request_id.to_owned(),
            errors,
            hint,
        }
    }
}

/// Carries the error to the rim, which knows the request's id.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.into(), problem: problem.into() }])
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// Names the kind of error, and nothing of what the caller sent.
    pub(crate) fn code(&self) -> String {
        self.kind().1
    }

    /// Whether it is only that too many came at once.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Busy | Self::TooManySignIns)
    }

    /// Seconds after which it is worth coming back.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::LoginRateLimited { retry_after } | Self::RateLimited { retry_after } => Some(*retry_after),
            _ => (self.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1),
        }
    }

    fn answer(&self) -> Answer {
        let (status, code, hint) = self.kind();
        let errors = match self {
            Self::Invalid(errors)
            | Self::Project(project::Rejection::Invalid(errors))
            | Self::Registry(registry::Rejection::Invalid(errors))
            | Self::Proxy(proxy::Rejection::Invalid(errors))
            | Self::Token(token::Rejection::Invalid(errors))
            | Self::User(user::Rejection::Invalid(errors))
            | Self::Sso(sso::Rejection::Invalid(errors))
            | Self::Hook(hook::Rejection::Invalid(errors)) => errors.clone(),
            Self::Route { field, host, rejection } => {
                vec![FieldError { field: field.clone(), problem: format!("{host}: {rejection}") }]
            }
            Self::Partly { source, .. } => source.answer().errors,
            Self::Image(error) => vec![FieldError { field: "image".into(), problem: error.to_string() }],
            Self::Stage(stage::Rejection::BadLock | stage::Rejection::NoReason) => {
                vec![FieldError { field: "reason".into(), problem: "must be 1 to 500 characters".into() }]
            }
            Self::Project(project::Rejection::BadSecretName) => {
                vec![FieldError { field: "name".into(), problem: self.to_string() }]
            }
            Self::Token(token::Rejection::Reserved) => {
                vec![FieldError { field: "name".into(), problem: self.to_string() }]
            }
            Self::Registry(registry::Rejection::BadHost(_)) => {
                vec![FieldError { field: "host".into(), problem: self.to_string() }]
            }
            Self::Registry(registry::Rejection::BadUsername) | Self::Proxy(proxy::Rejection::BadUsername) => {
                vec![FieldError { field: "username".into(), problem: self.to_string() }]
            }
            _ => vec![],
        };
        let detail = match (status, self) {
            // The cause is in the log, under the request's id; nobody else needs it.
            (StatusCode::INTERNAL_SERVER_ERROR, _) => "something went wrong inside; the log has the cause".to_owned(),
            (_, Self::Log(_)) => "the event log is not reachable".to_owned(),
            (_, Self::ReadModel(_)) => "the database is not reachable".to_owned(),
            (_, error) => error.to_string(),
        };
        Answer { status, code, detail, hint, errors }
    }

    /// Status, code and hint of every error there is.
    fn kind(&self) -> (StatusCode, String, Option<String>) {
        use StatusCode as S;
        let (status, code, hint) = match self {
            Self::Unauthorized => (S::UNAUTHORIZED, "unauthorized", "send `Authorization: Bearer <token>`"),
            Self::Forbidden(_) => (S::FORBIDDEN, "forbidden", "ask an administrator"),
            Self::OutsideGrant => (S::FORBIDDEN, "outside_grant", "ask an administrator"),
            Self::BadCredentials => (S::UNAUTHORIZED, "bad_credentials", ""),
            Self::BadCode => (S::UNAUTHORIZED, "bad_code", "let the browser show another"),
            Self::WrongPassword => (S::FORBIDDEN, "wrong_password", ""),
            Self::LoginRateLimited { .. } => (S::TOO_MANY_REQUESTS, "login_rate_limited", ""),
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, "rate_limited", "slow down"),
            Self::TooManySignIns => (S::SERVICE_UNAVAILABLE, "busy", "try again in a moment"),
            Self::CrossSite => (S::FORBIDDEN, "cross_site", "a browser must send this from Sluice's own pages"),
            Self::NotSignedIn => (S::CONFLICT, "not_signed_in", "`sluice login` signs in"),
            Self::AboveGrant(_) => (S::FORBIDDEN, "above_grant", "ask an administrator"),
            Self::User(rejection) => match rejection {
                user::Rejection::Unknown => (S::NOT_FOUND, "user_not_found", ""),
                user::Rejection::Disabled => (S::CONFLICT, "user_disabled", ""),
                user::Rejection::Erased => (S::CONFLICT, "user_erased", ""),
                user::Rejection::NoPassword => (S::CONFLICT, "no_password", ""),
                user::Rejection::SetupOver => (S::UNPROCESSABLE_ENTITY, "setup_over", ""),
                user::Rejection::Superseded => (S::UNAUTHORIZED, "bad_credentials", ""),
                user::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
            },
            Self::Handle(handle::Rejection::Taken) => (S::CONFLICT, "name_taken", ""),
            Self::Administrators(rejection) => match rejection {
                administrators::Rejection::LastAdministrator => (S::CONFLICT, "last_administrator", ""),
                administrators::Rejection::Founded => (S::CONFLICT, "conflict", ""),
            },
            Self::Session(session::Rejection::Unknown) => (S::NOT_FOUND, "session_not_found", ""),
            Self::NoSuchPath => (S::NOT_FOUND, "no_such_path", "GET /api/v1/openapi.json lists every address"),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method_not_allowed", "GET /api/v1/openapi.json lists every method")
            }
            Self::BadSignature => (
                S::UNAUTHORIZED,
                "bad_signature",
                "`sluice hook list` shows the hooks, and the manual how each is signed",
            ),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy", "send it again in a moment"),
            Self::NoWatcher => (
                S::SERVICE_UNAVAILABLE,
                "watcher_unavailable",
                "start the watcher (`sluice up` starts everything) and send it again; polling finds it then, too",
            ),
            Self::NotDeployed { code, later: false, .. } => (S::CONFLICT, code.as_str(), ""),
            Self::NotDeployed { code, later: true, .. } => (S::SERVICE_UNAVAILABLE, code.as_str(), "send it again"),
            Self::TooLarge { .. } => {
                (S::PAYLOAD_TOO_LARGE, "too_large", "send less: a declaration needs only settings")
            }
            Self::NotJson => (S::UNSUPPORTED_MEDIA_TYPE, "not_json", ""),
            Self::Malformed(_) => (S::BAD_REQUEST, "malformed", ""),
            Self::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
            Self::Project(rejection) => match rejection {
                project::Rejection::Unknown => (S::NOT_FOUND, "project_not_found", ""),
                project::Rejection::Archived => (S::CONFLICT, "project_archived", ""),
                project::Rejection::UnknownStage => (S::NOT_FOUND, "stage_not_found", ""),
                project::Rejection::BadSecretName => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
                project::Rejection::UnknownSecret => (S::NOT_FOUND, "secret_not_found", ""),
                project::Rejection::SecretInUse { .. } => (S::CONFLICT, "secret_in_use", ""),
                project::Rejection::SecretsMissing(_) => (S::CONFLICT, "secrets_missing", ""),
                project::Rejection::NoSource => (S::CONFLICT, "no_source", ""),
                project::Rejection::StillPromotedFrom { .. } => (S::CONFLICT, "still_promoted_from", ""),
                project::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
            },
            Self::Stage(rejection) => match rejection {
                stage::Rejection::Archived => (S::CONFLICT, "stage_archived", ""),
                stage::Rejection::Locked { .. } => (S::LOCKED, "stage_locked", ""),
                stage::Rejection::QueueFull { .. } => (S::CONFLICT, "queue_full", ""),
                stage::Rejection::UnknownDeployment => (S::NOT_FOUND, "deployment_not_found", ""),
                stage::Rejection::Ended(_) => (S::CONFLICT, "deployment_ended", ""),
                stage::Rejection::TooLate => (S::CONFLICT, "too_late", ""),
                stage::Rejection::NotLocked => (S::CONFLICT, "not_locked", ""),
                stage::Rejection::OthersLock { .. } => (S::CONFLICT, "lock_of_another", ""),
                stage::Rejection::BadLock => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
                stage::Rejection::PromotionOnly { .. } => (S::CONFLICT, "promotion_only", ""),
                stage::Rejection::PromotionWaits(_) => (S::CONFLICT, "promotion_waits", ""),
                stage::Rejection::UnknownPromotion => (S::NOT_FOUND, "promotion_not_found", ""),
                stage::Rejection::Decided(_) => (S::CONFLICT, "promotion_decided", ""),
                stage::Rejection::OwnPromotion => (S::FORBIDDEN, "own_promotion", ""),
                stage::Rejection::ApprovalDoesNotCount { .. } => (S::FORBIDDEN, "approval_does_not_count", ""),
                stage::Rejection::NoReason => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
                stage::Rejection::OnHold { .. } => (S::CONFLICT, "on_hold", ""),
                stage::Rejection::NothingNew => (S::CONFLICT, "nothing_new", ""),
                stage::Rejection::Overtaken => (S::CONFLICT, "overtaken", ""),
                stage::Rejection::NotAutomatic => (S::CONFLICT, "not_automatic", ""),
                stage::Rejection::NothingToPromote => (S::CONFLICT, "nothing_to_promote", ""),
                stage::Rejection::NotOnHold => (S::CONFLICT, "not_on_hold", ""),
                stage::Rejection::NothingRuns => (S::CONFLICT, "nothing_runs", ""),
                stage::Rejection::NoEarlierRelease => (S::CONFLICT, "no_earlier_release", ""),
                stage::Rejection::AlreadyCurrent => (S::CONFLICT, "already_current", ""),
                stage::Rejection::ReleaseForgotten => (S::NOT_FOUND, "release_forgotten", ""),
                // Only workers send what these answer.
                stage::Rejection::Fenced { .. } => (S::CONFLICT, "fenced", ""),
                stage::Rejection::OutOfStep { .. } => (S::CONFLICT, "out_of_step", ""),
            },
            Self::Route { rejection, .. } => match rejection {
                route::Rejection::Taken { .. } => (S::CONFLICT, "route_taken", ""),
            },
            Self::Partly { source, .. } => return source.kind(),
            Self::Registry(rejection) => match rejection {
                registry::Rejection::BadHost(_)
                | registry::Rejection::BadUsername
                | registry::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
                registry::Rejection::Unknown => (S::NOT_FOUND, "registry_not_found", ""),
                registry::Rejection::NoCredentials => (S::NOT_FOUND, "no_credentials", ""),
            },
            Self::Proxy(rejection) => match rejection {
                proxy::Rejection::Invalid(_) | proxy::Rejection::BadUsername => {
                    (S::UNPROCESSABLE_ENTITY, "invalid", "")
                }
                proxy::Rejection::Unknown => (S::NOT_FOUND, "proxy_not_found", ""),
            },
            Self::ProxyInUse { .. } => {
                (S::CONFLICT, "proxy_in_use", "take it out of the stage's route and deploy, then remove it")
            }
            Self::Token(rejection) => match rejection {
                token::Rejection::Reserved | token::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
                token::Rejection::Unknown => (S::NOT_FOUND, "token_not_found", ""),
            },
            Self::Hook(rejection) => match rejection {
                hook::Rejection::Unknown => (S::NOT_FOUND, "hook_not_found", ""),
                hook::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
            },
            Self::Sso(rejection) => match rejection {
                sso::Rejection::Unknown => (S::NOT_FOUND, "provider_not_found", ""),
                sso::Rejection::NoSecret => (S::NOT_FOUND, "no_client_secret", ""),
                sso::Rejection::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid", ""),
            },
            Self::NoProvider => {
                (S::NOT_FOUND, "provider_not_found", "an administrator declares one: `sluice provider set`")
            }
            Self::ProviderOfEnvironment => (
                S::CONFLICT,
                "provider_of_environment",
                "change the variables OIDC_* and restart the API, or take them out and declare the provider here",
            ),
            Self::NotLetIn(refusal) => return not_let_in(refusal),
            Self::Image(error) => match error {
                image::WithinError::Bad(_) => (S::UNPROCESSABLE_ENTITY, "bad_image", ""),
                image::WithinError::OtherRepository { .. } => (S::UNPROCESSABLE_ENTITY, "other_repository", ""),
            },
            Self::Resolve(error) => {
                let status = match error.code.as_str() {
                    "registry_unreachable" | "registry_error" | "proxy_unreachable" | "proxy_refused" => S::BAD_GATEWAY,
                    "registry_rate_limited" | "engine_unavailable" | "event_log" | "proxy_busy" => {
                        S::SERVICE_UNAVAILABLE
                    }
                    _ => S::UNPROCESSABLE_ENTITY,
                };
                (status, error.code.as_str(), error.hint.as_str())
            }
            Self::NoDeployer { .. } => (
                S::SERVICE_UNAVAILABLE,
                "deployer_unavailable",
                "start the deployer (`sluice up` starts everything) and try again; `sluice status` shows what runs",
            ),
            Self::KeyReused => {
                (S::UNPROCESSABLE_ENTITY, "idempotency_key_reused", "choose a new Idempotency-Key for a new request")
            }
            Self::Conflict => (S::CONFLICT, "conflict", "try again"),
            Self::NotYetVisible(_) => (
                S::SERVICE_UNAVAILABLE,
                "not_yet_visible",
                "try again; GET /api/v1/health shows how far the projector is",
            ),
            Self::NoProof { .. } => (S::CONFLICT, "no_proof", ""),
            Self::StreamStopped => (S::SERVICE_UNAVAILABLE, "stream_stopped", "see the API's log"),
            Self::TimedOut => (S::GATEWAY_TIMEOUT, "timed_out", "try again with the same Idempotency-Key"),
            Self::Reply(_) => (S::BAD_GATEWAY, "bad_reply", "let the API and the deployer run the same version"),
            Self::Encode(_) | Self::Panicked => (S::INTERNAL_SERVER_ERROR, "internal", ""),
            Self::Log(error) => match error {
                // The write may have taken place, so only the same key makes a repetition safe.
                eventlog::Error::Unavailable { .. }
                | eventlog::Error::Closed
                | eventlog::Error::NobodyAnswers { .. } => {
                    (S::SERVICE_UNAVAILABLE, "log_unavailable", "try again with the same Idempotency-Key")
                }
                eventlog::Error::Refused { .. }
                | eventlog::Error::Protocol { .. }
                | eventlog::Error::Decode(_)
                | eventlog::Error::Encode(_)
                | eventlog::Error::Gap { .. }
                | eventlog::Error::Ahead { .. }
                | eventlog::Error::WrongRevision { .. }
                | eventlog::Error::BadKey { .. }
                | eventlog::Error::Vault(_) => (S::INTERNAL_SERVER_ERROR, "internal", ""),
            },
            Self::ReadModel(error) if error.outage() => (S::SERVICE_UNAVAILABLE, "database_unavailable", "try again"),
            Self::ReadModel(_) => (S::INTERNAL_SERVER_ERROR, "internal", ""),
        };
        (status, code.to_owned(), (!hint.is_empty()).then(|| hint.to_owned()))
    }
}

/// Whose fault it is that somebody who comes back from the provider is not let in.
fn not_let_in(refusal: &Refusal) -> (StatusCode, String, Option<String>) {
    let status = match refusal {
        Refusal::Busy | Refusal::Log(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Provider { .. } => StatusCode::BAD_GATEWAY,
        Refusal::ReturnPath => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::FORBIDDEN,
    };
    (status, refusal.code(), None)
}

fn promotion_status(status: Status) -> &'static str {
    match status {
        Status::Waiting => "waiting",
        Status::Accepted => "accepted",
        Status::Refused => "refused",
        Status::Withdrawn => "withdrawn",
    }
}

impl<R> From<ExecuteError<R>> for Error
where
    R: std::error::Error + Into<Error> + 'static,
{
    fn from(error: ExecuteError<R>) -> Self {
        match error {
            ExecuteError::Rejected(rejection) => rejection.into(),
            ExecuteError::KeyReused => Self::KeyReused,
            ExecuteError::Conflict => Self::Conflict,
            ExecuteError::Log(error) => Self::Log(error),
        }
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::Conflict,
            CommitError::Log(error) => Self::Log(error),
        }
    }
}
