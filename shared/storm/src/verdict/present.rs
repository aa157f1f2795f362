//! What stands there now: one set serves each stage, everything agrees on which, and nothing else is left.

use std::collections::{BTreeMap, BTreeSet};

use domain::{
    DeploymentId, Event,
    stage::{self, Keep, Stage},
    traffic::Target,
};

use super::{
    Fault::{Diverged, Doubled, Lost, Orphaned},
    Verdict,
    evidence::Evidence,
};

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    let stages = evidence.folded();
    for (key, stage) in &stages {
        at_rest(key, stage, verdict);
        serving(evidence, key, stage, verdict);
        traffic(evidence, key, stage, verdict);
        read_model(evidence, key, stage, verdict);
    }
    leftovers(evidence, &stages, verdict);
    made_once(evidence, verdict);
    checksums(evidence, verdict);
}

fn at_rest(key: &str, stage: &Stage, verdict: &mut Verdict) {
    if let Some(active) = &stage.active {
        verdict.found(Lost, format!("{key}: no deployment was to be on its way any more, {} is", active.deployment));
    }
    for queued in &stage.queue {
        verdict.found(Lost, format!("{key}: no deployment was to wait any more, {} does", queued.deployment));
    }
}

/// Every container of the current release runs, and none of another.
fn serving(evidence: &Evidence, key: &str, stage: &Stage, verdict: &mut Verdict) {
    let here = evidence.containers.iter().filter(|container| container.stage == key);
    let current = stage.current.as_ref();
    let mut replicas = BTreeSet::new();
    for container in here {
        let kept = container.set.map_or(Keep::Nothing, |set| stage.keeps(set));
        let is = if container.running { "runs" } else { "stands still" };
        match (kept, container.running) {
            (Keep::Running, true) => {
                if !replicas.insert(container.replica) {
                    verdict.found(
                        Doubled,
                        format!(
                            "{key}: one container was to be replica {}, {} is another",
                            container.replica, container.name
                        ),
                    );
                }
            }
            (Keep::Running, false) => {
                verdict.found(
                    Diverged,
                    format!("{key}: {} belongs to the current release and was to run, it {is}", container.name),
                );
            }
            (Keep::Stopped, false) | (Keep::InProgress, _) => {}
            (Keep::Stopped, true) => {
                verdict.found(
                    Doubled,
                    format!("{key}: one set was to run, {} of an earlier release {is} beside it", container.name),
                );
            }
            (Keep::Nothing, running) => {
                let fault = if running && current.is_some() { Doubled } else { Orphaned };
                verdict.found(
                    fault,
                    format!("{key}: {} belongs to no release that is kept and was to be gone, it {is}", container.name),
                );
            }
        }
    }
    // What a rollout is at work on is found fault with as such.
    if let (Some(current), None) = (current, &stage.active) {
        let wanted: BTreeSet<u16> = (1..=current.spec.settings.replicas).collect();
        if replicas != wanted {
            verdict.found(
                Diverged,
                format!("{key}: replicas {wanted:?} of release {} were to run, {replicas:?} do", current.deployment),
            );
        }
    }
}

/// Routes and answers are the current release's.
fn traffic(evidence: &Evidence, key: &str, stage: &Stage, verdict: &mut Verdict) {
    let routed = stage.current.as_ref().filter(|current| current.spec.settings.route.is_some());
    let route = evidence.routes.get(key);
    let Some(current) = routed else {
        if route.is_some() {
            verdict.found(Orphaned, format!("{key}: nothing serves here, so there was to be no route; there is one"));
        }
        return;
    };
    let (current, set) = (current.deployment, current.set);
    match route.map(|route| &route.target) {
        Some(Target::Live(live)) if live.deployment == current => {
            let running = evidence.containers.iter().filter(|c| c.set == Some(set) && c.running);
            let (running, routed): (BTreeSet<&str>, BTreeSet<&str>) = (
                running.map(|container| container.name.as_str()).collect(),
                live.upstreams.iter().map(|upstream| upstream.instance.as_str()).collect(),
            );
            if running != routed {
                verdict.found(
                    Diverged,
                    format!("{key}: the route was to name the containers {running:?}, it names {routed:?}"),
                );
            }
        }
        Some(Target::Live(live)) => {
            verdict
                .found(Diverged, format!("{key}: the route was to lead to {current}, it leads to {}", live.deployment));
        }
        Some(Target::Held { .. }) => {
            verdict.found(Orphaned, format!("{key}: the route was to lead to {current}, it still holds requests"))
        }
        None => verdict.found(Diverged, format!("{key}: the route was to lead to {current}, there is none")),
    }
    match evidence.answers.get(key) {
        Some(Ok(answering)) if *answering == current => {}
        Some(Ok(answering)) => {
            verdict.found(Diverged, format!("{key}: the edge was to answer with {current}, it does with {answering}"))
        }
        Some(Err(problem)) => {
            verdict.found(Diverged, format!("{key}: the edge was to answer with {current}: {problem}"))
        }
        None => verdict.found(Diverged, format!("{key}: the edge was to answer with {current}, it was not asked")),
    }
}

fn read_model(evidence: &Evidence, key: &str, stage: &Stage, verdict: &mut Verdict) {
    let Some(row) = evidence.stages.get(key) else {
        // An archived stage on which nothing runs is not listed.
        if !stage.archived || stage.current.is_some() {
            verdict.found(Diverged, format!("{key}: the stage was to be in its read model, it is not"));
        }
        return;
    };
    let says = (
        stage.current.as_ref().map(|current| current.deployment),
        stage.active.as_ref().map(|active| active.deployment),
        stage.queue.iter().map(|queued| queued.deployment).collect::<Vec<_>>(),
        stage.lock.as_ref().map(|lock| lock.owner.clone()),
    );
    let found = (
        row.current.as_ref().map(|current| DeploymentId(current.deployment)),
        row.active.as_ref().map(|active| DeploymentId(active.deployment)),
        row.queue.iter().map(|queued| DeploymentId(queued.deployment)).collect::<Vec<_>>(),
        row.lock.as_ref().map(|lock| lock.owner.clone()),
    );
    if says != found {
        verdict.found(
            Diverged,
            format!("{key}: current, active, queue and lock are {says:?}, the read model says {found:?}"),
        );
    }
}

fn leftovers(evidence: &Evidence, stages: &BTreeMap<String, Stage>, verdict: &mut Verdict) {
    let known: BTreeSet<&str> = stages.keys().map(String::as_str).collect();
    for container in evidence.containers.iter().filter(|container| !known.contains(container.stage.as_str())) {
        verdict.found(
            Orphaned,
            format!("{} is of stage {}, which the log does not know", container.name, container.stage),
        );
    }
    for key in evidence.routes.keys().filter(|key| !known.contains(key.as_str())) {
        verdict.found(Orphaned, format!("there is a route of stage {key}, which the log does not know"));
    }
    for network in &evidence.networks {
        // It waits for the next deployment as long as there is a stage to deploy to.
        let used = stages.iter().any(|(key, stage)| key.split('.').next() == Some(&network.project) && !stage.archived);
        if !used {
            verdict.found(
                Orphaned,
                format!("network {} was to end with the last stage of its project, it is still there", network.name),
            );
        }
    }
    let mut names = BTreeSet::new();
    for network in evidence.networks.iter().filter(|network| !names.insert(&network.project)) {
        verdict.found(
            Doubled,
            format!("project {} was to have one network, {} is another", network.project, network.name),
        );
    }
    for volume in &evidence.volumes {
        verdict.found(Orphaned, format!("volume {volume} belongs to no container"));
    }
    if evidence.commands > 0 {
        verdict.found(Orphaned, format!("the work queue was to be empty, it holds {} commands", evidence.commands));
    }
}

/// A step that is run again finds what it made before. Kept containers that fail when a rollback starts them again are
/// replaced by the next one.
fn made_once(evidence: &Evidence, verdict: &mut Verdict) {
    let failed = failed_flips(evidence);
    let mut made = BTreeMap::<(DeploymentId, u16), BTreeSet<&str>>::new();
    for one in &evidence.made {
        made.entry((one.set, one.replica)).or_default().insert(&one.container);
    }
    for ((set, replica), containers) in made {
        let most = 1 + failed.get(&set).copied().unwrap_or_default();
        if containers.len() > most {
            verdict.found(
                Doubled,
                format!(
                    "{most} containers at most were to be made for replica {replica} of deployment {set}, {} were",
                    containers.len()
                ),
            );
        }
    }
}

/// How often the containers of a set failed to serve again.
fn failed_flips(evidence: &Evidence) -> BTreeMap<DeploymentId, usize> {
    let (mut flips, mut failed) = (BTreeMap::new(), BTreeMap::new());
    for recorded in &evidence.events {
        let Event::Stage(event) = &recorded.event else { continue };
        if let stage::Event::Dispatched { deployment, set: Some(set), .. } = event {
            flips.insert(*deployment, *set);
        }
        if let stage::Event::StepFailed { deployment, .. } = event
            && let Some(set) = flips.get(deployment)
        {
            *failed.entry(*set).or_default() += 1;
        }
    }
    failed
}

fn checksums(evidence: &Evidence, verdict: &mut Verdict) {
    for live in &evidence.live {
        match evidence.rebuilt.iter().find(|rebuilt| rebuilt.model == live.model) {
            Some(rebuilt) if rebuilt == live => {}
            Some(rebuilt) => verdict.found(
                Diverged,
                format!(
                    "read model {}: {} rows and checksum {} at {} were to come out of a rebuild, {} rows and {} at {} did",
                    live.model, live.rows, live.checksum, live.sequence, rebuilt.rows, rebuilt.checksum, rebuilt.sequence
                ),
            ),
            None => verdict.found(Diverged, format!("read model {} was to be rebuilt, it is not there any more", live.model)),
        }
    }
}
