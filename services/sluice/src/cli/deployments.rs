//! `sluice deployments` and `sluice deployment`.

use clap::Args;
use domain::{
    DeploymentId, Slug,
    stage::{Kind, Origin},
};
use serde_json::json;

use super::{
    Target,
    exit::{Code, Failure},
    people::People,
    rollout,
    ui::{self, Ui},
};
use crate::client::{self, Client, Deployment};

#[derive(Args)]
pub(crate) struct List {
    project: Option<Slug>,
    stage: Option<Slug>,
    /// Only those that ended so
    #[arg(long, value_parser = ["succeeded", "failed", "rolled_back", "cancelled", "superseded"])]
    outcome: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Only those requested before this position in the log
    #[arg(long, value_name = "SEQUENCE")]
    before: Option<u64>,
}

#[derive(Args)]
pub(crate) struct Show {
    #[arg(value_name = "DEPLOYMENT")]
    id: DeploymentId,
    /// Look on until it has ended; the exit code says how
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn list(args: List, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let mut query = Vec::new();
    query.extend(args.project.as_ref().map(|project| ("project", project.to_string())));
    query.extend(args.stage.as_ref().map(|stage| ("stage", stage.to_string())));
    query.extend(args.outcome.map(|outcome| ("outcome", outcome)));
    query.extend(args.before.map(|before| ("before", before.to_string())));
    let (found, next) = client.pages("/deployments", &query, "deployments", "before", args.limit as usize).await?;
    if found.is_empty() {
        exists(args.project, args.stage, client).await?;
    }
    if ui.json {
        ui.document(&found)?;
        return Ok(Code::Ok);
    }
    let deployments: Vec<Deployment> = client::read(People::new(client).named(found.into()).await)?;
    if deployments.is_empty() {
        ui.note("no deployments here yet: `sluice deploy PROJECT STAGE IMAGE` makes one");
        return Ok(Code::Ok);
    }
    let now = runtime::clock::now();
    let rows = deployments
        .iter()
        .map(|d| {
            [
                ui::date(d.requested_at),
                format!("{}/{}", d.project, d.stage),
                rollout::version(d.kind, &d.image),
                d.status.name().to_owned(),
                ui::elapsed(rollout::since(d.requested_at, d.ended_at.unwrap_or(now))),
                d.requested_by.clone(),
                d.id.to_string(),
            ]
        })
        .collect();
    ui.table(["REQUESTED", "STAGE", "VERSION", "STATUS", "TOOK", "BY", "DEPLOYMENT"], rows)?;
    if let Some(next) = next {
        ui.note(format!("there are earlier ones: add `--before {next}`"));
    }
    Ok(Code::Ok)
}

/// An empty list and a misspelt name look the same to whoever only filters.
async fn exists(project: Option<Slug>, stage: Option<Slug>, client: &Client) -> Result<(), Failure> {
    match (project, stage) {
        (Some(project), Some(stage)) => client.get(&Target { project, stage }.path(""), &[]).await.map(drop)?,
        (Some(project), None) => client.get(&format!("/projects/{project}"), &[]).await.map(drop)?,
        (None, _) => {}
    }
    Ok(())
}

pub(super) async fn show(args: Show, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get(&format!("/deployments/{}", args.id), &[]).await?;
    let deployment: Deployment = client::read(People::new(client).named(answer.clone()).await)?;
    if args.follow {
        let target = Target {
            project: deployment.project.parse().map_err(not_a_name)?,
            stage: deployment.stage.parse().map_err(not_a_name)?,
        };
        if ui.json {
            ui.entry(&json!({ "accepted": answer }))?;
        } else {
            head(&deployment, ui)?;
        }
        return rollout::follow(client, ui, &target, deployment.id, deployment.requested_sequence).await;
    }
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    head(&deployment, ui)?;
    body(&deployment, ui)?;
    Ok(Code::Ok)
}

fn not_a_name(error: domain::BadName) -> Failure {
    client::Error::Misunderstood(error.to_string()).into()
}

fn head(d: &Deployment, ui: &Ui) -> Result<(), Failure> {
    ui.line(format!("deployment  {}", d.id))?;
    ui.line(format!("stage       {}/{}", d.project, d.stage))?;
    ui.line(match d.kind {
        Kind::Release => format!("image       {}", d.image.requested),
        Kind::Removal => format!("removes     {}", d.image.requested),
    })?;
    ui.line(format!("digest      {}", d.image.digest))?;
    ui.line(format!("requested   {} by {}", ui::date(d.requested_at), d.requested_by))?;
    match &d.origin {
        Origin::Direct => {}
        Origin::Promotion { promotion } => ui.line(format!("promotion   {promotion}"))?,
        Origin::Hotfix { reason } => ui.line(format!("hotfix      {reason}"))?,
        Origin::Policy { tag } => ui.line(format!("policy      takes {tag}"))?,
        Origin::Hook { hook } => ui.line(format!("hook        {hook}"))?,
        Origin::Rollback { to } => ui.line(format!("goes back   to deployment {to}"))?,
    }
    Ok(())
}

fn body(d: &Deployment, ui: &Ui) -> Result<(), Failure> {
    if let Some(started) = d.started_at {
        ui.line(format!("started     {}", ui::date(started)))?;
    }
    let ended =
        d.ended_at.map(|at| format!(" at {}, after {}", ui::date(at), ui::elapsed(rollout::since(d.requested_at, at))));
    let reason = match (d.superseded_by, d.rolled_back_to, &d.cancel_reason) {
        (Some(by), _, _) => format!(", by {by}"),
        (None, Some(to), _) => format!(", to {to}"),
        (None, None, Some(reason)) => format!(": {reason}"),
        (None, None, None) => String::new(),
    };
    ui.line(format!("status      {}{}{reason}", d.status.name(), ended.unwrap_or_default()))?;
    if !d.steps.is_empty() {
        ui.line("")?;
        let rows = d.steps.iter().map(|step| {
            let took = match (&step.failure, step.status.as_str()) {
                (Some(failure), "failed") => {
                    format!("{}, then failed: {}", ui::elapsed(step.elapsed_ms), failure.message)
                }
                (problem, _) => rollout::took(step.elapsed_ms, problem.as_ref()),
            };
            [ui::clock(step.at), rollout::step_name(step.step).to_owned(), took]
        });
        ui.table(["TIME", "STEP", "TOOK"], rows.collect())?;
    }
    if !d.instances.is_empty() {
        ui.line("")?;
        super::status::instances(&d.instances, ui)?;
    }
    if let Some(failure) = &d.failure {
        ui.line("")?;
        rollout::report(ui, failure)?;
    }
    Ok(())
}
