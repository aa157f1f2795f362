//! Many deployments that wait: each stage's in order, never more at once than the node may, and all of them to an end.
#![expect(clippy::print_stdout, reason = "measured, and not asserted: a busy machine proves nothing")]

use std::collections::{BTreeMap, HashSet, VecDeque};

use domain::{
    DeploymentId, Event, Key, Slug,
    image::{Image, Source},
    settings::{QueuePolicy, StageSettings},
    stage::{self, Command, Spec},
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, timeout};

use crate::lab::{Lab, PATIENCE};

const STAGES: usize = 100;
const WAITING: usize = 10;

/// What is deployed is no longer there: each ends at its first step, by a real look into the engine.
#[tokio::test]
async fn a_thousand_over_a_hundred_stages_drain_in_order() {
    let mut lab = Lab::without_edge().await;
    lab.concurrency = 3;
    let settings = StageSettings { queue: QueuePolicy::Keep, ..StageSettings::default() };
    let digest = format!("sha256:{}", "1".repeat(64));
    let image = Image { requested: "gone:v1".into(), digest, source: Source::Local };
    let spec = Spec { image, settings };
    let stages: Vec<Slug> = (0..STAGES).map(|n| format!("s{n}").parse().expect("a good name")).collect();

    let began = Instant::now();
    let requested: BTreeMap<Slug, VecDeque<DeploymentId>> = stream::iter(&stages)
        .map(|stage| {
            let (lab, spec) = (&lab, &spec);
            async move {
                let key = Key::stage(&lab.project, stage);
                let mut queue = VecDeque::new();
                for _ in 0..WAITING {
                    let deployment = DeploymentId(runtime::clock::new_id());
                    let command =
                        Command::Request { deployment, spec: spec.clone(), node: "local".into(), by: "ana".into() };
                    lab.log
                        .execute(&key, command, &runtime::clock::context("test"))
                        .await
                        .map_err(|e| e.to_string())?;
                    queue.push_back(deployment);
                }
                Ok::<_, String>((stage.clone(), queue))
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await
        .expect("all accepted");
    println!("{} requested after {:?}", STAGES * WAITING, began.elapsed());

    let (before, began) = (resident(), Instant::now());
    lab.start_deployer().await;
    let (most, after) = timeout(PATIENCE * 3, drained(&lab, requested)).await.expect("all come to an end");
    let took = began.elapsed();
    println!("drained after {took:?}, most at once {most}, memory {} -> {} KiB", before, after);
    assert!(most <= lab.concurrency, "{most} at once, where {} may be", lab.concurrency);
    // Room for a deployer's own working set, and far less than a thousand rollouts would keep if they were kept.
    assert!(after < before + 64 * 1024, "memory grew from {before} to {after} KiB");
    lab.close().await;
}

/// Follows the log until all of `waiting` have ended, each once and in its turn; the most that were under way at once,
/// and the memory then.
async fn drained(lab: &Lab, mut waiting: BTreeMap<Slug, VecDeque<DeploymentId>>) -> (usize, usize) {
    let mut events = lab.log.follow(&format!("sluice.events.stage.{}.>", lab.project), 0).boxed();
    let (mut busy, mut most, mut left) = (HashSet::new(), 0, STAGES * WAITING);
    while left > 0 {
        let recorded = events.next().await.expect("no end").expect("readable");
        let stage: Slug = recorded.subject.split('.').nth(4).expect("a stage").parse().expect("a name");
        match recorded.event {
            Event::Stage(stage::Event::Started { deployment, .. }) => {
                assert_eq!(waiting[&stage].front(), Some(&deployment), "out of turn");
                assert!(busy.insert(deployment), "taken up twice");
                most = most.max(busy.len());
            }
            Event::Stage(stage::Event::Failed { deployment, failure }) => {
                assert_eq!(failure.code, "image_not_found", "{failure:?}");
                assert!(busy.remove(&deployment), "ended without having begun");
                assert_eq!(waiting.get_mut(&stage).and_then(VecDeque::pop_front), Some(deployment), "out of turn");
                left -= 1;
            }
            _ => {}
        }
    }
    (most, resident())
}

/// Memory of this process in KiB, the deployer's included.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
