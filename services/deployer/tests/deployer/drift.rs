//! What somebody changed by hand behind Sluice's back.

use std::{collections::HashMap, time::Duration};

use bollard::{
    models::{
        ContainerCreateBody, EndpointSettings, HostConfig, NetworkConnectRequest, NetworkCreateRequest, PortBinding,
    },
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptions},
};
use domain::{
    Bytes, DeploymentId,
    drift::{Found, FoundContainer},
    env::{EnvValue, SecretRef},
    node::{Inspect, Inspected, inspect_subject},
    settings::StageSettings,
};
use serde_json::{Value, json};
use testkit::SampleImage;

use crate::lab::{Lab, PATIENCE};

const CANARY: &str = "canary-7d2f";

async fn inspect(lab: &Lab) -> Found {
    let question = Inspect { project: lab.project.clone(), stage: lab.stage.clone() };
    let question = serde_json::to_vec(&question).expect("JSON");
    let answer = lab.log.request(&inspect_subject("local"), question, PATIENCE).await.expect("an answer");
    assert!(!String::from_utf8_lossy(&answer).contains(CANARY), "the value of a secret is told");
    serde_json::from_slice::<Inspected>(&answer).expect("readable").expect("well")
}

/// Field, what the release says, what is there.
fn told(container: &FoundContainer) -> Vec<(&str, Value, Value)> {
    container.differences.iter().map(|d| (d.field.as_str(), json!(d.from), json!(d.to))).collect()
}

async fn release(lab: &Lab) -> DeploymentId {
    let vault = lab.log.vault();
    vault.put("secret/db/1", &eventlog::Secret::new(CANARY)).await.expect("kept");
    let reference = SecretRef { secret: "db".into(), version: Some(1), vault: Some("secret/db/1".into()) };
    let mut settings = StageSettings { replicas: 2, port: Some(8080), ..lab.settings() };
    settings.env.insert("GREETING".into(), "hello".into());
    settings.env.insert("PASSWORD".into(), EnvValue::Secret(reference));
    settings.resources.memory = Some(Bytes::new(64 << 20));
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings).await;
    assert!(run.failure.is_none(), "{run:?}");
    run.deployment
}

#[tokio::test]
async fn what_was_changed_by_hand_is_told_field_by_field() {
    let mut lab = Lab::impatient().await;
    // What this test breaks is not to be mended meanwhile.
    lab.deadlines.sweep = Duration::from_secs(3600);
    lab.start_deployer().await;
    assert_eq!(inspect(&lab).await, Found::default(), "nothing was deployed");
    let deployment = release(&lab).await;
    let found = inspect(&lab).await;
    assert!(!found.differs(), "{found:#?}");
    let seen: Vec<_> = found.containers.iter().map(|c| (c.deployment, c.replica, c.running)).collect();
    assert_eq!(seen, [(deployment, 1, true), (deployment, 2, true)]);
    let names: Vec<String> = found.containers.into_iter().map(|container| container.name).collect();

    // The first is put on another network, and gets less memory.
    let client = lab.docker.client().clone();
    let other = format!("{}-other", lab.project);
    client.create_network(NetworkCreateRequest { name: other.clone(), ..Default::default() }).await.expect("made");
    let connect = NetworkConnectRequest { container: names[0].clone(), endpoint_config: None::<EndpointSettings> };
    client.connect_network(&other, connect).await.expect("connected");

    // In the place of the second runs something else.
    let second = client.inspect_container(&names[1], None).await.expect("there");
    let mut labels = second.config.and_then(|config| config.labels).expect("labels");
    let hash = labels.insert("dev.sluice.config-hash".into(), "made-by-hand".into()).expect("a hash");
    let force = || Some(RemoveContainerOptionsBuilder::default().force(true).build());
    client.remove_container(&names[1], force()).await.expect("removed");
    let image = lab.image("v2", SampleImage::new("2")).await;
    let bindings =
        vec![PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(testkit::free_port().to_string()) }];
    let body = ContainerCreateBody {
        image: Some(image.requested.clone()),
        env: Some(["GREETING=bye", "EXTRA=1", "PASSWORD=guessed"].map(str::to_owned).to_vec()),
        labels: Some(labels.clone()),
        host_config: Some(HostConfig {
            network_mode: Some(lab.network()),
            port_bindings: Some(HashMap::from([("8080/tcp".to_owned(), Some(bindings))])),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::default().name(&names[1]).build();
    client.create_container(Some(options), body).await.expect("created");
    client.start_container(&names[1], None).await.expect("started");

    let found = inspect(&lab).await;
    assert_eq!(found.differences, [], "there are two still");
    let network = lab.network();
    assert_eq!(told(&found.containers[0]), [("networks", json!([network]), json!([network, other]))]);
    let second = told(&found.containers[1]);
    let fields: Vec<&str> = second.iter().map(|(field, ..)| *field).collect();
    assert_eq!(
        fields,
        [
            "config_hash",
            "image",
            "env.GREETING",
            "env.PASSWORD",
            "env.EXTRA",
            // Of the other image.
            "env.VERSION",
            "ports_published",
            "resources.memory_bytes"
        ]
    );
    assert_eq!(second[0], ("config_hash", json!(hash), json!("made-by-hand")));
    assert!(second[1].2.as_str().is_some_and(|there| there.contains(&image.digest)), "{second:?}");
    assert_eq!(second[2], ("env.GREETING", json!("hello"), json!("another value")));
    assert_eq!(second[3], ("env.PASSWORD", json!("secret db, 1"), json!("another value")));
    assert_eq!(second[4].1, Value::Null);
    assert!(second[6].2[0].as_str().is_some_and(|there| there.ends_with("->8080/tcp")), "{second:?}");
    assert_eq!(second[7], ("resources.memory_bytes", json!(64 << 20), Value::Null));

    // One is missing, and one stands still.
    client.remove_container(&names[1], force()).await.expect("removed");
    let found = inspect(&lab).await;
    let replicas: Vec<_> = found.differences.iter().map(|d| (d.field.as_str(), json!([d.from, d.to]))).collect();
    assert_eq!(replicas, [("replicas", json!([2, 1]))]);
    client.stop_container(&names[0], None::<StopContainerOptions>).await.expect("stopped");
    let found = inspect(&lab).await;
    assert_eq!((json!(found.differences[0].to), found.containers[0].running), (json!(0), false));

    // One that no release wants.
    labels.insert("dev.sluice.deployment".into(), DeploymentId(runtime::clock::new_id()).to_string());
    let stranger = format!("{}-stranger", lab.project);
    let body = ContainerCreateBody { image: Some(image.requested), labels: Some(labels), ..Default::default() };
    let options = CreateContainerOptionsBuilder::default().name(&stranger).build();
    client.create_container(Some(options), body).await.expect("created");
    client.start_container(&stranger, None).await.expect("started");
    let found = inspect(&lab).await;
    let strange = found.containers.iter().find(|container| container.name == stranger).expect("told");
    assert_eq!(told(strange)[0].0, "container");

    client.remove_container(&stranger, force()).await.expect("removed");
    client.remove_container(&names[0], force()).await.expect("removed");
    client.remove_network(&other).await.expect("removed");
    lab.close().await;
}
