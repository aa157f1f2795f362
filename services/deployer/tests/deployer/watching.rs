//! What happens between rollouts.

use bollard::{
    models::{ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, NetworkingConfig},
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptions},
};
use domain::{
    DeploymentId,
    settings::StageSettings,
    stage::{self, Command, Outcome},
};
use eventlog::LogFilter;
use futures::StreamExt;
use testkit::SampleImage;

use crate::lab::Lab;

#[tokio::test]
async fn a_container_that_dies_is_an_event_and_comes_back() {
    let lab = Lab::new().await;
    let image = lab.image("v1", SampleImage::new("1").env("EXIT_AFTER_MS", 6000).env("EXIT_CODE", 7)).await;
    let run = lab.deploy(image, lab.settings()).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.saw("its exit", |event| matches!(event, stage::Event::InstanceExited { exit_code: 7, .. })).await;
    let mut starts = 0;
    lab.saw("its return", |event| {
        starts += usize::from(matches!(event, stage::Event::InstanceStarted { address: Some(_), .. }));
        starts == 2
    })
    .await;
    lab.close().await;
}

#[tokio::test]
async fn one_whose_address_was_taken_is_made_anew_and_the_route_follows() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    let before = lab.live().await.expect("live").1;
    let client = lab.docker.client().clone();
    let (_, container) = lab.containers().await.remove(0);
    let (id, image) = (container.id.expect("an id"), container.image.expect("an image"));
    lab.stop_deployer().await;
    client.stop_container(&id, None::<StopContainerOptions>).await.expect("stopped");
    let (name, network) = (format!("{}-squatter", lab.project), lab.network());
    let address = before[0].split(':').next().map(str::to_owned);
    let told = EndpointIpamConfig { ipv4_address: address, ..Default::default() };
    let endpoint = EndpointSettings { ipam_config: Some(told), ..Default::default() };
    let body = ContainerCreateBody {
        image: Some(image),
        host_config: Some(HostConfig { network_mode: Some(network.clone()), ..Default::default() }),
        networking_config: Some(NetworkingConfig { endpoints_config: Some([(network, endpoint)].into()) }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    client.create_container(Some(options), body).await.expect("created");
    client.start_container(&name, None).await.expect("started");
    lab.start_deployer().await;
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            let (serving, after) = lab.live().await.expect("live");
            if after != before {
                return (serving, after);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let (serving, after) = waited.await.expect("the route follows");
    assert_eq!((serving, after.len()), (run.deployment, 1));
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(&name, Some(options)).await.expect("removed");
    lab.close().await;
}

#[tokio::test]
async fn a_deployer_that_starts_sets_right_what_it_finds() {
    let mut lab = Lab::new().await;
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    lab.stop_deployer().await;
    let client = lab.docker.client();
    let (_, container) = lab.containers().await.remove(0);
    let id = container.id.expect("an id");
    client.stop_container(&id, None::<StopContainerOptions>).await.expect("stopped");
    // Of a deployment that nobody knows.
    let orphan = DeploymentId(runtime::clock::new_id());
    let mut labels = container.labels.expect("labelled");
    labels.insert("dev.sluice.deployment".into(), orphan.to_string());
    let body = ContainerCreateBody { image: container.image, labels: Some(labels), ..Default::default() };
    let options = CreateContainerOptionsBuilder::default().name(&format!("{}-orphan", lab.project)).build();
    client.create_container(Some(options), body).await.expect("created");
    lab.stands("both", |standing| standing.len() == 2).await;
    lab.log
        .bucket(domain::traffic::ROUTES)
        .delete(&format!("{}.{}", lab.project, lab.stage), None)
        .await
        .expect("lost");

    lab.start_deployer().await;
    lab.stands("the current release runs, alone", |standing| {
        standing.len() == 1 && standing.get(&run.deployment) == Some(&(1, 1))
    })
    .await;
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while lab.live().await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the route is written again");
    lab.close().await;
}

#[tokio::test]
async fn an_archived_stage_leaves_nothing_behind() {
    let lab = Lab::new().await;
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    lab.deploy(lab.image("v2", SampleImage::new("2")).await, lab.settings()).await;
    let removal = DeploymentId(runtime::clock::new_id());
    lab.execute(Command::Archive { removal }).await;
    let run = lab.end(removal).await;
    assert_eq!(run.names, ["requested", "dispatched", "started", "switched", "drained", "retired", "succeeded"]);
    assert_eq!(lab.standing().await.len(), 0);
    assert_eq!(lab.route().await, None);
    let network = lab.network();
    assert!(lab.docker.client().inspect_network(&network, None).await.is_err(), "the network is still there");
    lab.close().await;
}

#[tokio::test]
async fn output_reaches_its_followers_once() {
    let mut lab = Lab::new().await;
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, lab.settings()).await;
    let address = lab.live().await.expect("live").1.remove(0);
    let filter = LogFilter { project: lab.project.clone(), stage: lab.stage.clone(), deployment: Some(run.deployment) };
    let mut output = lab.log.logs().read(filter.clone(), 1000, true).boxed();
    get(&address, "/log?text=first-line").await;
    let mut sources = Vec::new();
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        loop {
            let entry = output.next().await.expect("no end").expect("readable");
            sources.push(entry.source.clone());
            if entry.line.text.contains("first-line") {
                return entry;
            }
        }
    });
    let entry = waited.await.expect("the line comes");
    assert!(entry.source.starts_with(lab.project.as_str()), "{entry:?}");
    assert!(sources.iter().any(|source| source == "step"), "{sources:?}");

    // The next deployer goes on where this one stopped.
    lab.stop_deployer().await;
    get(&address, "/log?text=second-line").await;
    lab.start_deployer().await;
    get(&address, "/log?text=third-line").await;
    let mut texts = vec![entry.line.text];
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while !texts.iter().any(|text| text.contains("third-line")) {
            texts.push(output.next().await.expect("no end").expect("readable").line.text);
        }
    });
    waited.await.expect("the lines come");
    for line in ["first-line", "second-line", "third-line"] {
        assert_eq!(texts.iter().filter(|text| text.contains(line)).count(), 1, "{line}: {texts:?}");
    }

    // Nor does it tell again what its predecessor has told of the container.
    let starts = |event: &stage::Event| matches!(event, stage::Event::InstanceStarted { .. });
    let marker = DeploymentId(runtime::clock::new_id());
    lab.execute(Command::Lock { owner: "test".into(), reason: marker.to_string() }).await;
    let mut count = 0;
    lab.saw("the marker", |event| {
        count += usize::from(starts(event));
        matches!(event, stage::Event::Locked { .. })
    })
    .await;
    assert_eq!(count, 1);
    lab.close().await;
}

async fn get(address: &str, path: &str) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(format!("http://{address}{path}")).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
}

#[tokio::test]
async fn what_someone_removed_is_made_again_and_what_is_stray_goes() {
    let mut lab = Lab::impatient().await;
    lab.start_deployer().await;
    let settings = StageSettings { replicas: 2, ..lab.settings() };
    let run = lab.deploy(lab.image("v1", SampleImage::new("1")).await, settings).await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:?}");
    let routes = lab.log.bucket(domain::traffic::ROUTES);
    for left in [1, 0] {
        let mut containers = lab.containers().await;
        while containers.len() > left {
            let (_, container) = containers.remove(0);
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            let client = lab.docker.client();
            client.remove_container(&container.id.expect("an id"), Some(options)).await.expect("removed");
        }
        lab.stands("both again", |standing| standing.get(&run.deployment) == Some(&(2, 2))).await;
    }
    // The route follows to where they are now.
    routes.delete(&format!("{}.{}", lab.project, lab.stage), None).await.expect("lost");
    lab.live_is(run.deployment).await;

    // A route that nothing serves: left by a worker that slept while its stage was archived.
    let removal = DeploymentId(runtime::clock::new_id());
    let mut stray = lab.route().await.expect("a route");
    lab.execute(Command::Archive { removal }).await;
    assert_eq!(lab.end(removal).await.outcome, Outcome::Succeeded);
    stray.fence = 1;
    let key = format!("{}.{}", lab.project, lab.stage);
    routes.put(&key, serde_json::to_vec(&stray).expect("JSON")).await.expect("written");
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while lab.route().await.is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the stray route goes");
    lab.close().await;
}
