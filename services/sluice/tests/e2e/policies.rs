//! From a push to a running release, with nobody in between.

use std::time::Duration;

use serde_json::Value;
use testkit::SampleImage;

use crate::harness::Sluice;

const PATIENCE: Duration = Duration::from_secs(60);

impl Sluice {
    /// Makes a hook for the registry's notifications, and has the registry send them there. Its secret.
    async fn hook(&mut self) -> String {
        let registry = self.registry.address().to_owned();
        let made = ["hook", "set", "images", "--source", "distribution", "--registry", &registry];
        let secret = self.json(&made).await["secret"].as_str().expect("shown once").to_owned();
        let url = format!("http://{}/hooks/distribution/images", self.api);
        self.registry.notify(&url, &format!("Bearer {secret}")).await.expect("it starts again");
        secret
    }

    /// The newest deployment of a stage, once it has ended on `image`.
    async fn ended(&self, stage: &str, image: &str) -> Value {
        let ended = async {
            loop {
                let newest = self.json(&["deployments", "shop", stage]).await[0].clone();
                if newest["image"]["requested"] == image && !newest["ended_at"].is_null() {
                    return newest;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .unwrap_or_else(|_| panic!("{image} does not run:\n{}", self.log_text()))
    }
}

#[tokio::test]
async fn a_push_is_deployed_at_once_a_pin_stays_and_only_versions_of_the_range_are_taken() {
    let mut sluice = Sluice::up().await;
    let secret = sluice.hook().await;
    let registry = sluice.registry.address().to_owned();
    // Nobody polls: what is deployed was told of.
    sluice.run(&["registry", "set", &registry, "--poll", "0s"]).await;
    sluice
        .apply(&format!(
            "  dev:
    image: {registry}/shop
    port: 8080
    stop_grace: 1s
    policy: {{tag: main}}
  qa:
    image: {registry}/shop
    port: 8080
    stop_grace: 1s
    policy: {{semver: ^1}}
"
        ))
        .await;
    let first = sluice.push(SampleImage::new("1"), "main").await;
    let deployed = sluice.ended("dev", &first).await;
    assert_eq!((&deployed["status"], &deployed["requested_by"]), (&"succeeded".into(), &"hook/images".into()));
    assert_eq!(deployed["origin"], serde_json::json!({"kind": "policy", "tag": "main"}));
    let version = sluice.push(SampleImage::new("2"), "1.4.0").await;
    sluice.ended("qa", &version).await;
    sluice.push(SampleImage::new("3"), "2.0.0").await;
    sluice.push(SampleImage::new("4"), "1.3.9").await;
    // One for another machine than this.
    let foreign = sluice.push(SampleImage::new("5").architecture("s390x"), "1.5.0").await;
    let why = async {
        loop {
            let policy = sluice.json(&["policy", "shop", "qa"]).await;
            if policy["last"]["finding"] == "refused" {
                return policy["last"].clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let why = tokio::time::timeout(PATIENCE, why).await.expect("it is told of");
    assert_eq!(why["code"], "wrong_platform", "{why:#} of {foreign}");
    let said = sluice.run(&["policy", "shop", "qa"]).await;
    assert!(said.contains("semver: ^1") && said.contains("s390x"), "{said}");
    let all = sluice.json(&["deployments", "shop", "qa"]).await;
    assert_eq!(all.as_array().expect("a list").len(), 1, "{all:#}");

    sluice.run(&["deploy", "shop", "dev", "2.0.0", "--follow"]).await;
    sluice.push(SampleImage::new("6"), "main").await;
    let held = async {
        loop {
            let policy = sluice.json(&["policy", "shop", "dev"]).await;
            if policy["last"]["finding"] == "on_hold" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("the pin stands");
    sluice.run(&["unhold", "shop", "dev"]).await;
    assert_eq!(sluice.ended("dev", &first).await["status"], "succeeded");
    // A build says what it wants.
    let made = sluice.json(&["hook", "set", "ci", "--source", "plain", "--stage", "shop/qa"]).await;
    let bearer = format!("Bearer {}", made["secret"].as_str().expect("shown once"));
    let wish = async |image: &str| {
        let url = format!("http://{}/hooks/plain/ci", sluice.api);
        let request = reqwest::Client::new().post(url).header("authorization", &bearer);
        let answer = request.body(format!("{{\"image\": \"{image}\"}}")).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    let (status, answer) = wish("1.3.9").await;
    assert_eq!((status, &answer["stages"][0]["finding"]), (202, &"requested".into()), "{answer:#}");
    let built = sluice.ended("qa", &format!("{registry}/shop:1.3.9")).await;
    assert_eq!(built["origin"], serde_json::json!({"kind": "hook", "hook": "ci"}));
    let (status, answer) = wish("1.3.9").await;
    assert_eq!((status, &answer["stages"][0]["finding"]), (202, &"nothing_new".into()), "{answer:#}");
    sluice.run(&["lock", "shop", "qa", "--reason", "a visit"]).await;
    let (status, answer) = wish("1.4.0").await;
    assert_eq!((status, &answer["code"]), (409, &"locked".into()), "{answer:#}");

    for told in [sluice.run(&["events", "-n", "1000", "--json"]).await, sluice.log_text()] {
        assert!(!told.contains(&secret), "the secret is told: {told}");
    }
}
