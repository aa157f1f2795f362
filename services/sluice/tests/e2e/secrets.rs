//! Variables and secrets, from a pipe into a container and nowhere else.

use testkit::SampleImage;

use crate::harness::Sluice;

const CANARY: &str = "canary-5f1d7c\nsecond line";

/// What the container that serves `stage` was started with.
async fn environment(sluice: &Sluice, stage: &str) -> Vec<String> {
    let id = &sluice.serving(stage).await[0];
    let container = sluice.docker.client().inspect_container(id, None).await.expect("inspected");
    container.config.and_then(|config| config.env).expect("variables")
}

#[tokio::test]
async fn a_secret_reaches_the_container_in_its_newest_value_and_is_told_nowhere() {
    let sluice = Sluice::up().await;
    let file = sluice.write(
        "shop.yaml",
        "project: shop
env: {GREETING: hello, LEVEL: info}
stages:
  dev:
    port: 8080
    stop_grace: 1s
    env: {LEVEL: debug, PASSWORD: {secret: db-password}}
",
    );
    sluice.run(&["project", "apply", "-f", file.to_str().expect("a path")]).await;
    let image = sluice.push(SampleImage::new("1"), "v1").await;
    let (code, said) = sluice.refused(&["deploy", "shop", "dev", &image]).await;
    assert!(code == 4 && said.contains("`db-password`") && said.contains("sluice secret set"), "{code}: {said}");

    let set = async |value: &str| {
        let output = sluice.run_with_input(&["secret", "set", "shop", "db-password"], &format!("{value}\n")).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    set(CANARY).await;
    sluice.run(&["deploy", "shop", "dev", &image, "--follow"]).await;
    let env = environment(&sluice, "dev").await;
    for wanted in ["GREETING=hello", "LEVEL=debug", &format!("PASSWORD={CANARY}")] {
        assert!(env.iter().any(|variable| variable == wanted), "{wanted} is missing: {env:?}");
    }

    set("another-canary").await;
    let before = environment(&sluice, "dev").await;
    assert!(before.contains(&format!("PASSWORD={CANARY}")), "what runs keeps its value");
    sluice.run(&["redeploy", "shop", "dev", "--follow"]).await;
    assert!(environment(&sluice, "dev").await.contains(&"PASSWORD=another-canary".to_owned()));
    // A release is gone back to with the value that it ran with.
    let first = sluice.json(&["deployments", "shop", "dev"]).await[1]["id"].clone();
    sluice.run(&["rollback", "shop", "dev", "--to", first.as_str().expect("an id"), "--follow"]).await;
    assert!(environment(&sluice, "dev").await.contains(&format!("PASSWORD={CANARY}")));

    let (code, said) = sluice.refused(&["secret", "remove", "shop", "db-password"]).await;
    assert!(code == 4 && said.contains("env.PASSWORD of the stage dev"), "{code}: {said}");
    let listed = sluice.json(&["secret", "list", "shop"]).await;
    assert_eq!(listed["db-password"]["version"], 2);
    let mut told = vec![sluice.log_text(), listed.to_string()];
    for shown in
        [&["events", "-n", "1000"][..], &["deployments"], &["project", "show", "shop"], &["logs", "shop", "dev"]]
    {
        told.push(sluice.run(&[shown, &["--json"]].concat()).await);
    }
    for text in told {
        assert!(!text.contains("canary"), "a secret is told: {text}");
    }
}
