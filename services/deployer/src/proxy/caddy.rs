//! Caddy, by its admin API: one route object per stage, found again by its `@id`.
//!
//! Every change loads the whole configuration anew. Requests under way finish, but a kept-alive connection that is idle
//! may be closed just as its client uses it again, and websockets are closed (from 2.7 on unless `stream_close_delay` is
//! set). With `flush_interval: -1` 2.6 would also break off requests under way, so it is left out; event streams are
//! flushed without it. Caddy takes any upstream without a word, and forgets requests in flight on one that it no longer has: its
//! count (`/reverse_proxy/upstreams`) says nothing of what drains.

use domain::traffic::DEPLOYMENT_HEADER;
use futures::future::BoxFuture;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    Driver, Entry,
    direct::{Answer, Api},
};
use crate::failure::{Problem, StepError};

pub(super) struct Caddy {
    api: Api,
    /// Of the address for probes: the server that listens there gets the routes.
    port: Option<String>,
}

impl Caddy {
    pub(super) fn new(api: Api, address: Option<&str>) -> Self {
        let port = address.and_then(|address| Some(address.rsplit_once(':')?.1.to_owned()));
        Self { api, port }
    }

    async fn change(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(), StepError> {
        let request = self.api.request(method, path);
        let request = body.into_iter().fold(request, |request, body| request.json(body));
        let answer = self.api.send(request).await?;
        if answer.status.is_success() { Ok(()) } else { Err(self.api.refused("changing a route", &answer)) }
    }

    /// The server that takes the routes, with its configuration.
    async fn server(&self) -> Result<(String, Value), StepError> {
        let Answer { status, body } = self.api.send(self.api.request(Method::GET, "/config/apps/http/servers")).await?;
        let servers = body.as_object().filter(|_| status.is_success()).cloned().unwrap_or_default();
        let listens = |server: &Value| {
            let addresses = server["listen"].as_array().into_iter().flatten().filter_map(Value::as_str);
            addresses.filter_map(|a| a.rsplit_once(':')).any(|(_, port)| Some(port) == self.port.as_deref())
        };
        let found = servers.iter().find(|(_, server)| listens(server));
        let found = found.or_else(|| servers.iter().next().filter(|_| servers.len() == 1 && self.port.is_none()));
        found.map(|(name, server)| (name.clone(), server.clone())).ok_or_else(|| {
            let port = self.port.as_deref().unwrap_or("80");
            Problem::new(
                "no_server",
                format!("the Caddy {} has no server that listens on port {port}", self.api.proxy),
                "give Caddy a server for the stage's host (a Caddyfile with one site is enough), at the proxy's `address`",
            )
            .into()
        })
    }

    /// The longest path wins, and our routes come before those that somebody else wrote.
    async fn insert(&self, entry: &Entry) -> Result<(), StepError> {
        let (server, config) = self.server().await?;
        let routes = config["routes"].as_array().map_or(&[][..], Vec::as_slice);
        let path = |route: &Value| {
            let ours = route["@id"].as_str().is_some_and(|id| id.starts_with("sluice-"));
            ours.then(|| route["match"][0]["path"][0].as_str().map_or(1, str::len))
        };
        let longer = |route: &&Value| path(route).is_some_and(|length| length > entry.path.len());
        let index = routes.iter().take_while(longer).count();
        let list = format!("/config/apps/http/servers/{server}/routes");
        match (config["routes"].is_array(), index == routes.len()) {
            (false, _) => self.change(Method::PUT, &list, Some(&json!([route(entry)]))).await,
            (true, true) => self.change(Method::POST, &list, Some(&route(entry))).await,
            (true, false) => self.change(Method::PUT, &format!("{list}/{index}"), Some(&route(entry))).await,
        }
    }
}

fn id(entry: &Entry) -> String {
    format!("/id/{}", entry.id)
}

fn route(entry: &Entry) -> Value {
    let mut matcher = json!({ "host": [entry.host] });
    if entry.path != "/" {
        matcher["path"] = json!([entry.path, format!("{}/*", entry.path)]);
    }
    let dial = |upstream: &String| json!({ "dial": upstream });
    let upstreams: Vec<_> = entry.upstreams.iter().map(dial).collect();
    let mut handlers = vec![json!({ "handler": "reverse_proxy", "upstreams": upstreams })];
    if let Some(marker) = entry.marker {
        let set = json!({ DEPLOYMENT_HEADER: [marker.to_string()] });
        handlers.insert(0, json!({ "handler": "headers", "response": { "set": set } }));
    }
    json!({ "@id": entry.id, "match": [matcher], "handle": handlers, "terminal": true })
}

impl Driver for Caddy {
    fn standing<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Option<Value>, StepError>> {
        Box::pin(async move {
            let answer = self.api.send(self.api.request(Method::GET, &id(entry))).await?;
            match answer.status {
                StatusCode::OK => Ok(Some(answer.body)),
                StatusCode::NOT_FOUND => Ok(None),
                _ => Err(self.api.refused("looking for a route", &answer)),
            }
        })
    }

    fn fits(&self, entry: &Entry, standing: &Value) -> bool {
        *standing == route(entry)
    }

    fn shown(&self, standing: &Value) -> Value {
        let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let matchers = all(&standing["match"]);
        let matchers = matchers.iter().map(|one| json!({ "host": one["host"], "path": one["path"] }));
        let handlers = all(&standing["handle"]);
        let handlers = handlers.iter().map(|one| {
            let dials: Vec<_> = all(&one["upstreams"]).iter().map(|upstream| upstream["dial"].clone()).collect();
            let marker = &one["response"]["set"][DEPLOYMENT_HEADER];
            json!({ "handler": one["handler"], "upstreams": dials, "marker": marker })
        });
        json!({ "match": matchers.collect::<Vec<_>>(), "handle": handlers.collect::<Vec<_>>() })
    }

    fn put<'a>(&'a self, entry: &'a Entry, _all: &'a [Entry]) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            match self.standing(entry).await? {
                // Each change costs clients their idle connections.
                Some(standing) if self.fits(entry, &standing) => Ok(()),
                Some(standing) if standing["match"] == route(entry)["match"] => {
                    self.change(Method::PATCH, &id(entry), Some(&route(entry))).await
                }
                // With another path its place among the others may be another.
                Some(_) => {
                    self.change(Method::DELETE, &id(entry), None).await?;
                    self.insert(entry).await
                }
                None => self.insert(entry).await,
            }
        })
    }

    fn restore<'a>(
        &'a self,
        entry: &'a Entry,
        before: Option<&'a Value>,
        _all: &'a [Entry],
    ) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            match (self.standing(entry).await?, before) {
                (None, None) => Ok(()),
                (Some(_), None) => self.change(Method::DELETE, &id(entry), None).await,
                (Some(standing), Some(before)) if standing == *before => Ok(()),
                (Some(_), Some(before)) => self.change(Method::PATCH, &id(entry), Some(before)).await,
                // Taken away in between: the address of an object needs the object.
                (None, Some(before)) => {
                    self.insert(entry).await?;
                    self.change(Method::PATCH, &id(entry), Some(before)).await
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_route_tells_where_it_leads_and_no_credentials() {
        let api = Api::new(reqwest::Client::new(), &"front".parse().expect("a name"), "http://127.0.0.1:2019");
        let standing = json!({
            "match": [{ "host": ["shop.test"], "header": { "Authorization": ["hunter2"] } }],
            "handle": [{
                "handler": "reverse_proxy",
                "upstreams": [{ "dial": "10.0.0.2:80" }],
                "headers": { "request": { "set": { "Authorization": ["hunter2"] } } },
            }],
        });
        let shown = Caddy::new(api, None).shown(&standing).to_string();
        assert!(shown.contains("shop.test") && shown.contains("10.0.0.2:80") && !shown.contains("hunter2"), "{shown}");
    }
}
