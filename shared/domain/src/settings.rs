//! What a person declares for a stage, and the checks it must pass.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Bytes, Cpus, FieldError, Slug, Span,
    env::{self, Env},
    policy::TagPolicy,
    promotion::Gates,
};

/// A stage as declared. Every field but `image` has a default that a small web service can live with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StageSettings {
    /// Repository that this stage deploys from, without tag, e.g. `127.0.0.1:5000/shop`. Without
    /// one, any image may be deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Port that the container listens on. Without one, the single port that the image exposes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Containers per release, 1 to 50.
    #[serde(default = "one")]
    pub replicas: u16,
    /// Environment variables, on top of the project's: plain text, which is part of the event log, or the name of a
    /// secret.
    #[serde(default, skip_serializing_if = "Env::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, crate::env::EnvValue>)]
    pub env: Env,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub health: HealthCheck,
    #[serde(default)]
    pub strategy: Strategy,
    /// How long requests in flight on a replaced release may take to finish.
    #[serde(default = "thirty_seconds")]
    #[schema(value_type = String, example = "30s")]
    pub drain: Span,
    /// How long a new release is watched after the switch; a failure in it flips traffic back.
    #[serde(default)]
    #[schema(value_type = String, example = "10s")]
    pub bake: Span,
    /// Time between SIGTERM and SIGKILL when a container is stopped.
    #[serde(default = "ten_seconds")]
    #[schema(value_type = String, example = "10s")]
    pub stop_grace: Span,
    /// Where requests come from. Without one, the stage takes no traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSettings>,
    #[serde(default)]
    pub queue: QueuePolicy,
    /// Earlier releases whose stopped containers and images are kept, 0 to 50.
    #[serde(default = "three")]
    pub keep: u16,
    /// Which images of its repository the stage takes by itself. Without one, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TagPolicy>)]
    pub policy: Option<Box<TagPolicy>>,
    /// Stage of the same project that runs a release before this one does. With it, this stage takes releases only by
    /// promotion from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "staging")]
    pub promote_from: Option<Slug>,
    /// What a promotion has to pass.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gates: Gates,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Hard limit; above it the kernel kills the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "256MiB")]
    pub memory: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, example = 0.5)]
    pub cpus: Option<Cpus>,
    /// Most processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    #[serde(default)]
    pub check: Check,
    /// For `http`: the path asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For `http`: the one status that is healthy. Without it, 200 to 399 are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default = "one_second")]
    #[schema(value_type = String, example = "1s")]
    pub interval: Span,
    /// Limit of one probe.
    #[serde(default = "five_seconds")]
    #[schema(value_type = String, example = "5s")]
    pub timeout: Span,
    /// Failed probes in a row, after the start period, that make a container unhealthy.
    #[serde(default = "three")]
    pub retries: u16,
    /// From a container's start: failed probes do not count yet.
    #[serde(default = "thirty_seconds")]
    #[schema(value_type = String, example = "30s")]
    pub start_period: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HealthCheckKind)]
pub enum Check {
    /// The image's own HEALTHCHECK where it has one, else `tcp` where there is a port, else `running`.
    #[default]
    Auto,
    Http,
    /// The image's own HEALTHCHECK.
    Image,
    /// The port accepts a connection.
    Tcp,
    /// The container still runs after `interval` x `retries`.
    Running,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Old and new run side by side; traffic switches when all of the new are healthy.
    #[default]
    BlueGreen,
    /// The old stops before the new starts; the edge holds requests meanwhile.
    Recreate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueuePolicy {
    /// A new request replaces the ones that still wait.
    #[default]
    Supersede,
    /// Every request is carried out, in order.
    Keep,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSettings {
    /// Host name, without port, e.g. `shop.example.com`.
    pub host: String,
    /// Path prefix by whole segments; the longest one that fits wins.
    #[serde(default = "root")]
    pub path: String,
    /// Proxy of your own, as `sluice proxy list` has it, through which the requests come. Without one they come to the
    /// edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "front")]
    pub proxy: Option<Slug>,
}

fn is_default(gates: &Gates) -> bool {
    *gates == Gates::default()
}

fn one() -> u16 {
    1
}

fn three() -> u16 {
    3
}

fn one_second() -> Span {
    Span::secs(1)
}

fn five_seconds() -> Span {
    Span::secs(5)
}

fn ten_seconds() -> Span {
    Span::secs(10)
}

fn thirty_seconds() -> Span {
    Span::secs(30)
}

fn root() -> String {
    "/".into()
}

impl Default for StageSettings {
    fn default() -> Self {
        Self {
            image: None,
            port: None,
            replicas: one(),
            env: Env::new(),
            resources: Resources::default(),
            health: HealthCheck::default(),
            strategy: Strategy::default(),
            drain: thirty_seconds(),
            bake: Span::ZERO,
            stop_grace: ten_seconds(),
            route: None,
            queue: QueuePolicy::default(),
            keep: three(),
            policy: None,
            promote_from: None,
            gates: Gates::default(),
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            check: Check::Auto,
            path: None,
            status: None,
            interval: one_second(),
            timeout: five_seconds(),
            retries: three(),
            start_period: thirty_seconds(),
        }
    }
}

impl HealthCheck {
    /// The longest a container can take to be found healthy or not.
    pub fn limit(&self) -> Span {
        let probes = (self.interval.as_millis() + self.timeout.as_millis()) * (u64::from(self.retries) + 1);
        Span::millis(self.start_period.as_millis() + probes)
    }
}

impl RouteSettings {
    /// Whose a request is: host and path. Who brings it does not change that.
    pub fn place(&self) -> (&str, &str) {
        (&self.host, &self.path)
    }
}

const HOUR: Span = Span::secs(3600);
const DAY: Span = Span::secs(86_400);

impl StageSettings {
    /// Everything that is wrong with the settings, each error's field under `prefix`.
    pub fn check(&self, prefix: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: &str, problem: &str| {
            if !good {
                errors.push(FieldError { field: format!("{prefix}.{field}"), problem: problem.to_owned() });
            }
        };

        if let Some(image) = &self.image {
            match crate::image::Reference::parse(image) {
                Ok(reference) => require(
                    reference.tag.is_none() && reference.digest.is_none(),
                    "image",
                    "must name a repository without tag or digest; the tag is given with each deployment",
                ),
                Err(error) => require(false, "image", &error.to_string()),
            }
        }
        require(self.port != Some(0), "port", "must be from 1 to 65535");
        require((1..=50).contains(&self.replicas), "replicas", "must be from 1 to 50");
        require(self.keep <= 50, "keep", "must be from 0 to 50");
        if let Some(memory) = self.resources.memory {
            require(memory.get() >= 6 << 20, "resources.memory", "must be at least 6MiB, Docker's own minimum");
        }
        require(self.resources.pids != Some(0), "resources.pids", "must be at least 1");
        for (name, span, most) in [
            ("drain", self.drain, HOUR),
            ("bake", self.bake, DAY),
            ("stop_grace", self.stop_grace, HOUR),
            ("health.interval", self.health.interval, HOUR),
            ("health.timeout", self.health.timeout, HOUR),
            ("health.start_period", self.health.start_period, DAY),
        ] {
            require(span <= most, name, &format!("must be at most {most}"));
        }
        require(self.health.interval >= Span::millis(50), "health.interval", "must be at least 50ms");
        require(self.health.timeout >= Span::millis(50), "health.timeout", "must be at least 50ms");
        require((1..=100).contains(&self.health.retries), "health.retries", "must be from 1 to 100");
        match (self.health.check, &self.health.path) {
            (Check::Http, Some(path)) => {
                require(plain_path(path), "health.path", "must begin with / and hold no space, ? or #")
            }
            (Check::Http, None) => require(false, "health.path", "is needed with `check: http`"),
            (Check::Auto | Check::Image | Check::Tcp | Check::Running, Some(_)) => {
                require(false, "health.path", "applies only to `check: http`");
            }
            (Check::Auto | Check::Image | Check::Tcp | Check::Running, None) => {}
        }
        if let Some(status) = self.health.status {
            require(self.health.check == Check::Http, "health.status", "applies only to `check: http`");
            require((100..=599).contains(&status), "health.status", "must be from 100 to 599");
        }
        if let Some(route) = &self.route {
            require(
                plain_host(&route.host),
                "route.host",
                "must be a host name in lower case, without port, such as shop.example.com",
            );
            require(
                plain_path(&route.path) && (route.path == "/" || !route.path.ends_with('/')),
                "route.path",
                "must begin with /, not end in / and hold no space, ? or #",
            );
        }
        require(
            self.promote_from.is_some() || self.gates == Gates::default(),
            "gates",
            "stand before a promotion: name the stage to promote from in `promote_from`",
        );
        if let Some(policy) = &self.policy {
            require(self.image.is_some(), "policy", "needs the stage's `image`: the repository that it chooses from");
            let alone = self.promote_from.is_none();
            require(alone, "policy", "does not go with `promote_from`: such a stage takes releases only by promotion");
            errors.extend(policy.check(&format!("{prefix}.policy")));
        }
        errors.extend(env::check(&self.env, &format!("{prefix}.env")));
        errors.extend(self.gates.check(&format!("{prefix}.gates")));
        errors
    }

    /// The settings under which a release that ran with these runs again: what belongs to the release stays, and how
    /// the stage is reached and looked after is as `declared` now.
    #[must_use]
    pub fn again(self, declared: Self) -> Self {
        let Self { image, port, env, resources, health, .. } = self;
        Self { image, port, env, resources, health, ..declared }
    }
}

fn plain_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 1024
        && !path.contains("//")
        && !path.split('/').any(|segment| segment == "..")
        && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\\"'<>`{}|^".contains(&b))
}

pub(crate) fn plain_host(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(settings: &StageSettings) -> Vec<String> {
        settings.check("s").into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn defaults_pass() {
        assert_eq!(StageSettings::default().check("stages.dev"), []);
    }

    #[test]
    fn an_empty_document_is_the_default() {
        let parsed: StageSettings = serde_json::from_str("{}").expect("every field has a default");
        assert_eq!(parsed, StageSettings::default());
    }

    #[test]
    fn every_bad_field_is_named() {
        let mut bad = StageSettings {
            image: Some("shop:v1".into()),
            port: Some(0),
            replicas: 0,
            keep: 51,
            drain: Span::secs(7200),
            route: Some(RouteSettings { host: "Shop.example".into(), path: "x".into(), proxy: None }),
            ..StageSettings::default()
        };
        bad.env.insert("1X".into(), "".into());
        bad.health.check = Check::Http;
        bad.health.status = Some(7);
        assert_eq!(
            fields(&bad),
            [
                "s.image",
                "s.port",
                "s.replicas",
                "s.keep",
                "s.drain",
                "s.health.path",
                "s.health.status",
                "s.route.host",
                "s.route.path",
                "s.env.1X"
            ]
        );
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<StageSettings>(r#"{"replica": 2}"#).expect_err("typo").to_string();
        assert!(error.contains("replica"), "{error}");
    }

    #[test]
    fn paths_cannot_climb_or_carry_a_query() {
        for path in ["../x", "/a/../b", "/a?b", "/a b", "", "//x", "/\u{e4}"] {
            assert!(!plain_path(path), "{path:?} passed");
        }
    }
}
