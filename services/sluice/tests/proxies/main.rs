//! What every proxy driver does in every mode, on real parts: the edge, Caddy, Traefik, and a stand-in for Nginx Proxy
//! Manager around a real nginx. Clients repeat nothing.

mod app;
mod lab;
mod moves;

use std::time::Duration;

use deployer::Permit;
use domain::proxy::{Mode, State};
use testkit::{Load, NpmStandIn, Report, UserProxy};
use tokio::time::timeout;

use crate::{
    app::{App, PATIENCE},
    lab::{Front, HOST, Lab, name},
};

const SWITCHES: usize = 50;
/// Requests that each load sees between two switches.
const BETWEEN: u64 = 20;

/// What a client may see of a switch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guarantee {
    Lossless,
    Reloading,
}
use Guarantee::{Lossless, Reloading};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_conforms() {
    conforms("edge", Lab::new(Front::Nothing, Mode::ViaEdge).await, Lossless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_via_the_edge_conforms() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    conforms("caddy via edge", Lab::new(Front::Caddy(caddy), Mode::ViaEdge).await, Lossless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_directly_conforms() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    conforms("caddy direct", Lab::new(Front::Caddy(caddy), Mode::Direct).await, Reloading).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_via_the_edge_conforms() {
    let traefik = UserProxy::traefik().await.expect("Traefik starts");
    conforms("traefik via edge", Lab::new(Front::Traefik(traefik), Mode::ViaEdge).await, Lossless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_directly_conforms() {
    let traefik = UserProxy::traefik().await.expect("Traefik starts");
    conforms("traefik direct", Lab::new(Front::Traefik(traefik), Mode::Direct).await, Lossless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_proxy_manager_via_the_edge_conforms() {
    let npm = NpmStandIn::start().await.expect("nginx starts");
    conforms("npm via edge", Lab::new(Front::Npm(npm), Mode::ViaEdge).await, Lossless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_proxy_manager_directly_conforms() {
    let npm = NpmStandIn::start().await.expect("nginx starts");
    conforms("npm direct", Lab::new(Front::Npm(npm), Mode::Direct).await, Reloading).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_deployers_never_write_to_one_nginx_proxy_manager_at_once() {
    let npm = NpmStandIn::start().await.expect("nginx starts");
    let lab = Lab::new(Front::Npm(npm), Mode::Direct).await;
    let (other, _watching) = lab.another_deployer();
    let (a, b) = (App::start("a").await, App::start("b").await);
    let one = async {
        for app in [&a, &b].into_iter().cycle().take(6) {
            lab.switch(&lab.route_of("one", "one.test", &app.address)).await.expect("switched");
            assert_eq!(lab.version("one.test").await, app.version);
        }
    };
    let two = async {
        for app in [&b, &a].into_iter().cycle().take(6) {
            let route = lab.route_of("two", "two.test", &app.address);
            timeout(PATIENCE, other.switch(&route, &Permit::always())).await.expect("in time").expect("switched");
            assert_eq!(lab.version("two.test").await, app.version);
        }
    };
    tokio::join!(one, two);
    assert_eq!((lab.version("one.test").await.as_str(), lab.version("two.test").await.as_str()), ("b", "a"));
    let Front::Npm(npm) = &lab.front else { panic!("it is there") };
    assert_eq!(npm.overlaps(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_is_refused_is_told_without_the_password() {
    let npm = NpmStandIn::start().await.expect("nginx starts");
    let lab = Lab::new(Front::Npm(npm), Mode::Direct).await;
    let app = App::start("a").await;
    lab.sign_in("admin@example.com", "hunter2").await;
    let problem = lab.refused(&lab.route(&app)).await;
    assert_eq!(problem.code, "proxy_unauthorized");
    assert!(
        problem.hint.contains("sluice proxy login front") && !format!("{problem:?}").contains("hunter2"),
        "{problem:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stages_of_one_host_lie_behind_one_proxy_by_their_paths() {
    for front in [
        Front::Caddy(UserProxy::caddy().await.expect("Caddy starts")),
        Front::Traefik(UserProxy::traefik().await.expect("Traefik starts")),
    ] {
        let lab = Lab::new(front, Mode::Direct).await;
        let (whole, api) = (App::start("whole").await, App::start("api").await);
        // The longer path comes last and wins all the same.
        lab.switch(&lab.route(&whole)).await.expect("switched");
        let mut route = lab.route_of("api", HOST, &api.address);
        route.path = "/api".into();
        lab.switch(&route).await.expect("switched");
        for (path, version) in [("/", "whole"), ("/api", "api"), ("/api/v1", "api"), ("/apiary", "whole")] {
            assert_eq!(lab.version_at(HOST, path).await, version, "{path}");
        }
        lab.switch(&lab.route(&whole)).await.expect("switched again");
        assert_eq!(lab.version_at(HOST, "/api").await, "api");
    }
}

/// The suite. Each part goes on where the one before ended.
async fn conforms(driver: &str, mut lab: Lab, guarantee: Guarantee) {
    let (a, b) = (App::start("a").await, App::start("b").await);
    let direct = lab.settings().proxy.is_some() && guarantee_of(&lab).await == Mode::Direct;

    // Created: the host answered nobody before.
    assert_eq!(lab.version(HOST).await, "404");
    if direct {
        cut_off(&lab).await;
    }
    lab.switch_to(&a).await;
    assert_eq!(lab.version(HOST).await, "a");

    switched_under_load(driver, &lab, &a, &b, guarantee).await;
    drained(&lab, &a, &b, direct).await;
    refused(&lab, direct).await;

    // Down: a switch fails and says so; back, what was lost is put back without being asked.
    lab.down().await;
    let problem = lab.refused(&lab.route(&a)).await;
    assert!(!problem.hint.is_empty(), "{problem:?}");
    lab.up().await;
    lab::until("what was lost is back", async || {
        // As the deployer does from time to time.
        lab.proxies.look_after().await.expect("looked after");
        lab.version(HOST).await == "b"
    })
    .await;
    lab.switch_to(&a).await;
    assert_eq!(lab.version(HOST).await, "a");

    if !matches!(lab.front, Front::Nothing) {
        edited(&lab, &b).await;
        if !direct {
            // An edge that is declared anew is told to the proxy with the next switch.
            lab.move_edge().await;
            lab.switch_to(&b).await;
            lab.shows("b").await;
        }
    }

    lab.withdraw().await;
    if direct {
        assert_eq!(lab.version(HOST).await, "404");
    } else {
        // The proxy still leads to the edge, and nothing is there. Which of nginx's workers answers is its own business.
        lab.shows("404").await;
    }
}

/// A first switch that ends before it is written down: it leaves nothing at the proxy.
async fn cut_off(lab: &Lab) {
    let app = App::slow("cut off").await;
    let route = lab.route(&app);
    let may = Permit::always();
    tokio::select! {
        ended = lab.switch(&route) => panic!("it was not cut off: {ended:?}"),
        came = timeout(PATIENCE, app.came.acquire()) => came.expect("the proxy has it").expect("open").forget(),
    }
    assert_eq!(lab.version(HOST).await, "cut off", "the proxy leads there, and nothing says so");
    lab.proxies.abandon(&lab.settings(), route, &may).await.expect("abandoned");
    assert_eq!(lab.version(HOST).await, "404");
}

async fn guarantee_of(lab: &Lab) -> Mode {
    lab.proxies.front(&lab.settings()).await.expect("declared").map_or(Mode::ViaEdge, |front| front.mode)
}

#[expect(clippy::print_stdout, reason = "what a client saw is part of the driver's documentation")]
async fn switched_under_load(driver: &str, lab: &Lab, a: &App, b: &App, guarantee: Guarantee) {
    let kept = Load::new(&lab.address, HOST).rate(800).start();
    let single = Load::new(&lab.address, HOST).connections(4).rate(200).without_keep_alive().start();
    for number in 1..=SWITCHES {
        let to = if number % 2 == 1 { b } else { a };
        lab.switch_to(to).await;
        kept.more(BETWEEN).await;
    }
    let (kept, single) = (kept.stop().await, single.stop().await);
    println!("{driver}: {SWITCHES} switches, kept alive {}, a connection each {}", said(&kept), said(&single));
    for report in [&kept, &single] {
        assert!(report.versions.contains_key("a") && report.versions.contains_key("b"), "{report:?}");
    }
    match guarantee {
        Lossless => assert_eq!((kept.failed, single.failed), (0, 0), "{:?} {:?}", kept.failures, single.failures),
        Reloading => {
            // Never a wrong answer: only connections that were closed just as they were used, or that a worker of
            // before the reload took and forgot.
            let lost = |reason: &str| {
                ["awaiting the answer: ", "connecting: Connection reset", "no answer within"]
                    .iter()
                    .any(|beginning| reason.starts_with(beginning))
            };
            let failures = kept.failures.iter().chain(&single.failures);
            let others: Vec<_> = failures.filter(|(reason, _)| !lost(reason)).collect();
            assert!(others.is_empty(), "{others:?}");
        }
    }
}

fn said(report: &Report) -> String {
    format!("{} failed of {} {:?}", report.failed, report.requests, report.failures)
}

/// A request under way ends on the containers that it began on, which are waited for.
async fn drained(lab: &Lab, a: &App, b: &App, direct: bool) {
    let old = lab.switch_to(a).await;
    let url = format!("http://{}/slow", lab.address);
    let slow = tokio::spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        client.get(url).header("host", HOST).send().await
    });
    timeout(PATIENCE, a.came.acquire()).await.expect("it comes").expect("open").forget();
    lab.switch_to(b).await;
    let (route, limit) = (lab.settings(), Duration::from_secs(2));
    let began = std::time::Instant::now();
    let drain = || lab.proxies.drain(Some(&route), old, limit, Duration::ZERO);
    let left = drain().await.expect("asked");
    if direct {
        // Nobody counts them: they have had their time.
        assert!(left.is_none() && began.elapsed() >= limit);
    } else {
        assert_eq!(left, Some(Some(1)), "the edge counts the request that is under way");
    }
    a.go.add_permits(1);
    let answer = timeout(PATIENCE, slow).await.expect("in time").expect("no panic").expect("an answer");
    assert_eq!(answer.headers().get("x-version").map(|v| v.as_bytes()), Some(&b"a"[..]));
    if !direct {
        lab::until("it has drained", async || drain().await.expect("asked").is_none()).await;
    }
}

/// Containers that answer nobody, or not the proxy: what stood before goes on.
async fn refused(lab: &Lab, direct: bool) {
    let load = Load::new(&lab.address, HOST).rate(200).without_keep_alive().start();
    load.more(BETWEEN).await;
    let nobody = format!("127.0.0.1:{}", testkit::free_port());
    if direct {
        let problem = lab.refused(&lab.route_of("prod", HOST, &nobody)).await;
        assert_eq!(problem.code, "upstream_unreachable", "{problem:?}");
        load.more(BETWEEN).await;
        let report = load.stop().await;
        assert_eq!(report.failed, 0, "the proxy was not even told: {:?}", report.failures);
    }
    let broken = App::broken("broken").await;
    let problem = lab.refused(&lab.route(&broken)).await;
    assert!(["upstream_unreachable", "not_confirmed"].contains(&problem.code), "{problem:?}");
    lab.shows("b").await;
    if let Front::Npm(npm) = &lab.front
        && direct
    {
        // The manager says 200, and has disabled the host.
        let next = App::start("next").await;
        npm.spoil_next_write();
        let problem = lab.refused(&lab.route(&next)).await;
        assert_eq!(problem.code, "nginx_refused", "{problem:?}");
        assert!(problem.message.contains("spoilt_by_the_test"), "{problem:?}");
        lab.shows("b").await;
    }
}

/// What somebody changed is told, left alone, and set right on request.
async fn edited(lab: &Lab, elsewhere: &App) {
    let states = async |repair| {
        let drift = lab.proxies.drift(&name(), repair).await.expect("compared");
        drift.into_iter().map(|drift| (drift.state, drift.repaired)).collect::<Vec<_>>()
    };
    assert_eq!(states(false).await, [(State::AsDeclared, false)]);
    lab.edit(&elsewhere.address).await;
    lab::until("the edit is seen", async || states(false).await == [(State::Changed, false)]).await;
    lab.proxies.look_after().await.expect("looked after");
    assert_eq!(states(false).await, [(State::Changed, false)], "nobody asked for it to be set right");
    assert_eq!(states(true).await, [(State::Changed, true)]);
    assert_eq!(states(false).await, [(State::AsDeclared, false)]);
    lab.shows("a").await;
}
