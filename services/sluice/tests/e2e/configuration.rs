//! Configuration as code, by the command line of real installations.

use bollard::models::{EndpointSettings, NetworkConnectRequest, NetworkCreateRequest};
use serde_json::{Value, json};
use testkit::SampleImage;

use crate::harness::Sluice;

const FILE: &str = "projects:
  blog:
    stages:
      dev:
        port: 8080
        route: {host: blog.test}
  shop:
    name: The Shop
    env: {REGION: eu, KEY: {secret: api-key}}
    stages:
      dev:
        port: 8080
        stop_grace: 1s
        route: {host: shop.test}
        resources: {memory: 256MiB, cpus: 0.5}
      prod:
        promote_from: dev
        gates: {soak: 30m, approvals: {count: 2, roles: [operator]}}
";

#[tokio::test]
async fn an_export_is_applied_to_another_installation_and_exported_alike() {
    let first = Sluice::up().await;
    let file = first.write("all.yaml", FILE);
    let path = file.to_str().expect("a path");
    let (code, said) = first.refused(&["apply", "-f", path, "--plan"]).await;
    assert!(code == 8 && said.contains("+ stage shop/prod\n    + gates.approvals.count: 2"), "{code}: {said}");
    let said = first.run(&["apply", "-f", path]).await;
    assert!(said.contains("5 to create, 0 to change, 0 to remove\napplied: "), "{said}");
    first.run(&["apply", "-f", path, "--plan"]).await;
    let exported = first.run(&["export"]).await;
    for wanted in ["KEY:\n        secret: api-key", "name: The Shop", "memory: 256MiB"] {
        assert!(exported.contains(wanted), "no `{wanted}` in:\n{exported}");
    }
    assert!(!exported.contains("health") && !exported.contains("replicas"), "defaults are left out:\n{exported}");
    let written = file.with_file_name("export.yaml");
    first.run(&["export", "-o", written.to_str().expect("a path")]).await;
    assert_eq!(std::fs::read_to_string(&written).expect("written"), exported);

    let second = Sluice::up().await;
    assert_eq!(second.run(&["export"]).await, "{}\n");
    let output = second.run_with_input(&["apply", "-f", "-"], &exported).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sluice secret set shop api-key"), "what lacks is told");
    assert_eq!(second.run(&["export"]).await, exported, "byte for byte");
    let events = second.json(&["events", "-n", "1000"]).await;
    let output = second.run_with_input(&["apply", "-f", "-"], &exported).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "everything is as the file says\n");
    assert_eq!(second.json(&["events", "-n", "1000"]).await, events, "no event for nothing");

    // Errors have field and line, whoever found them.
    for (wrong, wanted) in [
        (FILE.replace("        promote_from: dev", "        replica: 2"), "bad.yaml: line 17 column 9"),
        (
            FILE.replace("promote_from: dev", "promote_from: nowhere"),
            "bad.yaml:17: projects.shop.stages.prod.promote_from",
        ),
        (FILE.replace("host: shop.test", "host: blog.test"), "bad.yaml:14: projects.shop.stages.dev.route"),
    ] {
        let file = second.write("bad.yaml", &wrong);
        let (code, said) = second.refused(&["apply", "-f", file.to_str().expect("a path")]).await;
        assert!(code == 2 && said.contains(wanted), "{code}: {said}");
    }
    let only = second.write("only.yaml", "projects: {shop: {stages: {dev: {port: 8080}}}}\n");
    let only = only.to_str().expect("a path");
    let output = second.output(&["apply", "-f", only]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("project blog is not in the file and stays as it is"), "{said}");
    second.run(&["apply", "-f", only, "--prune", "--yes"]).await;
    assert_eq!(second.run(&["export"]).await, "projects:\n  shop:\n    stages:\n      dev:\n        port: 8080\n");
    let schema: Value = serde_json::from_str(&second.run(&["schema"]).await).expect("JSON");
    assert!(schema["$defs"]["StageSettings"]["properties"]["gates"].is_object(), "{schema:#}");
}

#[tokio::test]
async fn a_diff_tells_what_the_file_what_is_declared_and_what_runs_have_not_in_common() {
    let sluice = Sluice::up().await;
    let set = sluice.run_with_input(&["project", "apply", "-f", "-"], "project: shop\n").await;
    assert!(set.status.success());
    let set = sluice.run_with_input(&["secret", "set", "shop", "api-key"], "canary-1\n").await;
    assert!(set.status.success());
    let file = sluice.write("all.yaml", FILE);
    let path = file.to_str().expect("a path");
    sluice.run(&["apply", "-f", path]).await;
    let image = sluice.push(SampleImage::new("1"), "v1").await;
    sluice.run(&["deploy", "shop", "dev", &image, "--follow"]).await;
    let said = sluice.run(&["diff", "-f", path]).await;
    let lines = ["everything is as the file says", "shop/dev: runs as declared", "shop/prod: nothing is deployed"];
    for line in lines {
        assert!(said.lines().any(|said| said == line), "no `{line}` in: {said}");
    }

    // The file, what is declared and what runs each go their own way.
    let mut stage = sluice.json(&["project", "show", "shop"]).await["stages"]["dev"].take();
    stage["replicas"] = json!(2);
    sluice.apply(&format!("  dev: {stage}\n")).await;
    let set = sluice.run_with_input(&["secret", "set", "shop", "api-key"], "canary-2\n").await;
    assert!(set.status.success());
    let drift = sluice.json_of(&["diff", "shop", "dev"], 8).await;
    let container = drift["stages"][0]["running"]["containers"][0]["name"].as_str().expect("a name").to_owned();
    let client = sluice.docker.client();
    let network = format!("{container}-other");
    client.create_network(NetworkCreateRequest { name: network.clone(), ..Default::default() }).await.expect("made");
    let connect = NetworkConnectRequest { container: container.clone(), endpoint_config: None::<EndpointSettings> };
    client.connect_network(&network, connect).await.expect("connected");
    let (code, said) = sluice.refused(&["diff", "shop", "dev", "-f", path]).await;
    for wanted in [
        "~ stage shop/dev\n    ~ replicas: 2 -> 1\n",
        "shop/dev: differs\n",
        "    ~ env.KEY: secret api-key, 1 -> secret api-key, 2\n    ~ replicas: 1 -> 2\n",
        &format!("  container {container}:\n    ~ networks: "),
    ] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
    assert!(code == 8 && said.contains(&network) && !said.contains("canary"), "{code}: {said}");

    // With what is declared deployed and the file applied, all three agree again.
    sluice.run(&["apply", "-f", path, "--yes"]).await;
    sluice.run(&["redeploy", "shop", "dev", "--follow"]).await;
    sluice.run(&["diff", "-f", path]).await;
    client.remove_network(&network).await.expect("nothing is on it any more");
    let (code, said) = sluice.refused(&["diff", "shop", "none"]).await;
    assert!(code == 3 && said.contains("sluice status"), "{code}: {said}");
}

#[tokio::test]
async fn an_apply_whose_api_is_killed_in_the_middle_comes_to_its_end_and_doubles_nothing() {
    const PROJECTS: usize = 200;
    // A project, four stages, four routes.
    const EVENTS: usize = PROJECTS * 9;
    let sluice = Sluice::up().await;
    let mut text = String::from("projects:\n");
    for n in 0..PROJECTS {
        text += &format!("  p{n}:\n    stages:\n");
        for stage in ["dev", "test", "staging", "prod"] {
            text += &format!("      {stage}: {{route: {{host: {stage}.p{n}.test}}}}\n");
        }
    }
    let file = sluice.write("all.yaml", &text);
    let path = file.to_str().expect("a path");
    let newest = async || sluice.json(&["events", "-n", "1"]).await[0]["sequence"].as_u64().unwrap_or_default();
    let kill = async {
        while newest().await < EVENTS as u64 / 10 {}
        sluice.kill_part("api");
    };
    let args = ["apply", "-f", path];
    let (output, ()) = tokio::join!(sluice.output(&args), kill);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let here: usize = match said.lines().last().and_then(|line| line.strip_prefix("applied: ")) {
        Some(applied) => applied.trim_end_matches(" events").parse().expect("a number"),
        // The API did not come back in time for this command line, which says what to do.
        None => {
            assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
            0
        }
    };
    assert!(here < EVENTS, "it was not interrupted: {said}");
    let again = async {
        while !sluice.output(&args).await.status.success() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), again).await.expect("it is completed");

    sluice.run(&["apply", "-f", path, "--prune", "--plan"]).await;
    let events = sluice.json(&["events", "-n", "5000"]).await;
    let subjects: Vec<&str> =
        events.as_array().expect("events").iter().filter_map(|event| event["subject"].as_str()).collect();
    // The first administrator came to be before.
    let applied = |subject: &&str| ["project.", "route."].iter().any(|of| subject.contains(of));
    let subjects: Vec<&str> = subjects.into_iter().filter(applied).collect();
    let count = |end: &str| subjects.iter().filter(|subject| subject.ends_with(end)).count();
    assert_eq!([count(".created"), count(".stage.added"), count(".claimed")], [PROJECTS, PROJECTS * 4, PROJECTS * 4]);
    assert_eq!(subjects.len(), EVENTS);
}
