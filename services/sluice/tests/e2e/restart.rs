//! Ending, beginning again, and crashing in between.

use std::cell::Cell;

use testkit::{Load, SampleImage};

use crate::harness::Sluice;

const STAGE: &str = "  dev:
    route: {host: shop.test}
    health: {check: http, path: /healthz, interval: 200ms, timeout: 1s, retries: 2, start_period: 3s}
    drain: 2s
    stop_grace: 2s
";

#[tokio::test]
async fn a_second_start_finds_everything_again() {
    let mut sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let before = sluice.json(&["projector", "checksum"]).await;
    sluice.stop().await;
    sluice.start().await;
    assert!(sluice.get("shop.test", "/").await.1.contains('1'), "it serves again");
    assert_eq!(sluice.json(&["projector", "checksum"]).await, before);
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    sluice.run(&["deploy", "shop", "dev", &second, "--follow"]).await;
    assert!(sluice.get("shop.test", "/").await.1.contains('2'));
}

#[tokio::test]
async fn a_crash_of_everything_but_the_edge_fails_no_request_and_a_rebuild_gives_the_same_checksum() {
    let mut sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let load = Load::new(&sluice.edge, "shop.test").connections(4).rate(100).start();
    load.more(50).await;
    // Accepted, and then everything but the edge dies: what was accepted is worked on after all.
    sluice.run(&["deploy", "shop", "dev", &second]).await;
    sluice.kill_supervisor().await;
    load.more(100).await;
    sluice.start().await;
    let served = async {
        while !sluice.get("shop.test", "/").await.1.contains('2') {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(90), served).await.expect("version 2 takes over");
    // Again, and started at once, while what was left behind is still ending.
    sluice.kill_supervisor().await;
    sluice.start().await;
    load.more(50).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    let live = sluice.json(&["projector", "checksum"]).await;
    sluice.run(&["projector", "rebuild"]).await;
    assert_eq!(sluice.json(&["projector", "checksum"]).await, live);
}

#[tokio::test]
async fn an_edge_that_is_replaced_over_and_over_misses_no_switch_and_fails_no_request() {
    let sluice = Sluice::up().await;
    sluice.apply(STAGE).await;
    let first = sluice.push(SampleImage::new("1"), "v1").await;
    let second = sluice.push(SampleImage::new("2"), "v2").await;
    sluice.run(&["deploy", "shop", "dev", &first, "--follow"]).await;
    let load = Load::new(&sluice.edge, "shop.test").connections(4).rate(100).start();
    for (version, image) in [("2", &second), ("1", &first), ("2", &second)] {
        let deployed = Cell::new(false);
        let deploying = async {
            sluice.run(&["deploy", "shop", "dev", image, "--follow"]).await;
            deployed.set(true);
        };
        let upgrading = async {
            while !deployed.get() {
                sluice.run(&["edge", "upgrade"]).await;
            }
        };
        tokio::join!(deploying, upgrading);
        assert!(sluice.get("shop.test", "/").await.1.contains(version), "version {version} serves");
    }
    load.more(50).await;
    let report = load.stop().await;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
}
