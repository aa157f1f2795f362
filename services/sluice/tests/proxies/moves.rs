//! Stages that come, go elsewhere and leave: what they find at a proxy, and what they leave behind.

use std::time::{Duration, Instant};

use domain::{proxy::Mode, traffic::Route};
use serde_json::{Value, json};
use testkit::{NpmStandIn, UserProxy};

use crate::{
    app::App,
    lab::{Front, HOST, Lab, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_moves_between_the_edge_and_a_proxy() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    let mut lab = Lab::new(Front::Caddy(caddy), Mode::Direct).await;
    lab.start_edge().await;
    let (a, b) = (App::start("a").await, App::start("b").await);
    let straight = |app: &App| Route { front: None, ..lab.route(app) };
    let seen = async || (lab.version_by_edge().await, lab.version(HOST).await);

    lab.switch(&straight(&a)).await.expect("switched");
    assert_eq!(seen().await, ("a".into(), "404".into()));
    lab.switch(&lab.route(&b)).await.expect("switched");
    until("the edge has let go of it", async || seen().await == ("404".into(), "b".into())).await;
    lab.switch(&straight(&a)).await.expect("switched");
    assert_eq!(seen().await, ("a".into(), "404".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_direct_proxy_led_to_has_its_time_however_the_proxy_is_declared_by_then() {
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    let mut lab = Lab::new(Front::Caddy(caddy), Mode::Direct).await;
    lab.start_edge().await;
    let (a, b) = (App::start("a").await, App::start("b").await);
    let limit = Duration::from_secs(2);
    // Once a switch leaves the proxy, and once nothing is left to switch to.
    for last in [false, true] {
        lab.redeclare(Mode::Direct).await;
        let old = lab.switch_to(&a).await;
        lab.redeclare(Mode::ViaEdge).await;
        if last {
            lab.withdraw().await;
        } else {
            lab.switch_to(&b).await;
        }
        let began = Instant::now();
        let left = lab.proxies.drain(Some(&lab.settings()), old, limit, Duration::ZERO).await.expect("drained");
        // Nobody counts what is in flight at the proxy: it has all of its time.
        assert!(left.is_none() && began.elapsed() >= limit, "{left:?} after {:?}", began.elapsed());
    }
}

/// What somebody sees of a host in the manager's form.
fn form(lab: &Lab, host: &str) -> Value {
    let Front::Npm(npm) = &lab.front else { panic!("only Nginx Proxy Manager has hosts") };
    let mut found = npm.hosts().into_iter().find(|found| found["domain_names"][0] == host).expect("the host");
    found["meta"].take();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_the_users_own_leads_where_it_did_once_the_stage_leaves() {
    let npm = NpmStandIn::start().await.expect("nginx starts");
    let lab = Lab::new(Front::Npm(npm), Mode::Direct).await;
    let (own, a, b) = (App::start("own").await, App::start("a").await, App::start("b").await);
    let (ip, port) = own.address.rsplit_once(':').expect("ip:port");
    let port: u16 = port.parse().expect("a port");
    let leads = |to: u16| json!({ "forward_scheme": "http", "forward_host": ip, "forward_port": to });
    let plain = leads(port);
    // As the manager's form makes it where a whole host has a location of its own.
    let mut location = leads(port);
    location["path"] = "/".into();
    location["advanced_config"] = "# mine: \"quoted\" ümläut\nproxy_buffering off;".into();
    let mut custom = leads(9);
    custom["locations"] = json!([{ "path": "/files", "forward_scheme": "http", "forward_host": ip,
        "forward_port": port, "advanced_config": "" }, location]);
    for (host, fields) in [("plain.test", plain), ("custom.test", custom)] {
        lab.own_host(host, fields).await;
        until("the host is there", async || lab.version(host).await == "own").await;
        let before = form(&lab, host);
        for app in [&a, &b] {
            lab.switch(&lab.route_of("prod", host, &app.address)).await.expect("switched");
            assert_eq!(lab.version(host).await, app.version);
        }
        lab.withdraw().await;
        assert_eq!(lab.version(host).await, "own");
        assert_eq!(form(&lab, host), before);
    }
    // To another host of the same proxy: the one before is left as well.
    for host in ["plain.test", "custom.test"] {
        lab.switch(&lab.route_of("prod", host, &a.address)).await.expect("switched");
    }
    assert_eq!((lab.version("plain.test").await.as_str(), lab.version("custom.test").await.as_str()), ("own", "a"));
    // One that somebody has pointed elsewhere meanwhile is left as it is.
    let Front::Npm(npm) = &lab.front else { panic!("it is there") };
    let mut elsewhere = leads(port);
    elsewhere["locations"] = json!([]);
    npm.edit("custom.test", &elsewhere).await.expect("edited");
    let edited = form(&lab, "custom.test");
    lab.withdraw().await;
    assert_eq!(form(&lab, "custom.test"), edited);
}
