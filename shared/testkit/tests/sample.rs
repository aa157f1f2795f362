//! The helpers against the real parts: what other crates' tests rest on.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use bollard::{
    models::{ContainerCreateBody, HostConfig, NetworkCreateRequest},
    query_parameters::{CreateContainerOptions, LogsOptionsBuilder},
};
use futures::TryStreamExt;
use testkit::{Docker, Load, Registry, SampleImage, WebSocket};

#[tokio::test]
async fn an_image_goes_through_the_registry_and_serves() -> Result<()> {
    let docker = Docker::connect_or_start().await?;
    let registry = Registry::start_guarded().await?;
    let local = format!("testkit-sample-{}:1", registry.address().replace([':', '.'], "-"));
    SampleImage::new("1").with_healthcheck().load(&docker, &local).await?;
    let pushed = registry.push(&docker, &local, "sample:1").await?;
    ensure!(pushed == format!("{}/sample:1", registry.address()));

    let network = format!("testkit-{}", registry.address().replace([':', '.'], "-"));
    let request = NetworkCreateRequest { name: network.clone(), ..Default::default() };
    docker.client().create_network(request).await?;
    let container = ContainerCreateBody {
        image: Some(pushed.clone()),
        host_config: Some(HostConfig { network_mode: Some(network.clone()), ..Default::default() }),
        ..Default::default()
    };
    let id = docker.client().create_container(None::<CreateContainerOptions>, container).await?.id;
    docker.client().start_container(&id, None).await?;
    let inspected = docker.client().inspect_container(&id, None).await?;
    let networks: HashMap<_, _> = inspected.network_settings.and_then(|it| it.networks).unwrap_or_default();
    let ip = networks.get(&network).and_then(|it| it.ip_address.clone()).context("the container has an address")?;
    let address = format!("{ip}:8080");

    let mut socket = loop {
        match WebSocket::connect(&address, "sample.localhost", "/ws").await {
            Ok(socket) => break socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    socket.echo("hello").await?;
    let kept = Load::new(&address, "sample.localhost").rate(200).start();
    let fresh = Load::new(&address, "sample.localhost").connections(2).without_keep_alive().start();
    kept.more(50).await;
    fresh.more(50).await;
    let mut report = kept.stop().await;
    report.add(fresh.stop().await);
    ensure!(report.failed == 0 && report.versions.get("1") == Some(&report.requests), "{report:?}");
    let refused = Load::new(&address, "sample.localhost").path("/ws").connections(1).start();
    refused.more(1).await;
    let refused = refused.stop().await;
    ensure!(refused.failures.contains_key("status 400 Bad Request"), "{refused:?}");

    // The signal ends the application in good order, and its websockets with it.
    docker.client().stop_container(&id, None).await?;
    socket.closed().await;
    let state = docker.client().inspect_container(&id, None).await?.state.context("a state")?;
    ensure!(state.exit_code == Some(0), "{state:?}");
    let logs = docker.client().logs(&id, Some(LogsOptionsBuilder::default().stdout(true).stderr(true).build()));
    let logs: Vec<String> = logs.map_ok(|line| line.to_string()).try_collect().await?;
    ensure!(logs.concat().contains("SIGTERM received"), "{logs:?}");

    let engine = docker.client().clone();
    drop(docker);
    ensure!(engine.inspect_container(&id, None).await.is_err(), "the container is still there");
    ensure!(engine.inspect_network(&network, None).await.is_err(), "the network is still there");
    for image in [pushed, local] {
        ensure!(engine.inspect_image(&image).await.is_err(), "{image} is still there");
    }
    Ok(())
}

#[tokio::test]
async fn the_variants_say_what_they_are() -> Result<()> {
    let docker = Docker::connect_or_start().await?;
    let name = format!("testkit-variant-{}:1", std::process::id());
    SampleImage::new("1").architecture("arm64").without_exposed_port().load(&docker, &name).await?;
    let image = docker.client().inspect_image(&name).await?;
    ensure!(image.architecture.as_deref() == Some("arm64"));
    ensure!(image.config.is_some_and(|config| config.exposed_ports.is_none() && config.healthcheck.is_none()));
    Ok(())
}

#[tokio::test]
async fn a_killed_daemon_leaves_nothing_behind() -> Result<()> {
    let mut docker = Docker::start_private().await?;
    SampleImage::new("1").load(&docker, "sample:1").await?;
    let container = ContainerCreateBody {
        image: Some("sample:1".into()),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..Default::default() }),
        ..Default::default()
    };
    let id = docker.client().create_container(None::<CreateContainerOptions>, container).await?.id;
    docker.client().start_container(&id, None).await?;
    docker.kill().await?;
    ensure!(named_in_a_command_line(&id)?, "the container runs on without its daemon");
    drop(docker);
    ensure!(!named_in_a_command_line(&id)?, "the container still runs");
    Ok(())
}

/// Each container has a shim that carries its id.
fn named_in_a_command_line(id: &str) -> Result<bool> {
    let processes = std::fs::read_dir("/proc").context("reading the processes")?.flatten();
    // A process may end between being listed and being read.
    let mut lines = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    Ok(lines.any(|line| line.contains(id)))
}
