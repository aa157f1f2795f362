//! Webhooks: registries and builds tell of images at `/hooks/<source>/<name>`.
//!
//! A message must prove that it comes from whom the hook is for. What it says about a tag is a hint to look there now:
//! which bytes the tag means is asked of the registry, so that an old message, sent again, changes nothing.

mod payload;
mod verify;

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use domain::{
    Context, DeploymentId, Key, Slug,
    hook::{Hook, HookSettings, Source},
    push::{Answer, Finding, Heard, SUBJECT, Told, What},
};
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    Api,
    extract::{self, Path},
    idempotency,
    problem::Error,
    rim::RequestId,
};

/// Messages that are worked on at the same time; more are told to come again.
pub(crate) const AT_ONCE: usize = 64;
/// Messages that may be on their way in, each of at most [`LARGEST`] bytes.
pub(crate) const ARRIVING: usize = 256;
const LARGEST: usize = 256 << 10;
/// How long a message may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long the watcher may take: it asks the registry.
const LIMIT: Duration = Duration::from_secs(45);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct MessagePath {
    /// Who sends, as the hook is declared.
    source: Source,
    /// Name of the hook.
    #[param(value_type = String, example = "images")]
    name: Slug,
}

/// What came of a message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Received {
    /// For every stage that it concerns.
    stages: Vec<Heard>,
}

/// A registry or a build tells of an image. How the message proves where it comes from is a matter of its source: see
/// the manual.
#[utoipa::path(
    post,
    path = "/hooks/{source}/{name}",
    tag = "hooks",
    operation_id = "receive",
    params(MessagePath),
    request_body(content = serde_json::Value, content_type = "application/json"),
    responses((status = 202, body = Received))
)]
pub(crate) async fn receive(
    State(api): State<Api>,
    Path(MessagePath { source, name }): Path<MessagePath>,
    uri: Uri,
    request_id: axum::Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let known = api.log.fold(&Key::<Hook>::hook(&name)).await?;
    // Who may not send does not learn which hooks there are.
    let Hook { settings: Some(settings), secret: Some(secret) } = &known.state else { return Err(Error::BadSignature) };
    if settings.source != source {
        return Err(Error::BadSignature);
    }
    let Ok(_arriving) = api.arriving.try_acquire() else { return Err(Error::Busy) };
    let body = tokio::time::timeout(ARRIVAL, extract::read(body, LARGEST)).await.map_err(|_| Error::TimedOut)??;
    let secret = api.log.vault().get(&secret.secret).await?.ok_or(Error::BadSignature)?;
    let message = verify::Message { headers: &headers, query: uri.query().unwrap_or_default(), body: &body };
    let proven = verify::verify(source, &secret, &message, runtime::clock::now()).ok_or(Error::BadSignature)?;

    // Only now, so that whoever proves nothing keeps nobody out.
    let Ok(_one_of_few) = api.hooks.try_acquire() else { return Err(Error::Busy) };
    let mut context = runtime::clock::context(format!("hook/{name}"));
    context.request_id = Some(request_id.0.0.to_string());
    if let Some(once) = proven.once {
        // With what is asked for: the same key for something else is another message.
        let asked = format!("hook\n{name}\n{once}\n{}", hex::encode(Sha256::digest(&body)));
        context.command_id = Uuid::new_v5(&idempotency::NAMESPACE, asked.as_bytes());
        context.correlation_id = context.command_id;
    }
    let what = match deploy(&name, settings, &context, &body)? {
        Some(deploy) => deploy,
        None => {
            let pushed = payload::pushed(source, settings.registry().unwrap_or_default(), &headers, &body)?;
            if pushed.is_empty() {
                return Ok(received(vec![]));
            }
            What::Pushed(pushed)
        }
    };
    let single = matches!(what, What::Deploy { .. });
    let heard = tell(&api, Told { context, what }).await?;
    // A build that asks for one stage wants to fail where that stage does not take it.
    match heard.first().map(|heard| heard.finding.clone()) {
        Some(Finding::Refused { code, reason }) if single => Err(Error::NotDeployed { code, reason, later: false }),
        Some(Finding::OnHold { reason }) if single => {
            let reason = format!("this stage is on hold: {reason} (`sluice unhold` lifts it)");
            Err(Error::NotDeployed { code: "on_hold".into(), reason, later: false })
        }
        Some(_) | None => match failure(&heard) {
            // A sender that repeats it is heard again; one that does not is made up for by polling.
            Some((code, reason)) => Err(Error::NotDeployed { code, reason, later: true }),
            None => Ok(received(heard)),
        },
    }
}

/// A look that came to nothing for now.
fn failure(heard: &[Heard]) -> Option<(String, String)> {
    heard.iter().find_map(|heard| match &heard.finding {
        Finding::Failed { code, reason } => Some((code.clone(), reason.clone())),
        _ => None,
    })
}

/// What a build wants.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// As for a deployment: a bare tag is enough.
    image: String,
}

fn deploy(name: &Slug, settings: &HookSettings, context: &Context, body: &[u8]) -> Result<Option<What>, Error> {
    let (Source::Plain, Some(project), Some(stage)) = (settings.source, &settings.project, &settings.stage) else {
        return Ok(None);
    };
    let how = "send {\"image\": \"v2\"}: a tag, or repository and tag";
    let Wanted { image } = serde_json::from_slice(body).map_err(|error| Error::Malformed(format!("{error}: {how}")))?;
    let deployment = DeploymentId(idempotency::id(context, "release"));
    Ok(Some(What::Deploy { project: project.clone(), stage: stage.clone(), image, hook: name.clone(), deployment }))
}

async fn tell(api: &Api, told: Told) -> Result<Vec<Heard>, Error> {
    let question = serde_json::to_vec(&told).map_err(Error::Encode)?;
    match api.log.request(SUBJECT, question, LIMIT).await {
        Ok(answer) => match serde_json::from_slice(&answer).map_err(Error::Reply)? {
            Answer::Heard(heard) => Ok(heard),
            Answer::Busy => Err(Error::Busy),
        },
        Err(eventlog::Error::NobodyAnswers { .. }) => Err(Error::NoWatcher),
        Err(error) => Err(error.into()),
    }
}

fn received(stages: Vec<Heard>) -> Response {
    (StatusCode::ACCEPTED, Json(Received { stages })).into_response()
}
