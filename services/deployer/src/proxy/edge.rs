//! Sluice's own edges: they follow the `routes` bucket, and a switch is made when every one of them says and shows so.

use std::time::{Duration, Instant};

use domain::{
    DeploymentId,
    traffic::{DEPLOYMENT_HEADER, PROBE_HEADER, Route},
};
use futures::future::join_all;

use super::{PROBE, Proxies, QUICKEST, SLOWEST};
use crate::{
    edges::Seen,
    failure::{Problem, StepError},
};

/// An edge has the route within milliseconds; one that is cut off is forgotten when its entry expires.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long to wait for the first edge to show up.
const NO_EDGE: Duration = Duration::from_secs(10);

/// What every edge must say before a change counts as made.
pub(super) enum Expect<'a> {
    Held { revision: u64 },
    Live { revision: u64, route: &'a Route, deployment: DeploymentId },
    Gone,
}

/// Ends well when every edge that lives has done what it was told.
pub(super) async fn confirm(proxies: &Proxies, key: &str, expect: Expect<'_>) -> Result<(), StepError> {
    let began = Instant::now();
    let mut pause = QUICKEST;
    loop {
        let seen = proxies.edges.ask(&proxies.log).await;
        let open = match (&expect, seen.is_empty()) {
            (Expect::Gone, true) => return Ok(()),
            (Expect::Held { .. } | Expect::Live { .. }, true) if began.elapsed() >= NO_EDGE => {
                return Err(Problem::new(
                    "no_edge",
                    "no edge is running, so nothing could take this stage's requests",
                    "start one with `sluice edge` (`sluice up` runs one), then deploy again",
                )
                .into());
            }
            (Expect::Held { .. } | Expect::Live { .. }, true) => Some("no edge has shown up".to_owned()),
            (Expect::Held { .. } | Expect::Live { .. } | Expect::Gone, false) => {
                let missing = seen.iter().map(|seen| missing(proxies, key, seen, &expect));
                join_all(missing).await.into_iter().flatten().next()
            }
        };
        let Some(open) = open else { return Ok(()) };
        if began.elapsed() >= CONFIRM {
            return Err(Problem::new(
                "not_confirmed",
                format!("the change of the route was not confirmed within {}s: {open}", CONFIRM.as_secs()),
                "look at that edge's log, and whether it reaches NATS and the containers' network; then deploy again",
            )
            .into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(SLOWEST);
    }
}

/// What is still missing at one edge; none when it has done what it was told.
async fn missing(proxies: &Proxies, key: &str, Seen { edge, status }: &Seen, expect: &Expect<'_>) -> Option<String> {
    let id = &edge.id;
    let Some(status) = status else { return Some(format!("edge {id} does not answer")) };
    let found = status.routes.iter().find(|route| route.key == key);
    match expect {
        Expect::Gone => found.map(|_| format!("edge {id} still has the route")),
        Expect::Held { revision } => {
            let held = found.is_some_and(|route| route.revision >= *revision && route.held);
            (!held).then(|| format!("edge {id} does not hold the route yet"))
        }
        Expect::Live { revision, route, deployment } => {
            if !found.is_some_and(|route| route.revision >= *revision && !route.held) {
                return Some(format!("edge {id} has not taken up the route yet"));
            }
            // What counts is what a client would see.
            let url = format!("http://{}{}", edge.address, route.path);
            let probe = proxies.http.head(url).header("host", &route.host).header(PROBE_HEADER, &edge.probe_token);
            match probe.timeout(PROBE).send().await {
                Ok(answer) => {
                    let by = answer.headers().get(DEPLOYMENT_HEADER).and_then(|value| value.to_str().ok());
                    (by != Some(deployment.to_string().as_str())).then(|| match by {
                        Some(other) => format!("a probe through edge {id} was answered by deployment {other}"),
                        None => {
                            format!(
                                "a probe through edge {id} was answered {} by no deployment",
                                answer.status().as_u16()
                            )
                        }
                    })
                }
                Err(error) => {
                    let error = crate::failure::chain(&error.without_url());
                    Some(format!("a probe through edge {id} failed: {error}"))
                }
            }
        }
    }
}

/// Requests on a set over all edges; `None` while one of them does not say.
pub(super) fn in_flight(seen: &[Seen], deployment: DeploymentId) -> Option<u64> {
    let mut sum = 0;
    for Seen { status, .. } in seen {
        let status = status.as_ref()?;
        let live = status.routes.iter().filter_map(|route| route.live.as_ref());
        let sets = live.chain(&status.draining).filter(|set| set.deployment == deployment);
        sum += sets.map(|set| set.in_flight).sum::<u64>();
    }
    Some(sum)
}
