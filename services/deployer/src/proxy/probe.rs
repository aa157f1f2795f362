//! Probes through a proxy of the user's own: what counts is what a client would see.

use std::time::{Duration, Instant};

use domain::{
    DeploymentId,
    settings::Check,
    traffic::{DEPLOYMENT_HEADER, PROBE_HEADER, Route, UpstreamSet},
};
use reqwest::Response;

use super::{PROBE, Proxies, QUICKEST, SLOWEST};
use crate::failure::{Problem, StepError, chain};

/// How long a proxy may take to show a change that its API has confirmed.
const CONFIRM: Duration = Duration::from_secs(15);
/// How long a proxy may fail to reach containers that answer the deployer.
const BROKEN: Duration = Duration::from_secs(2);
/// Good answers in a row that count: a worker of before the reload may take a few more requests.
const IN_A_ROW: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(20);

/// Where a probe asks: what is known to be well, if the route leads there.
pub(super) fn path<'a>(route: &'a Route, set: &'a UpstreamSet) -> &'a str {
    let checked = set.health.path.as_deref().filter(|_| set.health.check == Check::Http);
    let prefix = route.path.trim_end_matches('/');
    let leads = |path: &&str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    checked.filter(leads).unwrap_or(&route.path)
}

/// Each container answers HTTP: a proxy takes any address, and would find out with the clients' requests.
pub(super) async fn upstreams(proxies: &Proxies, route: &Route, set: &UpstreamSet) -> Result<(), StepError> {
    for upstream in &set.upstreams {
        let url = format!("http://{}{}", upstream.address, path(route, set));
        if let Err(error) = proxies.http.head(url).header("host", &route.host).timeout(PROBE).send().await {
            return Err(Problem::new(
                "upstream_unreachable",
                format!(
                    "{} at {} answers no HTTP request, so the proxy is left as it was: {}",
                    upstream.instance,
                    upstream.address,
                    chain(&error.without_url())
                ),
                "look at the container's log, and at the stage's `port`",
            )
            .into());
        }
    }
    Ok(())
}

/// Ends well when the proxy at `address` answers with what it was last given. One that has it and reaches no container
/// is soon given up.
pub(super) async fn direct(
    proxies: &Proxies,
    address: &str,
    route: &Route,
    set: &UpstreamSet,
) -> Result<(), StepError> {
    let wanted = set.deployment.to_string();
    let mut wait = Wait::new();
    let mut broken: Option<Instant> = None;
    let mut good = 0;
    loop {
        let open = match ask(proxies, address, path(route, set), route, None).await {
            Err(open) => open,
            Ok(answer) => match (marker(&answer) == Some(&wanted), answer.status().as_u16()) {
                (true, status @ 502..=504) => {
                    let problem =
                        format!("the proxy at {address} has the new containers, and answers {status} for them");
                    if broken.get_or_insert_with(Instant::now).elapsed() >= BROKEN {
                        let hint = "the proxy must reach the containers' network: join it, or use mode via_edge";
                        return Err(Problem::new("upstream_unreachable", problem, hint).into());
                    }
                    Open { said: problem, away: false }
                }
                (true, _) => {
                    good += 1;
                    if good == IN_A_ROW {
                        return Ok(());
                    }
                    tokio::time::sleep(BETWEEN).await;
                    continue;
                }
                (false, _) => seen(address, &answer),
            },
        };
        good = 0;
        wait.on(address, open).await?;
    }
}

/// Ends well when the proxy at `address` no longer leads to what it was last given.
pub(super) async fn gone(proxies: &Proxies, address: &str, route: &Route, set: &UpstreamSet) -> Result<(), StepError> {
    let left = set.deployment.to_string();
    let mut wait = Wait::new();
    let mut good = 0;
    loop {
        match ask(proxies, address, path(route, set), route, None).await {
            Ok(answer) if marker(&answer) == Some(&left) => {
                good = 0;
                wait.on(address, seen(address, &answer)).await?;
            }
            Ok(_) if good + 1 < IN_A_ROW => {
                good += 1;
                tokio::time::sleep(BETWEEN).await;
            }
            // Down, it leads nowhere.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

/// Ends well when the proxy at `address` leads to an edge that has switched.
pub(super) async fn through_edge(
    proxies: &Proxies,
    address: &str,
    route: &Route,
    deployment: DeploymentId,
) -> Result<(), StepError> {
    let wanted = deployment.to_string();
    let mut wait = Wait::new();
    loop {
        let mut last = Open { said: "no edge lives".into(), away: true };
        // Which of them the proxy leads to is not known.
        for edge in proxies.edges.present() {
            last = match ask(proxies, address, &route.path, route, Some(&edge.probe_token)).await {
                Ok(answer) if marker(&answer) == Some(&wanted) => return Ok(()),
                Ok(answer) => seen(address, &answer),
                Err(open) => open,
            };
        }
        wait.on(address, last).await?;
    }
}

/// Why a change is not confirmed yet.
struct Open {
    said: String,
    /// The proxy does not answer at all.
    away: bool,
}

struct Wait {
    began: Instant,
    pause: Duration,
}

impl Wait {
    fn new() -> Self {
        Self { began: Instant::now(), pause: QUICKEST }
    }

    /// A moment, unless it has been too long.
    async fn on(&mut self, address: &str, Open { said, away }: Open) -> Result<(), StepError> {
        if self.began.elapsed() < CONFIRM {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 3 / 2).min(SLOWEST);
            return Ok(());
        }
        let problem = Problem::new(
            if away { "proxy_unreachable" } else { "not_confirmed" },
            format!("the switch was not confirmed through the proxy within {}s: {said}", CONFIRM.as_secs()),
            format!(
                "see that the proxy takes plain HTTP for this host at {address}; `sluice proxy drift` compares what it \
                 holds, `sluice proxy repair` sets it right"
            ),
        );
        // A proxy that is down may come back within the step's time.
        Err(if away { StepError::Transient(problem) } else { problem.into() })
    }
}

async fn ask(
    proxies: &Proxies,
    address: &str,
    path: &str,
    route: &Route,
    token: Option<&String>,
) -> Result<Response, Open> {
    let url = format!("http://{address}{path}");
    if url.parse().is_ok_and(|url| proxies.outgoing.refuses(&url)) {
        return Err(Open {
            said: format!("no request is sent to {address}, in this node's surroundings"),
            away: false,
        });
    }
    let probe = proxies.http.head(url).header("host", &route.host).timeout(PROBE);
    let probe = token.into_iter().fold(probe, |probe, token| probe.header(PROBE_HEADER, token));
    probe.send().await.map_err(|error| Open {
        said: format!("a probe through the proxy at {address} failed: {}", chain(&error.without_url())),
        away: true,
    })
}

fn marker(answer: &Response) -> Option<&str> {
    answer.headers().get(DEPLOYMENT_HEADER)?.to_str().ok()
}

fn seen(address: &str, answer: &Response) -> Open {
    let status = answer.status();
    let said = match (marker(answer), status.is_redirection()) {
        (Some(other), _) => format!("a probe through the proxy at {address} was answered by deployment {other}"),
        (None, true) => {
            let status = status.as_u16();
            format!("the proxy at {address} redirects plain HTTP ({status}), so that no probe gets through")
        }
        (None, false) => {
            format!("a probe through the proxy at {address} was answered {} by no deployment", status.as_u16())
        }
    };
    Open { said, away: false }
}
