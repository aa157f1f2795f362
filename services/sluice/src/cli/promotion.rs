//! `sluice promote` and `sluice promotion ...`.

use clap::{Args, Subcommand};
use domain::{
    PromotionId, Slug,
    promotion::{Answer, Check, Verification},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Target,
    exit::{Code, Failure},
    people::People,
    rollout,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts, Preview, Promotion, PromotionAsked, PromotionStatus};

#[derive(Args)]
pub(crate) struct Promote {
    /// The stage that takes the release of the one it promotes from
    #[command(flatten)]
    target: Target,
    /// Only show what every gate says now
    #[arg(long, conflicts_with_all = ["wait", "follow", "digest"])]
    plan: bool,
    /// Wait for gates that may pass later, instead of being refused by them
    #[arg(long)]
    wait: bool,
    /// Only if the source runs exactly this
    #[arg(long)]
    digest: Option<String>,
    /// Look on at the deployment that follows, until it has ended
    #[arg(short, long)]
    follow: bool,
    /// The same key for the same request promotes once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Earlier and waiting promotions, newest first
    List(List),
    /// One promotion, with its proof
    Show(One),
    /// Agree to a promotion that waits; never to one's own
    Approve(One),
    /// Call off a promotion that waits
    Withdraw(Withdraw),
    /// Decide an accepted promotion again from the event log, and compare
    Verify(One),
}

#[derive(Args)]
pub(crate) struct List {
    project: Option<Slug>,
    stage: Option<Slug>,
    /// Only those that are not decided
    #[arg(long)]
    waiting: bool,
    /// At most so many
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Only those requested before this position in the log
    #[arg(long, value_name = "SEQUENCE")]
    before: Option<u64>,
}

#[derive(Args)]
pub(crate) struct One {
    #[arg(value_name = "PROMOTION")]
    id: PromotionId,
}

#[derive(Args)]
pub(crate) struct Withdraw {
    #[arg(value_name = "PROMOTION")]
    id: PromotionId,
    /// Why; part of the history
    #[arg(short, long)]
    reason: String,
}

pub(super) async fn promote(args: Promote, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Promote { target, plan, wait, digest, follow, idempotency_key } = args;
    let mut wanted = digest;
    // A script says what it wants, and a repetition must send what was sent before.
    if plan || (!ui.json && idempotency_key.is_none()) {
        let answer = client.get(&target.path("/promotion"), &[]).await?;
        if plan && ui.json {
            ui.document(&answer)?;
        } else {
            let preview: Preview = client::read(answer.clone())?;
            show_plan(&target, &preview, ui)?;
            // What was shown is what is asked for, whatever the source runs by then.
            wanted = wanted.or(preview.digest);
        }
        if plan {
            let answer: Preview = client::read(answer)?;
            return Ok(if answer.answer == Answer::Passed { Code::Ok } else { Code::Refused });
        }
    }
    let body = json!({ "digest": wanted, "wait": wait });
    let parts = Parts { idempotency_key, ..Parts::body(body) };
    let answer = client.send(Method::POST, &target.path("/promotions"), parts).await?;
    concluded(&target, answer, follow, client, ui).await
}

fn show_plan(target: &Target, preview: &Preview, ui: &Ui) -> Result<(), Failure> {
    let image = preview.image.as_deref().unwrap_or("nothing");
    let digest = preview.digest.as_deref().map(|digest| format!(" ({})", ui::short_digest(digest)));
    ui.line(format!("{} -> {target}: {image}{}", preview.source, digest.unwrap_or_default()))?;
    checks(&preview.checks, ui)
}

fn checks(checks: &[Check], ui: &Ui) -> Result<(), Failure> {
    let rows = checks.iter().map(|check| {
        let answer = match check.answer {
            Answer::Passed => "passed",
            Answer::Waiting => "waiting",
            Answer::Refused => "refused",
        };
        [check.gate.to_string(), answer.to_owned(), check.reason.clone()]
    });
    Ok(ui.table(["GATE", "ANSWER", "WHY"], rows.collect())?)
}

/// Says how a promotion stands after it was asked for or approved, and looks on where that is wanted.
async fn concluded(target: &Target, answer: Value, follow: bool, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let asked: PromotionAsked = client::read(answer.clone())?;
    let id = asked.promotion;
    // The next command will see it; it is done either way.
    client.get(&format!("/promotions/{id}"), &[("at_least", asked.sequence.to_string())]).await.ok();
    match (asked.status, asked.deployment) {
        (PromotionStatus::Accepted, Some(deployment)) if follow => {
            if ui.json {
                ui.entry(&json!({ "accepted": answer }))?;
            } else {
                ui.line(format!("promotion {id} is accepted: deployment {deployment}"))?;
            }
            rollout::follow(client, ui, target, deployment, asked.sequence.saturating_sub(1)).await
        }
        (PromotionStatus::Accepted, deployment) => {
            let deployment = deployment.map(|id| id.to_string()).unwrap_or_default();
            ui.result(&answer, || format!("promotion {id} is accepted: deployment {deployment}"))?;
            ui.note(format!("`sluice promotion verify {id}` decides it again from the event log"));
            Ok(Code::Ok)
        }
        (PromotionStatus::Waiting, _) => {
            ui.result(&answer, || format!("promotion {id} waits for its gates"))?;
            ui.note(format!(
                "`sluice promotion approve {id}` agrees to it, `sluice promotion withdraw {id}` calls it off"
            ));
            Ok(Code::Ok)
        }
        (PromotionStatus::Refused, _) => {
            let gate = asked.gate.map(|gate| gate.to_string()).unwrap_or_default();
            let reason = asked.reason.unwrap_or_default();
            ui.result(&answer, || format!("promotion {id} is refused by the gate `{gate}`: {reason}"))?;
            Ok(Code::Refused)
        }
        (PromotionStatus::Withdrawn, _) => {
            ui.result(&answer, || format!("promotion {id} was withdrawn"))?;
            Ok(Code::Refused)
        }
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::List(args) => list(args, client, ui).await,
        Command::Show(One { id }) => show(id, client, ui).await,
        Command::Approve(One { id }) => {
            let path = format!("/promotions/{id}");
            let promotion: Promotion = client::read(client.get(&path, &[]).await?)?;
            let answer = client.send(Method::POST, &format!("{path}/approve"), Parts::default()).await?;
            concluded(&promotion.target()?, answer, false, client, ui).await
        }
        Command::Withdraw(Withdraw { id, reason }) => {
            let path = format!("/promotions/{id}");
            let parts = Parts::body(json!({ "reason": reason }));
            let answer = client.change(Method::POST, &format!("{path}/withdraw"), parts, &path).await?;
            ui.result(&answer, || format!("promotion {id} is withdrawn"))?;
            Ok(Code::Ok)
        }
        Command::Verify(One { id }) => verify(id, client, ui).await,
    }
}

async fn list(args: List, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let mut query = vec![("waiting", args.waiting.to_string())];
    query.extend(args.project.map(|project| ("project", project.to_string())));
    query.extend(args.stage.map(|stage| ("stage", stage.to_string())));
    query.extend(args.before.map(|before| ("before", before.to_string())));
    let (found, next) = client.pages("/promotions", &query, "promotions", "before", args.limit as usize).await?;
    if ui.json {
        ui.document(&found)?;
        return Ok(Code::Ok);
    }
    let promotions: Vec<Promotion> = client::read(People::new(client).named(found.into()).await)?;
    if promotions.is_empty() {
        ui.note("no promotions here yet: `sluice promote PROJECT STAGE` asks for one");
        return Ok(Code::Ok);
    }
    let rows = promotions.iter().map(|promotion| {
        [
            ui::date(promotion.requested_at),
            format!("{}/{}", promotion.project, promotion.stage),
            promotion.source.clone(),
            promotion.digest.as_deref().map_or("-", ui::short_digest).to_owned(),
            promotion.status.name().to_owned(),
            promotion.gate.map_or_else(|| "-".into(), |gate| gate.to_string()),
            promotion.requested_by.clone(),
            promotion.id.to_string(),
        ]
    });
    ui.table(["REQUESTED", "STAGE", "FROM", "DIGEST", "STATUS", "GATE", "BY", "PROMOTION"], rows.collect())?;
    if let Some(next) = next {
        ui.note(format!("there are earlier ones: add `--before {next}`"));
    }
    Ok(Code::Ok)
}

async fn show(id: PromotionId, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get(&format!("/promotions/{id}"), &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let p: Promotion = client::read(People::new(client).named(answer).await)?;
    ui.line(format!("promotion   {}", p.id))?;
    ui.line(format!("stage       {}/{}, from {}", p.project, p.stage, p.source))?;
    ui.line(format!("digest      {}", p.digest.as_deref().unwrap_or("none: the source ran nothing")))?;
    ui.line(format!("requested   {} by {}", ui::date(p.requested_at), p.requested_by))?;
    for approval in &p.approvals {
        ui.line(format!("approved    by {} ({})", approval.by, approval.role))?;
    }
    let when = p.decided_at.map(|at| format!(" at {}", ui::date(at))).unwrap_or_default();
    let why = match (p.gate, &p.reason) {
        (Some(gate), Some(reason)) => format!(" by the gate `{gate}`: {reason}"),
        (None, Some(reason)) => format!(": {reason}"),
        (_, None) => String::new(),
    };
    ui.line(format!("status      {}{when}{why}", p.status.name()))?;
    if let Some(deployment) = p.deployment {
        ui.line(format!("deployment  {deployment}"))?;
    }
    if let Some(proof) = &p.proof {
        let source = &proof.source;
        ui.line(format!("proof       event {} shows it running on {}", source.succeeded, source.stage))?;
        ui.line(format!("            healthy there since {}", ui::date(source.healthy_since)))?;
        ui.line(format!("            {} looked at up to event {}", source.stage, source.position))?;
        ui.line(format!("            gates as of event {}", proof.rules))?;
    }
    Ok(Code::Ok)
}

async fn verify(id: PromotionId, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get(&format!("/promotions/{id}/verification"), &[]).await?;
    let verification: Verification = client::read(answer.clone())?;
    let code = if verification.verified { Code::Ok } else { Code::Failed };
    if ui.json {
        ui.document(&answer)?;
        return Ok(code);
    }
    checks(&verification.checks, ui)?;
    for contradiction in &verification.contradictions {
        ui.line(format!("contradiction: {contradiction}"))?;
    }
    let verdict = if verification.verified { "verified" } else { "NOT verified" };
    ui.line(format!("promotion {id} is {verdict}: decided again from {} events", verification.events))?;
    Ok(code)
}

impl Promotion {
    fn target(&self) -> Result<Target, client::Error> {
        let name = |name: &str| name.parse::<Slug>().map_err(|error| client::Error::Misunderstood(error.to_string()));
        Ok(Target { project: name(&self.project)?, stage: name(&self.stage)? })
    }
}
