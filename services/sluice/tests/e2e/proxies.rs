//! A stage behind a proxy of the user's own, by the command line alone.

use testkit::{NpmStandIn, SampleImage, UserProxy};

use crate::harness::Sluice;

fn project(proxy: &str) -> String {
    format!(
        "project: shop
stages:
  dev:
    port: 8080
    stop_grace: 1s
    drain: 1s
    route: {{host: shop.test, proxy: {proxy}}}
"
    )
}

/// The version that a client of the proxy at `address` sees.
async fn version(address: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(format!("http://{address}/")).header("host", "shop.test").send().await.expect("answered");
    answer.headers().get("x-version").map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn a_stage_lies_behind_nginx_proxy_manager_and_then_behind_caddy() {
    let sluice = Sluice::up().await;
    let npm = NpmStandIn::start().await.expect("nginx starts");
    let caddy = UserProxy::caddy().await.expect("Caddy starts");
    let (url, address) = (npm.url(), npm.address());
    let via =
        ["proxy", "set", "front", "--driver", "npm", "--url", &url, "--address", &address, "--edge", &sluice.edge];
    let said = sluice.run(&via).await;
    assert!(said.contains("lossless"), "{said}");
    let login = ["proxy", "login", "front", "--username", &npm.username];
    let output = sluice.run_with_input(&login, &format!("{}\n", npm.password)).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let file = sluice.write("shop.yaml", &project("front"));
    sluice.run(&["project", "apply", "-f", file.to_str().expect("a path")]).await;
    let image = sluice.push(SampleImage::new("1"), "v1").await;
    let plan = sluice.run(&["deploy", "shop", "dev", &image, "--plan"]).await;
    assert!(plan.contains("lossless") && plan.contains("behind the proxy front"), "{plan}");
    assert_eq!(sluice.json(&["deployments", "shop", "dev"]).await, serde_json::json!([]), "only planned");
    sluice.run(&["deploy", "shop", "dev", &image, "--follow"]).await;
    assert_eq!(version(&address).await, "1");
    let (code, said) = sluice.refused(&["proxy", "remove", "front"]).await;
    assert!(code == 4 && said.contains("shop.dev"), "{code}: {said}");

    // Somebody points it elsewhere.
    npm.edit("shop.test", &serde_json::json!({ "forward_port": 9 })).await.expect("edited");
    let (code, said) = sluice.refused(&["proxy", "drift", "front"]).await;
    assert!(code == 1 && said.contains("changed"), "{code}: {said}");
    let said = sluice.run(&["proxy", "repair", "front"]).await;
    assert!(said.contains("set right"), "{said}");
    assert_eq!(sluice.json(&["proxy", "drift", "front"]).await[0]["state"], "as_declared");

    let (url, address) = (caddy.url(), caddy.address());
    let direct = ["proxy", "set", "caddy", "--driver", "caddy", "--direct", "--url", &url, "--address", &address];
    assert!(sluice.run(&direct).await.contains("reloading"));
    let file = sluice.write("shop.yaml", &project("caddy"));
    sluice.run(&["project", "apply", "-f", file.to_str().expect("a path")]).await;
    let plan = sluice.json(&["deploy", "shop", "dev", &image, "--plan"]).await;
    assert!(plan["switch"].as_str().is_some_and(|said| said.starts_with("reloading")), "{plan}");
    sluice.run(&["redeploy", "shop", "dev", "--follow"]).await;
    assert_eq!(version(&address).await, "1");
    let listed = sluice.run(&["proxy", "list"]).await;
    assert!(listed.contains("front") && listed.contains("via_edge") && listed.contains("direct"), "{listed}");
    sluice.run(&["proxy", "remove", "front"]).await;
    assert_eq!(sluice.json(&["proxy", "show", "caddy"]).await["settings"]["mode"], "direct");

    // What is wrong is said by field, and the password nowhere.
    let (code, said) = sluice.refused(&["proxy", "set", "x", "--driver", "caddy", "--direct"]).await;
    assert!(code == 2 && said.contains("url") && said.contains("address"), "{code}: {said}");
    let events = sluice.json(&["events", "-n", "1000"]).await.to_string();
    assert!(!events.contains(&npm.password) && !sluice.log_text().contains(&npm.password));
}
