//! `sluice status`: all stages as a table, or one in full.

use chrono::{DateTime, Utc};
use clap::Args;
use domain::Slug;
use serde_json::Value;

use super::{
    Target,
    exit::{Code, Failure},
    people::People,
    rollout,
    ui::{self, Ui},
};
use crate::client::{self, Active, Client, Instance, Stage};

#[derive(Args)]
pub(crate) struct Status {
    project: Option<Slug>,
    stage: Option<Slug>,
}

pub(super) async fn run(args: Status, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match (args.project, args.stage) {
        (Some(project), Some(stage)) => {
            let target = Target { project, stage };
            one(client.get(&target.path(""), &[]).await?, client, ui).await
        }
        (Some(project), None) => many(client.get(&format!("/projects/{project}/stages"), &[]).await?, client, ui).await,
        (None, _) => many(client.get("/stages", &[]).await?, client, ui).await,
    }
}

async fn many(answer: Value, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let stages: Vec<Stage> = client::read(People::new(client).named(answer).await)?;
    if stages.is_empty() {
        ui.note("no stages yet: declare them with `sluice project apply -f sluice.yaml`");
        return Ok(Code::Ok);
    }
    let now = runtime::clock::now();
    ui.table(
        ["STAGE", "SERVES", "SINCE", "CONTAINERS", "ON ITS WAY", "WAITING", "LOCK"],
        stages.iter().map(|s| row(s, now)).collect(),
    )?;
    Ok(Code::Ok)
}

fn row(stage: &Stage, now: DateTime<Utc>) -> [String; 7] {
    let none = || "-".to_owned();
    [
        format!("{}/{}", stage.project, stage.stage),
        stage.current.as_ref().map_or_else(none, |release| release.image.version().to_owned()),
        stage.current.as_ref().map_or_else(none, |release| ui::ago(now, release.since)),
        containers(stage),
        stage.active.as_ref().map_or_else(none, on_its_way),
        if stage.queue.is_empty() { none() } else { stage.queue.len().to_string() },
        stage.lock.as_ref().map_or_else(none, |lock| format!("{}: {}", lock.owner, lock.reason)),
    ]
}

/// Of the containers of the release that serves, how many are well.
fn containers(stage: &Stage) -> String {
    let Some(current) = &stage.current else { return "-".to_owned() };
    let all = || stage.instances.iter().filter(|instance| instance.deployment == current.deployment);
    format!("{}/{}", all().filter(|instance| well(instance)).count(), all().count())
}

fn well(instance: &Instance) -> bool {
    instance.state == "running" && instance.healthy != Some(false)
}

fn on_its_way(active: &Active) -> String {
    let version = rollout::version(active.kind, &active.image);
    match active.step {
        Some(step) => format!("{version} {}, after {}", active.status.name(), rollout::step_name(step)),
        None => format!("{version} {}", active.status.name()),
    }
}

async fn one(answer: Value, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let stage: Stage = client::read(People::new(client).named(answer).await)?;
    let now = runtime::clock::now();
    let archived = if stage.archived { " (archived)" } else { "" };
    ui.line(format!("stage       {}/{}{archived}", stage.project, stage.stage))?;
    match &stage.settings.route {
        Some(route) => ui.line(format!("route       {}{}", route.host, route.path))?,
        None => ui.line("route       none: it takes no traffic")?,
    }
    match &stage.current {
        Some(release) => {
            ui.line(format!("serves      {} ({})", release.image.requested, ui::short_digest(&release.image.digest)))?;
            ui.line(format!("since       {} by deployment {}", ui::ago(now, release.since), release.deployment))?;
        }
        None => ui.line("serves      nothing yet")?,
    }
    if let Some(active) = &stage.active {
        ui.line(format!(
            "on its way  {}, {}, by {}",
            on_its_way(active),
            ui::ago(now, active.since),
            active.requested_by
        ))?;
        ui.line(format!("            deployment {}", active.deployment))?;
    }
    for queued in &stage.queue {
        let since = ui::ago(now, queued.requested_at);
        ui.line(format!(
            "waits       {}, requested {since} by {}",
            rollout::version(queued.kind, &queued.image),
            queued.requested_by
        ))?;
        ui.line(format!("            deployment {}", queued.deployment))?;
    }
    if let Some(promotion) = stage.promotion {
        ui.line(format!("promotion   {promotion} waits for its gates"))?;
    }
    if let Some(hold) = &stage.hold {
        ui.line(format!("on hold     {} by {}: {}", ui::ago(now, hold.since), hold.by, hold.reason))?;
    }
    if let Some(lock) = &stage.lock {
        ui.line(format!("locked      {} by {}: {}", ui::ago(now, lock.since), lock.owner, lock.reason))?;
    }
    if !stage.instances.is_empty() {
        ui.line("")?;
        instances(&stage.instances, ui)?;
    }
    Ok(Code::Ok)
}

/// Containers as a table.
pub(super) fn instances(instances: &[Instance], ui: &Ui) -> Result<(), Failure> {
    let now = runtime::clock::now();
    let rows = instances
        .iter()
        .map(|instance| {
            let state = match (instance.exit_code, instance.healthy) {
                (Some(code), _) => format!("{} ({code})", instance.state),
                (None, Some(false)) => format!("{}, unhealthy", instance.state),
                (None, Some(true) | None) => instance.state.clone(),
            };
            let address = instance.address.clone().unwrap_or_else(|| "-".to_owned());
            [instance.name.clone(), state, address, ui::ago(now, instance.changed_at)]
        })
        .collect();
    ui.table(["CONTAINER", "STATE", "ADDRESS", "CHANGED"], rows)?;
    Ok(())
}
