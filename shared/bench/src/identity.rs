//! What signing in costs: a request that proves who sends it beside the same request without, reads while others sign in
//! as fast as they can, and a wrong password beside an unknown name. Real `sluice api` and `sluice projector`.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{
    Client, Method, RequestBuilder, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, ORIGIN, SET_COOKIE},
};
use serde_json::{Value, json};
use testkit::{Nats, Postgres};
use tokio::{process::Child, task::JoinSet};

use crate::{
    Bench,
    latency::{Load, paced, quantile},
    parts,
    row::{Row, Target, Unit},
};

const READY: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse battery staple";
/// On each route: less than the machine can do, so that requests do not wait for one another.
const PROVING: [Load; 2] =
    [Load { rate: 80, seconds: 8, read_every: 1 }, Load { rate: 400, seconds: 4, read_every: 1 }];
const READING: Load = Load { rate: 100, seconds: 6, read_every: 1 };
/// More than may wait for their password to be looked at, so that some are told to come again.
const FLOOD: usize = 80;
/// For who was told to come again.
const AGAIN: Duration = Duration::from_millis(200);
/// Wrong passwords and unknown names in a round, so many of each: in five rounds a thousand.
const TRIES: usize = 200;
/// A success makes earlier failures forgotten, before what is known of them grows.
const FORGET_EVERY: usize = 20;
/// What a request may cost more, in milliseconds.
const PROOF_MS: f64 = 0.3;
const READ_MS: f64 = 50.0;
const TELLING_MS: f64 = 5.0;

/// What a request proves itself with.
const KINDS: [&str; 4] = ["nothing", "session cookie", "personal token", "machine token"];
/// The turns of the kinds: each comes after each, itself too, as often, since what went before has woken what the next
/// one needs.
const TURNS: [usize; 16] = [0, 0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 2, 2, 3, 3];
/// Public, so that the same answer comes with and without a proof; where there is one it is always looked at.
const ROUTES: [&str; 2] = ["GET /health", "POST /auth/setup, refused"];

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let nats = Nats::start().await?;
    let postgres = Postgres::start_like_sluice_up().await?;
    let database = parts::database(&postgres, "identity").await?;
    let data = tempfile::tempdir()?;
    let mut projector = parts::sluice(&bench.sluice, &["projector"], &nats, &database, data.path())
        .spawn()
        .context("starting sluice projector")?;
    let sluice = Arc::new(Sluice::start(&bench.sluice, &nats, &database, data.path()).await?);

    let mut proofs = ROUTES.map(|_| KINDS.map(|_| Vec::new()));
    let (mut quiet, mut flooded, mut flood) = (Vec::new(), Vec::new(), Vec::new());
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        bench.say(&format!("identity, round {round}"));
        let credentials = Arc::new(sluice.credentials().await?);
        for (route, figures) in proofs.iter_mut().enumerate() {
            let samples = prove(&sluice, &credentials, route).await?;
            for (kind, figures) in figures.iter_mut().enumerate() {
                let of_kind = samples.iter().filter(|(one, _)| *one == kind).map(|(_, took)| *took);
                figures.push(quantile(&of_kind.collect::<Vec<_>>(), 500));
            }
        }
        quiet.push(quantile(&read(&sluice, &credentials).await?, 990));
        let (samples, signed_in) = during_flood(&sluice, &credentials).await?;
        flooded.push(quantile(&samples, 990));
        flood.push(signed_in);
        let (of_known, of_unknown) = tell_apart(&sluice).await?;
        known.push(of_known);
        unknown.push(of_unknown);
        ensure!(projector.try_wait()?.is_none(), "the projector has ended");
    }

    let mut rows = vec![];
    for ((route, load), figures) in ROUTES.iter().zip(PROVING).zip(proofs) {
        let [nothing, proved @ ..] = figures;
        for (kind, ours) in KINDS[1..].iter().zip(proved) {
            rows.push(
                Row::new(format!("identity: {route} with a {kind}, p50"), Unit::Milliseconds)
                    .ours(ours)
                    .peer("without", nothing.clone())
                    .target(Target::AtMostOver { peer: "without", plus: PROOF_MS })
                    .bound("one question to the event log whether anything has happened since")
                    .note(format!("all kinds in turns, {} requests/s for {} s", load.rate, load.seconds)),
            );
        }
    }
    let median = |rounds: &[Vec<Duration>]| rounds.iter().map(|all| quantile(all, 500)).collect::<Vec<_>>();
    let (of_known, of_unknown) = (median(&known), median(&unknown));
    let apart = of_known.iter().zip(&of_unknown).map(|(known, unknown)| (known - unknown).abs()).collect();
    rows.push(
        Row::new("identity: p99 of a read while others sign in", Unit::Milliseconds)
            .ours(flooded)
            .peer("in quiet", quiet)
            .target(Target::AtMost { limit: READ_MS })
            .bound("processors: hashing takes its share of them")
            .note(format!("GET /stages, {}/s; {FLOOD} clients at once, each from an address of its own", READING.rate))
            .note(format!("passwords looked at, round by round: {flood:?}")),
    );
    rows.push(
        Row::new("identity: a wrong password and an unknown name, apart at the median", Unit::Milliseconds)
            .ours(apart)
            .peer("wrong password", of_known)
            .peer("unknown name", of_unknown)
            .target(Target::AtMost { limit: TELLING_MS })
            .bound("argon2id, 19 MiB and two passes, for both")
            .note(format!("in turns, {TRIES} of each a round; over all rounds: {}", spread(&known, &unknown))),
    );
    Ok(rows)
}

/// Medians and quartiles of both, over all rounds.
fn spread(known: &[Vec<Duration>], unknown: &[Vec<Duration>]) -> String {
    let [known, unknown] = [known, unknown].map(|rounds| {
        let all = rounds.concat();
        [250, 500, 750].map(|permille| quantile(&all, permille))
    });
    let show = |name: &str, [low, median, high]: [f64; 3]| format!("{name} {median:.2} ms ({low:.2} to {high:.2})");
    let apart = known[1] - unknown[1];
    format!("{}, {}, apart {apart:.3} ms", show("wrong password", known), show("unknown name", unknown))
}

/// A running `sluice api` that takes as many tries as anybody wants.
struct Sluice {
    base: String,
    http: Client,
    addresses: AtomicU32,
    _process: Child,
}

/// By kind: header and value, of all but the first.
type Credentials = [Option<(HeaderName, String)>; 4];

impl Sluice {
    async fn start(program: &Path, nats: &Nats, database: &str, data: &Path) -> Result<Sluice> {
        let listen = format!("127.0.0.1:{}", testkit::free_port());
        let mut process = parts::sluice(program, &["api"], nats, database, data)
            .env("API_LISTEN", &listen)
            .env("ADMIN_PASSWORD", PASSWORD)
            .env("LOGIN_MAX_FAILURES", "1000")
            .env("LOGIN_TRUSTED_PROXY_IPS", "127.0.0.1")
            .env("RATE_LIMIT_REQUESTS", "1000000")
            .env("RATE_LIMIT_WINDOW_SECONDS", "1")
            // Whoever is told to come again is a line each time.
            .env("LOG", "off")
            .spawn()
            .context("starting sluice api")?;
        let http = Client::builder().no_proxy().build()?;
        let base = format!("http://{listen}");
        let ready = async {
            while http.get(format!("{base}/api/v1/health")).send().await.is_err() {
                if let Some(status) = process.try_wait()? {
                    bail!("sluice api ended with {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        tokio::time::timeout(READY, ready).await.context("sluice api does not start")??;
        Ok(Sluice { base, http, addresses: AtomicU32::new(0), _process: process })
    }

    fn request(&self, method: Method, path: &str, proof: Option<&(HeaderName, String)>) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v1{path}", self.base));
        let request = request.header(CONTENT_TYPE, "application/json").header(ORIGIN, &self.base);
        match proof {
            Some((name, value)) => request.header(name, value),
            None => request,
        }
    }

    /// From this machine's own address.
    fn sign_in(&self, name: &str, password: &str) -> RequestBuilder {
        let body = json!({ "name": name, "password": password });
        self.request(Method::POST, "/auth/login", None).body(body.to_string())
    }

    /// From an address that nobody came from before.
    fn sign_in_from_anywhere(&self, password: &str) -> RequestBuilder {
        let address = Ipv4Addr::from(0x0a00_0000 | self.addresses.fetch_add(1, Ordering::Relaxed));
        self.sign_in("admin", password).header("x-forwarded-for", address.to_string())
    }

    /// One of each kind, made anew: an old cookie would be renewed with each answer.
    async fn credentials(&self) -> Result<Credentials> {
        let answer = self.sign_in("admin", PASSWORD).send().await?.error_for_status()?;
        let cookie = answer.headers().get(SET_COOKIE).context("a cookie")?.to_str()?;
        let cookie = (COOKIE, cookie.split(';').next().unwrap_or_default().to_owned());
        let mut tokens = vec![];
        for personal in [true, false] {
            let body = json!({ "name": "bench", "role": "viewer", "personal": personal });
            let made = self.request(Method::POST, "/tokens", Some(&cookie)).body(body.to_string()).send().await?;
            let made: Value = made.error_for_status()?.json().await?;
            tokens.push((AUTHORIZATION, format!("Bearer {}", made["token"].as_str().context("a token")?)));
        }
        let machine = tokens.pop();
        Ok([None, Some(cookie), tokens.pop(), machine])
    }
}

/// How long requests to a route take, by what they prove themselves with.
async fn prove(sluice: &Arc<Sluice>, credentials: &Arc<Credentials>, route: usize) -> Result<Vec<(usize, Duration)>> {
    paced(PROVING[route], |n| {
        let (sluice, credentials) = (sluice.clone(), credentials.clone());
        async move {
            let kind = TURNS[n % TURNS.len()];
            let proof = credentials[kind].as_ref();
            // No deployer and no watcher runs, which health says; and nobody can be set up without a token.
            let (request, expected) = match route {
                0 => (sluice.request(Method::GET, "/health", proof), StatusCode::SERVICE_UNAVAILABLE),
                _ => (sluice.request(Method::POST, "/auth/setup", proof), StatusCode::UNPROCESSABLE_ENTITY),
            };
            let begun = Instant::now();
            let answer = request.send().await?;
            let status = answer.status();
            answer.bytes().await?;
            let took = begun.elapsed();
            ensure!(status == expected, "{} with {}: {status}", ROUTES[route], KINDS[kind]);
            Ok((kind, took))
        }
    })
    .await
}

async fn read(sluice: &Arc<Sluice>, credentials: &Arc<Credentials>) -> Result<Vec<Duration>> {
    paced(READING, |_| {
        let (sluice, credentials) = (sluice.clone(), credentials.clone());
        async move {
            let begun = Instant::now();
            let answer = sluice.request(Method::GET, "/stages", credentials[3].as_ref()).send().await?;
            answer.error_for_status()?.bytes().await?;
            Ok(begun.elapsed())
        }
    })
    .await
}

/// The same while everybody signs in, every other one with a wrong password. With it how many passwords were looked at.
async fn during_flood(sluice: &Arc<Sluice>, credentials: &Arc<Credentials>) -> Result<(Vec<Duration>, usize)> {
    let looked_at = Arc::new(AtomicUsize::new(0));
    let mut flood = JoinSet::new();
    for n in 0..FLOOD {
        let (sluice, looked_at) = (sluice.clone(), looked_at.clone());
        flood.spawn(async move {
            let password = if n % 2 == 0 { PASSWORD } else { "wrong" };
            loop {
                match sluice.sign_in_from_anywhere(password).send().await?.status() {
                    StatusCode::OK | StatusCode::UNAUTHORIZED => {
                        looked_at.fetch_add(1, Ordering::Relaxed);
                    }
                    StatusCode::SERVICE_UNAVAILABLE => tokio::time::sleep(AGAIN).await,
                    other => bail!("a sign-in was answered {other}"),
                }
            }
        });
    }
    let samples = tokio::select! {
        samples = read(sluice, credentials) => samples?,
        // None of them ends by itself.
        Some(ended) = flood.join_next() => ended??,
    };
    flood.shutdown().await;
    Ok((samples, looked_at.load(Ordering::Relaxed)))
}

/// How long a wrong password takes, and an unknown name: in turns, and each as often first.
async fn tell_apart(sluice: &Sluice) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let refused = async |name: &str| -> Result<Duration> {
        let begun = Instant::now();
        let answer = sluice.sign_in(name, "wrong").send().await?;
        let status = answer.status();
        answer.bytes().await?;
        let took = begun.elapsed();
        ensure!(status == StatusCode::UNAUTHORIZED, "a sign-in of {name} was answered {status}");
        Ok(took)
    };
    let (mut known, mut unknown) = (vec![], vec![]);
    for n in 0..TRIES {
        if n.is_multiple_of(FORGET_EVERY) {
            sluice.sign_in("admin", PASSWORD).send().await?.error_for_status()?;
        }
        if n.is_multiple_of(2) {
            known.push(refused("admin").await?);
            unknown.push(refused("nobody").await?);
        } else {
            unknown.push(refused("nobody").await?);
            known.push(refused("admin").await?);
        }
    }
    sluice.sign_in("admin", PASSWORD).send().await?.error_for_status()?;
    Ok((known, unknown))
}
