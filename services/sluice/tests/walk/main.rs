//! A kill at every step of every way that a deployment can go, of every part and of all at once.
//!
//! Each part is killed on an installation of its own: with ten stages, one for each way (blue-green or recreate;
//! succeeds, is cancelled or fails, before or after the switch), with a private engine and registry, under HTTP load.
//! First a deployment that nobody disturbs shows what moments there are: every event of it in the log, and everything
//! that the engine does to a container in between. Then the deployments are repeated, with `kill -9` at each of those
//! moments; and each time the [verdict](storm::verdict) is asked for.
//!
//! By default the ways are shared out among the parts, so that each way is walked and each part is killed; a deployment
//! suffers a kill at each of its steps in turn. With `WALK=together` (`make walk`) every part is killed on every way; with
//! `WALK=alone` each deployment suffers only one kill, and nothing else happens beside it. `WALK_TARGETS=deployer,all`
//! walks with these only.
#![expect(clippy::print_stdout, reason = "what was struck is worth reading")]

mod board;
mod client;
mod lane;
mod moments;
mod strike;
mod walk;

use std::{fs, path::Path};

use futures::future::join_all;
use lane::Lane;
use walk::{Outcome, Spread};

use crate::strike::Target;

/// The roles that decide and do, and the database.
#[tokio::test]
async fn deployments_come_to_one_good_end_whenever_a_role_is_killed() {
    killing(&ROLES).await;
}

/// What the roles rest on, and everything at once.
#[tokio::test]
async fn deployments_come_to_one_good_end_whenever_what_carries_them_is_killed() {
    killing(&CARRIERS).await;
}

const ROLES: [Target; 4] = [Target::Deployer, Target::Projector, Target::Api, Target::Postgres];
const CARRIERS: [Target; 4] = [Target::Edge, Target::Nats, Target::Dockerd, Target::All];

/// Most of it is waiting, so several installations walk at the same time.
async fn killing(targets: &[Target]) {
    let spread = match runtime::env::optional("WALK").as_deref() {
        None => Spread::Brief,
        Some("together") => Spread::Together,
        Some("alone") => Spread::Alone,
        Some(other) => panic!("WALK is `together`, `alone` or nothing, not {other}"),
    };
    let wanted = runtime::env::optional("WALK_TARGETS");
    let wanted =
        |target: &&Target| wanted.as_ref().is_none_or(|list| list.split(',').any(|name| name == target.name()));
    let walks =
        targets.iter().filter(wanted).map(|target| Box::pin(walk::walk(*target, lanes(*target, spread), spread)));
    let mut wrong = Vec::new();
    for ended in join_all(walks).await {
        match ended {
            Ok(outcome) => {
                println!("{}", say(&outcome));
                report(&outcome);
                wrong.extend(outcome.wrong.iter().map(|what| format!("{}: {what}", outcome.target)));
            }
            Err(error) => wrong.push(format!("{error:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The ways that are walked with `target`: all of them, or its share.
fn lanes(target: Target, spread: Spread) -> Vec<Lane> {
    let all = [ROLES, CARRIERS].concat();
    let share = |(number, _): &(usize, Lane)| spread != Spread::Brief || all[number % all.len()] == target;
    lane::all().into_iter().enumerate().filter(share).map(|(_, lane)| lane).collect()
}

fn say(outcome: &Outcome) -> String {
    let struck: usize = outcome.struck.values().map(Vec::len).sum();
    let Outcome { target, kills, deployments, seconds, http_requests, .. } = outcome;
    let failed: u64 = outcome.http_failed.values().sum();
    format!(
        "{target}: {kills} kills at {struck} moments of {deployments} deployments in {seconds} s; {http_requests} requests, \
         {failed} broke off"
    )
}

/// One file for all parts, which may be walked by several processes.
fn report(outcome: &Outcome) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/report");
    fs::create_dir_all(&directory).expect("a directory for the report");
    let lock = fs::File::create(directory.join("walk.lock")).expect("a lock");
    lock.lock().expect("locked");
    let path = directory.join("walk.json");
    let text = fs::read(&path).unwrap_or_default();
    let mut all: serde_json::Value = serde_json::from_slice(&text).unwrap_or_else(|_| serde_json::json!({}));
    all[outcome.target] = serde_json::to_value(outcome).expect("it can be written");
    fs::write(&path, serde_json::to_vec_pretty(&all).expect("JSON")).expect("written");
}
