//! Promotions: asked for, approved, withdrawn, and proven.

use axum::{Json, extract::State};
use domain::{
    DeploymentId, Event, Key, PromotionId, Recorded,
    image::valid_digest,
    promotion::{Answer, Check, Gate, Promotion as Pending, Verification, judge},
    stage::{self, Command, Stage},
};
use eventlog::Transaction;
use readmodel::promotions::{self, Filter, Page, Promotion, Status};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Accepted, AtLeast, IdempotencyKey, NoQuery, StagePath, Taken, page_size};
use crate::{
    Api,
    auth::Principal,
    extract::{Asked, Nothing, Path, Query},
    idempotency,
    problem::Error,
};

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromotionBody {
    /// Only if the source runs exactly this: the `digest` of a promotion's preview.
    #[serde(default)]
    digest: Option<String>,
    /// Wait for gates that may pass later, instead of being refused by them. It always waits for approvals.
    #[serde(default)]
    wait: bool,
}

/// A promotion was asked for, or approved.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Asking {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
    promotion: Uuid,
    status: Status,
    /// What its acceptance started.
    deployment: Option<Uuid>,
    /// The gate that refused it.
    gate: Option<Gate>,
    /// Why it was refused.
    reason: Option<String>,
}

/// What would come of a promotion asked for now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Preview {
    /// The stage that the release would come from.
    source: String,
    /// None where the source runs nothing.
    digest: Option<String>,
    /// What the source was asked to deploy, e.g. `registry.example.com/shop:v2`.
    image: Option<String>,
    /// What runs here now.
    current: Option<String>,
    /// `passed` where it would be accepted, `waiting` where it could wait, else `refused`.
    answer: Answer,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WithdrawBody {
    /// 1 to 500 characters, for whoever reads it later.
    reason: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only of this project.
    project: Option<String>,
    /// Only to stages of this name.
    stage: Option<String>,
    /// Only those that are not decided.
    #[serde(default)]
    waiting: bool,
    /// The `next` of the page before.
    before: Option<u64>,
    /// 1 to 500; 50 where it is left out.
    limit: Option<u16>,
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct PromotionPath {
    /// Id of the promotion.
    #[param(value_type = uuid::Uuid)]
    id: PromotionId,
}

/// What a promotion to this stage would meet now. Changes nothing.
#[utoipa::path(
    get,
    path = "/projects/{project}/stages/{stage}/promotion",
    tag = "promotions",
    operation_id = "preview_promotion",
    params(StagePath),
    responses((status = 200, body = Preview))
)]
pub(crate) async fn preview(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Json<Preview>, Error> {
    let context = runtime::clock::context("nobody");
    let mut transaction = api.log.transaction(&context);
    let (promotion, deployment) = (PromotionId(context.command_id), DeploymentId(context.command_id));
    let attempt = transaction.attempt((&path.project, &path.stage), promotion, deployment, &api.node).await?;
    let taker = transaction.load(&Key::<Stage>::stage(&path.project, &path.stage)).await?.state;
    let source = attempt.case.source.as_ref();
    let digest = source.map(|source| source.image.digest.clone());
    let pending = Pending {
        id: promotion,
        from: attempt.case.rules.from.clone(),
        digest: digest.clone(),
        by: String::new(),
        approvals: vec![],
    };
    let judgement = judge(&pending, taker.lock.as_ref(), &attempt.case);
    Ok(Json(Preview {
        source: attempt.case.rules.from.to_string(),
        digest,
        image: source.map(|source| source.image.requested.clone()),
        current: taker.current.map(|current| current.spec.image.digest),
        answer: judgement.answer(),
        checks: judgement.checks,
    }))
}

/// Promote the release of the stage that this one promotes from: the very bytes that run there.
///
/// A refusal is recorded, too, and answered with the gate that refused and why.
#[utoipa::path(
    post,
    path = "/projects/{project}/stages/{stage}/promotions",
    tag = "promotions",
    operation_id = "request_promotion",
    params(StagePath, IdempotencyKey),
    request_body = Option<PromotionBody>,
    responses((status = 202, body = Asking))
)]
pub(crate) async fn request(
    State(api): State<Api>,
    Path(path): Path<StagePath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<PromotionBody>,
) -> Result<Taken<Asking>, Error> {
    let promotion = PromotionId(idempotency::id(&asked.context, "promotion"));
    let PromotionBody { digest, wait } = asked.body;
    if digest.as_ref().is_some_and(|digest| !valid_digest(digest)) {
        return Err(Error::invalid("digest", "must be sha256: and 64 hexadecimal digits"));
    }
    let by = asked.context.actor.clone();
    look(&api, &path, promotion, &asked.context, |attempt| Command::Promote {
        digest: digest.clone(),
        by: by.clone(),
        wait,
        attempt: Box::new(attempt),
    })
    .await
}

/// Promotions of all stages, the newest request first.
#[utoipa::path(
    get,
    path = "/promotions",
    tag = "promotions",
    operation_id = "list_promotions",
    params(ListQuery),
    responses((status = 200, body = Page))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    caller: Principal,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, Error> {
    api.visible(query.at_least).await?;
    let ListQuery { project, stage, waiting, before, limit, .. } = query;
    let filter = Filter { within: caller.within(), project, stage, waiting, before };
    Ok(Json(promotions::list(&api.pool, &filter, page_size(limit)?).await?))
}

/// A promotion, with the proof of its acceptance.
#[utoipa::path(
    get,
    path = "/promotions/{id}",
    tag = "promotions",
    operation_id = "get_promotion",
    params(PromotionPath, AtLeast),
    responses((status = 200, body = Promotion))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(path): Path<PromotionPath>,
    Query(query): Query<AtLeast>,
) -> Result<Json<Promotion>, Error> {
    api.visible(query.at_least).await?;
    find(&api, path.id).await.map(Json)
}

/// Approve a promotion that waits. It is accepted as soon as all gates have passed.
#[utoipa::path(
    post,
    path = "/promotions/{id}/approve",
    tag = "promotions",
    operation_id = "approve_promotion",
    params(PromotionPath, IdempotencyKey),
    responses((status = 202, body = Asking))
)]
pub(crate) async fn approve(
    State(api): State<Api>,
    Path(path): Path<PromotionPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<Nothing>,
) -> Result<Taken<Asking>, Error> {
    let taker = taker(&find(&api, path.id).await?)?;
    let (by, role) = (asked.context.actor.clone(), asked.caller.grant.role);
    look(&api, &taker, path.id, &asked.context, |attempt| Command::Approve {
        by: by.clone(),
        role,
        attempt: Box::new(attempt),
    })
    .await
}

/// Call off a promotion that waits.
#[utoipa::path(
    post,
    path = "/promotions/{id}/withdraw",
    tag = "promotions",
    operation_id = "withdraw_promotion",
    params(PromotionPath, IdempotencyKey),
    request_body = WithdrawBody,
    responses((status = 202, body = Accepted))
)]
pub(crate) async fn withdraw(
    State(api): State<Api>,
    Path(path): Path<PromotionPath>,
    Query(NoQuery {}): Query<NoQuery>,
    asked: Asked<WithdrawBody>,
) -> Result<Taken<Accepted>, Error> {
    let StagePath { project, stage } = taker(&find(&api, path.id).await?)?;
    let command = Command::Withdraw { promotion: path.id, reason: asked.body.reason };
    let committed = api.log.execute(&Key::<Stage>::stage(&project, &stage), command, &asked.context).await?;
    Ok(Taken(Accepted { sequence: committed.sequence }))
}

/// Decide an accepted promotion again, from the event log alone, and compare.
#[utoipa::path(
    get,
    path = "/promotions/{id}/verification",
    tag = "promotions",
    operation_id = "verify_promotion",
    params(PromotionPath),
    responses((status = 200, body = Verification))
)]
pub(crate) async fn verify(
    State(api): State<Api>,
    Path(path): Path<PromotionPath>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Json<Verification>, Error> {
    if let Some(verification) = api.log.verify_promotion(path.id).await? {
        return Ok(Json(verification));
    }
    let status = find(&api, path.id).await?.status;
    Err(Error::NoProof { status })
}

/// Decides what `command` makes of a look at `promotion`, with everything that must not change meanwhile.
async fn look(
    api: &Api,
    path: &StagePath,
    promotion: PromotionId,
    context: &domain::Context,
    command: impl Fn(stage::Attempt) -> Command,
) -> Result<Taken<Asking>, Error> {
    let StagePath { project, stage } = path;
    let key = &Key::<Stage>::stage(project, stage);
    let deployment = DeploymentId(idempotency::id(context, "release"));
    let command = &command;
    let decide = |mut transaction: Transaction| async move {
        let attempt = transaction.attempt((project, stage), promotion, deployment, &api.node).await?;
        transaction.decide(key, command(attempt)).await?;
        Ok::<_, Error>(transaction)
    };
    let committed = api.log.transact(context, decide).await?;
    let sequence = committed.sequence;
    if committed.events.is_empty() {
        // Done before: it stands as the read models have it.
        api.visible(Some(sequence)).await?;
        let Promotion { status, deployment, gate, reason, .. } = find(api, promotion).await?;
        return Ok(Taken(Asking { sequence, promotion: promotion.0, status, deployment, gate, reason }));
    }
    Ok(Taken(decided(sequence, promotion, &committed.events)))
}

/// How `promotion` stands after `events`.
fn decided(sequence: u64, promotion: PromotionId, events: &[Recorded]) -> Asking {
    let status = Status::Waiting;
    let mut asking = Asking { sequence, promotion: promotion.0, status, deployment: None, gate: None, reason: None };
    for recorded in events {
        match &recorded.event {
            Event::Stage(stage::Event::PromotionAccepted { deployment, .. }) => {
                asking.status = Status::Accepted;
                asking.deployment = Some(deployment.0);
            }
            Event::Stage(stage::Event::PromotionRefused { gate, reason, .. }) => {
                asking.status = Status::Refused;
                asking.gate = Some(*gate);
                asking.reason = Some(reason.clone());
            }
            _ => {}
        }
    }
    asking
}

async fn find(api: &Api, id: PromotionId) -> Result<Promotion, Error> {
    Ok(promotions::get(&api.pool, id.0).await?.ok_or(stage::Rejection::UnknownPromotion)?)
}

/// The stage that takes the release.
fn taker(promotion: &Promotion) -> Result<StagePath, Error> {
    // Both were slugs when they were written.
    let slug = |name: &str| name.parse().map_err(|_| Error::from(stage::Rejection::UnknownPromotion));
    Ok(StagePath { project: slug(&promotion.project)?, stage: slug(&promotion.stage)? })
}
