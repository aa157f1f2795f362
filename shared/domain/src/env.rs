//! Environment variables of what runs: plain values, and references to secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::FieldError;

/// By name.
pub type Env = BTreeMap<String, EnvValue>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EnvValue {
    /// Part of the event log as it is: no secrets here.
    Plain(String),
    Secret(SecretRef),
}

/// A secret of the project, by name. Its value lies in the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    #[schema(example = "db-password")]
    pub secret: String,
    /// Which value of it a release runs with: chosen when the deployment is requested, never declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Where in the vault that value lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<String>,
}

/// A value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    pub version: u64,
    pub vault: String,
}

impl From<&str> for EnvValue {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl EnvValue {
    /// The secret that it refers to.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Self::Plain(_) => None,
            Self::Secret(SecretRef { secret, .. }) => Some(secret),
        }
    }
}

/// 1 to 60 of letters, digits, `_` and `-`: part of a vault key.
pub fn is_secret_name(name: &str) -> bool {
    (1..=60).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Everything that is wrong with declared variables, each error's field under `prefix`.
pub(crate) fn check(env: &Env, prefix: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut require = |good: bool, field: String, problem: &str| {
        if !good {
            errors.push(FieldError { field, problem: problem.to_owned() });
        }
    };
    for (name, value) in env {
        let good = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let field = format!("{prefix}.{}", name.chars().take(60).collect::<String>());
        require(good, field.clone(), "names use letters, digits and _, not beginning with a digit");
        match value {
            EnvValue::Plain(text) => require(
                !text.contains('\0') && text.len() <= 32_768,
                field,
                "must be at most 32768 bytes without a null byte",
            ),
            EnvValue::Secret(SecretRef { secret, version, vault }) => {
                require(is_secret_name(secret), field.clone(), "names of secrets are 1 to 60 letters, digits, _ and -");
                require(
                    version.is_none() && vault.is_none(),
                    field,
                    "name the secret alone: its version is chosen with each deployment",
                );
            }
        }
    }
    require(env.len() <= 500, prefix.to_owned(), "must hold at most 500 variables");
    errors
}

/// `env` with each reference bound to the secret's value of now; else the names of the secrets that have none.
pub(crate) fn bind(env: Env, secrets: &BTreeMap<String, SecretVersion>) -> Result<Env, Vec<String>> {
    let mut missing = Vec::new();
    let bound = env.into_iter().map(|(name, value)| {
        let value = match value {
            EnvValue::Secret(SecretRef { secret, .. }) => {
                let known = secrets.get(&secret);
                if known.is_none() {
                    missing.push(secret.clone());
                }
                let version = known.map(|known| known.version);
                EnvValue::Secret(SecretRef { secret, version, vault: known.map(|known| known.vault.clone()) })
            }
            plain @ EnvValue::Plain(_) => plain,
        };
        (name, value)
    });
    let bound: Env = bound.collect();
    if missing.is_empty() { Ok(bound) } else { Err(missing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> EnvValue {
        EnvValue::Secret(SecretRef { secret: name.into(), version: None, vault: None })
    }

    #[test]
    fn a_value_is_text_or_the_name_of_a_secret_and_nothing_else() {
        let read = |text| serde_json::from_str::<EnvValue>(text).ok();
        assert_eq!(read(r#""x""#), Some("x".into()));
        assert_eq!(read(r#"{"secret":"db"}"#), Some(secret("db")));
        for bad in ["1", "null", r#"{"secret":"db","value":"x"}"#, r#"{"value":"x"}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_reference_is_bound_to_the_value_of_now() {
        let env = Env::from([("A".into(), "plain".into()), ("B".into(), secret("db"))]);
        assert_eq!(bind(env.clone(), &BTreeMap::new()), Err(vec!["db".to_owned()]));
        let secrets = BTreeMap::from([("db".to_owned(), SecretVersion { version: 3, vault: "v".into() })]);
        let bound = bind(env, &secrets).expect("known");
        assert_eq!(bound["A"], "plain".into());
        let reference = SecretRef { secret: "db".into(), version: Some(3), vault: Some("v".into()) };
        assert_eq!(bound["B"], EnvValue::Secret(reference));
        // Whoever declares what was bound before is told so.
        assert_eq!(check(&bound, "env").len(), 1);
    }
}
