//! The event index: every event, to be searched.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use domain::Recorded;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    Error, Model,
    fold::{self, text},
};

pub(crate) const MODEL: Model = Model {
    name: "events",
    apply: |to, events| Box::pin(apply(to, events)),
    fill: Some(|to, events| Box::pin(fill(to, events))),
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// Position in the log.
    pub sequence: u64,
    pub id: Uuid,
    pub time: DateTime<Utc>,
    /// The NATS subject it was published under.
    pub subject: String,
    /// The CloudEvents type.
    #[serde(rename = "type")]
    pub kind: String,
    pub project: Option<String>,
    pub stage: Option<String>,
    pub actor: String,
    pub correlation_id: Uuid,
    /// What happened, as the event's type defines it.
    pub data: Value,
}

/// Which events to find. The default finds all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of these projects.
    pub within: Option<Vec<String>>,
    /// A NATS pattern: `*` stands for one token, a last `>` for one or more.
    pub subject: Option<String>,
    pub project: Option<String>,
    pub stage: Option<String>,
    /// A whole CloudEvents type.
    pub kind: Option<String>,
    /// Text that occurs anywhere in the event, in any case.
    pub text: Option<String>,
    /// Only those behind this position; the oldest then come first.
    pub after: Option<u64>,
    /// Only those before this position.
    pub before: Option<u64>,
}

/// The newest first, or the oldest first where `after` was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = EventPage)]
pub struct Page {
    pub events: Vec<EventRecord>,
    /// Give it as `before` (or as `after`, where that was asked for) to read on; none on the last page.
    pub next: Option<u64>,
}

/// At most `limit` events.
pub async fn find(database: &PgPool, filter: &Filter, limit: u16) -> Result<Page, Error> {
    let limit = usize::from(limit.max(1));
    let (like, expression) = filter.subject.as_deref().map(|subject| pattern(&text(subject))).unzip();
    let ascending = filter.after.is_some();
    // One more than asked for tells whether there is a next page.
    let mut events = sqlx::query!(
        r#"select sequence, id, time, subject, type as kind, project, stage, actor, correlation_id,
                event->'data' as "data!"
           from events
           where ($1::text is null or subject like $1) and ($2::text is null or subject ~ $2)
             and ($3::text is null or project = $3) and ($4::text is null or stage = $4)
             and ($5::text is null or type = $5) and ($6::text is null or event::text ilike $6)
             and ($7::bigint is null or sequence > $7) and ($8::bigint is null or sequence < $8)
             and ($11::text[] is null or project = any($11))
           order by case when $9 then sequence end, sequence desc limit $10"#,
        like,
        expression.flatten(),
        filter.project.as_deref().map(text),
        filter.stage.as_deref().map(text),
        filter.kind.as_deref().map(text),
        filter.text.as_deref().map(|part| containing(&text(part))),
        filter.after.map(u64::cast_signed),
        filter.before.map(u64::cast_signed),
        ascending,
        limit as i64 + 1,
        filter.within.as_deref()
    )
    .map(|row| EventRecord {
        sequence: row.sequence.cast_unsigned(),
        id: row.id,
        time: row.time,
        subject: row.subject,
        kind: row.kind,
        project: row.project,
        stage: row.stage,
        actor: row.actor,
        correlation_id: row.correlation_id,
        data: row.data,
    })
    .fetch_all(database)
    .await
    .map_err(Error::during("searching the events"))?;
    let more = events.len() > limit;
    events.truncate(limit);
    let next = events.last().filter(|_| more).map(|last| last.sequence);
    Ok(Page { events, next })
}

/// A NATS pattern as a LIKE pattern, which an index can serve as far as it is literal, and a regular expression for
/// what LIKE cannot say.
fn pattern(subject: &str) -> (String, Option<String>) {
    let tokens: Vec<&str> = subject.split('.').collect();
    let wild = |(at, token): (usize, &&str)| *token == "*" || (*token == ">" && at + 1 == tokens.len());
    let Some(first) = tokens.iter().enumerate().position(wild) else { return (literally(subject), None) };
    let begin: String = tokens[..first].iter().map(|token| format!("{}.", literally(token))).collect();
    let any = format!("{begin}_%");
    if first + 1 == tokens.len() && tokens[first] == ">" {
        return (any, None);
    }
    let expressions = tokens.iter().enumerate().map(|(at, token)| match (*token, wild((at, token))) {
        (">", true) => ".+".to_owned(),
        (_, true) => "[^.]+".to_owned(),
        (token, false) => token
            .chars()
            .flat_map(|c| (c.is_ascii() && !c.is_ascii_alphanumeric()).then_some('\\').into_iter().chain([c]))
            .collect(),
    });
    (any, Some(format!("^{}$", expressions.collect::<Vec<_>>().join(r"\."))))
}

/// A LIKE pattern for `part` anywhere in a JSON text, where some characters are escaped.
fn containing(part: &str) -> String {
    let json = serde_json::Value::from(part).to_string();
    format!("%{}%", literally(&json[1..json.len() - 1]))
}

/// A LIKE pattern that only `text` itself matches.
fn literally(text: &str) -> String {
    text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_")
}

async fn apply(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    let each = |column: fn(&Recorded) -> Option<String>| events.iter().map(column).collect::<Vec<_>>();
    let bodies: Vec<Cow<'_, str>> = events.iter().map(|recorded| fold::storable(&recorded.body)).collect();
    sqlx::query!(
        "insert into events (sequence, id, time, subject, type, project, stage, actor, correlation_id, event)
         select sequence, id, time, subject, type, project, stage, actor, correlation_id, event::jsonb
         from unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::text[], $9::uuid[], $10::text[])
            as new (sequence, id, time, subject, type, project, stage, actor, correlation_id, event)",
        &events.iter().map(|recorded| recorded.sequence.cast_signed()).collect::<Vec<_>>(),
        &events.iter().map(|recorded| recorded.id).collect::<Vec<_>>(),
        &events.iter().map(fold::time).collect::<Vec<_>>(),
        &each(|recorded| Some(recorded.subject.clone())) as &[Option<String>],
        &each(|recorded| Some(recorded.kind.clone())) as &[Option<String>],
        &each(|recorded| recorded.project().map(str::to_owned)) as &[Option<String>],
        &each(|recorded| recorded.stage().map(str::to_owned)) as &[Option<String>],
        &each(|recorded| Some(text(&recorded.context.actor))) as &[Option<String>],
        &events.iter().map(|recorded| recorded.context.correlation_id).collect::<Vec<_>>(),
        &bodies as &[Cow<'_, str>]
    )
    .execute(to)
    .await?;
    Ok(())
}

/// The same rows by COPY, in PostgreSQL's binary format: what is a number stays one.
async fn fill(to: &mut PgConnection, events: &[Recorded]) -> sqlx::Result<()> {
    const STATEMENT: &str = "copy events (sequence, id, time, subject, type, project, stage, actor, correlation_id, \
        event) from stdin with (format binary)";
    /// Bytes sent at a time.
    const PART: usize = 1 << 18;
    let mut copy = to.copy_in_raw(STATEMENT).await?;
    let mut rows = Vec::with_capacity(PART + (PART >> 2));
    rows.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for recorded in events {
        row(&mut rows, recorded);
        if rows.len() >= PART {
            copy.send(rows.as_slice()).await?;
            rows.clear();
        }
    }
    rows.extend_from_slice(&(-1_i16).to_be_bytes());
    copy.send(rows).await?;
    copy.finish().await.map(drop)
}

fn row(to: &mut Vec<u8>, recorded: &Recorded) {
    const COLUMNS: i16 = 10;
    /// PostgreSQL counts microseconds from the year 2000.
    const EPOCH: i64 = 946_684_800_000_000;
    let micros = fold::time(recorded).timestamp_micros() - EPOCH;
    to.extend_from_slice(&COLUMNS.to_be_bytes());
    field(to, &recorded.sequence.to_be_bytes());
    field(to, recorded.id.as_bytes());
    field(to, &micros.to_be_bytes());
    field(to, recorded.subject.as_bytes());
    field(to, recorded.kind.as_bytes());
    for text in [recorded.project(), recorded.stage()] {
        match text {
            Some(text) => field(to, text.as_bytes()),
            None => to.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    field(to, text(&recorded.context.actor).as_bytes());
    field(to, recorded.context.correlation_id.as_bytes());
    let body = fold::storable(&recorded.body);
    // Its form on the wire, of which there is one: text.
    size(to, body.len() + 1);
    to.push(1);
    to.extend_from_slice(body.as_bytes());
}

fn field(to: &mut Vec<u8>, bytes: &[u8]) {
    size(to, bytes.len());
    to.extend_from_slice(bytes);
}

fn size(to: &mut Vec<u8>, bytes: usize) {
    // The log takes no message that is near the limit.
    to.extend_from_slice(&i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, database, writer};

    async fn found(pool: &PgPool, filter: Filter) -> Vec<u64> {
        let page = find(pool, &filter, 1000).await.expect("found");
        page.events.iter().map(|event| event.sequence).collect()
    }

    fn subject(pattern: &str) -> Filter {
        Filter { subject: Some(pattern.into()), ..Filter::default() }
    }

    /// The rules of NATS, token by token.
    fn fits(pattern: &str, subject: &str) -> bool {
        let (mut pattern, mut subject) = (pattern.split('.').peekable(), subject.split('.'));
        loop {
            match (pattern.next(), subject.next()) {
                (Some(">"), Some(_)) if pattern.peek().is_none() => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(token)) if wanted == token => {}
                (None, None) => return true,
                (Some(_), _) | (None, Some(_)) => return false,
            }
        }
    }

    #[tokio::test]
    async fn subjects_are_matched_by_the_rules_of_nats() {
        let (_database, pool) = database().await;
        let mut history = History::released();
        history.deploy("prod", 2);
        let (username, secret) = ("ci".to_owned(), "registry/x".to_owned());
        let host = "127.0.0.1:5000".to_owned();
        history
            .registry(&host.clone(), domain::registry::Command::SetCredentials { host, username, secret, version: 1 });
        writer(&pool).await.apply(&history.events).await.expect("applied");
        for pattern in [
            ">",
            "sluice.>",
            "sluice.events.stage.shop.dev.deployment.succeeded",
            "sluice.events.stage.shop.*.deployment.>",
            "sluice.events.*.shop.*.deployment.succeeded",
            "sluice.events.stage.shop.dev.>",
            "sluice.events.stage.shop.dev",
            "sluice.events.stage.shop.dev.deployment.succeeded.>",
            "sluice.events.*",
            "sluice.events.project.*.stage.*",
            "sluice.events.registry.127_0_0_1:5000.credentials.*",
            "sluice.events.registry.127x0_0_1:5000.>",
            "sluice.%",
            "*.*.*.*.*.*",
            "sluice.>.dev",
            "",
            "a\0b",
            "sluice.events.[a-z]*.(x",
        ] {
            let expected: Vec<u64> =
                history.events.iter().filter(|e| fits(pattern, &e.subject)).map(|e| e.sequence).rev().collect();
            assert_eq!(found(&pool, subject(pattern)).await, expected, "{pattern}");
        }
    }

    #[tokio::test]
    async fn every_filter_narrows() {
        let (_database, pool) = database().await;
        let mut history = History::released();
        history.deploy("prod", 2);
        writer(&pool).await.apply(&history.events).await.expect("applied");
        let count = |wanted: &dyn Fn(&Recorded) -> bool| history.events.iter().filter(|event| wanted(event)).count();

        let prod = Filter { project: Some("shop".into()), stage: Some("prod".into()), ..Filter::default() };
        assert_eq!(found(&pool, prod).await.len(), count(&|event| event.stage() == Some("prod")));
        let kind = "dev.sluice.stage.deployment.succeeded.v1";
        let succeeded = Filter { kind: Some(kind.into()), ..Filter::default() };
        assert_eq!(found(&pool, succeeded).await.len(), 2);
        let text = |text: &str| Filter { text: Some(text.into()), ..Filter::default() };
        assert_eq!(found(&pool, text("SHOP:V2")).await.len(), 1);
        assert_eq!(found(&pool, text("%")).await, [0_u64; 0]);
        assert_eq!(found(&pool, text("\"")).await, [0_u64; 0], "a quote is text, not syntax");
    }

    #[tokio::test]
    async fn pages_go_both_ways_without_gap() {
        let (_database, pool) = database().await;
        let history = History::released();
        let last = history.events.len() as u64;
        writer(&pool).await.apply(&history.events).await.expect("applied");
        let (mut up, mut down) = (vec![], vec![]);
        let mut filter = Filter { after: Some(0), ..Filter::default() };
        while filter.after.is_some() {
            let page = find(&pool, &filter, 3).await.expect("found");
            up.extend(page.events.iter().map(|event| event.sequence));
            filter.after = page.next;
        }
        assert_eq!(up, (1..=last).collect::<Vec<_>>());
        let mut filter = Filter::default();
        loop {
            let page = find(&pool, &filter, 4).await.expect("found");
            down.extend(page.events.iter().map(|event| event.sequence));
            filter.before = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!(down, (1..=last).rev().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_whole_event_is_kept_as_it_stands_in_the_log() {
        let (_database, pool) = database().await;
        let history = History::released();
        writer(&pool).await.apply(&history.events).await.expect("applied");
        for recorded in &history.events {
            let (body,): (Value,) = sqlx::query_as("select event from events where sequence = $1")
                .bind(recorded.sequence.cast_signed())
                .fetch_one(&pool)
                .await
                .expect("it is there");
            let stored: Value = serde_json::from_str(&recorded.body).expect("JSON");
            assert_eq!(body, stored);
            assert_eq!(body["specversion"], "1.0");
            assert!(recorded.subject.contains(&format!(".{}.", body["subject"].as_str().expect("a subject"))));
        }
    }
}
