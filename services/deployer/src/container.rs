//! What a container is made like.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum};
use domain::{
    settings::{Check, StageSettings},
    stage::Spec,
};
use uuid::Uuid;

use crate::{
    docker::LocalImage,
    failure::Problem,
    labels::{Labels, Owner},
};

/// The port that answers: the declared one, else the only one that the image exposes. None where the
/// stage needs none.
pub(crate) fn choose_port(settings: &StageSettings, image: &LocalImage) -> Result<Option<u16>, Problem> {
    if settings.port.is_some() {
        return Ok(settings.port);
    }
    let mut exposed: Vec<u16> =
        image.exposed.iter().filter_map(|port| port.strip_suffix("/tcp").unwrap_or(port).parse().ok()).collect();
    exposed.sort_unstable();
    let needed = settings.route.is_some() || matches!(settings.health.check, Check::Http | Check::Tcp);
    match (exposed.as_slice(), needed) {
        ([port], _) => Ok(Some(*port)),
        (_, false) => Ok(None),
        ([], true) => Err(Problem::new(
            "no_port",
            "the image exposes no port, and the stage declares none",
            "set the stage's `port` to the one that the program listens on, or add EXPOSE to the image",
        )),
        (several, true) => {
            let list = several.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            Err(Problem::new(
                "no_port",
                format!("the image exposes several ports ({list}), and the stage declares none"),
                "set the stage's `port` to the one that takes requests",
            ))
        }
    }
}

/// Tells whether a container would be made the same way again. What only says how it is looked after may change.
pub(crate) fn config_hash(spec: &Spec) -> String {
    let StageSettings { port, env, resources, .. } = &spec.settings;
    // Maps in it are sorted, so equal ones have equal text; it always becomes JSON.
    let text = serde_json::to_vec(&(spec.image.pinned(), port, env, resources)).unwrap_or_default();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).simple().to_string()
}

pub(crate) fn body(
    owner: Owner<'_>,
    labels: &Labels,
    spec: &Spec,
    env: Vec<String>,
    network: &str,
) -> ContainerCreateBody {
    let settings = &spec.settings;
    let resources = &settings.resources;
    let memory = resources.memory.map(|memory| i64::try_from(memory.get()).unwrap_or(i64::MAX));
    // The engine's default may keep nothing that can be read back, or grow until the disk is full.
    let log = [("max-size", "10m"), ("max-file", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    ContainerCreateBody {
        image: Some(spec.image.pinned()),
        env: Some(env),
        labels: Some(owner.on_container(labels)),
        host_config: Some(HostConfig {
            network_mode: Some(network.to_owned()),
            memory,
            // Equal to the memory: no swap beyond the limit.
            memory_swap: memory,
            nano_cpus: resources.cpus.map(|cpus| i64::from(cpus.milli()) * 1_000_000),
            pids_limit: resources.pids.map(i64::from),
            // One that fails must stay down to be seen; once healthy it becomes `always`.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            log_config: Some(HostConfigLogConfig { typ: Some("json-file".into()), config: Some(HashMap::from(log)) }),
            security_opt: Some(vec!["no-new-privileges".into()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        Bytes, Cpus, DeploymentId,
        image::{Image, Source},
        settings::RouteSettings,
    };

    use super::*;
    use crate::Place;

    fn spec() -> Spec {
        let image =
            Image { requested: "r:5000/shop:v1".into(), digest: format!("sha256:{:064}", 1), source: Source::Registry };
        Spec { image, settings: StageSettings::default() }
    }

    fn exposing(ports: &[&str]) -> LocalImage {
        LocalImage { exposed: ports.iter().map(|port| (*port).to_owned()).collect(), ..LocalImage::default() }
    }

    #[test]
    fn the_declared_port_wins_then_the_only_one_exposed() {
        let route = Some(RouteSettings { host: "a.test".into(), path: "/".into(), proxy: None });
        let routed = StageSettings { route, ..StageSettings::default() };
        let declared = StageSettings { port: Some(9000), ..routed.clone() };
        assert_eq!(choose_port(&declared, &exposing(&["80/tcp"])), Ok(Some(9000)));
        assert_eq!(choose_port(&routed, &exposing(&["80/tcp", "53/udp"])), Ok(Some(80)));
        for ports in [&[][..], &["80/tcp", "443/tcp"], &["53/udp"]] {
            assert_eq!(choose_port(&routed, &exposing(ports)).expect_err("no port to take").code, "no_port");
            assert_eq!(choose_port(&StageSettings::default(), &exposing(ports)), Ok(None), "no route, no need");
        }
    }

    #[test]
    fn the_hash_tells_what_would_be_made_otherwise() {
        let hash = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            config_hash(&spec)
        };
        let same = hash(|_| {});
        assert_eq!(hash(|_| {}), same);
        assert_eq!(hash(|spec| (spec.settings.keep, spec.settings.replicas) = (9, 9)), same, "looked after otherwise");
        for other in [
            hash(|spec| drop(spec.settings.env.insert("A".into(), "b".into()))),
            hash(|spec| spec.settings.port = Some(81)),
            hash(|spec| spec.settings.resources.pids = Some(1)),
            hash(|spec| spec.image.digest = format!("sha256:{:064}", 2)),
        ] {
            assert_ne!(other, same);
        }
    }

    #[test]
    fn limits_and_safeguards_reach_the_engine() {
        let mut spec = spec();
        spec.settings.resources.memory = Some(Bytes::new(64 << 20));
        spec.settings.resources.cpus = Some(Cpus::from_milli(500));
        spec.settings.resources.pids = Some(100);
        let place = Place { project: "shop".parse().expect("good"), stage: "dev".parse().expect("good") };
        let labels =
            Labels { place, set: DeploymentId(Uuid::nil()), replica: 1, config_hash: "x".into(), port: Some(80) };
        let owner = Owner { installation: Uuid::nil(), node: "local" };
        let body = super::body(owner, &labels, &spec, vec!["A=b=c".into()], "net");
        assert_eq!(body.image, Some(format!("r:5000/shop@sha256:{:064}", 1)));
        assert_eq!(body.env, Some(vec!["A=b=c".to_owned()]));
        let host = body.host_config.expect("set");
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(500_000_000), Some(100)));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!(host.restart_policy.and_then(|p| p.name), Some(RestartPolicyNameEnum::NO));
        assert!(host.port_bindings.is_none(), "nothing is published on the node");
    }
}
