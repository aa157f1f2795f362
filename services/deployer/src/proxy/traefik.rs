//! Traefik, by its REST provider (`providers.rest`), which takes the whole configuration at once and forgets it with a
//! restart; the deployer's next look puts it back. A switch is a change of pointers: no connection is closed.
//!
//! Traefik takes what it is told when its throttle allows (`providersThrottleDuration`, two seconds by default), so a
//! change counts when its own API shows it.

use std::time::{Duration, Instant};

use domain::traffic::DEPLOYMENT_HEADER;
use futures::future::BoxFuture;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{Driver, Entry, QUICKEST, SLOWEST, direct::Api};
use crate::failure::{Problem, StepError};

/// Several times Traefik's throttle.
const TAKEN_UP: Duration = Duration::from_secs(12);
/// One that has just started takes the routes and drops them: they are told again.
const AGAIN: Duration = Duration::from_secs(3);

pub(super) struct Traefik {
    api: Api,
}

impl Traefik {
    pub(super) fn new(api: Api) -> Self {
        Self { api }
    }

    /// One object of the REST provider; none where Traefik has none.
    async fn object(&self, kind: &str, entry: &Entry) -> Result<Option<Value>, StepError> {
        let path = format!("/api/http/{kind}/{}@rest", entry.id);
        let answer = self.api.send(self.api.request(Method::GET, &path)).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.body)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.api.refused("looking for a route", &answer)),
        }
    }

    async fn load(&self, all: &[Entry]) -> Result<(), StepError> {
        let request = self.api.request(Method::PUT, "/api/providers/rest").json(&configuration(all));
        let answer = self.api.send(request).await?;
        match answer.status {
            status if status.is_success() => Ok(()),
            // Or not yet: it has just started.
            StatusCode::NOT_FOUND => Err(StepError::Transient(Problem::new(
                "proxy_has_no_provider",
                format!("the Traefik {} has no REST provider", self.api.proxy),
                "start it with `--providers.rest.insecure=true` and `--api.insecure=true`, on a private entry point",
            ))),
            _ => Err(self.api.refused("loading the routes", &answer)),
        }
    }

    /// Loads `all`, and waits until Traefik's own API shows `entry` as `wanted`, or that it is gone.
    async fn have(&self, all: &[Entry], entry: &Entry, wanted: Option<&Value>) -> Result<(), StepError> {
        self.load(all).await?;
        let began = Instant::now();
        let mut told = began;
        let mut pause = QUICKEST;
        loop {
            let standing = self.standing(entry).await?;
            if standing.as_ref() == wanted {
                return Ok(());
            }
            if began.elapsed() >= TAKEN_UP {
                let found = standing.map_or("nothing".to_owned(), |standing| standing.to_string());
                return Err(Problem::new(
                    "not_taken_up",
                    format!(
                        "the Traefik {} took the routes, but after {}s shows {found} for {}",
                        self.api.proxy,
                        TAKEN_UP.as_secs(),
                        entry.host
                    ),
                    "look at Traefik's log, and whether another provider defines the same names",
                )
                .into());
            }
            if told.elapsed() >= AGAIN {
                self.load(all).await?;
                told = Instant::now();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(SLOWEST);
        }
    }
}

fn rule(entry: &Entry) -> String {
    let host = format!("Host(`{}`)", entry.host);
    match entry.path.as_str() {
        "/" => host,
        // Whole segments only.
        path => format!("{host} && (Path(`{path}`) || PathPrefix(`{path}/`))"),
    }
}

fn servers(entry: &Entry) -> Value {
    entry.upstreams.iter().map(|upstream| json!({ "url": format!("http://{upstream}") })).collect()
}

/// What [`Driver::standing`] finds of an entry that Traefik holds.
fn shown(entry: &Entry) -> Value {
    json!({ "rule": rule(entry), "servers": servers(entry), "marker": entry.marker.map(|marker| marker.to_string()) })
}

fn configuration(all: &[Entry]) -> Value {
    let (mut routers, mut services, mut middlewares) = (Map::new(), Map::new(), Map::new());
    for entry in all {
        let mut router = json!({ "rule": rule(entry), "service": entry.id });
        if let Some(marker) = entry.marker {
            router["middlewares"] = json!([entry.id]);
            let headers = json!({ DEPLOYMENT_HEADER: marker.to_string() });
            middlewares.insert(entry.id.clone(), json!({ "headers": { "customResponseHeaders": headers } }));
        }
        routers.insert(entry.id.clone(), router);
        services.insert(entry.id.clone(), json!({ "loadBalancer": { "servers": servers(entry) } }));
    }
    if all.is_empty() {
        // A configuration of nothing at all would be passed over.
        middlewares.insert("sluice-has-no-routes".into(), json!({ "headers": { "frameDeny": false } }));
    }
    // An empty map of these is refused.
    let parts = [("routers", routers), ("services", services), ("middlewares", middlewares)];
    let http: Map<_, _> =
        parts.into_iter().filter(|(_, map)| !map.is_empty()).map(|(name, map)| (name.to_owned(), map.into())).collect();
    json!({ "http": http })
}

impl Driver for Traefik {
    fn standing<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Option<Value>, StepError>> {
        Box::pin(async move {
            let (Some(router), Some(service)) =
                (self.object("routers", entry).await?, self.object("services", entry).await?)
            else {
                return Ok(None);
            };
            let middleware = self.object("middlewares", entry).await?.unwrap_or_default();
            let headers = middleware["headers"]["customResponseHeaders"].as_object();
            let marker = headers
                .and_then(|headers| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(DEPLOYMENT_HEADER)));
            Ok(Some(json!({
                "rule": router["rule"],
                "servers": service["loadBalancer"]["servers"],
                "marker": marker.map(|(_, value)| value),
            })))
        })
    }

    fn fits(&self, entry: &Entry, standing: &Value) -> bool {
        *standing == shown(entry)
    }

    fn shown(&self, standing: &Value) -> Value {
        standing.clone()
    }

    fn put<'a>(&'a self, entry: &'a Entry, all: &'a [Entry]) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.have(all, entry, Some(&shown(entry))).await })
    }

    fn restore<'a>(
        &'a self,
        entry: &'a Entry,
        _before: Option<&'a Value>,
        all: &'a [Entry],
    ) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let before = all.iter().find(|known| known.id == entry.id).map(shown);
            self.have(all, entry, before.as_ref()).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_matched_by_whole_segments_and_nothing_is_never_sent() {
        let mut entry =
            Entry { id: "x".into(), host: "a.test".into(), path: "/".into(), upstreams: vec![], marker: None };
        assert_eq!(rule(&entry), "Host(`a.test`)");
        entry.path = "/api".into();
        assert_eq!(rule(&entry), "Host(`a.test`) && (Path(`/api`) || PathPrefix(`/api/`))");
        assert_eq!(configuration(&[])["http"].as_object().map(Map::len), Some(1));
        assert_eq!(configuration(&[entry])["http"]["middlewares"], Value::Null);
    }
}
