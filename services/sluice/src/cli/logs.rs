//! `sluice logs`.

use clap::Args;
use domain::DeploymentId;

use super::{
    Target,
    exit::{Code, Failure},
    ui::{self, Ui},
};
use crate::client::{self, Client, LogEntry};

#[derive(Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    target: Target,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// So many of the last lines
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    tail: u32,
    /// Only of this deployment
    #[arg(long)]
    deployment: Option<DeploymentId>,
}

pub(super) async fn run(args: Logs, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let mut query = vec![("tail", args.tail.to_string())];
    query.extend(args.deployment.map(|deployment| ("deployment", deployment.to_string())));
    let path = args.target.path("/logs");
    if !args.follow {
        let answer = client.get(&path, &query).await?;
        if ui.json {
            ui.document(&answer)?;
            return Ok(Code::Ok);
        }
        let entries: Vec<LogEntry> = client::read(answer)?;
        if entries.is_empty() {
            ui.note(format!("nothing was written on {} yet", args.target));
        }
        entries.iter().try_for_each(|entry| line(entry, ui))?;
        return Ok(Code::Ok);
    }
    query.push(("follow", "true".to_owned()));
    let mut entries = client.follow(&path, &query);
    loop {
        let message = entries.next().await?;
        let entry = message.document()?;
        if ui.json {
            ui.entry(&entry)?;
        } else {
            line(&client::read(entry)?, ui)?;
        }
    }
}

fn line(entry: &LogEntry, ui: &Ui) -> Result<(), Failure> {
    ui.line(format!("{} {} | {}", ui::clock(entry.time), entry.source, entry.text))?;
    Ok(())
}
