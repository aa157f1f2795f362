//! `sluice deploy`, `sluice rollback` and `sluice cancel`.

use clap::Args;
use domain::{DeploymentId, Slug};
use reqwest::Method;
use serde_json::json;

use super::{
    Target,
    exit::{Code, Failure},
    proxy, rollout,
    ui::{self, Ui},
};
use crate::client::{self, Client, Deployment, DeploymentAccepted, Parts, Stage, Status};

#[derive(Args)]
pub(crate) struct Deploy {
    #[command(flatten)]
    target: Target,
    /// [registry/]repository[:tag], or only a tag where the stage names its repository
    image: String,
    /// Only say what would be replaced, and what clients would see of the switch
    #[arg(long, conflicts_with_all = ["follow", "hotfix", "idempotency_key"])]
    plan: bool,
    /// Look on, step by step, until it has ended; Ctrl-C only ends the looking on
    #[arg(short, long)]
    follow: bool,
    /// Past the gates of a stage that takes releases only by promotion; for administrators
    #[arg(long, requires = "reason")]
    hotfix: bool,
    /// Why the gates do not matter now; part of the history
    #[arg(short, long, requires = "hotfix")]
    reason: Option<String>,
    /// The same key for the same request deploys once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Args)]
pub(crate) struct Rollback {
    #[command(flatten)]
    target: Target,
    /// To what this deployment had put there; by default to the newest earlier release with another image
    #[arg(long, value_name = "DEPLOYMENT")]
    to: Option<DeploymentId>,
    /// Look on, step by step, until it has ended; Ctrl-C only ends the looking on
    #[arg(short, long)]
    follow: bool,
    /// The same key for the same request goes back once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Args)]
pub(crate) struct Redeploy {
    #[command(flatten)]
    target: Target,
    /// Look on, step by step, until it has ended; Ctrl-C only ends the looking on
    #[arg(short, long)]
    follow: bool,
    /// The same key for the same request deploys once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Args)]
pub(crate) struct Cancel {
    /// Id of a deployment, or a project whose STAGE follows
    #[arg(value_name = "DEPLOYMENT|PROJECT")]
    target: String,
    /// Cancels what is on its way on this stage
    stage: Option<Slug>,
    /// Why; part of the history
    #[arg(short, long)]
    reason: Option<String>,
}

pub(super) async fn run(args: Deploy, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Deploy { target, image, plan, follow, hotfix, reason, idempotency_key } = args;
    if plan {
        return planned(&target, &image, client, ui).await;
    }
    let (path, body) = if hotfix {
        ("/hotfixes", json!({ "image": image, "reason": reason }))
    } else {
        ("/deployments", json!({ "image": image }))
    };
    requested(&target, path, Parts { idempotency_key, ..Parts::body(body) }, follow, client, ui).await
}

pub(super) async fn roll_back(args: Rollback, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Rollback { target, to, follow, idempotency_key } = args;
    let parts = Parts { idempotency_key, ..Parts::body(json!({ "to": to })) };
    requested(&target, "/rollback", parts, follow, client, ui).await
}

pub(super) async fn redeploy(args: Redeploy, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Redeploy { target, follow, idempotency_key } = args;
    let parts = Parts { idempotency_key, ..Parts::default() };
    requested(&target, "/redeploy", parts, follow, client, ui).await
}

/// What a deployment of `image` would do; nothing is asked for.
async fn planned(target: &Target, image: &str, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let stage: Stage = client::read(client.get(&target.path(""), &[]).await?)?;
    let switch = proxy::in_front_of(&stage, client).await?;
    let replaces = stage.current.as_ref().map(|current| current.image.requested.clone());
    let route = stage.settings.route.as_ref().map(|route| format!("{}{}", route.host, route.path));
    if ui.json {
        ui.document(&json!({ "image": image, "replaces": replaces, "route": route, "switch": switch }))?;
        return Ok(Code::Ok);
    }
    let line = |what: &str, value: Option<String>| [what.to_owned(), value.unwrap_or_else(|| "-".into())];
    let rows = vec![
        line("deploys", Some(image.to_owned())),
        line("replaces", replaces),
        line("route", route),
        line("switch", switch),
    ];
    ui.table(["PLAN", &target.to_string()], rows)?;
    Ok(Code::Ok)
}

/// Asks for a deployment, says which one it is, and looks on where that is wanted.
async fn requested(
    target: &Target,
    path: &str,
    parts: Parts<'_>,
    follow: bool,
    client: &Client,
    ui: &Ui,
) -> Result<Code, Failure> {
    let answer = client.send(Method::POST, &target.path(path), parts).await?;
    let DeploymentAccepted { sequence, deployment, image } = client::read(answer.clone())?;
    if !follow {
        // It is accepted either way, so that the read models lag is no reason to fail.
        let seen = client.get(&format!("/deployments/{deployment}"), &[("at_least", sequence.to_string())]).await;
        let known: Option<Deployment> = seen.and_then(client::read).ok();
        ui.result(&answer, || headline(target, deployment, &image))?;
        if known.is_some_and(|known| known.status == Status::Queued) {
            ui.note("it waits until the deployment before it has ended");
        }
        ui.note(format!("`sluice deployment {deployment} --follow` looks on until it has ended"));
        return Ok(Code::Ok);
    }
    if ui.json {
        ui.entry(&json!({ "accepted": answer }))?;
    } else {
        ui.line(headline(target, deployment, &image))?;
    }
    // From the last event of the decision on: where the stage was idle, that is the dispatch.
    rollout::follow(client, ui, target, deployment, sequence.saturating_sub(1)).await
}

fn headline(target: &Target, deployment: DeploymentId, image: &domain::image::Image) -> String {
    format!("{target}: deployment {deployment} of {} ({})", image.requested, ui::short_digest(&image.digest))
}

pub(super) async fn cancel(args: Cancel, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Cancel { target, stage, reason } = args;
    let deployment = match stage {
        None => target.parse::<DeploymentId>().map_err(|_| {
            Failure::invalid(format!("`{target}` is not the id of a deployment"))
                .hint("`sluice deployments` lists them; `sluice cancel PROJECT STAGE` cancels what is on its way")
        })?,
        Some(stage) => {
            let project = target.parse::<Slug>().map_err(|error| Failure::invalid(error.to_string()))?;
            on_its_way(&Target { project, stage }, client).await?
        }
    };
    let parts = Parts { body: reason.map(|reason| json!({ "reason": reason })), ..Parts::default() };
    let path = format!("/deployments/{deployment}");
    let answer = client.change(Method::POST, &format!("{path}/cancel"), parts, &path).await?;
    ui.result(&answer, || format!("deployment {deployment} is being cancelled"))?;
    Ok(Code::Ok)
}

async fn on_its_way(target: &Target, client: &Client) -> Result<DeploymentId, Failure> {
    let stage: Stage = client::read(client.get(&target.path(""), &[]).await?)?;
    stage.active.map(|active| active.deployment).ok_or_else(|| {
        Failure::new(Code::NotFound, "nothing_to_cancel", format!("no deployment is on its way on {target}"))
            .hint(format!("`sluice deployments {} {}` lists the earlier ones", target.project, target.stage))
    })
}
