//! Changes of a proxy of the user's own, one at a time, and the comparison of what it holds with what it should.

use domain::{
    Slug,
    proxy::{Drift, Mode, Settings, State},
    traffic::{Route, Target, UpstreamSet},
};
use eventlog::Secret;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::{ADMIN, Driver, Entry, LEFT, Permit, Proxies, probe, routes};
use crate::failure::{Problem, StepError, chain};

impl Proxies {
    pub(super) async fn switch_direct(
        &self,
        route: &Route,
        set: &UpstreamSet,
        name: &Slug,
        may: &Permit<'_>,
    ) -> Result<(), StepError> {
        let (settings, credentials) = self.declared(name).await?;
        let (Some(driver), Some(address)) = (self.driver(name, &settings, credentials)?, &settings.address) else {
            return Err(not_direct(name).into());
        };
        probe::upstreams(self, route, set).await?;
        let turn = self.turns.take(&self.log, &self.holder, name).await?;
        let switched = async {
            let key = routes::key(route);
            if routes::standing(&self.log, &key).await?.is_some_and(|(standing, _)| standing.fence > route.fence) {
                return Err(StepError::Fenced);
            }
            let before = self.entries(name).await?;
            let entry = Entry::direct(route, set);
            let mut all: Vec<_> = before.iter().filter(|other| other.id != entry.id).cloned().collect();
            all.push(entry.clone());
            may.ask("changing the proxy").await?;
            change(&*driver, &entry, &before, async {
                driver.put(&entry, &all).await?;
                probe::direct(self, address, route, set).await
            })
            .await?;
            routes::write(&self.log, may, route).await.map(drop)
        };
        let switched = switched.await;
        turn.give_back().await;
        switched
    }

    /// Takes away what a proxy holds for `route`, which it serves no more; `then` is written down before anybody else
    /// may bring the proxy to what the routes say.
    pub(super) async fn leave<T>(
        &self,
        route: &Route,
        name: &Slug,
        may: &Permit<'_>,
        then: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        if let Target::Live(set) = &route.target {
            // Nobody counts what is in flight there: whoever drains it has to know that the proxy led there, however
            // it is declared by then.
            self.log.bucket(LEFT).put(&set.deployment.to_string(), name.to_string()).await?;
        }
        let (settings, credentials) = match self.declared(name).await {
            // Nobody knows any more where it was.
            Err(StepError::Failed(problem)) if problem.code == "unknown_proxy" => return then.await,
            other => other?,
        };
        let (Some(driver), Target::Live(set)) = (self.driver(name, &settings, credentials)?, &route.target) else {
            return then.await;
        };
        let turn = self.turns.take(&self.log, &self.holder, name).await?;
        let left = async {
            let entry = Entry::direct(route, set);
            let same = |other: &Entry| other.id == entry.id && other.marker == entry.marker;
            let all: Vec<_> = self.entries(name).await?.into_iter().filter(|other| !same(other)).collect();
            may.ask("changing the proxy").await?;
            match driver.standing(&entry).await? {
                // Whoever pointed it elsewhere meant it.
                Some(standing) if !driver.fits(&entry, &standing) => Ok(()),
                Some(_) | None => driver.restore(&entry, None, &all).await,
            }?;
            match &settings.address {
                Some(address) => probe::gone(self, address, route, set).await,
                None => Ok(()),
            }?;
            then.await
        };
        let left = left.await;
        turn.give_back().await;
        left
    }

    /// With the first switch of a host in mode `via_edge`: from then on the proxy is left alone.
    pub(super) async fn point_at_edge(
        &self,
        route: &Route,
        name: &Slug,
        settings: &Settings,
        credentials: Option<(String, Secret)>,
        may: &Permit<'_>,
    ) -> Result<(), StepError> {
        let (Some(driver), Some(edge)) = (self.driver(name, settings, credentials)?, &settings.edge) else {
            return Ok(());
        };
        let turn = self.turns.take(&self.log, &self.holder, name).await?;
        let pointed = async {
            let entry = Entry::via(route, edge);
            if driver.standing(&entry).await?.is_some_and(|standing| driver.fits(&entry, &standing)) {
                return Ok(());
            }
            let before = self.entries(name).await?;
            let mut all = before.clone();
            if !all.contains(&entry) {
                all.push(entry.clone());
            }
            may.ask("changing the proxy").await?;
            change(&*driver, &entry, &before, driver.put(&entry, &all)).await
        };
        let pointed = pointed.await;
        turn.give_back().await;
        pointed
    }

    /// Compares what the proxy holds with what it should; with `repair` sets right what differs, with `restore` only
    /// what is gone, as after a restart of a proxy that keeps nothing.
    async fn compare(&self, name: &Slug, mend: Mend) -> Result<Vec<Drift>, StepError> {
        let (settings, credentials) = self.declared(name).await?;
        let Some(driver) = self.driver(name, &settings, credentials)? else { return Err(no_api(name).into()) };
        let turn = self.turns.take(&self.log, &self.holder, name).await?;
        let compared = async {
            let all = self.entries(name).await?;
            let mut drifts = Vec::new();
            for entry in &all {
                let standing = driver.standing(entry).await?;
                let fits = standing.as_ref().is_some_and(|standing| driver.fits(entry, standing));
                let mend = !fits && (mend == Mend::All || (mend == Mend::Missing && standing.is_none()));
                if mend {
                    driver.put(entry, &all).await?;
                }
                drifts.push(Drift {
                    host: entry.host.clone(),
                    path: entry.path.clone(),
                    upstreams: entry.upstreams.clone(),
                    state: match (fits, &standing) {
                        (true, _) => State::AsDeclared,
                        (false, None) => State::Missing,
                        (false, Some(_)) => State::Changed,
                    },
                    found: standing.filter(|_| !fits).map(|standing| driver.shown(&standing).to_string()),
                    repaired: mend,
                });
            }
            Ok(drifts)
        };
        let compared = compared.await;
        turn.give_back().await;
        compared
    }

    /// What the proxy holds, host by host, beside what it should; with `repair` the difference is set right.
    pub async fn drift(&self, name: &Slug, repair: bool) -> Result<Vec<Drift>, StepError> {
        self.compare(name, if repair { Mend::All } else { Mend::Nothing }).await
    }

    /// Puts back what proxies have lost, and tells of what was changed by hand, which stays.
    pub async fn look_after(&self) -> Result<(), StepError> {
        let mut names: Vec<_> =
            routes::all(&self.log).await?.into_iter().filter_map(|route| Some(route.front?.proxy)).collect();
        names.sort();
        names.dedup();
        for name in names {
            // Without an admin API there is nothing to look at.
            if self.declared(&name).await.is_ok_and(|(settings, _)| settings.url.is_none()) {
                continue;
            }
            match self.compare(&name, Mend::Missing).await {
                Ok(drifts) => {
                    for Drift { host, path, state, repaired, .. } in drifts {
                        match (state, repaired) {
                            (State::AsDeclared, _) => {}
                            (_, true) => {
                                tracing::warn!(proxy = %name, host, path, "the proxy had lost a route; put back")
                            }
                            (_, false) => {
                                tracing::warn!(proxy = %name, host, path, "a route was changed by hand; `sluice proxy repair` sets it right");
                            }
                        }
                    }
                }
                // The next look may meet it.
                Err(StepError::Failed(problem) | StepError::Transient(problem)) => {
                    tracing::warn!(proxy = %name, problem = problem.message, "a proxy could not be looked at");
                }
                Err(StepError::Fenced) => {}
            }
        }
        Ok(())
    }

    /// Everything that the proxy `name` should hold, by the routes that stand.
    async fn entries(&self, name: &Slug) -> Result<Vec<Entry>, StepError> {
        let (settings, _) = self.declared(name).await?;
        let mut entries: Vec<Entry> = Vec::new();
        for route in routes::all(&self.log).await? {
            let Some(front) = route.front.as_ref().filter(|front| front.proxy == *name) else { continue };
            let entry = match (front.mode, &route.target, &settings.edge) {
                (Mode::Direct, Target::Live(set), _) => Entry::direct(&route, set),
                (Mode::ViaEdge, _, Some(edge)) => Entry::via(&route, edge),
                (Mode::Direct, Target::Held { .. }, _) | (Mode::ViaEdge, _, None) => continue,
            };
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

/// What a comparison sets right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mend {
    Nothing,
    Missing,
    All,
}

/// Makes a change of `entry`, and undoes it where it fails.
async fn change(
    driver: &dyn Driver,
    entry: &Entry,
    all_before: &[Entry],
    change: impl Future<Output = Result<(), StepError>>,
) -> Result<(), StepError> {
    let before = driver.standing(entry).await?;
    let Err(error) = change.await else { return Ok(()) };
    match (error, driver.restore(entry, before.as_ref(), all_before).await) {
        (error, Ok(())) => Err(error),
        (StepError::Failed(mut problem), Err(back)) => {
            problem.message += &format!("; and what stood there before could not be put back: {}", said(&back));
            Err(problem.into())
        }
        (error, Err(back)) => {
            tracing::warn!(back = said(&back), "what stood at a proxy before could not be put back");
            Err(error)
        }
    }
}

fn said(error: &StepError) -> &str {
    match error {
        StepError::Failed(problem) | StepError::Transient(problem) => &problem.message,
        StepError::Fenced => "another has taken over",
    }
}

fn not_direct(name: &Slug) -> Problem {
    Problem::new(
        "proxy_not_direct",
        format!("the proxy {name} is no longer declared for mode direct"),
        "deploy again: the route follows the proxy's settings as they are now",
    )
}

fn no_api(name: &Slug) -> Problem {
    Problem::new(
        "no_admin_api",
        format!("no admin API is declared for the proxy {name}, so what it holds cannot be seen"),
        format!("declare it: `sluice proxy set {name} --url http://HOST:PORT`"),
    )
}

impl Entry {
    fn direct(route: &Route, set: &UpstreamSet) -> Self {
        Self {
            id: format!("sluice-stage_{}_{}", route.project, route.stage),
            host: route.host.clone(),
            path: route.path.clone(),
            upstreams: set.upstreams.iter().map(|upstream| upstream.address.clone()).collect(),
            marker: Some(set.deployment),
        }
    }

    /// All of a host: which stage a path belongs to is the edge's business.
    fn via(route: &Route, edge: &str) -> Self {
        Self {
            id: format!("sluice-edge_{}", route.host.replace('.', "_")),
            host: route.host.clone(),
            path: "/".into(),
            upstreams: vec![edge.to_owned()],
            marker: None,
        }
    }
}

/// An admin API that speaks JSON.
pub(super) struct Api {
    http: reqwest::Client,
    pub(super) proxy: Slug,
    url: String,
}

/// What an admin API answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Api {
    pub(super) fn new(http: reqwest::Client, proxy: &Slug, url: &str) -> Self {
        Self { http, proxy: proxy.clone(), url: url.trim_end_matches('/').to_owned() }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).timeout(ADMIN)
    }

    /// Whatever the answer is; transient where there is none.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Answer, StepError> {
        let silent = |error: reqwest::Error| {
            StepError::Transient(Problem::new(
                "proxy_unreachable",
                format!("the admin API of the proxy {} does not answer: {}", self.proxy, chain(&error.without_url())),
                format!("see that the proxy runs and that this node reaches {}", self.url),
            ))
        };
        let answer = request.send().await.map_err(silent)?;
        let status = answer.status();
        let text = answer.text().await.map_err(silent)?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body })
    }

    /// For an answer that is not what a change needs.
    pub(super) fn refused(&self, operation: &str, answer: &Answer) -> StepError {
        let said: String = answer.body.to_string().chars().take(500).collect();
        let problem = Problem::new(
            "proxy_refused",
            format!("{operation}: the proxy {} answered {}: {said}", self.proxy, answer.status.as_u16()),
            "the message is the proxy's own; mend what it names, then deploy again",
        );
        if answer.status.is_server_error() { StepError::Transient(problem) } else { problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use domain::{DeploymentId, Span, settings::HealthCheck};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn no_two_stages_or_hosts_share_an_entry() {
        let set = UpstreamSet {
            deployment: DeploymentId(Uuid::from_u128(1)),
            upstreams: vec![],
            health: HealthCheck::default(),
            drain: Span::secs(5),
        };
        let route = |project: &str, stage: &str, host: &str| Route {
            project: project.parse().expect("a slug"),
            stage: stage.parse().expect("a slug"),
            host: host.into(),
            path: "/".into(),
            target: Target::Live(set.clone()),
            fence: 1,
            front: None,
        };
        let stages = [("a-at-b", "c"), ("a", "b-at-c"), ("a-b", "c"), ("a", "b-c"), ("edge", "a")];
        let hosts = ["a.b", "a-dot-b", "a-b", "a"];
        let mut ids: HashSet<_> = stages.map(|(p, s)| Entry::direct(&route(p, s, "a.b"), &set).id).into();
        ids.extend(hosts.map(|host| Entry::via(&route("a", "b", host), "edge:80").id));
        assert_eq!(ids.len(), stages.len() + hosts.len(), "{ids:?}");
    }
}
