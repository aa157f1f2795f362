//! The edge beside nginx, HAProxy, Traefik and Caddy: the same upstream, the same load, the same cores.

pub(crate) mod parts;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{
    Bench,
    row::{Row, Target, Unit},
};
use parts::{Library, Proxy};

/// Every proxy routes this host to the upstream.
const HOST: &str = "bench.test";
const CONNECTIONS: &str = "64";
/// Per case, proxy and round; a whole run of five rounds takes seven minutes.
const SECONDS: u32 = 4;
/// Of nginx's requests per second, at least; its p99 may be as much worse.
const SHARE_OF_NGINX: f64 = 0.8;
/// A run that hangs is no figure.
const LIMIT: Duration = Duration::from_secs(30);

struct Case {
    name: &'static str,
    path: &'static str,
    keep_alive: bool,
}

const CASES: [Case; 4] = [
    Case { name: "small bodies, keep-alive", path: "/small", keep_alive: true },
    Case { name: "small bodies, a connection each", path: "/small", keep_alive: false },
    Case { name: "100 kB bodies, keep-alive", path: "/large", keep_alive: true },
    Case { name: "100 kB bodies, a connection each", path: "/large", keep_alive: false },
];

/// One run of the load generator.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    /// Milliseconds.
    p99: f64,
    pub(crate) failed: f64,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let library = Library::find()?;
    let proxies = parts::start(bench, &library).await?;
    for proxy in &proxies {
        load(&library, proxy, &CASES[0], 1).await.with_context(|| format!("warming up {}", proxy.name))?;
    }
    // By case, proxy, and round.
    let mut figures = CASES.map(|_| vec![Vec::new(); proxies.len()]);
    for round in 1..=bench.rounds {
        bench.say(&format!("edge, round {round} of {}", bench.rounds));
        for (case, figures) in CASES.iter().zip(&mut figures) {
            for (proxy, figures) in proxies.iter().zip(figures) {
                let what = || format!("{} behind {}", case.name, proxy.name);
                figures.push(load(&library, proxy, case, SECONDS).await.with_context(what)?);
            }
        }
    }
    let rows = CASES.iter().zip(&figures).flat_map(|(case, figures)| rows(case, &proxies, figures));
    Ok(rows.collect())
}

/// `figures` of ours come first.
fn rows(case: &Case, proxies: &[Proxy], figures: &[Vec<Figures>]) -> Vec<Row> {
    let row = |name: &str, unit, of: fn(&Figures) -> f64| {
        let series = |figures: &Vec<Figures>| figures.iter().map(of).collect::<Vec<_>>();
        let row = Row::new(format!("edge: {name}, {}", case.name), unit).ours(series(&figures[0]));
        proxies.iter().zip(figures).skip(1).fold(row, |row, (proxy, figures)| row.peer(proxy.name, series(figures)))
    };
    let rate = row("requests", Unit::PerSecond, |figures| figures.per_second)
        .target(Target::AtLeast { peer: "nginx", ratio: SHARE_OF_NGINX })
        .target(Target::AtLeast { peer: "Traefik", ratio: 2.0 })
        .target(Target::AtLeast { peer: "Caddy", ratio: 5.0 })
        .bound("the kernel's TCP over loopback, shared with the load generator and the upstream")
        .note(format!("wrk, {CONNECTIONS} connections, {SECONDS} s a round"));
    let p99 = row("p99", Unit::Milliseconds, |figures| figures.p99)
        .target(Target::AtMostTimes { peer: "nginx", ratio: 1.0 / SHARE_OF_NGINX });
    let failed = row("failed requests", Unit::Failed, |figures| figures.failed).target(Target::Zero);
    vec![rate, p99, failed]
}

async fn load(library: &Library, proxy: &Proxy, case: &Case, seconds: u32) -> Result<Figures> {
    let mut wrk = Command::from(library.command("wrk")?);
    wrk.args(["-t2", "-c", CONNECTIONS, "--latency", "--timeout", "10s", "-H", &format!("Host: {HOST}")])
        .arg(format!("-d{seconds}s"))
        .kill_on_drop(true);
    if !case.keep_alive {
        wrk.args(["-H", "Connection: close"]);
    }
    let run = wrk.arg(format!("http://127.0.0.1:{}{}", proxy.port, case.path)).output();
    let output = tokio::time::timeout(LIMIT, run).await.context("wrk does not end")?.context("starting wrk")?;
    ensure!(output.status.success(), "wrk failed: {}", String::from_utf8_lossy(&output.stderr));
    let report = String::from_utf8_lossy(&output.stdout);
    parse(&report).with_context(|| format!("reading what wrk reports:\n{report}"))
}

/// Of what wrk prints.
pub(crate) fn parse(report: &str) -> Option<Figures> {
    let after = |label: &str| report.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    // `Socket errors: connect 0, read 111, write 0, timeout 0`
    let broken = after("Socket errors:").map_or(Some(0.0), |errors| {
        errors.split(", ").map(|error| error.split_once(' ')?.1.parse::<f64>().ok()).sum::<Option<f64>>()
    })?;
    let refused = after("Non-2xx or 3xx responses:").map_or(Some(0.0), |count| count.parse().ok())?;
    Some(Figures {
        per_second: after("Requests/sec:")?.parse().ok()?,
        p99: milliseconds(after("99%")?)?,
        failed: broken + refused,
    })
}

/// Of `870.00us`, `3.55ms` or `1.20s`.
fn milliseconds(time: &str) -> Option<f64> {
    let number = |unit, factor: f64| Some(time.strip_suffix(unit)?.parse::<f64>().ok()? * factor);
    number("us", 0.001).or_else(|| number("ms", 1.0)).or_else(|| number("s", 1000.0)).or_else(|| number("m", 60_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_wrk_prints() {
        let report = "  Latency Distribution\n     50%    1.07ms\n     99%    870.00us\n  183442 requests in 3.10s, 26.94MB read\n\
             \x20 Socket errors: connect 1, read 111, write 0, timeout 2\n  Non-2xx or 3xx responses: 7\n\
             Requests/sec:  59171.50\nTransfer/sec:      8.69MB\n";
        assert_eq!(parse(report), Some(Figures { per_second: 59171.5, p99: 0.87, failed: 121.0 }));
        let clean = "     99%    1.20s\nRequests/sec:  5.00\n";
        assert_eq!(parse(clean), Some(Figures { per_second: 5.0, p99: 1200.0, failed: 0.0 }));
        assert_eq!(parse("unable to connect"), None);
    }
}
