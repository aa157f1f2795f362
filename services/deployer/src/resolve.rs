//! Answers to questions about the node: what bytes a reference means, whether Docker is well, and what proxies hold.

use std::{sync::Arc, time::Duration};

use bollard::auth::DockerCredentials;
use domain::{
    Key,
    image::{Image, Reference, Source},
    node::{self, NodeHealth, ProxyCompared, ProxyQuestion, Resolve, ResolveError, Resolved},
    registry::Registry,
};
use eventlog::{EventLog, Request};
use futures::StreamExt;

use crate::{
    Node,
    docker::{EngineError, LocalImage, Version},
    failure::{self, Problem, StepError},
};

/// References that are resolved at the same time, and questions of health that are; further ones wait.
const AT_ONCE: usize = 16;
/// Who asks waits half a minute.
const ANSWER: Duration = Duration::from_secs(25);
/// Who asks for a comparison waits a minute.
const COMPARED: Duration = Duration::from_secs(55);

pub(crate) async fn serve(node: Arc<Node>) -> anyhow::Result<()> {
    let resolve = node.log.serve(&node::resolve_subject(&node.name)).await?;
    let health = node.log.serve(&node::health_subject(&node.name)).await?;
    let proxy = node.log.serve(&node::proxy_subject(&node.name)).await?;
    // Apart from each other: a registry that hangs must not make the node look ill.
    let resolving = resolve.for_each_concurrent(AT_ONCE, |request| {
        let node = node.clone();
        async move {
            let answer = answer(&node, &request.payload).await;
            reply(request, serde_json::to_vec(&answer)).await;
        }
    });
    let looking = health.for_each_concurrent(AT_ONCE, |request| {
        let node = node.clone();
        async move { reply(request, serde_json::to_vec(&well(&node).await)).await }
    });
    let comparing = proxy.for_each_concurrent(AT_ONCE, |request| {
        let node = node.clone();
        async move {
            let compared = compare(&node, &request.payload).await;
            reply(request, serde_json::to_vec(&compared)).await;
        }
    });
    tokio::join!(resolving, looking, comparing);
    Ok(())
}

pub(crate) async fn reply(request: Request, answer: serde_json::Result<Vec<u8>>) {
    // Texts always become JSON; who asked may have gone.
    if let Err(error) = request.reply(answer.unwrap_or_default()).await {
        tracing::debug!(%error, "a question about the node was not answered");
    }
}

async fn well(node: &Node) -> NodeHealth {
    match node.engine.version().await {
        Ok(version) => NodeHealth { docker: Some(version.version), error: None },
        Err(error) => NodeHealth { docker: None, error: Some(failure::chain(&error)) },
    }
}

async fn answer(node: &Node, question: &[u8]) -> Resolved {
    let asked: Resolve = serde_json::from_slice(question)
        .map_err(|error| Problem::new("bad_request", error.to_string(), "ask with {\"reference\": \"repository:tag\"}"))
        .map_err(said)?;
    let resolved = tokio::time::timeout(ANSWER, resolve(node, &asked.reference)).await;
    let late = || {
        let message = format!("{} could not be looked up within {}s", asked.reference, ANSWER.as_secs());
        Problem::new("engine_unavailable", message, "look at the node's load (`docker info`), then try again")
    };
    resolved.unwrap_or_else(|_| Err(late().into())).map_err(answered)
}

async fn compare(node: &Node, question: &[u8]) -> ProxyCompared {
    let asked: ProxyQuestion = serde_json::from_slice(question)
        .map_err(|error| Problem::new("bad_request", error.to_string(), "ask with {\"proxy\": \"front\"}"))
        .map_err(said)?;
    let compared = tokio::time::timeout(COMPARED, node.proxies.drift(&asked.proxy, asked.repair)).await;
    let late = || {
        let message = format!("the proxy {} could not be compared within {}s", asked.proxy, COMPARED.as_secs());
        Problem::new("proxy_unreachable", message, "see that the proxy's admin API answers, then try again")
    };
    compared.unwrap_or_else(|_| Err(late().into())).map_err(answered)
}

fn answered(error: StepError) -> ResolveError {
    match error {
        StepError::Failed(problem) | StepError::Transient(problem) => said(problem),
        StepError::Fenced => said(Problem::new("internal", "fenced", "try again")),
    }
}

pub(crate) fn said(Problem { code, message, hint, log: _ }: Problem) -> ResolveError {
    ResolveError { code: code.into(), message, hint }
}

/// The bytes that `text` means now.
///
/// A registry is believed before the engine, whose tags may be old. Only what no registry gives is
/// looked for among the engine's own images: those that were built there.
async fn resolve(node: &Node, text: &str) -> Result<Image, StepError> {
    let reference = Reference::parse(text)
        .map_err(|error| Problem::new("bad_reference", error.to_string(), "give a repository and a tag or digest"))?;
    let version = node.engine.platform().await?;
    let local = node.engine.image(text).await?;
    if let Some(local) = &local {
        if !runs_on(&local.os, &local.arch, &version) && reference.digest.is_some() {
            return Err(wrong_platform(text, &[format!("{}/{}", local.os, local.arch)], &version).into());
        }
        if let Some(digest) = &reference.digest {
            // These very bytes are here: nobody has to be asked.
            return Ok(Image { requested: text.into(), digest: digest.clone(), source: Source::Registry });
        }
    }
    let registry = reference.registry();
    let named = reference.repository.starts_with(&format!("{registry}/"));
    // Built here under a name without registry: no registry can mean the same.
    let built_here = local.as_ref().is_some_and(|image| image.digests == 0) && !named;
    let refused = if built_here {
        None
    } else {
        let credentials = credentials(&node.log, registry).await?;
        match node.engine.distribution(text, credentials).await {
            Ok(found) => {
                let platforms: Vec<String> = found
                    .platforms
                    .iter()
                    .filter_map(|p| Some((p.os.as_deref()?, p.architecture.as_deref()?)))
                    .filter(|(os, arch)| !os.is_empty() && !arch.is_empty() && *os != "unknown")
                    .map(|(os, arch)| format!("{os}/{arch}"))
                    .collect();
                let fits = |p: &String| p.split_once('/').is_some_and(|(os, arch)| runs_on(os, arch, &version));
                if !platforms.is_empty() && !platforms.iter().any(fits) {
                    return Err(wrong_platform(text, &platforms, &version).into());
                }
                let nothing = || {
                    Problem::new(
                        "registry_error",
                        format!("{registry} gave no digest for {text}"),
                        "push the image again",
                    )
                };
                let digest = found.descriptor.digest.ok_or_else(nothing)?;
                return Ok(Image { requested: text.into(), digest, source: Source::Registry });
            }
            Err(EngineError::Deadline { limit, .. }) => {
                // Either the engine hangs, or it does not and the registry does.
                node.engine.version().await?;
                Some(failure::registry_silent(text, registry, limit))
            }
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => Some(failure::registry(&error, text, registry)),
        }
    };
    match (local, refused) {
        (Some(local), refused) if refused.as_ref().is_none_or(|refused| may_be_local(refused.code, &local, named)) => {
            if !runs_on(&local.os, &local.arch, &version) {
                return Err(wrong_platform(text, &[format!("{}/{}", local.os, local.arch)], &version).into());
            }
            Ok(Image { requested: text.into(), digest: local.id, source: Source::Local })
        }
        (Some(_) | None, Some(refused)) => Err(refused.into()),
        // Nobody refuses without having been asked, and nobody is asked only where it is local.
        (Some(_) | None, None) => {
            Err(Problem::new("image_not_found", format!("no image {text}"), "push it first").into())
        }
    }
}

/// Whether the engine's own image may stand in for what the registry did not give. Where the reference
/// names its registry, only for one that this registry does not have: it might have a newer one.
fn may_be_local(refused: &str, local: &LocalImage, named: bool) -> bool {
    !named || refused == "image_not_found" || (refused == "registry_unauthorized" && local.digests == 0)
}

/// What is stored for a registry; none where nothing is.
pub(crate) async fn credentials(log: &EventLog, registry: &str) -> Result<Option<DockerCredentials>, StepError> {
    let key = Key::<Registry>::registry(registry)
        .map_err(|error| Problem::new("bad_reference", error.to_string(), "name the registry as host[:port]"))?;
    let Some(known) = log.load(&key).await?.state.credentials else { return Ok(None) };
    let secret = log.vault().get(&known.secret).await?;
    let password = secret.and_then(|secret| String::from_utf8(secret.expose().to_vec()).ok()).ok_or_else(|| {
        Problem::new(
            "credentials_missing",
            format!("the password for {registry} is not in the vault"),
            format!("store the credentials again: `sluice registry login {registry} --username NAME`"),
        )
    })?;
    let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    Ok(Some(DockerCredentials {
        username: Some(known.username),
        password: Some(password),
        serveraddress: Some(server.into()),
        ..DockerCredentials::default()
    }))
}

/// An image that does not say what it is for is taken to fit.
pub(crate) fn runs_on(os: &str, arch: &str, engine: &Version) -> bool {
    let same_os = os.is_empty() || engine.os.is_empty() || os == engine.os;
    let same_arch = arch.is_empty() || engine.arch.is_empty() || arch == engine.arch;
    same_os && (same_arch || (arch == "386" && engine.arch == "amd64"))
}

pub(crate) fn wrong_platform(reference: &str, platforms: &[String], engine: &Version) -> Problem {
    let (os, arch) = (&engine.os, &engine.arch);
    Problem::new(
        "wrong_platform",
        format!("{reference} is built for {}, and this node is {os}/{arch}", platforms.join(", ")),
        format!("build the image for the node (`docker buildx build --platform {os}/{arch}`) and push it again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_runs_where_it_was_built_for() {
        let engine = Version { version: "20.10".into(), os: "linux".into(), arch: "amd64".into() };
        assert!(runs_on("linux", "amd64", &engine) && runs_on("linux", "386", &engine) && runs_on("", "", &engine));
        assert!(!runs_on("linux", "arm64", &engine) && !runs_on("windows", "amd64", &engine));
        let problem = wrong_platform("shop:v1", &["linux/arm64".into()], &engine);
        assert!(problem.message.contains("linux/arm64") && problem.hint.contains("linux/amd64"), "{problem:?}");
    }

    #[test]
    fn a_registry_that_cannot_be_reached_is_not_replaced_by_an_old_local_tag() {
        let built = LocalImage::default();
        let pulled = LocalImage { digests: 1, ..LocalImage::default() };
        assert!(may_be_local("image_not_found", &pulled, true));
        assert!(!may_be_local("registry_unreachable", &built, true));
        assert!(may_be_local("registry_unreachable", &pulled, false));
        assert!(may_be_local("registry_unauthorized", &built, true));
        assert!(!may_be_local("registry_unauthorized", &pulled, true), "wrong credentials are not to be papered over");
    }
}
