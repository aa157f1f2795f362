//! The envelope: CloudEvents 1.0 in structured JSON, and the subjects under which events travel.
//!
//! An event's name is written once, as the serde name of its variant (`deployment.requested.v1`);
//! subject and CloudEvents type are derived from it.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use crate::{
    Aggregate, Key, administrators, handle, hook, login, project, proxy, registry, route, session, sso, stage, token,
    user,
};

/// What every aggregate's events have in common: a variant of [`Event`], and the way in and out of it.
macro_rules! events {
    ($($name:ident: $aggregate:ident,)*) => {
        /// Every event of every aggregate.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event {
            $($name($aggregate::Event),)*
        }

        $(
            impl From<$aggregate::Event> for Event {
                fn from(event: $aggregate::Event) -> Self {
                    Self::$name(event)
                }
            }

            /// Refused where it is another aggregate's.
            impl TryFrom<Event> for $aggregate::Event {
                type Error = Event;

                fn try_from(event: Event) -> Result<Self, Event> {
                    if let Event::$name(event) = event { Ok(event) } else { Err(event) }
                }
            }
        )*
    };
}

events! {
    Project: project,
    Stage: stage,
    Route: route,
    Registry: registry,
    Proxy: proxy,
    Token: token,
    Hook: hook,
    User: user,
    Handle: handle,
    Administrators: administrators,
    Session: session,
    Login: login,
    Sso: sso,
}

/// Who asked, and by which chain: the same for all events of one decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    pub time: DateTime<Utc>,
    /// `user:<id>`, `ci`, `deployer/local`, ...: who caused it, never a credential and never a person's name.
    pub actor: String,
    /// One chain from the first cause to the last effect.
    #[serde(rename = "correlationid")]
    pub correlation_id: Uuid,
    /// The event that led to this one.
    #[serde(rename = "causationid", default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
    /// The command that was decided: a command is carried out once.
    #[serde(rename = "commandid")]
    pub command_id: Uuid,
    /// Hash of what was asked for under an `Idempotency-Key`, so that its reuse for something
    /// else is noticed.
    #[serde(rename = "commandhash", default, skip_serializing_if = "Option::is_none")]
    pub command_hash: Option<String>,
    #[serde(rename = "requestid", default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// An event as it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// Position in EVENTS; grows without end, never reused.
    pub sequence: u64,
    pub id: Uuid,
    /// The full subject it was stored under.
    pub subject: String,
    /// Key tokens of the aggregate, e.g. `["shop", "prod"]`.
    pub key: Vec<String>,
    /// The CloudEvents type, e.g. `dev.sluice.stage.deployment.requested.v1`.
    pub kind: String,
    pub context: Context,
    pub event: Event,
    /// The CloudEvent as it was stored, in JSON: with what this version may not know.
    pub body: String,
}

#[derive(Serialize)]
struct Wire<'a> {
    specversion: &'static str,
    id: Uuid,
    source: &'static str,
    subject: String,
    datacontenttype: &'static str,
    #[serde(flatten)]
    context: &'a Context,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

/// The same as it comes back. What the event's type defines stays text until the type is known: a replay reads
/// millions of these, and most of its time would go into values that are looked at once.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "specversion")]
    _specversion: IgnoredAny,
    id: Uuid,
    #[serde(rename = "source")]
    _source: IgnoredAny,
    #[serde(rename = "subject")]
    _subject: IgnoredAny,
    #[serde(rename = "datacontenttype")]
    _datacontenttype: IgnoredAny,
    #[serde(flatten)]
    context: Context,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Why a stored message could not be read. A projector stops on it: an event is never skipped.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("subject {0} is not one of an aggregate of this version; upgrade sluice")]
    UnknownSubject(String),
    #[error("event {sequence} on {subject} cannot be decoded by this version; upgrade sluice")]
    Undecodable { sequence: u64, subject: String, source: serde_json::Error },
}

/// The subject under which `event`, called `name`, of the aggregate `key` is stored.
fn subject<A: Aggregate>(key: &Key<A>, event: &A::Event, name: &str) -> String {
    // The version is part of the type, not of the subject: subscribers to a topic keep it.
    let topic = name.rsplit_once(".v").map_or(name, |(topic, _)| topic);
    let prefix = key.prefix();
    match A::subject_suffix(event) {
        Some(suffix) => format!("{prefix}.{topic}.{suffix}"),
        None => format!("{prefix}.{topic}"),
    }
}

/// The stored form of `event`: subject and body.
pub fn encode<A: Aggregate>(
    key: &Key<A>,
    event: &A::Event,
    id: Uuid,
    context: &Context,
) -> Result<(String, Vec<u8>), serde_json::Error> {
    let Named { r#type, data } = Named::of(event)?;
    let subject = subject(key, event, &r#type);
    let body = serde_json::to_vec(&Wire {
        specversion: "1.0",
        id,
        source: "/sluice",
        subject: format!("{}.{}", A::NAME, key.as_str()),
        datacontenttype: "application/json",
        context,
        r#type: format!("dev.sluice.{}.{}", A::NAME, r#type),
        data,
    })?;
    Ok((subject, body))
}

/// Reads a stored event back. `sequence` is its position in EVENTS.
pub fn decode(sequence: u64, subject: &str, body: &[u8]) -> Result<Recorded, DecodeError> {
    let mut tokens = subject.strip_prefix("sluice.events.").unwrap_or_default().split('.');
    let (aggregate, rest) = (tokens.next().unwrap_or_default(), tokens);
    match aggregate {
        project::Project::NAME => record::<project::Project>(sequence, subject, body, rest.take(1)),
        stage::Stage::NAME => record::<stage::Stage>(sequence, subject, body, rest.take(2)),
        route::Host::NAME => record::<route::Host>(sequence, subject, body, rest.take(1)),
        registry::Registry::NAME => record::<registry::Registry>(sequence, subject, body, rest.take(1)),
        proxy::Proxy::NAME => record::<proxy::Proxy>(sequence, subject, body, rest.take(1)),
        token::Token::NAME => record::<token::Token>(sequence, subject, body, rest.take(1)),
        hook::Hook::NAME => record::<hook::Hook>(sequence, subject, body, rest.take(1)),
        user::User::NAME => record::<user::User>(sequence, subject, body, rest.take(1)),
        handle::Handle::NAME => record::<handle::Handle>(sequence, subject, body, rest.take(1)),
        administrators::Administrators::NAME => {
            record::<administrators::Administrators>(sequence, subject, body, rest.take(1))
        }
        session::Session::NAME => record::<session::Session>(sequence, subject, body, rest.take(1)),
        login::Login::NAME => record::<login::Login>(sequence, subject, body, rest.take(1)),
        sso::Sso::NAME => record::<sso::Sso>(sequence, subject, body, rest.take(1)),
        _ => Err(DecodeError::UnknownSubject(subject.to_owned())),
    }
}

/// Reads a stored event of an aggregate whose kind is known: what folding needs. Every way of reading
/// goes through here, so that older shapes are brought up to date in one place.
pub fn decode_as<A: Aggregate>(sequence: u64, subject: &str, body: &[u8]) -> Result<(Context, A::Event), DecodeError> {
    open::<A>(sequence, subject, body).map(|(envelope, event)| (envelope.context, event))
}

fn record<'a, A: Aggregate>(
    sequence: u64,
    subject: &str,
    body: &[u8],
    key: impl Iterator<Item = &'a str>,
) -> Result<Recorded, DecodeError> {
    let (envelope, event) = open::<A>(sequence, subject, body)?;
    let kind = envelope.kind.into_owned();
    let body = String::from_utf8_lossy(body).into_owned();
    Ok(Recorded {
        sequence,
        id: envelope.id,
        subject: subject.to_owned(),
        key: key.map(str::to_owned).collect(),
        kind,
        context: envelope.context,
        event: event.into(),
        body,
    })
}

/// The envelope, and the event in it.
fn open<'a, A: Aggregate>(
    sequence: u64,
    subject: &str,
    body: &'a [u8],
) -> Result<(Envelope<'a>, A::Event), DecodeError> {
    let undecodable = |source| DecodeError::Undecodable { sequence, subject: subject.to_owned(), source };
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(undecodable)?;
    let kind = envelope.kind.as_ref();
    let name = kind.strip_prefix("dev.sluice.").and_then(|k| k.strip_prefix(A::NAME)).and_then(|k| k.strip_prefix('.'));
    let tagged = Tagged { r#type: name.unwrap_or(kind), data: envelope.data };
    // With the name in front, the data is read straight into its type.
    let event = serde_json::to_string(&tagged).and_then(|text| serde_json::from_str(&text)).map_err(undecodable)?;
    Ok((envelope, event))
}

/// The form of every aggregate's `Event`.
#[derive(Serialize)]
struct Tagged<'a> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

/// An event beside the serde name of its variant: every aggregate's `Event` is adjacently tagged by `type`.
#[derive(Deserialize)]
struct Named {
    r#type: String,
    data: Option<Value>,
}

impl Named {
    fn of<E: Serialize>(event: &E) -> Result<Self, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(event)?)
    }
}

impl Recorded {
    pub fn project(&self) -> Option<&str> {
        let of_project = matches!(self.event, Event::Project(_) | Event::Stage(_));
        self.key.first().filter(|_| of_project).map(String::as_str)
    }

    pub fn stage(&self) -> Option<&str> {
        let of_stage = matches!(self.event, Event::Stage(_));
        self.key.get(1).filter(|_| of_stage).map(String::as_str)
    }
}
