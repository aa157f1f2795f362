//! 50 switches between two upstreams under saturating load: what fails, and what of the open connections is cut. Then
//! the edge itself is replaced, and killed.

mod edges;
mod proxies;
mod streams;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::Sockets;
use tokio::{process::Command, time::sleep};

use crate::{
    Bench,
    edge::{self, parts::Library},
    row::{Row, Target, Unit},
};
use proxies::{Proxy, Upstreams};
use streams::Streams;

/// Every proxy routes this host.
const HOST: &str = "bench.test";
const SWITCHES: usize = 50;
/// From one switch to the next.
const INTERVAL: Duration = Duration::from_millis(80);
/// Of the whole load: the switches, a second before them and a second after.
const SECONDS: u64 = 7;
/// wrk's, kept alive; a second wrk opens a connection for each request.
const KEPT: &str = "48";
const SINGLE: &str = "8";
const WEBSOCKETS: usize = 10;
const STREAMS: usize = 10;
/// A switch that takes longer is none.
const SWITCH_LIMIT: Duration = Duration::from_secs(5);

/// What one run of the load saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    failed: f64,
    cut: f64,
    per_second: f64,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let library = Library::find()?;
    let mut seen: Vec<(&'static str, Vec<Seen>)> = Vec::new();
    let mut failed: Vec<(&'static str, String)> = Vec::new();
    let mut upgrades = Vec::new();
    for round in 1..=bench.rounds {
        bench.say(&format!("switches, round {round} of {}", bench.rounds));
        let upstreams = Upstreams::start().await?;
        // One after the other: what a proxy leaves running must not slow down the next.
        for (index, name) in proxies::NAMES.iter().enumerate() {
            if failed.iter().any(|(peer, _)| peer == name) {
                continue;
            }
            let what = || format!("switching {name}");
            let mut proxy = Proxy::start(index, bench, &library, &upstreams).await.with_context(what)?;
            let run = match loaded(&library, proxy.port(), switch(&mut proxy, &upstreams)).await.with_context(what) {
                Ok(run) => run,
                // A peer that cannot be switched under this load is told, and left out.
                Err(error) if index > 0 => {
                    bench.say(&format!("  {error:#}"));
                    failed.push((name, format!("{error:#}")));
                    continue;
                }
                Err(error) => return Err(error),
            };
            bench.say(&format!(
                "  {name}: {:.0} failed, {:.0} cut, {:.0} requests/s",
                run.failed, run.cut, run.per_second
            ));
            match seen.iter_mut().find(|(peer, _)| peer == name) {
                Some((_, rounds)) => rounds.push(run),
                None => seen.push((name, vec![run])),
            }
            if let Proxy::Sluice(edge) = &proxy {
                let upgrade =
                    loaded(&library, proxy.port(), edge.upgrade(bench)).await.context("upgrading the edge")?;
                upgrades.push(upgrade);
            }
        }
    }
    bench.say("switches: the edge is killed");
    let back = edges::back_after_kill(bench).await.context("killing the edge")?;

    let series = |rounds: &[Seen], of: fn(&Seen) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
    let row = |name: &str, unit, of: fn(&Seen) -> f64| {
        let ours = seen.first().map(|(_, rounds)| series(rounds, of)).unwrap_or_default();
        let row = Row::new(format!("edge: {name}, {SWITCHES} switches under load"), unit).ours(ours);
        let complete = seen.iter().skip(1).filter(|(name, _)| failed.iter().all(|(peer, _)| peer != name));
        let row = complete.fold(row, |row, (name, rounds)| row.peer(name, series(rounds, of)));
        failed.iter().fold(row, |row, (_, why)| row.note(format!("left out: {why}")))
    };
    let load = format!(
        "wrk, {KEPT} connections kept alive and {SINGLE} with a connection for each request; {WEBSOCKETS} websockets and \
         {STREAMS} event streams open; socket errors and answers that are not 2xx, without retries"
    );
    Ok(vec![
        row("failed requests", Unit::Failed, |seen| seen.failed).target(Target::Zero).note(load),
        row("websockets and streams cut", Unit::Failed, |seen| seen.cut).target(Target::Zero),
        row("requests meanwhile", Unit::PerSecond, |seen| seen.per_second)
            .bound("the sample application, one thread on the cores of all"),
        Row::new("edge: requests failed during `sluice edge upgrade` under the same load", Unit::Failed)
            .ours(series(&upgrades, |seen| seen.failed))
            .target(Target::Zero),
        Row::new("edge: websockets and streams cut by `sluice edge upgrade`", Unit::Failed)
            .ours(series(&upgrades, |seen| seen.cut))
            .target(Target::Zero),
        Row::new("edge: back after kill -9, to the first good answer", Unit::Milliseconds)
            .ours(back)
            .target(Target::AtMost { limit: 1000.0 })
            .bound("the first look at upstreams, which waits 300 ms for those that do not answer at all")
            .note(format!(
                "under `sluice up`, NATS stopped, {} routes with {} upstreams, half of them dead",
                edges::ROUTES_KEPT,
                2 * edges::ROUTES_KEPT
            )),
    ])
}

/// Runs `work` in the middle of the load.
async fn loaded(library: &Library, port: u16, work: impl Future<Output = Result<()>>) -> Result<Seen> {
    let address = format!("127.0.0.1:{port}");
    let sockets = Sockets::open(&address, HOST, WEBSOCKETS);
    let streams = Streams::open(&address, HOST, STREAMS).await?;
    let wrk = |connections: &'static str, extra: &'static [&'static str]| {
        let url = format!("http://{address}/");
        async move {
            let mut wrk = Command::from(library.command("wrk")?);
            wrk.args(["-t1", "-c", connections, "--latency", "--timeout", "10s", "-H", &format!("Host: {HOST}")])
                .args(extra)
                .arg(format!("-d{SECONDS}s"))
                .arg(url)
                .kill_on_drop(true);
            let output = wrk.output().await.context("starting wrk")?;
            ensure!(output.status.success(), "wrk failed: {}", String::from_utf8_lossy(&output.stderr));
            edge::parse(&String::from_utf8_lossy(&output.stdout)).context("reading what wrk reports")
        }
    };
    let work = async {
        sleep(Duration::from_secs(1)).await;
        work.await
    };
    let (kept, single, done) = tokio::join!(wrk(KEPT, &[]), wrk(SINGLE, &["-H", "Connection: close"]), work);
    done?;
    let (kept, single) = (kept?, single?);
    let (chat, cut_streams) = (sockets.close().await, streams.close().await);
    ensure!(chat.opened >= u64::try_from(WEBSOCKETS)?, "not all websockets could be opened: {:?}", chat.refused);
    Ok(Seen {
        failed: kept.failed + single.failed,
        cut: (chat.ended.len() + cut_streams) as f64,
        per_second: kept.per_second + single.per_second,
    })
}

/// To and fro; each switch has to be seen by a request before the next.
async fn switch(proxy: &mut Proxy, upstreams: &Upstreams) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://127.0.0.1:{}/", proxy.port());
    for number in 1..=SWITCHES {
        let began = Instant::now();
        let to = number % 2;
        proxy.switch(number, upstreams.ports[to]).await?;
        loop {
            // Counted by the load, where it fails.
            let answer = client.get(&url).header("host", HOST).send().await;
            let version = answer.ok().and_then(|answer| answer.headers().get("x-version").cloned());
            if version.is_some_and(|version| version == proxies::VERSIONS[to]) {
                break;
            }
            ensure!(began.elapsed() < SWITCH_LIMIT, "switch {number} is not in force after {SWITCH_LIMIT:?}");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(INTERVAL.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}
