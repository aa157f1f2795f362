//! `sluice stage ...`, and what keeps others from a stage: `lock`, `unlock`, `hold`, `unhold`.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{
    Target,
    exit::{Code, Failure},
    ui::Ui,
};
use crate::client::{Client, Parts};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// End a stage: what runs on it is removed; declaring it again brings it back empty
    Archive(Target),
}

#[derive(Args)]
pub(crate) struct Lock {
    #[command(flatten)]
    target: Target,
    /// Why; shown to whoever wants to deploy
    #[arg(short, long)]
    reason: String,
}

#[derive(Args)]
pub(crate) struct Unlock {
    #[command(flatten)]
    target: Target,
    /// Take the lock from another owner
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct Hold {
    #[command(flatten)]
    target: Target,
    /// Why; shown to whoever wonders
    #[arg(short, long)]
    reason: String,
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let Command::Archive(target) = command;
    let stages = format!("/projects/{}/stages", target.project);
    let answer = client.change(Method::POST, &target.path("/archive"), Parts::default(), &stages).await?;
    ui.result(&answer, || format!("stage {target} is archived; what runs on it is being removed"))?;
    Ok(Code::Ok)
}

pub(super) async fn lock(Lock { target, reason }: Lock, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let body = json!({ "reason": reason });
    let answer = client.change(Method::PUT, &target.path("/lock"), Parts::body(body), &target.path("")).await?;
    ui.result(&answer, || format!("{target} is locked: {reason}"))?;
    Ok(Code::Ok)
}

pub(super) async fn unlock(Unlock { target, force }: Unlock, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let query = [("force", force.to_string())];
    let parts = Parts { query: &query, ..Parts::default() };
    let answer = client.change(Method::DELETE, &target.path("/lock"), parts, &target.path("")).await?;
    ui.result(&answer, || format!("{target} is unlocked"))?;
    Ok(Code::Ok)
}

pub(super) async fn hold(Hold { target, reason }: Hold, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let body = json!({ "reason": reason });
    let answer = client.change(Method::PUT, &target.path("/hold"), Parts::body(body), &target.path("")).await?;
    ui.result(&answer, || format!("{target} is on hold: {reason}"))?;
    Ok(Code::Ok)
}

pub(super) async fn unhold(target: Target, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.change(Method::DELETE, &target.path("/hold"), Parts::default(), &target.path("")).await?;
    ui.result(&answer, || format!("{target} is not on hold any more"))?;
    Ok(Code::Ok)
}
