//! Dependencies run one way, and each outside part has one crate that knows it.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Normal dependencies of each of our crates.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo metadata answers");
    let normal = |package: &cargo_metadata::Package| {
        let kept = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        kept.map(|d| d.name.clone()).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

const SERVICES: [&str; 5] = ["api", "projector", "deployer", "watcher", "edge"];
const SHARED: [&str; 3] = ["eventlog", "readmodel", "runtime"];
/// Nothing that ships depends on these.
const DEVELOPMENT: [&str; 3] = ["testkit", "storm", "bench"];

#[test]
fn services_know_shared_crates_only_and_shared_crates_know_only_the_domain() {
    let all = dependencies();
    let ours: BTreeSet<String> = all.keys().cloned().collect();
    let allowed = |name: &str| -> BTreeSet<&str> {
        match name {
            "sluice" => SERVICES.into_iter().chain(SHARED).chain(["domain"]).collect(),
            "testkit" => ["eventlog", "domain"].into(),
            "storm" | "bench" => SHARED.into_iter().chain(["domain", "testkit"]).collect(),
            service if SERVICES.contains(&service) => SHARED.into_iter().chain(["domain"]).collect(),
            shared if SHARED.contains(&shared) => ["domain"].into(),
            "domain" => [].into(),
            other => panic!("{other} is new: say here what it may depend on"),
        }
    };
    for (name, dependencies) in &all {
        let allowed = allowed(name);
        for dependency in dependencies.intersection(&ours) {
            assert!(allowed.contains(dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn each_outside_part_is_known_to_one_crate() {
    let all = dependencies();
    let users = |part: &str| -> Vec<&str> {
        all.iter()
            .filter(|(_, d)| d.contains(part))
            .map(|(name, _)| name.as_str())
            .filter(|name| !DEVELOPMENT.contains(name))
            .collect()
    };
    assert_eq!(users("async-nats"), ["eventlog"]);
    assert_eq!(users("sqlx"), ["readmodel"]);
    assert_eq!(users("bollard"), ["deployer"]);
    assert_eq!(users("axum"), ["api"]);
}

#[test]
fn the_domain_does_no_io() {
    // Time zones are tables of chrono-tz, and croner only counts.
    let pure = [
        "chrono",
        "chrono-tz",
        "croner",
        "regex",
        "semver",
        "serde",
        "serde_json",
        "sha2",
        "thiserror",
        "utoipa",
        "uuid",
    ];
    let domain = dependencies().remove("domain").expect("the domain crate");
    let known: BTreeSet<String> = pure.into_iter().map(str::to_owned).collect();
    assert!(domain.is_subset(&known), "new in the domain: {:?}", domain.difference(&known));
}
