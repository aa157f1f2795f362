//! Webhooks: who may tell Sluice of new images, and how such a message proves where it comes from. One aggregate per
//! hook. Its secret lies in the vault.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Aggregate, FieldError, Key, Slug, image};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "configured.v1")]
    Configured { settings: HookSettings },
    #[serde(rename = "secret.set.v1")]
    SecretSet {
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "removed.v1")]
    Removed {},
}

/// Who sends to a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Notifications of the CNCF registry `distribution`, and of what is built on it.
    Distribution,
    Dockerhub,
    /// GitHub's events `registry_package` and `package`.
    Github,
    /// Gitea and Forgejo.
    Gitea,
    Harbor,
    /// A program that says what to deploy, such as a build.
    Plain,
}

/// A webhook as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HookSettings {
    pub source: Source,
    /// Host of the registry that it tells of, as the images of stages name it; `docker.io` and `ghcr.io` for their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "registry.example.com")]
    pub registry: Option<String>,
    /// With `source: plain`: the stage that it deploys to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "shop")]
    pub project: Option<Slug>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "dev")]
    pub stage: Option<Slug>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hook {
    /// None where there is no such hook.
    pub settings: Option<HookSettings>,
    pub secret: Option<Secret>,
}

/// Where a hook's secret lies in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub secret: String,
    pub version: u64,
}

#[derive(Debug, Clone)]
pub enum Command {
    Configure {
        settings: HookSettings,
    },
    /// It lies in the vault already.
    SetSecret {
        secret: String,
        version: u64,
    },
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("no such hook: `sluice hook list` shows them")]
    Unknown,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

impl Key<Hook> {
    pub fn hook(name: &Slug) -> Self {
        Key::new(name.to_string())
    }
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Distribution => "distribution",
            Self::Dockerhub => "dockerhub",
            Self::Github => "github",
            Self::Gitea => "gitea",
            Self::Harbor => "harbor",
            Self::Plain => "plain",
        }
    }

    /// The registry that it tells of where none is named.
    fn own_registry(self) -> Option<&'static str> {
        match self {
            Self::Dockerhub => Some("docker.io"),
            Self::Github => Some("ghcr.io"),
            Self::Distribution | Self::Gitea | Self::Harbor | Self::Plain => None,
        }
    }
}

impl HookSettings {
    /// Everything that is wrong with them.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: &str, problem: &str| {
            if !good {
                errors.push(FieldError { field: field.to_owned(), problem: problem.to_owned() });
            }
        };
        if self.source == Source::Plain {
            require(self.project.is_some(), "project", "is needed with `source: plain`");
            require(self.stage.is_some(), "stage", "is needed with `source: plain`");
            require(
                self.registry.is_none(),
                "registry",
                "does not apply to `source: plain`, whose stage names its image",
            );
        } else {
            let why = "applies only to `source: plain`; any other tells every stage that follows its images";
            require(self.project.is_none(), "project", why);
            require(self.stage.is_none(), "stage", why);
            match &self.registry {
                Some(registry) => require(image::valid_host(registry), "registry", "must be host[:port]"),
                None => {
                    let known = self.source.own_registry().is_some();
                    require(known, "registry", "is needed: the host of the registry, as the stages' images name it");
                }
            }
        }
        errors
    }

    /// Host of the registry that it tells of.
    pub fn registry(&self) -> Option<&str> {
        self.registry.as_deref().or(self.source.own_registry())
    }
}

impl Aggregate for Hook {
    const NAME: &'static str = "hook";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (command, &self.settings) {
            (Command::Configure { settings }, known) => {
                let errors = settings.check();
                if !errors.is_empty() {
                    return Err(Rejection::Invalid(errors));
                }
                Ok(if known.as_ref() == Some(&settings) { vec![] } else { vec![Event::Configured { settings }] })
            }
            (Command::SetSecret { .. } | Command::Remove, None) => Err(Rejection::Unknown),
            (Command::SetSecret { secret, version }, Some(_)) => {
                let wanted = Secret { secret: secret.clone(), version };
                let known = self.secret.as_ref() == Some(&wanted);
                Ok(if known { vec![] } else { vec![Event::SecretSet { secret, version }] })
            }
            (Command::Remove, Some(_)) => Ok(vec![Event::Removed {}]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Configured { settings } => self.settings = Some(settings.clone()),
            Event::SecretSet { secret, version } => {
                self.secret = Some(Secret { secret: secret.clone(), version: *version });
            }
            Event::Removed {} => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: Source) -> HookSettings {
        HookSettings { source, registry: None, project: None, stage: None }
    }

    #[test]
    fn a_hook_comes_with_its_settings_and_goes_with_its_secret() {
        let mut hook = Hook::default();
        let secret = |version| Command::SetSecret { secret: "k".into(), version };
        assert_eq!(hook.decide(secret(1)), Err(Rejection::Unknown));
        for (command, events) in [
            (Command::Configure { settings: of(Source::Github) }, 1),
            (Command::Configure { settings: of(Source::Github) }, 0),
            (secret(1), 1),
            (secret(1), 0),
            (secret(2), 1),
            (Command::Remove, 1),
        ] {
            let decided = hook.decide(command).expect("accepted");
            assert_eq!(decided.len(), events);
            decided.iter().for_each(|event| hook.evolve(event));
        }
        assert_eq!(hook, Hook::default());
        assert_eq!(hook.decide(Command::Remove), Err(Rejection::Unknown));
    }

    #[test]
    fn every_bad_field_is_named() {
        let fields = |settings: HookSettings| settings.check().into_iter().map(|e| e.field).collect::<Vec<_>>();
        let shop: Slug = "shop".parse().expect("a good name");
        assert_eq!(fields(of(Source::Plain)), ["project", "stage"]);
        assert_eq!(fields(of(Source::Harbor)), ["registry"]);
        assert_eq!(fields(HookSettings { registry: Some("a/b".into()), ..of(Source::Github) }), ["registry"]);
        assert_eq!(fields(HookSettings { stage: Some(shop.clone()), ..of(Source::Github) }), ["stage"]);
        let plain = HookSettings { project: Some(shop.clone()), stage: Some(shop), ..of(Source::Plain) };
        assert_eq!(fields(plain.clone()), Vec::<String>::new());
        assert_eq!(fields(HookSettings { registry: Some("r".into()), ..plain }), ["registry"]);
        assert_eq!(of(Source::Dockerhub).registry(), Some("docker.io"));
    }
}
