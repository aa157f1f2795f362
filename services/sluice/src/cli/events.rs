//! `sluice events`.

use clap::Args;
use domain::Slug;
use serde::Deserialize;
use serde_json::Value;

use super::{
    exit::{Code, Failure},
    people::People,
    ui::{self, Ui},
};
use crate::client::{self, Client, Event};

#[derive(Args)]
pub(crate) struct Events {
    /// Go on with what happens from now on, or from --after on
    #[arg(short, long, conflicts_with_all = ["before", "text", "limit", "type"])]
    follow: bool,
    /// A NATS pattern, e.g. `sluice.events.stage.shop.*.deployment.>`
    #[arg(long, value_name = "PATTERN", conflicts_with_all = ["project", "stage"])]
    subject: Option<String>,
    #[arg(long)]
    project: Option<Slug>,
    #[arg(long, requires = "project")]
    stage: Option<Slug>,
    /// The whole CloudEvents type, e.g. `dev.sluice.stage.deployment.failed.v1`
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Only events in which this text occurs
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Only those behind this position, the oldest first
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// Only those before this position
    #[arg(long, value_name = "SEQUENCE")]
    before: Option<u64>,
    /// At most so many
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Deserialize)]
struct Position {
    sequence: u64,
    /// Of the message in the index, of the CloudEvent in the stream; the aggregate is in both.
    subject: String,
}

pub(super) async fn run(args: Events, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    if args.follow { follow(args, client, ui).await } else { list(args, client, ui).await }
}

async fn list(args: Events, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let cursor = if args.after.is_some() { "after" } else { "before" };
    let mut query = Vec::new();
    query.extend(args.subject.map(|subject| ("subject", subject)));
    query.extend(args.project.map(|project| ("project", project.to_string())));
    query.extend(args.stage.map(|stage| ("stage", stage.to_string())));
    query.extend(args.r#type.map(|kind| ("type", kind)));
    query.extend(args.text.map(|text| ("q", text)));
    query.extend(args.after.map(|after| ("after", after.to_string())));
    query.extend(args.before.map(|before| ("before", before.to_string())));
    let (mut events, next) = client.pages("/events", &query, "events", cursor, args.limit as usize).await?;
    if ui.json {
        ui.document(&events)?;
        return Ok(Code::Ok);
    }
    if events.is_empty() {
        ui.note("no such events");
    }
    // The newest stand last, next to the prompt, however the server sorts them.
    if args.after.is_none() {
        events.reverse();
    }
    let mut people = People::new(client);
    for event in events {
        let event = people.named(event).await;
        let Position { sequence, subject } = client::read(event.clone())?;
        line(sequence, &subject, &client::read(event)?, ui)?;
    }
    if let Some(next) = next {
        ui.note(format!("there are more: add `--{cursor} {next}`"));
    }
    Ok(Code::Ok)
}

async fn follow(args: Events, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let subject = args.subject.or_else(|| pattern(args.project.as_ref(), args.stage.as_ref()));
    let mut query: Vec<(&str, String)> = subject.map(|subject| ("subject", subject)).into_iter().collect();
    // A position, rather than "from now on": a connection that breaks before the first event misses nothing.
    let after = match args.after {
        Some(after) => Some(after),
        None => newest(client).await?,
    };
    query.extend(after.map(|after| ("after", after.to_string())));
    let mut events = client.follow("/events/stream", &query);
    let mut people = People::new(client);
    loop {
        let message = events.next().await?;
        let event = message.document()?;
        if ui.json {
            ui.entry(&event)?;
        } else {
            let event = people.named(event).await;
            let Position { sequence, subject } = client::read(event.clone())?;
            line(sequence, &subject, &client::read(event)?, ui)?;
        }
    }
}

async fn newest(client: &Client) -> Result<Option<u64>, Failure> {
    let (events, _) = client.pages("/events", &[], "events", "before", 1).await?;
    Ok(events.first().and_then(|event| event["sequence"].as_u64()))
}

/// Subjects of a project, or of one of its stages.
fn pattern(project: Option<&Slug>, stage: Option<&Slug>) -> Option<String> {
    match (project?, stage) {
        (project, None) => Some(format!("sluice.events.*.{project}.>")),
        (project, Some(stage)) => Some(format!("sluice.events.stage.{project}.{stage}.>")),
    }
}

fn line(sequence: u64, subject: &str, event: &Event, ui: &Ui) -> Result<(), Failure> {
    ui.line(format!("{sequence:>7}  {}  {}", ui::date(event.time), sentence(subject, event)))?;
    Ok(())
}

const LONGEST: usize = 160;

fn sentence(subject: &str, event: &Event) -> String {
    let name = event.r#type.strip_prefix("dev.sluice.").unwrap_or(&event.r#type);
    let name = name.rsplit_once(".v").map_or(name, |(name, _)| name);
    let (aggregate, what) = name.split_once('.').unwrap_or((name, ""));
    let key = subject.strip_prefix("sluice.events.").unwrap_or(subject);
    let key = key.strip_prefix(aggregate).unwrap_or(key).trim_start_matches('.');
    let key = key.split_once(&format!(".{what}")).map_or(key, |(key, _)| key);
    let mut data = match &event.data {
        Value::Null => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        data => data.to_string(),
    };
    if data.chars().count() > LONGEST {
        data = data.chars().take(LONGEST).chain(['…']).collect();
    }
    format!("{aggregate} {key}  {what}  {}  {data}", event.actor).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(subject: &str, kind: &str, data: Value) -> String {
        let time = chrono::DateTime::UNIX_EPOCH;
        sentence(subject, &Event { time, r#type: kind.into(), actor: "admin".into(), data })
    }

    #[test]
    fn an_event_is_one_line_from_the_index_and_from_the_stream() {
        let wanted = r#"stage shop.dev  deployment.dispatched  admin  {"node":"local"}"#;
        let kind = "dev.sluice.stage.deployment.dispatched.v1";
        assert_eq!(
            said("sluice.events.stage.shop.dev.deployment.dispatched.local", kind, json!({"node": "local"})),
            wanted
        );
        assert_eq!(said("stage.shop.dev", kind, json!({"node": "local"})), wanted);
        assert_eq!(said("project.shop", "dev.sluice.project.archived.v1", json!({})), "project shop  archived  admin");
    }

    #[test]
    fn long_data_is_cut() {
        let line = said("project.shop", "dev.sluice.project.created.v1", json!({"name": "ä".repeat(1000)}));
        assert!(line.chars().count() < 220 && line.ends_with('…'), "{line}");
    }
}
