//! From stage to stage: promotion with its gates and its proof, and the ways back and past.

use testkit::{Load, Registry, SampleImage};

use crate::harness::Sluice;

const STAGES: &str = "  dev:
    route: {host: dev.test}
    health: {check: http, path: /healthz, interval: 200ms, timeout: 1s, retries: 2, start_period: 3s}
    stop_grace: 3s
  prod:
    promote_from: dev
    gates: {soak: 2s, approvals: {count: 1}}
    route: {host: prod.test}
    health: {check: http, path: /healthz, interval: 200ms, timeout: 1s, retries: 2, start_period: 3s}
    stop_grace: 3s
";

#[tokio::test]
async fn the_bytes_that_ran_in_dev_reach_prod_through_its_gates_and_go_back_without_a_failed_request() {
    let mut sluice = Sluice::up().await;
    sluice.apply(STAGES).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    let ann = token(&sluice, "ann").await;

    let (code, said) = sluice.refused(&["deploy", "shop", "prod", &first]).await;
    assert!(code == 4 && said.contains("by promotion from dev"), "{code}: {said}");
    let (code, said) = sluice.refused(&["promote", "shop", "prod"]).await;
    assert!(code == 4 && said.contains("`source`") && said.contains("dev runs nothing"), "{code}: {said}");

    let (mut digests, mut containers) = (vec![], vec![]);
    for image in [&first, &second] {
        sluice.run(&["deploy", "shop", "dev", image, "--follow"]).await;
        let digest = sluice.json(&["status", "shop", "dev"]).await["current"]["image"]["digest"].clone();
        digests.push(digest.as_str().expect("a digest").to_owned());
        let promotion = promote(&sluice, &ann).await;
        let running = sluice.json(&["status", "shop", "prod"]).await;
        assert_eq!(running["current"]["image"]["digest"], digest);
        containers.push(sluice.serving("prod").await);
        let shown = sluice.json(&["promotion", "show", &promotion]).await;
        assert_eq!((&shown["status"], &shown["proof"]["digest"]), (&"accepted".into(), &digest));
        let verified = sluice.run(&["promotion", "verify", &promotion]).await;
        assert!(verified.contains("is verified"), "{verified}");
    }

    let load = Load::new(&sluice.edge, "prod.test").connections(8).rate(200).start();
    load.more(100).await;
    sluice.run(&["rollback", "shop", "prod", "--follow"]).await;
    load.more(100).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.versions.contains_key("1") && report.versions.contains_key("2"), "{:?}", report.versions);
    let back = sluice.json(&["status", "shop", "prod"]).await;
    assert_eq!(back["current"]["image"]["digest"], digests[0].as_str());
    assert_eq!(sluice.serving("prod").await, containers[0], "those that were kept serve again");
    assert!(back["hold"]["reason"].as_str().expect("on hold").contains("rolled back"), "{back:#}");

    let reason = "the release is needed now";
    sluice.run(&["deploy", "shop", "prod", &second, "--hotfix", "--reason", reason, "--follow"]).await;
    let (code, said) = sluice.run_as(&ann, &["deploy", "shop", "prod", &second, "--hotfix", "--reason", "x"]).await;
    assert!(code == 4 && said.contains("`admin`"), "{code}: {said}");
    let shown = sluice.json(&["deployments", "shop", "prod"]).await;
    let origins: Vec<_> = shown.as_array().expect("a list").iter().map(|d| d["origin"]["kind"].clone()).collect();
    assert_eq!(origins, ["hotfix", "rollback", "promotion", "promotion"]);

    // The way back needs no registry: that of the images is gone.
    sluice.registry = Registry::start().await.expect("another registry");
    sluice.run(&["rollback", "shop", "prod", "--follow"]).await;
    let back = sluice.json(&["status", "shop", "prod"]).await;
    assert_eq!(back["current"]["image"]["digest"], digests[0].as_str());
}

/// A new token for `name`, who may deploy and approve.
async fn token(sluice: &Sluice, name: &str) -> String {
    sluice.run(&["token", "create", name, "--role", "operator"]).await.trim().to_owned()
}

/// Promotes to prod: asked for by the administrator, approved by the other, accepted when the soak time is over.
async fn promote(sluice: &Sluice, other: &str) -> String {
    let asked = sluice.json(&["promote", "shop", "prod", "--wait"]).await;
    assert_eq!(asked["status"], "waiting", "{asked:#}");
    let promotion = asked["promotion"].as_str().expect("an id").to_owned();
    let (code, said) = sluice.refused(&["promotion", "approve", &promotion]).await;
    assert!(code == 4 && said.contains("somebody else"), "{code}: {said}");
    let (code, said) = sluice.run_as(other, &["promotion", "approve", &promotion]).await;
    assert_eq!(code, 0, "{said}");
    let accepted = async {
        loop {
            let shown = sluice.json(&["promotion", "show", &promotion]).await;
            match (shown["status"].as_str(), shown["deployment"].as_str()) {
                (Some("accepted"), Some(deployment)) => return deployment.to_owned(),
                (Some("waiting"), _) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                other => panic!("{other:?}: {shown:#}"),
            }
        }
    };
    let accepted = tokio::time::timeout(std::time::Duration::from_secs(60), accepted).await;
    let deployment = accepted.expect("the soak time is over by now");
    sluice.run(&["deployment", &deployment, "--follow"]).await;
    promotion
}
