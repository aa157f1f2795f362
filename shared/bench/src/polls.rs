//! How a registry with many repositories is polled when nothing changes there: a real registry behind a relay that
//! counts, `sluice watcher` as a process, and a node that answers without an engine. Each stage has requested its image
//! before, and nobody deploys anything.

mod relay;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use domain::{
    Key, Slug, Span,
    image::{Image, Reference, Source},
    node::{Resolve, ResolveError, Resolved, resolve_subject},
    policy::TagPolicy,
    project::{self, Declaration},
    push::{self, LOOKS, Poll},
    registry::{self, RegistrySettings},
    settings::StageSettings,
};
use eventlog::{Change, EventLog};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Nats, Registry};
use tokio::time::timeout;

use crate::{
    Bench, parts,
    row::{Row, Spread, Target, Unit},
};
use relay::{Asked, Relay};

const PROJECTS: usize = 50;
/// Each follows a repository of its own.
const STAGES: [&str; 4] = ["dev", "test", "staging", "prod"];
const REPOSITORIES: usize = PROJECTS * STAGES.len();
const TAG: &str = "main";
const NODE: &str = "local";
/// As often as can be declared.
const POLL: Span = Span::secs(1);
/// Polls of one round.
const EACH: usize = 4;
/// For the first requests of all stages, and for each poll after them.
const LIMIT: Duration = Duration::from_secs(120);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of an image that says nothing, and its digest, as the OCI image specification has them.
const EMPTY: &str = "{}";
const EMPTY_DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

type Changes = Pin<Box<dyn Stream<Item = Result<Change, eventlog::Error>> + Send>>;

/// The polls of one round.
#[derive(Default)]
struct Round {
    unconditional: usize,
    /// Answers other than "not modified".
    answered: usize,
    requests: usize,
    /// From the first question of a poll to the last answer, in milliseconds.
    took: Vec<f64>,
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Row>> {
    let registry = Registry::start().await?;
    fill(&registry).await?;
    bench.say(&format!("{REPOSITORIES} repositories are filled"));
    let nats = Nats::start().await?;
    let log = parts::event_log(&nats).await?;
    let relay = Relay::start(registry.address()).await?;
    declare(&log, relay.address()).await?;
    let data = TempDir::new().context("a data directory")?;
    eventlog::vault::create_key(&data.path().join("master.key")).context("a master key")?;
    let questions = log.serve(&resolve_subject(NODE)).await?;
    let mut watcher = parts::sluice(&bench.sluice, &["watcher"], &nats, "", data.path())
        .env("NODE", NODE)
        .spawn()
        .context("starting sluice watcher")?;
    let rounds = tokio::select! {
        measured = measure(bench, &log, &relay) => measured?,
        ended = node(questions) => return Err(ended.err().context("the node has ended")?),
        status = watcher.wait() => bail!("sluice watcher ended with {}", status?),
    };
    watcher.kill().await.context("ending sluice watcher")?;
    relay.stop().await;
    log.close().await;

    let count = |figure: fn(&Round) -> usize| rounds.iter().map(|round| figure(round) as f64).collect::<Vec<_>>();
    let median = |round: &Round| Spread::of(&round.took).map_or(f64::NAN, |spread| spread.median);
    let all: Vec<f64> = rounds.iter().flat_map(|round| round.took.iter().copied()).collect();
    let spread = Spread::of(&all).context("no polls")?;
    let row = |name: &str, unit| Row::new(format!("polls: {name}, {REPOSITORIES} repositories without a change"), unit);
    let per_poll = rounds.iter().map(|round| round.requests as f64 / EACH as f64).collect();
    Ok(vec![
        row("requests without a condition", Unit::Count)
            .ours(count(|round| round.unconditional))
            .target(Target::Zero)
            .note(format!("of all requests of {EACH} polls a round, counted in front of a real registry")),
        row("answers other than 304", Unit::Count).ours(count(|round| round.answered)).target(Target::Zero),
        row("requests of one poll", Unit::Count)
            .ours(per_poll)
            .target(Target::AtMost { limit: REPOSITORIES as f64 }),
        row("time of one poll", Unit::Milliseconds)
            .ours(rounds.iter().map(median).collect())
            .note(format!(
                "from the first request to the last answer, four requests at a time; the median of a round; of all {} polls {:.0} ms, {:.0} to {:.0}",
                all.len(), spread.median, spread.least, spread.most
            )),
    ])
}

/// A small image of its own under the tag in every repository.
async fn fill(registry: &Registry) -> Result<()> {
    let (http, base) = (reqwest::Client::builder().no_proxy().build()?, format!("http://{}/v2", registry.address()));
    let filling = stream::iter(0..REPOSITORIES).map(|number| {
        let (http, repository) = (&http, format!("{base}/r{number}"));
        async move {
            let begun = http.post(format!("{repository}/blobs/uploads/")).send().await?.error_for_status()?;
            let upload = begun.headers().get(LOCATION).context("an upload has an address")?.to_str()?;
            let separator = if upload.contains('?') { '&' } else { '?' };
            let upload = format!("{upload}{separator}digest={EMPTY_DIGEST}");
            http.put(upload).body(EMPTY).send().await?.error_for_status()?;
            let empty = |kind: &str| json!({ "mediaType": kind, "digest": EMPTY_DIGEST, "size": EMPTY.len() });
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": empty("application/vnd.oci.image.config.v1+json"),
                "layers": [empty("application/vnd.oci.image.layer.v1.tar")],
                "annotations": { "org.opencontainers.image.title": format!("number {number}") },
            });
            let put = http.put(format!("{repository}/manifests/{TAG}")).header(CONTENT_TYPE, MANIFEST);
            put.body(serde_json::to_vec(&manifest)?).send().await?.error_for_status()?;
            anyhow::Ok(())
        }
    });
    filling.buffer_unordered(4).try_collect().await.context("filling the registry")
}

async fn declare(log: &EventLog, host: &str) -> Result<()> {
    let context = runtime::clock::context("bench");
    let settings = RegistrySettings { poll: POLL, ..RegistrySettings::default() };
    let command = registry::Command::Configure { host: host.to_owned(), settings };
    log.execute(&Key::registry(host)?, command, &context).await?;
    for project in 0..PROJECTS {
        let slug: Slug = format!("p{project}").parse()?;
        let stages = STAGES.iter().enumerate().map(|(at, stage)| {
            let policy = TagPolicy { tag: Some(TAG.into()), ..TagPolicy::default() };
            let settings = StageSettings {
                image: Some(format!("{host}/r{}", project * STAGES.len() + at)),
                policy: Some(Box::new(policy)),
                ..StageSettings::default()
            };
            Ok((stage.parse()?, settings))
        });
        let declaration = Declaration { stages: stages.collect::<Result<_>>()?, ..Declaration::default() };
        let command = project::Command::Apply { slug: slug.clone(), declaration, prune: false };
        log.execute(&Key::project(&slug), command, &context).await?;
    }
    Ok(())
}

/// Answers as a deployer does whose engine finds every image: the watcher names the digest that the registry told it.
async fn node(questions: impl Stream<Item = eventlog::Request>) -> Result<()> {
    let mut questions = std::pin::pin!(questions);
    while let Some(request) = questions.next().await {
        let Resolve { reference: text } = serde_json::from_slice(&request.payload).context("reading a question")?;
        let answer: Resolved = match Reference::parse(&text)?.digest {
            Some(digest) => Ok(Image { requested: text, digest, source: Source::Registry }),
            None => Err(ResolveError { code: "image_not_found".into(), message: text, hint: String::new() }),
        };
        request.reply(serde_json::to_vec(&answer)?).await?;
    }
    bail!("the log was closed")
}

async fn measure(bench: &Bench, log: &EventLog, relay: &Relay) -> Result<Vec<Round>> {
    let mut requests = Box::pin(log.follow("sluice.events.stage.*.*.deployment.requested", 0)).take(REPOSITORIES);
    let all = async {
        while let Some(requested) = requests.next().await {
            requested?;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, all).await.context("not every stage requests its image")??;
    bench.say(&format!("{REPOSITORIES} stages have requested their images"));
    let before = log.last_sequence().await?;
    let key = push::registry_key(&Key::registry(relay.address())?);
    let mut changes: Changes = Box::pin(log.bucket(LOOKS).watch());
    while !matches!(changes.next().await.context("the log was closed")??, Change::Ready) {}
    // The one in which they were requested may have just begun.
    for _ in 0..2 {
        polled(&mut changes, &key).await?;
    }
    // Whoever has never asked has nothing to compare: what counts must have seen that.
    let first = relay.asked().iter().filter(|one| !one.conditional).count();
    ensure!(first >= REPOSITORIES, "{first} of the first requests had no condition: they do not go through the relay");
    let mut rounds = Vec::new();
    for number in 1..=bench.rounds {
        let mut round = Round::default();
        for _ in 0..EACH {
            polled(&mut changes, &key).await?;
            round.count(&relay.asked())?;
        }
        let Round { requests, unconditional, took, .. } = &round;
        bench.say(&format!("round {number}: {requests} requests, {unconditional} without a condition, {took:.0?} ms"));
        rounds.push(round);
    }
    let after = log.last_sequence().await?;
    ensure!(after == before, "{} events were written while nothing changed", after - before);
    Ok(rounds)
}

/// Waits until a poll has ended. The next one begins nine tenths of [`POLL`] later, or still later.
async fn polled(changes: &mut Changes, key: &str) -> Result<()> {
    let end = async {
        loop {
            match changes.next().await.context("the log was closed")?? {
                Change::Put { key: changed, value, .. } if changed == key => return Ok(value),
                _ => {}
            }
        }
    };
    let value = timeout(LIMIT, end).await.context("the registry is not polled").flatten()?;
    let Poll { repositories, problem, .. } = serde_json::from_slice(&value).context("reading what a poll found")?;
    ensure!(problem.is_none(), "a poll failed: {problem:?}");
    ensure!(repositories == REPOSITORIES, "{repositories} repositories were polled");
    Ok(())
}

impl Round {
    /// Adds a poll.
    fn count(&mut self, asked: &[Asked]) -> Result<()> {
        ensure!(asked.len() >= REPOSITORIES, "a poll of {REPOSITORIES} repositories made {} requests", asked.len());
        let first: Option<Instant> = asked.iter().map(|one| one.came).min();
        let last = asked.iter().map(|one| one.answered).max();
        let took = last.zip(first).context("nothing was asked")?;
        self.took.push((took.0 - took.1).as_secs_f64() * 1000.0);
        self.requests += asked.len();
        self.unconditional += asked.iter().filter(|one| !one.conditional).count();
        self.answered += asked.iter().filter(|one| one.status != StatusCode::NOT_MODIFIED).count();
        Ok(())
    }
}
