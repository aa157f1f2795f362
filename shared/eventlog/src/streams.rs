//! The streams of `nats/streams.json`: created where they are absent, compared where they exist.

use async_nats::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{connect::ConnectError, nats};

const DECLARED: &str = include_str!("../../../nats/streams.json");
const OPERATION: &str = "declaring the streams";

/// Key in the metadata of EVENTS that holds the installation's id.
const INSTALLATION: &str = "sluice.installation";

const NOT_FOUND: u64 = 10059;
const NAME_IN_USE: u64 = 10058;

/// A stream that is not as this version declares it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "stream {stream} is not as declared: {field} is {actual}, where nats/streams.json says {declared}; \
     nothing was changed: change the stream back, or use the version of sluice that made it"
)]
pub struct Drift {
    pub stream: String,
    /// Path in the stream's configuration, e.g. `sources[0].name`.
    pub field: String,
    /// In JSON.
    pub declared: String,
    /// In JSON; `null` when it is missing.
    pub actual: String,
}

#[derive(Deserialize)]
struct Info {
    config: Value,
}

/// Creates or verifies every declared stream and returns the installation's id.
pub(crate) async fn declare(client: &Client) -> Result<Uuid, ConnectError> {
    let declared: Vec<Value> =
        serde_json::from_str(DECLARED).map_err(|e| ConnectError::Log(crate::Error::Encode(e)))?;
    let mut installation = None;
    for mut stream in declared {
        let name = stream["name"].as_str().unwrap_or_default().to_owned();
        let config = match info(client, &name).await? {
            Some(config) => config,
            None => {
                let mut wanted = stream.clone();
                if name == nats::EVENTS {
                    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
                    wanted["metadata"] = json!({ INSTALLATION: id });
                }
                create(client, &name, &wanted).await?
            }
        };
        // Words for people may change from version to version.
        if let Some(fields) = stream.as_object_mut() {
            fields.remove("description");
        }
        if let Some(drift) = drift(&name, "", &stream, &config) {
            return Err(drift.into());
        }
        if name == nats::EVENTS {
            let id = &config["metadata"][INSTALLATION];
            let missing = || Drift {
                stream: name.clone(),
                field: format!("metadata[\"{INSTALLATION}\"]"),
                declared: "the id of the installation".into(),
                actual: id.to_string(),
            };
            installation = Some(id.as_str().and_then(|id| id.parse().ok()).ok_or_else(missing)?);
        }
    }
    installation.ok_or_else(|| {
        ConnectError::Log(crate::Error::Protocol { operation: OPERATION, detail: "EVENTS is not declared".into() })
    })
}

/// The same for a server that has lost what it held in memory.
pub(crate) async fn restore(client: &Client, operation: &'static str) -> Result<(), crate::Error> {
    declare(client).await.map(drop).map_err(|error| match error {
        ConnectError::Log(error) => error,
        error => crate::Error::Unavailable { operation, source: Box::new(error) },
    })
}

async fn info(client: &Client, name: &str) -> Result<Option<Value>, ConnectError> {
    match nats::api::<Info>(client, OPERATION, &format!("STREAM.INFO.{name}"), &json!({})).await? {
        Ok(info) => Ok(Some(info.config)),
        Err(error) if error.err_code == NOT_FOUND => Ok(None),
        Err(error) => Err(error.refused(OPERATION).into()),
    }
}

async fn create(client: &Client, name: &str, wanted: &Value) -> Result<Value, ConnectError> {
    match nats::api::<Info>(client, OPERATION, &format!("STREAM.CREATE.{name}"), wanted).await? {
        Ok(info) => Ok(info.config),
        // Another role was faster: what it made is verified like any other.
        Err(error) if error.err_code == NAME_IN_USE => {
            info(client, name).await?.ok_or_else(|| error.refused(OPERATION).into())
        }
        Err(error) => Err(error.refused(OPERATION).into()),
    }
}

/// The first declared field that differs. What is not declared is the server's business.
fn drift(stream: &str, path: &str, declared: &Value, actual: &Value) -> Option<Drift> {
    match (declared, actual) {
        (Value::Object(fields), _) => fields.iter().find_map(|(name, declared)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            drift(stream, &path, declared, &actual[name])
        }),
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            let pairs = items.iter().zip(others).enumerate();
            pairs
                .into_iter()
                .find_map(|(i, (declared, actual))| drift(stream, &format!("{path}[{i}]"), declared, actual))
        }
        // The server leaves out what is off or zero.
        (Value::Bool(false), Value::Null) => None,
        (Value::Number(number), Value::Null) if number.as_i64() == Some(0) => None,
        (declared, actual) if declared == actual => None,
        (declared, actual) => Some(Drift {
            stream: stream.to_owned(),
            field: path.to_owned(),
            declared: declared.to_string(),
            actual: actual.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_declared_fields_count_and_the_first_difference_is_named() {
        let declared = json!({ "a": 1, "off": false, "sources": [{ "name": "X" }] });
        assert_eq!(
            drift("S", "", &declared, &json!({ "a": 1, "more": 2, "sources": [{ "name": "X", "lag": 1 }] })),
            None
        );
        let found = drift("S", "", &declared, &json!({ "a": 1, "sources": [{ "name": "Y" }] })).expect("differs");
        assert_eq!(
            (found.field.as_str(), found.declared.as_str(), found.actual.as_str()),
            ("sources[0].name", "\"X\"", "\"Y\"")
        );
        assert!(drift("S", "", &declared, &json!({ "a": 1, "off": true, "sources": [{ "name": "X" }] })).is_some());
        assert!(drift("S", "", &declared, &json!({ "a": 1, "sources": [] })).is_some());
    }
}
