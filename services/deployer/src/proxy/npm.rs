//! Nginx Proxy Manager, by its REST API: one proxy host per host name. A host that is there already keeps its
//! certificate and everything else that Sluice does not set.
//!
//! A change reloads nginx: a kept-alive connection that is idle may be closed just as its client uses it again. The
//! manager answers "saved" also where nginx refused the host and it was disabled for that, so a change counts when the
//! host is online without an nginx error. Two changes at once mix each other up: see `turn`.
//!
//! In mode `direct` the host gets a custom location `/` that adds the marker: `proxy.conf`, which the manager includes
//! in its own location, sets a header itself, so that nginx would not inherit one from the server. Of a host that was the
//! user's own, comments in that location say where it led before: they come and go with the change itself, and once the
//! stage leaves, the host leads there again.

use std::time::{Duration, Instant};

use domain::traffic::DEPLOYMENT_HEADER;
use eventlog::Secret;
use futures::future::BoxFuture;
use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};

use super::{
    Driver, Entry, QUICKEST, SLOWEST,
    direct::{Answer, Api},
};
use crate::failure::{Problem, StepError};

const HOSTS: &str = "/api/nginx/proxy-hosts";
/// How long nginx may take to be back with a host.
const ONLINE: Duration = Duration::from_secs(10);
/// First line of a host's advanced configuration that was made here.
const OURS: &str = "# Made by Sluice, which removes it with its stage.";
/// Of each line that says, in JSON, what a host of the user's own was before.
const BEFORE: &str = "# Before Sluice: ";
/// Of such a line, in characters: nginx takes no comment of 4 KiB.
const LINE: usize = 800;
/// What a change sets and its undoing sets back.
const FIELDS: [&str; 6] =
    ["forward_scheme", "forward_host", "forward_port", "advanced_config", "locations", "allow_websocket_upgrade"];

pub(super) struct Npm {
    api: Api,
    username: String,
    password: Secret,
}

impl Npm {
    pub(super) fn new(api: Api, username: String, password: Secret) -> Self {
        Self { api, username, password }
    }

    /// A token for a few requests: one that is kept may expire or be revoked at any time.
    async fn sign_in(&self) -> Result<String, StepError> {
        let secret = String::from_utf8_lossy(self.password.expose());
        let body = json!({ "identity": self.username, "secret": secret });
        let answer = self.api.send(self.api.request(Method::POST, "/api/tokens").json(&body)).await?;
        match (answer.body["token"].as_str(), answer.status.is_server_error()) {
            (Some(token), _) if answer.status.is_success() => Ok(token.to_owned()),
            (_, true) => Err(self.api.refused("signing in", &Answer { body: Value::Null, ..answer })),
            (_, false) => Err(Problem::new(
                "proxy_unauthorized",
                format!("the Nginx Proxy Manager {} refused the sign-in of {}", self.api.proxy, self.username),
                format!("store the password again: `sluice proxy login {} --username NAME`", self.api.proxy),
            )
            .into()),
        }
    }

    async fn send(&self, operation: &str, token: &str, request: RequestBuilder) -> Result<Value, StepError> {
        let answer = self.api.send(request.bearer_auth(token)).await?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(self.api.refused(operation, &answer)) }
    }

    /// The proxy host that answers for `entry`.
    async fn host(&self, token: &str, entry: &Entry) -> Result<Option<Value>, StepError> {
        let hosts = self.send("listing the proxy hosts", token, self.api.request(Method::GET, HOSTS)).await?;
        let named = |host: &&Value| {
            let mut names = host["domain_names"].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.any(|name| name.eq_ignore_ascii_case(&entry.host))
        };
        Ok(hosts.as_array().into_iter().flatten().find(named).cloned())
    }

    async fn update(&self, token: &str, host: &Value, fields: &Value) -> Result<(), StepError> {
        let path = format!("{HOSTS}/{}", host["id"]);
        self.send("changing a proxy host", token, self.api.request(Method::PUT, &path).json(fields)).await.map(drop)
    }

    /// One that was disabled is configured by being enabled.
    async fn enable(&self, token: &str, host: &Value) -> Result<(), StepError> {
        let path = format!("{HOSTS}/{}/enable", host["id"]);
        self.send("enabling a proxy host", token, self.api.request(Method::POST, &path)).await.map(drop)
    }

    async fn disable(&self, token: &str, host: &Value) -> Result<(), StepError> {
        let path = format!("{HOSTS}/{}/disable", host["id"]);
        self.send("disabling a proxy host", token, self.api.request(Method::POST, &path)).await.map(drop)
    }

    async fn delete(&self, token: &str, host: &Value) -> Result<(), StepError> {
        let path = format!("{HOSTS}/{}", host["id"]);
        self.send("removing a proxy host", token, self.api.request(Method::DELETE, &path)).await.map(drop)
    }

    /// Has a host of the user's own lead where it did before Sluice used it. Its certificate and settings stay.
    async fn hand_back(&self, token: &str, host: &Value, entry: &Entry) -> Result<(), StepError> {
        let mut rest = locations(host, &Entry { marker: None, ..entry.clone() });
        let Some(mut before) = before(host) else {
            self.update(token, host, &json!({ "locations": rest })).await?;
            tracing::warn!(
                proxy = %self.api.proxy,
                host = entry.host,
                "where this host of your own led before is not known any more: it leads to containers that are gone \
                 until you point it elsewhere in the manager"
            );
            return Ok(());
        };
        rest.extend(before.remove("location").filter(|location| !location.is_null()));
        let disabled = before.remove("enabled").is_some_and(|enabled| enabled == false || enabled == 0);
        before.insert("locations".into(), rest.into());
        self.update(token, host, &before.into()).await?;
        if disabled { self.disable(token, host).await } else { self.online(token, entry).await }
    }

    /// Waits until nginx serves the host.
    async fn online(&self, token: &str, entry: &Entry) -> Result<(), StepError> {
        let began = Instant::now();
        let mut pause = QUICKEST;
        loop {
            let host = self.host(token, entry).await?.unwrap_or_default();
            let error = host["meta"]["nginx_err"].as_str().filter(|error| !error.is_empty());
            if error.is_none() && is_online(&host) {
                return Ok(());
            }
            if error.is_some() || began.elapsed() >= ONLINE {
                let error: String = error.unwrap_or("it is not online").chars().take(500).collect();
                return Err(Problem::new(
                    "nginx_refused",
                    format!("the Nginx Proxy Manager {} saved {}, but nginx: {error}", self.api.proxy, entry.host),
                    "mend what nginx names (the host's advanced configuration, its certificate), then deploy again",
                )
                .into());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(SLOWEST);
        }
    }
}

fn is_online(host: &Value) -> bool {
    let enabled = host["enabled"].as_bool().unwrap_or(host["enabled"] == 1);
    enabled && host["meta"]["nginx_online"] == true && host["meta"]["nginx_err"].as_str().is_none_or(str::is_empty)
}

fn forward(entry: &Entry) -> (String, u16) {
    // In mode direct exactly one; declared so.
    let upstream = entry.upstreams.first().map(String::as_str).unwrap_or_default();
    let (host, port) = upstream.rsplit_once(':').unwrap_or((upstream, "80"));
    (host.to_owned(), port.parse().unwrap_or(80))
}

fn marks(location: &Value) -> bool {
    location["advanced_config"].as_str().is_some_and(|text| text.contains(DEPLOYMENT_HEADER))
}

fn made_here(host: &Value) -> bool {
    host["advanced_config"].as_str().is_some_and(|text| text.starts_with(OURS))
}

/// The location of `host` that takes everything.
fn whole(host: &Value) -> Option<&Value> {
    host["locations"].as_array().into_iter().flatten().find(|location| location["path"] == "/")
}

/// What `host` was before Sluice used it, as comments; nothing of one that was made here, or where nothing is known.
fn memory(host: &Value) -> String {
    if let Some(ours) = whole(host).filter(|location| marks(location)) {
        let lines = ours["advanced_config"].as_str().unwrap_or_default().lines();
        return lines.filter(|line| line.starts_with(BEFORE)).map(|line| format!("\n{line}")).collect();
    }
    if host["id"].is_null() || made_here(host) {
        return String::new();
    }
    let kept = ["forward_scheme", "forward_host", "forward_port", "allow_websocket_upgrade", "enabled"];
    let mut before: Map<_, _> = kept.map(|field| (field.to_owned(), host[field].clone())).into_iter().collect();
    before.insert("location".into(), whole(host).cloned().unwrap_or_default());
    let text: Vec<char> = Value::from(before).to_string().chars().collect();
    text.chunks(LINE).map(|line| format!("\n{BEFORE}{}", line.iter().collect::<String>())).collect()
}

/// What [`memory`] kept.
fn before(host: &Value) -> Option<Map<String, Value>> {
    whole(host).filter(|location| marks(location))?;
    let text: String = memory(host).lines().filter_map(|line| line.strip_prefix(BEFORE)).collect();
    serde_json::from_str(&text).ok()
}

/// The locations of `host` with that of `entry`, and without one of an earlier release.
fn locations(host: &Value, entry: &Entry) -> Vec<Value> {
    let standing = host["locations"].as_array().into_iter().flatten();
    let mut locations: Vec<Value> = standing
        .filter(|location| location["path"] != "/" || (entry.marker.is_none() && !marks(location)))
        .cloned()
        .collect();
    if let Some(marker) = entry.marker {
        let (forward_host, forward_port) = forward(entry);
        locations.push(json!({
            "path": "/",
            "forward_scheme": "http",
            "forward_host": forward_host,
            "forward_port": forward_port,
            "advanced_config": format!("add_header {DEPLOYMENT_HEADER} {marker} always;{}", memory(host)),
        }));
    }
    locations
}

fn fields(host: &Value, entry: &Entry) -> Value {
    let (forward_host, forward_port) = forward(entry);
    json!({
        "forward_scheme": "http",
        "forward_host": forward_host,
        "forward_port": forward_port,
        "allow_websocket_upgrade": true,
        "locations": locations(host, entry),
    })
}

impl Driver for Npm {
    fn standing<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Option<Value>, StepError>> {
        Box::pin(async move {
            let token = self.sign_in().await?;
            let Some(host) = self.host(&token, entry).await? else { return Ok(None) };
            let mut standing: Map<String, Value> =
                FIELDS.iter().map(|field| ((*field).to_owned(), host[*field].clone())).collect();
            standing.insert("online".into(), is_online(&host).into());
            Ok(Some(standing.into()))
        })
    }

    fn fits(&self, entry: &Entry, standing: &Value) -> bool {
        let location = |of: &Value| {
            let found = whole(of).cloned().unwrap_or_default();
            ["forward_host", "forward_port", "advanced_config"].map(|field| found[field].clone())
        };
        let wanted = fields(standing, entry);
        let same = ["forward_scheme", "forward_host", "forward_port"].iter().all(|f| standing[*f] == wanted[*f]);
        standing["online"] == true && same && location(standing) == location(&wanted)
    }

    fn shown(&self, standing: &Value) -> Value {
        let mut shown = json!({ "online": standing["online"] });
        let location = whole(standing);
        for field in ["forward_scheme", "forward_host", "forward_port"] {
            shown[field] = standing[field].clone();
            if let Some(location) = location {
                shown["location"][field] = location[field].clone();
            }
        }
        if let Some(text) = location.and_then(|location| location["advanced_config"].as_str()) {
            // An id and nothing else: the rest of it may be anything.
            let marker = text.split_once(DEPLOYMENT_HEADER).and_then(|(_, rest)| rest.split_whitespace().next());
            shown["location"]["marker"] = marker.filter(|marker| marker.parse::<uuid::Uuid>().is_ok()).into();
        }
        shown
    }

    fn put<'a>(&'a self, entry: &'a Entry, _all: &'a [Entry]) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let token = self.sign_in().await?;
            match self.host(&token, entry).await? {
                Some(host) => {
                    self.update(&token, &host, &fields(&host, entry)).await?;
                    if host["enabled"] == false || host["enabled"] == 0 {
                        self.enable(&token, &host).await?;
                    }
                }
                None => {
                    let mut body = fields(&Value::Null, entry);
                    body["domain_names"] = json!([entry.host]);
                    body["advanced_config"] = OURS.into();
                    let request = self.api.request(Method::POST, HOSTS).json(&body);
                    self.send("making a proxy host", &token, request).await?;
                }
            }
            self.online(&token, entry).await
        })
    }

    fn restore<'a>(
        &'a self,
        entry: &'a Entry,
        before: Option<&'a Value>,
        _all: &'a [Entry],
    ) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let token = self.sign_in().await?;
            let Some(host) = self.host(&token, entry).await? else { return Ok(()) };
            match before.and_then(Value::as_object) {
                Some(before) => {
                    let fields: Map<_, _> = before
                        .iter()
                        .filter(|(name, value)| FIELDS.contains(&name.as_str()) && !value.is_null())
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect();
                    self.update(&token, &host, &fields.into()).await?;
                    self.online(&token, entry).await
                }
                None if made_here(&host) => self.delete(&token, &host).await,
                None => self.hand_back(&token, &host, entry).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use domain::DeploymentId;
    use uuid::Uuid;

    use super::*;

    fn entry(marker: Option<u128>) -> Entry {
        Entry {
            id: "x".into(),
            host: "shop.test".into(),
            path: "/".into(),
            upstreams: vec!["10.0.0.2:8080".into()],
            marker: marker.map(|number| DeploymentId(Uuid::from_u128(number))),
        }
    }

    fn paths(locations: &[Value]) -> Vec<&str> {
        locations.iter().filter_map(|location| location["path"].as_str()).collect()
    }

    #[test]
    fn the_locations_of_others_stay_and_ours_comes_once_and_goes() {
        let other = json!({ "path": "/static", "forward_host": "files", "forward_port": 80 });
        let first = json!({ "locations": locations(&json!({ "locations": [other] }), &entry(Some(1))) });
        let second = locations(&first, &entry(Some(2)));
        assert_eq!(paths(&second), ["/static", "/"]);
        assert!(second[1]["advanced_config"].as_str().is_some_and(|text| text.ends_with("2 always;")), "{second:?}");
        let via = json!({ "locations": second });
        assert_eq!(paths(&locations(&via, &entry(None))), ["/static"]);
        // One that somebody else made for the whole host is not ours to take away.
        let theirs = json!({ "locations": [{ "path": "/", "advanced_config": "" }] });
        assert_eq!(paths(&locations(&theirs, &entry(None))), ["/"]);
    }

    #[test]
    fn what_a_host_was_before_is_kept_through_all_releases_and_none_of_it_shown() {
        let config = "proxy_set_header X-Key hunter2;\n".repeat(200);
        let own = json!({ "path": "/", "forward_host": "files", "forward_port": 80, "advanced_config": config });
        let mut host = json!({
            "id": 7, "forward_scheme": "https", "forward_host": "own", "forward_port": 8443, "enabled": false,
            "allow_websocket_upgrade": false, "advanced_config": "", "locations": [own],
        });
        let was = host.clone();
        for marker in [1, 2, 3] {
            let changed = fields(&host, &entry(Some(marker)));
            host.as_object_mut().expect("a host").extend(changed.as_object().cloned().expect("fields"));
        }
        let text = host["locations"][0]["advanced_config"].as_str().expect("a text");
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() < 4096), "{text}");
        assert!(!npm().shown(&host).to_string().contains("hunter2"));
        let before = before(&host).expect("known");
        assert_eq!(before["location"], own);
        for field in ["forward_scheme", "forward_host", "forward_port", "enabled", "allow_websocket_upgrade"] {
            assert_eq!(before[field], was[field], "{field}");
        }
        // One that was made here was nothing before.
        let made = json!({ "id": 8, "advanced_config": OURS, "locations": [] });
        assert_eq!(memory(&made), "");
    }

    fn npm() -> Npm {
        let api = Api::new(reqwest::Client::new(), &"front".parse().expect("a name"), "http://127.0.0.1:81");
        Npm::new(api, "admin".into(), Secret::new("x"))
    }

    #[test]
    fn what_is_shown_of_a_host_tells_where_it_leads_and_no_credentials() {
        let mut standing = fields(&Value::Null, &entry(Some(1)));
        standing["advanced_config"] = "proxy_set_header Authorization hunter2;".into();
        let ours = standing["locations"][0]["advanced_config"].as_str().expect("a text").to_owned();
        standing["locations"][0]["advanced_config"] = format!("{ours} proxy_set_header X-Key hunter2;").into();
        let other = json!({ "path": "/api", "forward_host": "hunter2", "advanced_config": "hunter2" });
        standing["locations"].as_array_mut().expect("a list").push(other);
        let shown = npm().shown(&standing);
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        assert_eq!(shown["location"]["marker"], Uuid::from_u128(1).to_string());
        assert_eq!((&shown["forward_host"], &shown["location"]["forward_port"]), (&json!("10.0.0.2"), &json!(8080)));
    }

    #[test]
    fn a_host_fits_only_where_nginx_serves_it() {
        let npm = npm();
        let mut standing = fields(&Value::Null, &entry(Some(1)));
        standing["online"] = true.into();
        assert!(npm.fits(&entry(Some(1)), &standing) && !npm.fits(&entry(Some(2)), &standing));
        standing["online"] = false.into();
        assert!(!npm.fits(&entry(Some(1)), &standing));
    }
}
